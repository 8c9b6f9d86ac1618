"""TensorRT over stand-ins: contexts, padding, graphs, callers' streams and arrays, failures, closing."""

from __future__ import annotations

import json

import pytest

from .fake_cuda import SIZE, freed, runs

IMAGE_BYTES = SIZE * SIZE * 3


def counts(log: list[dict]) -> list[int]:
    """The batch of each run."""
    return [entry["args"][3] for entry in runs(log, "pack_pixels_kernel")]


def since_mark(log: list[dict]) -> list[dict]:
    return log[next(i for i, entry in enumerate(log) if "mark" in entry) :]


# --- contexts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profiles", [1, 3])
def test_as_many_requests_run_at_once_as_there_are_profiles(profiles, trt):
    log = trt(
        f"""
from concurrent.futures import ThreadPoolExecutor
runner = trt_opened(FOUR * {profiles})
def work(seed):
    images = faces(seed % 4 + 1, seed)
    return np.array_equal(runner.run(images), answers(images))
with ThreadPoolExecutor(16) as threads:
    assert all(threads.map(work, range(100)))
runner.close()
""",
        sleep=500,
    )
    assert len({entry["stream"] for entry in runs(log)}) == profiles
    assert freed(log) == [[0] * 7]
    # Work of one profile's contexts stays in one session's memory.
    used = {entry["profile"] for entry in log if "profile" in entry}
    assert used == (set() if profiles == 1 else set(range(profiles)))


def test_a_static_plan_has_a_few_contexts_and_no_profile_to_choose(trt):
    log = trt(
        """
from concurrent.futures import ThreadPoolExecutor
runner = trt_opened([(4, 4, 4)])
with ThreadPoolExecutor(16) as threads:
    done = threads.map(lambda seed: np.array_equal(runner.run(faces(4, seed)), answers(faces(4, seed))), range(60))
    assert all(done)
runner.close()
""",
        sleep=500,
    )
    assert len({entry["stream"] for entry in runs(log)}) == 4
    assert not [entry for entry in log if "profile" in entry] and freed(log) == [[0] * 7]


def test_each_context_has_the_profile_of_its_session(trt):
    log = trt("""
runner, one, two = trt_opened(FOUR * 2), stream(), stream()
x = OnGpu(faces(2))
for handle in (one, two, one, two):
    answer = runner.run_device(x, stream=handle)
    assert answer.stream == handle
synchronise(one), synchronise(two)
""")
    chosen = {}
    for entry in (entry for entry in log if "profile" in entry):
        assert chosen.setdefault(entry["context"], entry["profile"]) == entry["profile"]
    assert sorted(set(chosen.values())) == [0, 1]
    scratch = {}
    for entry in runs(log, "pack_pixels_kernel")[-4:]:
        scratch.setdefault(entry["stream"], set()).add(entry["args"][1])
    assert [len(used) for used in scratch.values()] == [1, 1] and len(set.union(*scratch.values())) == 2


def test_where_memory_holds_one_session_only_there_is_one(trt):
    trt(
        """
runner, handles = trt_opened(FOUR * 3), [stream() for _ in range(3)]
x = OnGpu(faces(2))
kept = [runner.run_device(x, stream=handle) for handle in handles]
for handle, answer in zip(handles, kept):
    synchronise(handle)
    assert np.array_equal(at(answer), answers(faces(2)))
assert len(runner._runner._resources.pool._all) == 1
""",
        free=40_000,
    )


# --- host memory -----------------------------------------------------------------------------------------


def test_fewer_images_than_the_plan_takes_are_padded_with_nothing(trt):
    log = trt("""
runner = trt_opened([(3, 4, 6)])
for count in (6, 1, 3, 2):
    assert np.array_equal(runner.run(faces(count, count)), answers(faces(count, count))), count
pixels = runner._runner._resources.pool._all[0]._staging
assert not pixels[2 * SIZE * SIZE * 3 : 3 * SIZE * SIZE * 3].any()
refused(lambda: runner.run(faces(7)), BackendError, "got 7 images", "1 to 6", "--max-batch")
x = OnGpu(faces(2))
refused(lambda: runner.run_device(x), BackendError, "got 2 images", "3 to 6", "--min-batch")
""")
    assert counts(log) == [5, 6, 3, 3, 3]
    copies = [entry["copy"] for entry in log if "copy" in entry]
    # In: the whole batch. Out: what was asked for.
    sizes = ((5, 5), (6, 6), (1, 3), (3, 3), (2, 3))
    assert copies == [n for given, batch in sizes for n in (batch * IMAGE_BYTES, given * 28)]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_batch_is_captured_once_after_it_has_run(backend, trt):
    log = trt(f"""
install({backend!r})
runner = trt_opened(backend={backend!r})
for count in (2, 2, 3, 2, 3, 3):
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
    # What comes between two replays must not disturb them.
    answer = runner.run_device(OnGpu(faces(4)))
    synchronise(1)
    assert np.array_equal(at(answer), answers(faces(4)))
runner.close()
""")
    assert [entry["nodes"] for entry in log if "instantiated" in entry] == [3] * 4
    # Those of the check: 4 and 1.
    own = [entry for entry in runs(log, "conv_kernel") if entry["stream"] != 1][2:]
    assert [entry["args"][4] for entry in own] == [2, 2, 3, 2, 3, 3]
    graphs = [entry["exec"] for entry in own]
    assert graphs[1] == graphs[3] and graphs[4] == graphs[5] and graphs[1] != graphs[4]
    assert not [entry["nodes"] for entry in log if "set" in entry]


