"""TensorRT over PyCUDA, where cuda-bindings is not installed: a stand-in for PyCUDA over the stand-in driver."""

from __future__ import annotations

import pytest

from .fake_cuda import freed, runs

PRELUDE = "import fake_pycuda\nfake_pycuda.install()\n"


@pytest.fixture
def pycuda(trt):
    return lambda code, **settings: trt(PRELUDE + code, **settings)


def test_it_runs_without_graphs_and_frees_everything(pycuda):
    log = pycuda("""
runner = trt_opened(FOUR * 2)
assert type(runner._runner._resources.gpu).__name__ == "PyCudaGpu"
for count in (1, 2, 4, 2, 2):
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
refused(lambda: runner.run(faces(5)), BackendError, "1 to 4")
runner.close()
del runner
""")
    assert not [entry for entry in log if "instantiated" in entry]
    assert all(entry["pinned"] for entry in log if "copy" in entry)
    assert freed(log) == [[0] * 7]


def test_a_gpuarray_goes_in_and_comes_out_without_a_copy(pycuda):
    log = pycuda("""
from pycuda.driver import Device, Stream, init
init()
primary = Device(0).retain_primary_context()
primary.push()  # as pycuda.autoprimaryctx does
runner, own = trt_opened(), Stream(1)
x, y = fake_pycuda.GPUArray(faces(3)), fake_pycuda.GPUArray(np.zeros((3, CLASSES), np.float32))
note(mark=[int(x.gpudata), int(y.gpudata), own.handle])
assert runner.run_device(x, y, own) is y
own.synchronize()
note(mark=None)
assert np.array_equal(y.get(), answers(faces(3)))
answer = runner.run_device(x)
synchronise(1)
assert np.array_equal(at(answer), answers(faces(3)))
assert np.array_equal(runner.run(faces(2)), answers(faces(2)))
primary.pop()
""")
    first, last = (i for i, entry in enumerate(log) if "mark" in entry)
    pack, _, classify = runs(log[first:last])
    assert [pack["args"][0], classify["args"][1], pack["stream"]] == log[first]["mark"]
    assert not [entry for entry in log[first:last] if "copy" in entry]


def test_callers_streams_are_followed_and_looked_at(pycuda):
    pycuda("""
runner, one, two = trt_opened(), stream(), stream()
x = OnGpu(faces(2), stream=one)
with current():
    driver.cuMemsetD8Async(x.address, 7, x.numpy().nbytes, one)
first = runner.run_device(x, stream=two)
assert np.array_equal(runner.run(faces(2)), answers(faces(2)))
assert np.array_equal(at(first), answers(np.full_like(faces(2), 7)))
with current():
    driver.cuStreamBeginCapture(one, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
refused(lambda: runner.run_device(x, stream=one), BackendError, "being captured")
""")


def test_many_threads_share_the_sessions(pycuda):
    log = pycuda(
        """
from concurrent.futures import ThreadPoolExecutor
runner = trt_opened(FOUR * 2)
def work(seed):
    images = faces(seed % 4 + 1, seed)
    return np.array_equal(runner.run(images), answers(images))
with ThreadPoolExecutor(8) as threads:
    assert all(threads.map(work, range(60)))
runner.close()
del runner
""",
        sleep=300,
    )
    assert len({entry["stream"] for entry in runs(log)}) == 2 and freed(log) == [[0] * 7]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"devices": 0}, "no NVIDIA driver answers here (cuInit failed"),
        ({"free": 20_000}, "not enough GPU memory"),
        ({"fail": "cuMemHostAlloc:1:2"}, "cannot be page-locked"),
        ({"fail": "cuMemcpyHtoDAsync:1:1"}, "the GPU driver reports cuMemcpyHtoDAsync failed"),
        ({"fail": "cuStreamSynchronize:2:700"}, "start a new process"),
    ],
)
def test_its_failures_are_ours(settings, words, pycuda):
    log = pycuda(f"refused(trt_opened, BackendError, {words!r})", **settings)
    if "no NVIDIA" not in words and "start" not in words:
        assert freed(log) == [[0] * 7]


def test_without_the_driver_library_pycuda_does_not_import(pycuda):
    pycuda("""
del sys.modules["pycuda"].driver, sys.modules["pycuda.driver"]
refused(trt_opened, BackendError, "no NVIDIA driver answers here", "pycuda")
""")
