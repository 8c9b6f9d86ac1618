"""The C library in a process that uses the GPU itself: the caller's memory, streams and forks, over the stand-in."""

from __future__ import annotations

import os

import pytest

from tkfnet_engine.backends.registry import why_unavailable

from ..backends import fake_cuda
from ..backends.fake_cuda import freed, runs
from .cuda_engines import write_engine

# Runs in a Python process over the stand-in, which it reaches by cuda-bindings and the library by ctypes.
CALLER = """
import c_api
library = c_api.load({library!r})
options = c_api.EngineOptions(allow_native_code=1)
engine, session = ctypes.c_void_p(), ctypes.c_void_p()
assert library.tkf_engine_open({engine!r}, options, engine) == 0, library.tkf_last_error(None)
assert library.tkf_session_open(engine, None, session) == 0
def asked(pixels, logits, count=2, stream=None):
    status = library.tkf_run_device(session, pixels, count, logits, stream)
    return c_api.Status(status).name, library.tkf_last_error(session).decode()
def refused(pixels, logits, *words, **more):
    status, error = asked(pixels, logits, **more)
    assert status == "ARGUMENT" and all(word in error for word in words), (status, error)
x, y, handle = OnGpu(faces(2)), OnGpu(np.zeros((2, CLASSES), np.float32)), stream()
on_host = np.zeros(8192, np.uint8)
with current():
    pinned = int(driver.cuMemHostAlloc(8192, 0)[1])
"""


def child(native_build, fake_library, tmp_path, code, **settings):
    if reason := why_unavailable("fused"):
        pytest.skip(reason)
    engine = write_engine(tmp_path / "e.tkf")
    path = f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    about = {"library": str(native_build / "libtkfnet.so"), "engine": os.fsencode(engine)}
    return fake_cuda.child(fake_library, tmp_path, path + CALLER.format(**about) + code, **settings)


def test_a_callers_memory_is_checked_before_a_launch(native_build, fake_library, tmp_path):
    log = child(
        native_build,
        fake_library,
        tmp_path,
        """
refused(on_host.ctypes.data, y.address, "pixels: got memory that is not a GPU's", "on GPU 0, Stand-in GPU")
refused(x.address, on_host.ctypes.data, "logits: got memory that is not a GPU's", "tkf_run")
refused(pinned, y.address, "pixels: got memory that is not a GPU's")
refused(OnGpu(faces(2), device=1).address, y.address, "pixels: got memory of GPU 1", "on GPU 0")
refused(x.address, OnGpu(np.zeros((2, CLASSES), np.float32), device=1).address, "logits: got memory of GPU 1")
refused(x.address + 3, y.address, "pixels", "no multiple of 16 bytes")
refused(x.address, y.address + 4, "logits", "no multiple of 16 bytes")
refused(x.address, y.address, "1 to 4", count=5)
refused(x.address, y.address, "1 to", count=0)
refused(None, y.address, "pixels: got NULL")
refused(x.address, None, "logits: got NULL")
with current():
    driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
refused(x.address, y.address, "being captured", stream=handle)
# CUDA's own names of the default streams, and NULL.
for right in (None, 1, 2):
    assert asked(x.address, y.address, stream=right) == ("OK", "")
    synchronise(right or 1)
    assert np.array_equal(y.numpy(), answers(faces(2)))
""",
        devices=2,
    )
    assert [entry["args"][2] for entry in runs(log, "pack_pixels_kernel")] == [2, 2, 2]


@pytest.mark.parametrize(("context", "status"), [(0, "OK"), (1, "OK"), (99, "ARGUMENT")])
def test_memory_of_another_context_is_refused_and_that_of_a_pool_taken(
    context, status, native_build, fake_library, tmp_path
):
    code = f"status, error = asked(x.address, y.address)\nassert status == {status!r}, error\n"
    code += "assert status == 'OK' or 'another CUDA context' in error and 'cuDevicePrimaryCtxRetain' in error"
    child(native_build, fake_library, tmp_path, code, context=context)