def test_the_graph_unused_for_longest_goes(trt):
    log = trt("""
from tkfnet_engine.backends import trt_session
trt_session.MAX_GRAPHS = 2
runner = trt_opened()
session = runner._runner._resources.pool._all[0]
assert list(session._graphs) == [4, 1]
for count, left in ((4, [1, 4]), (2, [4, 2]), (4, [2, 4]), (3, [4, 3]), (4, [3, 4])):
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
    assert list(session._graphs) == left
contexts = runner._runner._resources.engine._engine.contexts
assert contexts == 1 + 4, "one for any batch, and one for each that was new"
del session
runner.close()
""")
    assert sum("instantiated" in entry for entry in log) == 4
    assert freed(log) == [[0] * 7]


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ("capturable=False", "TensorRT says that this engine cannot be captured"),
        ("no_capture=True", "not permitted when stream is capturing"),
        ("contexts=1", "memory"),
    ],
)
def test_what_cannot_be_captured_runs_without_and_says_so(cause, says, trt):
    log = trt(f"""
import warnings
install({cause})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    runner = trt_opened()
    for count in (2, 2, 3, 4):
        assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
assert len(caught) == 1 and caught[0].category is RuntimeWarning and {says!r} in str(caught[0].message), caught
runner.close()
""")
    assert not [entry for entry in log if "instantiated" in entry] and freed(log) == [[0] * 7]


# --- device memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["cuda array interface", "dlpack"])
def test_arrays_on_the_gpu_are_used_where_they_stand(protocol, trt, tmp_path):
    log = trt(f"""
runner, handle = trt_opened(), stream()
x, y = OnGpu(faces(3)), OnGpu(np.zeros((3, CLASSES), np.float32))
shown = (lambda a: a) if {protocol == "cuda array interface"} else ByDlpack
given, target = shown(x), shown(y)
note(mark=True)
assert runner.run_device(given, target, handle) is target
assert not y.numpy().any(), "it should return before the GPU has done it"
synchronise(handle)
assert np.array_equal(y.numpy(), answers(faces(3)))
open("addresses", "w").write(f"[{{x.address}}, {{y.address}}, {{handle}}]")
""")
    log = since_mark(log)
    pixels, logits, handle = json.loads((tmp_path / "addresses").read_text())
    pack, _, classify = runs(log)
    assert (pack["args"][0], classify["args"][1], pack["stream"]) == (pixels, logits, handle)
    assert not [entry for entry in log if "copy" in entry]


@pytest.mark.parametrize("then", ["another stream", "the host"])
def test_a_session_waits_for_the_caller_that_used_it_before(then, trt):
    trt(f"""
runner, one, two = trt_opened(), stream(), stream()
first = runner.run_device(OnGpu(faces(2, seed=1)), stream=one)
if {then == "the host"}:
    assert np.array_equal(runner.run(faces(2)), answers(faces(2)))
else:
    second = runner.run_device(OnGpu(faces(2, seed=2)), stream=two)
    synchronise(two)
    assert np.array_equal(at(second), answers(faces(2, seed=2)))
# Nobody has waited for the first stream itself.
assert np.array_equal(at(first), answers(faces(2, seed=1)))
""")


def test_what_does_not_fit_is_refused_before_a_launch(trt):
    log = trt(
        """
class Stream:  # as PyCUDA's
    handle = stream()
runner, x, y = trt_opened(), OnGpu(faces(2)), OnGpu(np.zeros((2, CLASSES), np.float32))
note(mark=True)
refused(lambda: runner.run_device(faces(2)), BackendError, "host memory")
refused(lambda: runner.run_device(x.but(shape=(2, SIZE, 3, SIZE))), ImageError, f"[2, {SIZE}, 3, {SIZE}]")
refused(lambda: runner.run_device(x.but(shape=(5, SIZE, SIZE, 3))), BackendError, "5 images", "1 to 4")
refused(lambda: runner.run_device(OnGpu(faces(2), offset=16)), BackendError, "pixels", "no multiple of 256 bytes")
refused(lambda: runner.run_device(x, y.but(data=(y.address, True))), UsageError, "read-only")
off = OnGpu(np.zeros((2, CLASSES), np.float32), offset=16)
refused(lambda: runner.run_device(x, off), BackendError, "logits", "no multiple of 256")
refused(lambda: runner.run_device(x, y, "1"), UsageError, "stream: got str")
with current():
    driver.cuStreamBeginCapture(Stream.handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
refused(lambda: runner.run_device(x, y, Stream()), BackendError, "being captured")
with current():
    driver.cuStreamEndCapture(Stream.handle)
os.environ["FAKE_CUDA_CONTEXT"] = "7"
refused(lambda: runner.run_device(x, y), BackendError, "another CUDA context", "pycuda.autoprimaryctx")
os.environ["FAKE_CUDA_CONTEXT"] = "0"  # of a pool: of no context
runner.run_device(x, y, Stream())
synchronise(Stream.handle)
assert np.array_equal(y.numpy(), answers(faces(2)))
"""
    )
    log = since_mark(log)
    assert len(runs(log)) == 3


