"""TensorRT's engines on the GPU as our package runs them: right, for many threads, over the caller's memory."""

from __future__ import annotations

import importlib.util
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .on_gpu import needs_gpu

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine import Engine  # noqa: E402
from tkfnet_engine.backends.trt_compatibility import MODULES  # noqa: E402
from tkfnet_engine.bundle import read_bundle, write_bundle  # noqa: E402
from tkfnet_engine.compare import compare  # noqa: E402
from tkfnet_engine.errors import BackendError  # noqa: E402
from tkfnet_engine.export import engine_from_checkpoint  # noqa: E402
from tkfnet_engine.export.request import Request  # noqa: E402
from tkfnet_engine.export.tensorrt_from_graph import graph_runner  # noqa: E402
from tkfnet_engine.export.verify import VerificationSet  # noqa: E402

# The engines that `make gpu` has built; without one the tests build one in FP16.
VARIABLES = {"float16": "TKFNET_GPU_TENSORRT", "int8": "TKFNET_GPU_TENSORRT_INT8"}
# Of the logits beside those of the same graph in ONNX Runtime, which rounds elsewhere.
REQUIRED_SQNR_DB = {"float16": 40.0, "int8": 20.0}
MAX_BATCH = 8


def build(checkpoint, faces, path: Path) -> Path:
    backend = next((name for name, (module, _) in MODULES.items() if importlib.util.find_spec(module)), None)
    if backend is None:
        pytest.skip("neither tensorrt nor tensorrt_rtx is installed")
    expected = VerificationSet(faces.pixels, "faces", "", faces.logits.argmax(1), faces.logits)
    request = Request("float16", backend, "cuda", MAX_BATCH, tensorrt={"opt_batch": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_from_checkpoint, "verification_set", lambda *_, **__: expected)
        try:
            engine_from_checkpoint.build_engine(checkpoint, request, path)
        except BackendError as error:
            if "builds this network for compute capabilities" not in str(error):
                raise
            pytest.skip(str(error))
    return path


@pytest.fixture(scope="module", params=list(VARIABLES))
def built(request, checkpoint, faces, tmp_path_factory):
    """precision, path; logits: what ONNX Runtime answers to `faces` from the graph in the engine file."""
    precision, path = request.param, os.environ.get(VARIABLES[request.param])
    if not path and precision != "float16":
        pytest.skip("needs the engine that `make gpu` builds in eight bits")
    path = Path(path) if path else build(checkpoint, faces, tmp_path_factory.mktemp("tensorrt") / "engine.tkf")
    logits = graph_runner(bytes(read_bundle(path).bytes("graph.onnx"))).run(faces.pixels)
    return SimpleNamespace(precision=precision, path=path, logits=logits)


@pytest.fixture
def engine(built):
    with Engine.load(built.path, trusted=True) as opened:
        yield opened


@pytest.mark.parametrize("size", [1, 3, 8, None], ids=["1", "3", "8", "the largest"])
def test_the_answer_is_the_graphs(size, engine, built, faces):
    size = engine.info["max_batch"] if size is None else size
    parts = [engine.logits(faces.pixels[i : i + size]) for i in range(0, len(faces.pixels), size)]
    required = REQUIRED_SQNR_DB[built.precision]
    found = compare(built.logits, np.concatenate(parts), required)
    assert found.sqnr_db >= required and found.disagreements <= found.near_ties, found


def test_arrays_of_pytorch_in_and_out(engine, faces):
    expected, stream = engine.logits(faces.pixels[:3]), torch.cuda.Stream()
    pixels = torch.from_numpy(faces.pixels[:3]).to("cuda")
    room = torch.full((5, expected.shape[1]), 7.0, device="cuda")
    torch.cuda.synchronize()
    target = room[:3]
    assert engine.logits_on_device(pixels, target, stream.cuda_stream) is target
    stream.synchronize()
    assert np.array_equal(target.cpu().numpy(), expected) and (room[3:] == 7).all()
    answer = engine.logits_on_device(pixels, stream=stream.cuda_stream)
    shown = torch.from_dlpack(answer)
    assert shown.data_ptr() == answer.address and np.array_equal(shown.cpu().numpy(), expected)


def test_a_gpuarray_of_pycuda_in_and_out(engine, faces):
    expected = engine.logits(faces.pixels[:3])
    driver, gpuarray = pytest.importorskip("pycuda.driver"), pytest.importorskip("pycuda.gpuarray")
    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()
    try:
        stream, images = driver.Stream(), gpuarray.to_gpu(faces.pixels[:3])
        logits = gpuarray.zeros(expected.shape, np.float32)
        driver.Context.synchronize()
        assert engine.logits_on_device(images, logits, stream) is logits
        stream.synchronize()
        assert np.array_equal(logits.get(), expected)
        answer = engine.logits_on_device(images, stream=stream)
        shown = gpuarray.GPUArray(answer.shape, np.float32, gpudata=answer.address)
        stream.synchronize()
        assert np.array_equal(shown.get(), expected)
        del images, logits, shown, stream  # PyCUDA frees them while the context is current
    finally:
        driver.Context.pop()


def test_many_threads_get_their_own_answers(engine, faces):
    sizes = (1, 2, 3, 5, 8)
    answers = {size: engine.logits(faces.pixels[:size]) for size in sizes}

    def work(seed: int) -> bool:
        draw = random.Random(seed)
        drawn = [draw.choice(sizes) for _ in range(25)]
        return all(np.array_equal(engine.logits(faces.pixels[:size]), answers[size]) for size in drawn)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_a_plan_for_another_machine_is_refused(built, tmp_path):
    bundle, path = read_bundle(built.path), tmp_path / "other.tkf"
    tensors = {name: bundle.array(name) for name in bundle.names()}
    changed = {"version": "0.0.1", "capabilities": ["3.5"]}
    write_bundle(path, tensors, bundle.facts | {"tensorrt": bundle.facts["tensorrt"] | changed})
    with pytest.raises(BackendError, match=r"0\.0\.1 built it.* capability 3\.5.*tkfnet_engine\.build --from "):
        Engine.load(path, trusted=True)


def test_a_plan_that_answers_otherwise_is_refused_before_its_first_answer(built, tmp_path):
    bundle, path = read_bundle(built.path), tmp_path / "other.tkf"
    tensors = {name: bundle.array(name) for name in bundle.names()}
    write_bundle(path, tensors | {"golden/logits": -tensors["golden/logits"]}, bundle.facts)
    with pytest.raises(BackendError, match="does not answer as the network"):
        Engine.load(path, trusted=True)
