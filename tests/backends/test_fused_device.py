"""The GPU executor over a stand-in for the driver: images that are on the GPU already, and callers' streams."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from tkfnet_engine import Engine
from tkfnet_engine.backends import registry
from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.errors import BackendError

from . import fake_cuda
from .fake_cuda import freed, runs, tensors


@pytest.mark.parametrize("protocol", ["cuda array interface", "dlpack"])
def test_images_on_the_gpu_are_read_where_they_stand(protocol, gpu, tmp_path):
    log = gpu(f"""
runner, handle = opened(), stream()
x, y = OnGpu(faces(3)), OnGpu(np.zeros((3, CLASSES), np.float32))
shown = (lambda a: a) if {protocol == "cuda array interface"} else ByDlpack
given, target = shown(x), shown(y)
assert runner.run_device(given, target, handle) is target
assert not y.numpy().any(), "it should return before the GPU has done it"
synchronise(handle)
assert np.array_equal(y.numpy(), answers(faces(3)))
if given is not x:
    assert given.asked == target.asked == [handle]
open("addresses", "w").write(f"[{{x.address}}, {{y.address}}, {{handle}}]")
""")
    pixels, logits, handle = json.loads((tmp_path / "addresses").read_text())
    pack, _, classify = runs(log)
    assert (pack["args"][0], classify["args"][1], pack["stream"]) == (pixels, logits, handle)
    assert [entry["copy"] for entry in log if "copy" in entry] == [512]  # the weights


def test_an_answer_is_made_where_none_is_given(gpu):
    log = gpu("""
runner, x = opened(), OnGpu(faces(2))
answer = runner.run_device(x)
assert answer.shape == (2, CLASSES) and answer.__cuda_array_interface__["stream"] == 1
synchronise(1)
assert np.array_equal(at(answer), answers(faces(2)))
class Stream:
    def __cuda_stream__(self):
        return 0, handle
handle = stream()
assert runner.run_device(x, stream=Stream()).__cuda_array_interface__["stream"] == handle
assert runner.run_device(x, stream=0).stream == 1
runner.close()
del answer
""")
    assert [entry["stream"] == 1 for entry in runs(log, "conv_kernel")] == [True, False, True]
    assert freed(log) == []  # the test's own hold on the context is left


def test_host_and_device_requests_may_alternate(gpu):
    gpu("""
runner, x = opened(), OnGpu(faces(4, seed=5))
for count in (4, 1, 3):
    answer = runner.run_device(x.but(shape=(count, SIZE, SIZE, 3)))
    assert np.array_equal(runner.run(faces(count)), answers(faces(count)))
    synchronise(1)
    assert np.array_equal(at(answer), answers(faces(4, seed=5)[:count]))
""")


@pytest.mark.parametrize("then", ["another stream", "the host"])
def test_a_session_waits_for_the_caller_that_used_it_before(then, gpu):
    """One session only: the work on the first stream must be done before the second may touch its buffers."""
    log = gpu(f"""
from tkfnet_engine.backends import session_pool
session_pool.MAX_SESSIONS = 1
runner, one, two = opened(), stream(), stream()
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
    assert len({entry["args"][1] for entry in runs(log, "pack_pixels_kernel")}) == 1


def test_streams_get_sessions_of_their_own_and_keep_them(gpu):
    log = gpu("""
runner, handles = opened(), [stream() for _ in range(6)]
x = OnGpu(faces(1))
for _ in range(3):
    kept = [runner.run_device(x, stream=handle) for handle in handles[:4]]
for handle in handles:
    kept.append(runner.run_device(x, stream=handle))
for handle in handles:
    synchronise(handle)
assert all(np.array_equal(at(y), answers(faces(1))) for y in kept)
""")
    arenas = {}
    for entry in runs(log, "pack_pixels_kernel"):
        arenas.setdefault(entry["stream"], set()).add(entry["args"][1])
    assert len(set.union(*arenas.values())) == 4
    assert sum(len(used) == 1 for used in arenas.values()) >= 4


def test_an_array_still_being_made_on_another_stream_is_waited_for(gpu):
    gpu("""
runner, maker, user = opened(), stream(), stream()
x = OnGpu(faces(2), stream=maker)
with current():
    driver.cuMemsetD8Async(x.address, 7, x.numpy().nbytes, maker)
answer = runner.run_device(x, stream=user)
synchronise(user)
assert np.array_equal(at(answer), answers(np.full_like(faces(2), 7)))
""")


