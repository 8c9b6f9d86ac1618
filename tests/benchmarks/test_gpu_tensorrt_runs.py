"""A TensorRT plan run by TensorRT's own calls, as it races in `make gpu`. The library is a stand-in (fake_trt.py) over
host memory."""

from __future__ import annotations

import functools
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

SIZE = 16


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))


def expected(graph, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images.numpy()})[0]


@pytest.mark.parametrize("kind", ["rtx", "full"])
def test_a_plan_runs_over_pytorchs_memory(kind, graph, images, request, scripts_importable):
    from gpu_tensorrt import TensorRtContext, TensorRtPlan

    module = request.getfixturevalue(kind)
    context = TensorRtContext(TensorRtPlan(module, module.plan_of(graph)), 3, "cpu")
    first = context.enqueue(images, 5).clone()
    assert np.array_equal(first.numpy(), expected(graph, images)) and context.capturable(5)
    other = 255 - images
    again = context.enqueue(other, 6)
    assert again is context.logits and np.array_equal(again.numpy(), expected(graph, other))
    assert context._context.streams == [5, 6]
    with pytest.raises(RuntimeError, match=f"{module.__name__} 1.7.1.116 does not take a batch of 9"):
        TensorRtContext(TensorRtPlan(module, module.plan_of(graph)), 9, "cpu")


@pytest.fixture
def streams(monkeypatch):
    """PyTorch's current stream is 11; nothing waits."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=11))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def refusing(call, example):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    ("wrong", "capture", "how"),
    [
        (None, lambda call, example: ("captured", call, example), "one CUDA graph"),
        ("not capturable", None, "queued: TensorRT says that it cannot be captured"),
        (None, refusing, "queued: capturing failed: RuntimeError: operation not permitted when stream is capturing"),
    ],
)
def test_a_run_is_captured_where_that_works_and_says_so(
    wrong, capture, how, graph, images, rtx, streams, monkeypatch, scripts_importable
):
    import gpu_tensorrt
    from gpu_tensorrt import TensorRtContext, TensorRtPlan

    monkeypatch.setattr(gpu_tensorrt, "captured", capture)
    context = TensorRtContext(TensorRtPlan(rtx, rtx.plan_of(graph, wrong)), 3, "cpu")
    call, said = gpu_tensorrt.in_a_graph(context, images)
    assert said == how and context._context.streams == [11], "it is not run before it is captured"
    if how == "one CUDA graph":
        name, call, example = call
        assert name == "captured" and example is images
    assert np.array_equal(call(images).numpy(), expected(graph, images)) and context._context.streams == [11, 11]


@pytest.mark.parametrize(("batch", "size"), [(1, "small"), (8, "small"), (9, "large"), (256, "large")])
def test_a_rival_runs_the_plan_of_the_file_that_is_for_its_batch(
    batch, size, graph, images, full, streams, monkeypatch, tmp_path, scripts_importable
):
    import gpu_tensorrt

    from tkfnet_engine.bundle import write_bundle

    plan = full.plan_of(graph, batches=(1, 256))
    write_bundle(tmp_path / f"trt-int8-{size}.tkf", {"tensorrt/plan": plan}, {"backend": "tensorrt"})
    monkeypatch.setitem(sys.modules, "tensorrt", full)
    monkeypatch.setattr(gpu_tensorrt, "captured", lambda call, example: call)
    on_host = functools.partial(gpu_tensorrt.TensorRtContext, device="cpu")
    monkeypatch.setattr(gpu_tensorrt, "TensorRtContext", on_host)
    many = images[torch.arange(batch) % 3].contiguous()
    rival = gpu_tensorrt.Rival(tmp_path, "int8", batch, many)
    assert rival.library == "tensorrt 1.7.1.116" and rival.how == "one CUDA graph" and size in rival.path.name
    assert np.allclose(rival.call(many).numpy(), expected(graph, many), atol=1e-5)
