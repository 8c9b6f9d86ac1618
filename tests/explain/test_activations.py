"""What is read from inside an engine's graph equals what the PyTorch model computes there."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tkfnet_engine.backends.registry import GRAPH
from tkfnet_engine.bundle import read_bundle, write_bundle
from tkfnet_engine.errors import BackendError, ImageError, UsageError
from tkfnet_engine.explain import Explainer, explain
from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded
from tkfnet_engine.export.qdq_from_onnx import FLAVOURS, qdq_from_onnx
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

from ..export.quantised_network import small_network


def hooked(model, images: np.ndarray, preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """(m, mean over channels of |x g| times its column of the merge), [N, side, side] each, by forward hooks."""
    seen: dict[str, torch.Tensor] = {}
    modules = {"spatial": model.dcif.spatial, "split": model.tafe.split, "gate": model.tafe.gate}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            model(normalise(torch.from_numpy(images.copy()), preprocessing))
    finally:
        for handle in handles:
            handle.remove()
    x = seen["split"].chunk(2, dim=1)[1]
    gated = x * F.interpolate(F.gelu(seen["gate"]), x.shape[2:], mode="nearest")
    lengths = model.tafe.merge.weight.detach().flatten(1).norm(dim=0)[:, None, None]
    return torch.sigmoid(seen["spatial"])[:, 0].numpy(), (gated.abs() * lengths).mean(1).numpy()


def written(path, graph, config=None, **changes):
    """An engine file of `graph` (bytes), with all facts an engine needs."""
    facts = {
        "model": (config or TKFNetConfig(width=0.125)).to_dict(),
        "labels": list(LABELS),
        "preprocessing": Preprocessing(size=64).to_dict(),
        "backend": "onnxruntime",
        "device": "cpu",
        "precision": "float32",
        "max_batch": 32,
        **changes,
    }
    write_bundle(path, {GRAPH: graph} if graph else {"weights/x": np.zeros(1, np.float32)}, facts)
    return path


@pytest.fixture(scope="module")
def quantised(small_checkpoint_path, noise):
    return small_network(str(small_checkpoint_path), noise)


@functools.cache
def ablated(**config):
    """(network, its graph's bytes), random, 64 x 64."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = TKFNet(TKFNetConfig(width=0.125, **config)).eval()
    return model, bytes_from_onnx(onnx_from_folded(fold(model, Preprocessing(size=64)), {}))


@pytest.mark.parametrize("size", [64, 224])
def test_values_equal_the_model(size, request, noise):
    small = size == 64
    engine = request.getfixturevalue("small_engine_path" if small else "engine_path")
    checkpoint = load_checkpoint(request.getfixturevalue("small_checkpoint_path" if small else "checkpoint_path"))
    side = size // 32
    with Explainer(engine, threads=1) as explainer:
        for count in (1, 3):
            images = noise(count, size, seed=count)
            spatial, texture = hooked(checkpoint.model, images, checkpoint.preprocessing)
            found = explainer.explain(images)
            assert len(found) == count
            for i, one in enumerate(found):
                assert one.filter.shape == one.texture.shape == (side, side)
                assert one.filter.dtype == one.texture.dtype == np.float32
                np.testing.assert_allclose(one.filter, spatial[i], rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(one.texture, texture[i], rtol=1e-4, atol=1e-5 * texture.max())
    # It is a test only where the values are not all the same.
    assert np.ptp(spatial) > 1e-3 and np.ptp(texture) > 0.05 * texture.max()


def test_crops_of_any_size_and_batches_over_the_limit(small_engine_path, tampered, noise):
    crops = [*noise(3, 64, seed=1), noise(1, 50, seed=2)[0], noise(1, 90, seed=3)[0]]
    whole = explain(small_engine_path, crops, threads=1)
    parts = explain(tampered(small_engine_path, max_batch=2), crops, threads=1)
    assert len(whole) == len(parts) == 5
    for one, other in zip(whole, parts):
        np.testing.assert_allclose(one.filter, other.filter, rtol=1e-5)
        np.testing.assert_allclose(one.texture, other.texture, rtol=1e-4)
    assert explain(small_engine_path, [], threads=1) == []
    with pytest.raises(ImageError):
        explain(small_engine_path, [np.zeros((64, 64), np.uint8)], threads=1)


def test_an_opened_file_serves_as_well(small_engine_path, noise):
    images = noise(1, 64)
    (one,), (other,) = explain(read_bundle(small_engine_path), images), explain(small_engine_path, images)
    assert (one.filter == other.filter).all()
    bundle = read_bundle(small_engine_path)
    bundle.pop(GRAPH)
    with pytest.raises(BackendError, match="without an ONNX graph"):
        explain(bundle, images)


@pytest.mark.parametrize("flavour", ["narrow", "unsigned", "symmetric", "symmetric-half"])
def test_an_int8_engine_has_them(tmp_path, flavour, quantised):
    backend = {"narrow": "onnxruntime", "unsigned": "openvino"}.get(flavour, "tensorrt")
    model = quantised.half if flavour == "symmetric-half" else quantised.model
    graph = qdq_from_onnx(
        model, quantised.folded, quantised.network, placement_of(quantised.network), quantised.table, FLAVOURS[flavour]
    )
    path = written(
        tmp_path / "int8.tkf", bytes_from_onnx(graph), backend=backend, precision="int8",
        quantisation={"weight_bits": 8}, preprocessing=quantised.checkpoint.preprocessing.to_dict(),
    )  # fmt: skip
    images = quantised.images[:3]
    spatial, texture = hooked(quantised.checkpoint.model, images, quantised.checkpoint.preprocessing)
    for i, one in enumerate(explain(path, images, threads=1)):
        # Rounded to bytes on the way: near, and not equal. Equalised as well, which is not to be seen.
        assert 1e-7 < np.abs(one.filter - spatial[i]).max() < 0.01
        assert 1e-7 < np.abs(one.texture - texture[i]).max() < 0.1 * texture.max()


def test_a_float16_engine_has_them(tmp_path, quantised):
    half = fold(quantised.checkpoint.model, quantised.checkpoint.preprocessing).half()
    path = written(
        tmp_path / "half.tkf", bytes_from_onnx(onnx_from_folded(half, {})), precision="float16",
        preprocessing=quantised.checkpoint.preprocessing.to_dict(),
    )  # fmt: skip
    images = quantised.images[:2]
    spatial, texture = hooked(quantised.checkpoint.model, images, quantised.checkpoint.preprocessing)
    for i, one in enumerate(explain(path, images, threads=1)):
        np.testing.assert_allclose(one.filter, spatial[i], atol=5e-3)
        np.testing.assert_allclose(one.texture, texture[i], atol=0.02 * texture.max())
        assert one.texture.dtype == np.float32


def test_what_the_network_lacks_is_left_out(tmp_path, noise):
    images = noise(2, 64)
    model, graph = ablated(dcif=False)
    for one in explain(written(tmp_path / "a.tkf", graph, model.config), images, threads=1):
        assert one.filter is None and one.texture.shape == (2, 2)
    model, graph = ablated(tafe=False)
    for one in explain(written(tmp_path / "b.tkf", graph, model.config), images, threads=1):
        assert one.texture is None and one.filter.shape == (2, 2)
    with pytest.raises(UsageError, match="dcif=False and tafe=False"):
        Explainer(written(tmp_path / "c.tkf", graph, TKFNetConfig(width=0.125, dcif=False, tafe=False)))


def test_a_graph_with_other_names_is_refused(tmp_path):
    _, graph = ablated(tafe=False)
    path = written(tmp_path / "a.tkf", graph)
    with pytest.raises(BackendError, match=r"no texture where .*tafe\.merge"):
        Explainer(path)
    renamed = graph.replace(b"dcif.spatial", b"dcif.special")
    path = written(tmp_path / "b.tkf", renamed, TKFNetConfig(width=0.125, tafe=False))
    with pytest.raises(BackendError, match="no filter where"):
        Explainer(path)


def test_engines_without_a_graph_say_which_build_has_one(tmp_path):
    path = written(tmp_path / "fused.tkf", None, backend="fused", device="cuda", precision="float16")
    with pytest.raises(BackendError, match=r"backend fused without .* tkfnet_engine\.build --backend onnxruntime"):
        Explainer(path)


def test_damaged_graphs_are_refused(tmp_path):
    model, graph = ablated(tafe=False)
    for damaged in (graph[: len(graph) // 2], graph[1:], b"\x08\x07", graph.replace(b"Sigmoid", b"Sigmoix")):
        with pytest.raises(BackendError):
            Explainer(written(tmp_path / "damaged.tkf", damaged, model.config))


def test_values_that_are_not_finite_are_refused(tmp_path, noise):
    model, graph = ablated(tafe=False)
    weight = model.dcif.spatial.weight.detach().numpy()
    assert weight.tobytes() in graph
    graph = graph.replace(weight.tobytes(), np.full_like(weight, np.nan).tobytes())
    with pytest.raises(BackendError, match="not finite"):
        explain(written(tmp_path / "nan.tkf", graph, model.config), noise(1, 64))


def test_a_closed_explainer_says_so(small_engine_path, noise):
    with Explainer(small_engine_path, threads=1) as explainer:
        pass
    with pytest.raises(BackendError, match="closed"):
        explainer.explain(noise(1, 64))


@pytest.mark.parametrize("threads", [0, 1025, "2", True])
def test_threads_that_are_no_number_are_refused(small_engine_path, threads):
    with pytest.raises(UsageError, match="threads: got"):
        Explainer(small_engine_path, threads)