# --- failures and closing --------------------------------------------------------------------------------


def test_after_an_error_that_sticks_nothing_more_is_tried(trt):
    log = trt(
        """
runner, other = trt_opened(), trt_opened()
first = refused(lambda: runner.run(faces(2)), BackendError, "start a new process", "unusable")
for call in (lambda: runner.run(faces(1)), lambda: other.run(faces(1)), trt_opened, lambda: other.run_device(faces(1))):
    assert refused(call, BackendError) == first
runner.close()
other.close()
refused(lambda: runner.run(faces(1)), BackendError, "closed")
""",
        fail="cuMemcpyDtoHAsync:5:719",
    )
    assert not [entry for entry in log if "after" in entry]


def test_an_error_that_sticks_comes_in_the_drivers_words_where_tensorrt_meets_it(trt):
    trt(
        """
runner = trt_opened()
refused(lambda: runner.run(faces(2)), BackendError, "ILLEGAL_ADDRESS", "start a new process")
refused(lambda: runner.run_device(faces(2)), BackendError, "ILLEGAL_ADDRESS", "start a new process")
""",
        # After 2 runs of the check, and a capture of each: the first kernel of the next.
        fail="cuLaunchKernelEx:13:700",
    )


@pytest.mark.parametrize(
    "fail",
    [
        "cuLaunchKernelEx:14:1",
        "cuGraphLaunch:1:999",
        "cuMemcpyHtoDAsync:3:1",
        "cuMemcpyDtoHAsync:3:1",
        "cuStreamSynchronize:4:999",
    ],
)
def test_after_an_error_that_passes_the_next_call_is_right(fail, trt):
    log = trt(
        """
runner = trt_opened()
count = 4 if "GraphLaunch" in os.environ["FAKE_CUDA_FAIL"] else 3
refused(lambda: runner.run(faces(count)), BackendError)
for count in (3, 4, 1, 3):
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
runner.close()
""",
        fail=fail,
    )
    assert freed(log) == [[0] * 7]


@pytest.mark.parametrize("fail", ["cuMemcpyDtoHAsync:3:1", "cuEventRecord:1:1"])
def test_a_failure_halfway_leaves_nothing_running(fail, trt):
    """The kernels queued before the failure have run when the error comes: the next caller gets the same buffers."""
    log = trt(
        """
runner, x = trt_opened(), OnGpu(faces(2))
note(before=True)
try:
    runner.run(faces(2)) if "DtoH" in os.environ["FAKE_CUDA_FAIL"] else runner.run_device(x)
except BackendError as error:
    note(mark=str(error))  # before what the error holds is freed, which would wait as well
""",
        fail=fail,
    )
    between = log[next(i for i, entry in enumerate(log) if "before" in entry) : -len(since_mark(log))]
    assert len(runs(between)) == 3


@pytest.mark.parametrize(
    ("fail", "word"),
    [
        ("cuMemAlloc:2:2", "not enough GPU memory: one request's buffers"),
        ("cuStreamCreate:1:999", "OTHER"),
        ("cuEventCreate:1:999", "OTHER"),
        ("cuMemHostAlloc:1:2", "page-locked"),
    ],
)
def test_a_failure_while_opening_leaves_nothing_behind(fail, word, trt):
    log = trt(f"refused(trt_opened, BackendError, {word!r})", fail=fail)
    assert freed(log) == [[0] * 7]


@pytest.mark.parametrize(
    ("backend", "end"), [("tensorrt", "runner.close(); runner.close()"), ("tensorrt-rtx", "del runner")]
)
def test_closing_frees_everything(backend, end, trt):
    log = trt(f"""
install({backend!r})
runner = trt_opened(FOUR * 2, {backend!r})
x, handle = OnGpu(faces(2)), stream()
runner.run(faces(3))
answer = runner.run_device(x, stream=handle)
{end}
assert np.array_equal(at(answer), answers(faces(2))), "closing waits for what is queued"
del answer
with current():
    driver.cuMemFree(x.address)
    driver.cuStreamDestroy(handle)
for _ in range(100):
    driver.cuDevicePrimaryCtxRelease(0)
""")
    assert freed(log)[0] == [0] * 7
    assert not [entry for entry in log if "busy" in entry]


def test_a_fork_is_refused(trt):
    trt("""
runner = trt_opened()
if not (pid := os.fork()):
    refused(lambda: runner.run(faces(1)), BackendError, "before a fork", "'spawn'")
    runner.close()
    os._exit(7)
assert os.waitpid(pid, 0)[1] >> 8 == 7
assert np.array_equal(runner.run(faces(1)), answers(faces(1)))
""")