def test_an_array_that_does_not_fit_is_refused_before_a_launch(gpu):
    log = gpu(
        """
from types import SimpleNamespace
runner, x = opened(), OnGpu(faces(2))
y = OnGpu(np.zeros((2, CLASSES), np.float32))
def pixels(array, error, *words):
    refused(lambda: runner.run_device(array), error, "pixels: got" if error is ImageError else "", *words)
pixels(faces(2), BackendError, "host memory")
pixels([1, 2], ImageError, "list", f"[N, {SIZE}, {SIZE}, 3]")
pixels(OnGpu(faces(2).astype(np.float32)), ImageError, "float32", "expected uint8")
pixels(x.but(typestr="|i1"), ImageError, "|i1")
pixels(x.but(shape=(2, SIZE, 3, SIZE)), ImageError, f"[2, {SIZE}, 3, {SIZE}]")
pixels(x.but(shape=(SIZE, SIZE, 3)), ImageError)
pixels(x.but(shape=(0, SIZE, SIZE, 3)), ImageError, "[0, ")
pixels(x.but(shape=(5, SIZE, SIZE, 3)), BackendError, "5 images", "1 to 4")
pixels(x.but(strides=(SIZE * SIZE * 3, SIZE * 3, 1, SIZE)), ImageError, "not C-contiguous")
pixels(x.but(mask=x), ImageError)
pixels(x.but(data=(faces(2).ctypes.data, False)), BackendError, "memory that is not a GPU's")
pixels(OnGpu(faces(2), offset=3), BackendError, "no multiple of 16 bytes")
pixels(OnGpu(faces(2), device=1), BackendError, "GPU 1", "on GPU 0, Stand-in GPU")
pixels(ByDlpack(x, device=(1, 0)), BackendError, "host memory")
pixels(ByDlpack(x, device=(2, 1)), BackendError, "GPU 1")
pixels(ByDlpack(OnGpu(faces(2).astype(np.int16))), ImageError, "other")
def logits(array, error, *words):
    refused(lambda: runner.run_device(x, array), error, "logits: got", *words)
logits(np.zeros((2, CLASSES), np.float64).tolist(), UsageError, "list")
logits(OnGpu(np.zeros((3, CLASSES), np.float32)), UsageError, "[3, 7]", "[2, 7]")
logits(OnGpu(np.zeros((2, CLASSES), np.float64)), UsageError, "expected float32")
logits(y.but(data=(y.address, True)), UsageError, "read-only")
logits(OnGpu(np.zeros((2, CLASSES), np.float32), device=1), BackendError, "GPU 1")
for bad in ("1", 1.0, True, -1):
    refused(lambda: runner.run_device(x, y, bad), UsageError, "stream: got", type(bad).__name__)
handle = stream()
with current():
    driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
refused(lambda: runner.run_device(x, y, handle), BackendError, "being captured")
# An axis of one element may have any stride.
one = x.but(shape=(1, SIZE, SIZE, 3), strides=(5, SIZE * 3, 3, 1))
runner.run_device(one, y.but(shape=(1, CLASSES)))
synchronise(1)
assert np.array_equal(y.numpy()[:1], answers(faces(2)[:1]))
""",
        devices=2,
    )
    assert len(runs(log)) == 3


def test_the_stand_in_notices_a_missing_wait(gpu):
    """The stand-in must be able to fail the tests above: without the wait, the first stream's work is not done."""
    gpu("""
from tkfnet_engine.backends import fused_session, session_pool
session_pool.MAX_SESSIONS = 1
fused_session.Session._follow = lambda *_: None
runner, one = opened(), stream()
first = runner.run_device(OnGpu(faces(2, seed=1)), stream=one)
assert np.array_equal(runner.run(faces(2)), answers(faces(2)))
assert not np.array_equal(at(first), answers(faces(2, seed=1)))
""")


# --- behind the engine -----------------------------------------------------------------------------------


def test_an_engine_file_runs_and_takes_images_on_the_gpu(gpu, tmp_path):
    made = tensors(golden=3)
    write_bundle(tmp_path / "fused.tkf", made, fake_cuda.facts())
    log = gpu("""
with Engine.load("fused.tkf") as engine:
    assert (engine.backend, engine.device) == ("fused", "cuda")
    assert np.array_equal(engine.logits(faces(9)), answers(faces(9)))
    x, y = OnGpu(faces(3)), OnGpu(np.zeros((3, CLASSES), np.float32))
    assert engine.logits_on_device(x, logits=y, stream=None) is y
    synchronise(1)
    assert np.array_equal(y.numpy(), answers(faces(3)))
refused(lambda: engine.logits_on_device(x), BackendError, "closed")
""")
    assert [entry["args"][2] for entry in runs(log, "pack_pixels_kernel")] == [3, 4, 4, 1, 3]


def test_other_backends_take_no_images_on_a_gpu(engine_path):
    with (
        Engine.load(engine_path) as engine,
        pytest.raises(BackendError, match=r"backend onnxruntime takes images from host memory only.*--backend fused"),
    ):
        engine.logits_on_device(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(BackendError, match="closed"):
        engine.logits_on_device(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_librarys_own_failure_on_the_gpu_names_the_backend():
    class Broken:
        def run_device(self, *_):
            raise ZeroDivisionError("first\nsecond")

    with pytest.raises(BackendError, match=r"backend fused failed on images in GPU memory: ZeroDivisionError: first; "):
        registry._Named("fused", Broken()).run_device(None)


def test_bindings_without_even_their_parent_package_are_missing(monkeypatch):
    def find(name, *_):
        raise ModuleNotFoundError(f"No module named {name.partition('.')[0]!r}")

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert registry.why_unavailable("fused") == (
        "it needs cuda.bindings, which is not installed; pip install 'tkfnet-engine[cuda]'"
    )
