"""The GPU executor over a stand-in for the driver: failures, closing, many threads."""

from __future__ import annotations

import pytest

from tkfnet_engine.backends import cuda_driver

from .fake_cuda import freed, runs

# --- failures while running ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [700, 710, 715, 719])
def test_after_an_error_that_sticks_nothing_more_is_tried(code, gpu):
    log = gpu(
        """
runner, other = opened(), opened()
runner.run(faces(1))
first = refused(lambda: runner.run(faces(2)), BackendError, "start a new process", "unusable")
for call in (lambda: runner.run(faces(1)), lambda: other.run(faces(1)), opened, lambda: runner.run_device(faces(1))):
    assert refused(call, BackendError) == first
runner.close()
other.close()
refused(lambda: runner.run(faces(1)), BackendError, "closed")
""",
        fail=f"cuMemcpyDtoHAsync:2:{code}",
    )
    assert not [entry for entry in log if "after" in entry]
    # One more than the runs before it: the copy that failed stands behind the second.
    assert sum("copy" in entry and entry["pinned"] for entry in log) == 3


def test_a_kernel_that_leaves_its_memory_poisons_the_context(gpu):
    gpu("""
from dataclasses import replace
small = plan(4)
wide = replace(small, launches=(*small.launches[:2], launch(
    "classify_kernel", 4, {"x_ptr": 12345, "logits_ptr": small.launches[2].args[1][1], "images": 4, "classes": 7},
    {"PDL": True}, 1)))
runner = opened(tensors([wide]))
refused(lambda: runner.run(faces(4)), BackendError, "ILLEGAL_ADDRESS", "start a new process")
""")


@pytest.mark.parametrize(
    "fail",
    [
        "cuLaunchKernelEx:2:1",
        "cuStreamBeginCapture:1:1",
        "cuGraphInstantiate:1:2",
        "cuGraphLaunch:1:999",
        "cuMemcpyHtoDAsync:2:1",
        "cuModuleGetFunction:2:500",
        "cuGraphExecKernelNodeSetParams:2:1",
        "cuMemHostAlloc:1:2",
        "cuStreamSynchronize:3:999",
    ],
)
def test_after_an_error_that_passes_the_next_call_is_right(fail, gpu):
    log = gpu(
        """
runner = opened()
refused(lambda: runner.run(faces(3)), BackendError)
for count in (3, 4, 1):
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
runner.close()
""",
        fail=fail,
    )
    assert freed(log) == [[0] * 7]


@pytest.mark.parametrize("fail", ["cuMemcpyDtoHAsync:1:1", "cuEventRecord:1:1"])
def test_a_failure_halfway_leaves_nothing_running(fail, gpu):
    """The kernels queued before the failure have run when the error comes: the next caller gets the same buffers."""
    log = gpu(
        """
runner = opened()
on_host = "DtoH" in os.environ["FAKE_CUDA_FAIL"]
refused(lambda: runner.run(faces(2)) if on_host else runner.run_device(OnGpu(faces(2))), BackendError)
""",
        fail=fail,
    )
    assert len(runs(log)) == 3


def test_the_errors_that_end_a_process_are_known():
    driver = pytest.importorskip("cuda.bindings.driver")
    ends = {int(code) for code in driver.CUresult if "relaunched" in " ".join((code.__doc__ or "").split())}
    assert ends <= cuda_driver._STICKY and len(ends) >= 10


def test_a_fork_is_refused(gpu):
    gpu("""
runner = opened()
if not (pid := os.fork()):
    refused(lambda: runner.run(faces(1)), BackendError, "before a fork", "'spawn'")
    runner.close()
    os._exit(7)
assert os.waitpid(pid, 0)[1] >> 8 == 7
assert np.array_equal(runner.run(faces(1)), answers(faces(1)))
""")


# --- closing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["runner.close(); runner.close()", "del runner"])
def test_closing_frees_everything(end, gpu):
    log = gpu(f"""
runner = opened(tensors(golden=2))
x, handle = OnGpu(faces(2)), stream()
runner.run(faces(3))
runner.run_device(x, stream=handle)
{end}
with current():
    driver.cuMemFree(x.address)
    driver.cuStreamDestroy(handle)
for _ in range(100):
    driver.cuDevicePrimaryCtxRelease(0)
""")
    assert freed(log)[0] == [0] * 7


def test_a_closed_runner_says_so_and_an_answer_outlives_it(gpu):
    gpu("""
from tkfnet_engine.backends.registry import CLOSED
runner, x = opened(), OnGpu(faces(2))
answer = runner.run_device(x)
runner.close()
assert refused(lambda: runner.run(faces(1)), BackendError) == CLOSED
assert refused(lambda: runner.run_device(x), BackendError) == CLOSED
assert np.array_equal(at(answer), answers(faces(2)))
""")


# --- many threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["for all", "for one session"])
def test_many_threads_share_a_few_sessions(memory, gpu):
    log = gpu(
        """
from concurrent.futures import ThreadPoolExecutor
runner = opened(tensors(golden=2))
def work(seed):
    images = faces(seed % 4 + 1, seed)
    return np.array_equal(runner.run(images), answers(images))
with ThreadPoolExecutor(32) as threads:
    assert all(threads.map(work, range(200)))
runner.close()
""",
        sleep=500,
        free=2**34 if memory == "for all" else 40_000,
    )
    (released,) = (entry for entry in log if "released" in entry)
    # The upload of the weights has a stream of its own.
    assert released["streams_made"] == 1 + (4 if memory == "for all" else 1)
    assert released["left"] == [0] * 7
    assert len({e["stream"] for e in runs(log)}) == released["streams_made"] - 1


def test_closing_waits_for_running_calls_and_refuses_waiting_ones(gpu):
    log = gpu(
        """
import threading, time
runner, outcomes = opened(), []
def work():
    try:
        outcomes.append(np.array_equal(runner.run(faces(2)), answers(faces(2))))
    except BackendError as error:
        outcomes.append(str(error))
threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
time.sleep(0.05)
runner.close()
for thread in threads:
    thread.join(30)
from tkfnet_engine.backends.registry import CLOSED
assert set(outcomes) == {True, CLOSED} and len(outcomes) == 12, outcomes
""",
        sleep=100_000,
    )
    assert freed(log) == [[0] * 7]