def test_a_request_waits_for_what_still_uses_the_sessions_buffers(native_build, fake_library, tmp_path):
    """The stand-in runs a stream's work only when somebody waits for it: here nobody waits for the first stream."""
    log = child(
        native_build,
        fake_library,
        tmp_path,
        """
one, two = OnGpu(faces(2, seed=1)), OnGpu(faces(2, seed=2))
first, second = (OnGpu(np.zeros((2, CLASSES), np.float32)) for _ in range(2))
assert asked(one.address, first.address, stream=handle) == ("OK", "")
assert not first.numpy().any(), "it should return before the GPU has done it"
other = stream()
assert asked(two.address, second.address, stream=other) == ("OK", "")
synchronise(other)
assert np.array_equal(second.numpy(), answers(faces(2, seed=2)))
assert np.array_equal(first.numpy(), answers(faces(2, seed=1)))
# And so does one from the host.
assert asked(two.address, first.address, stream=handle) == ("OK", "")
pixels, logits = faces(3), np.zeros((3, CLASSES), np.float32)
pointer = lambda array, kind: array.ctypes.data_as(ctypes.POINTER(kind))
assert library.tkf_run(session, pointer(pixels, ctypes.c_uint8), 3, pointer(logits, ctypes.c_float)) == 0
assert np.array_equal(first.numpy(), answers(faces(2, seed=2)))
library.tkf_session_close(session)
library.tkf_engine_close(engine)
""",
    )
    assert sum("wait" in entry for entry in log) == 3


@pytest.mark.parametrize(("fail", "how"), [("cuMemcpyDtoHAsync:1:1", "host"), ("cuEventRecord:1:1", "device")])
def test_a_failure_halfway_leaves_nothing_running(fail, how, native_build, fake_library, tmp_path):
    """The kernels queued before the failure have run when the error comes: the next request gets the same buffers. The
    process ends at once, so that nothing else waits for them."""
    on_host = "library.tkf_run(session, pixels, 2, logits)"
    on_device = "library.tkf_run_device(session, x.address, 2, y.address, handle)"
    log = child(
        native_build,
        fake_library,
        tmp_path,
        f"""
pixels, logits = (ctypes.c_uint8 * x.numpy().nbytes)(), (ctypes.c_float * 14)()
assert {on_host if how == "host" else on_device} == c_api.Status.BACKEND
os._exit(0)
""",
        fail=fail,
    )
    assert len(runs(log)) == 3


def test_a_fork_is_noticed(native_build, fake_library, tmp_path):
    child(
        native_build,
        fake_library,
        tmp_path,
        """
if not (pid := os.fork()):
    status, error = asked(x.address, y.address)
    assert status == "LOST" and "before a fork" in error and "after the fork" in error, (status, error)
    again = ctypes.c_void_p()
    assert library.tkf_engine_open(b"e.tkf", options, again) == c_api.Status.LOST
    library.tkf_session_close(session)
    library.tkf_engine_close(engine)
    os._exit(7)
assert os.waitpid(pid, 0)[1] >> 8 == 7
assert asked(x.address, y.address) == ("OK", "")
""",
    )


def test_a_session_may_close_while_its_request_runs(native_build, fake_library, tmp_path):
    log = child(
        native_build,
        fake_library,
        tmp_path,
        """
pixels, logits = (ctypes.c_uint8 * x.numpy().nbytes)(), (ctypes.c_float * 14)()
assert library.tkf_submit(session, pixels, 2, logits) == 0
library.tkf_session_close(session)
library.tkf_engine_close(engine)
with current():
    driver.cuMemFree(x.address)
    driver.cuMemFree(y.address)
    driver.cuMemFreeHost(pinned)
    driver.cuStreamDestroy(handle)
for _ in range(100):
    driver.cuDevicePrimaryCtxRelease(0)
""",
    )
    assert len(runs(log)) == 3 and freed(log)[0] == [0] * 7
