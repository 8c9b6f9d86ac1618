"""The project's own graphs in TensorRT for RTX, which builds without a GPU: the typed network, and the built layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from tkfnet_engine.compare import compare
from tkfnet_engine.errors import BackendError
from tkfnet_engine.export.engine_from_onnx import examined, plan_from_onnx
from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded
from tkfnet_engine.export.qdq_from_onnx import FLAVOURS, qdq_from_onnx
from tkfnet_engine.export.tensorrt_from_graph import run_graph
from tkfnet_engine.export.tensorrt_layers import precisions_of_products
from tkfnet_engine.export.tensorrt_log import log_to
from tkfnet_engine.export.tensorrt_network import FLOAT32_PARTS, TypedLayer, parse, typed_layers, unexpected_types
from tkfnet_engine.export.tensorrt_options import RTX, TensorRtOptions
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold

from .quantised_network import small_network

trt = pytest.importorskip("tensorrt_rtx")
OPTIONS = TensorRtOptions(RTX, 8)


@pytest.fixture(scope="module")
def typed(small_checkpoint_path, noise, tmp_path_factory):
    """typed("int8", units kept float) -> its graph, what TensorRT reads of it and what it builds of it."""
    small = small_network(str(small_checkpoint_path), noise)
    plain = load_checkpoint(small_checkpoint_path)
    made, log = {}, str(tmp_path_factory.mktemp("tensorrt") / "log")

    def graph(precision, kept):
        if precision == "int8":
            placed = placement_of(small.network, kept)
            flavour = FLAVOURS["symmetric-half"]
            return qdq_from_onnx(small.half, small.folded, small.network, placed, small.table, flavour)
        network = fold(plain.model, plain.preprocessing)
        return onnx_from_folded(network.half() if precision == "float16" else network, {})

    def of(precision, kept=()):
        if (precision, kept) not in made:
            data = bytes_from_onnx(graph(precision, kept))
            asked = [p.name for p in placement_of(small.network, kept).products] if precision == "int8" else []
            outcome, facts = plan_from_onnx(data, small.network.size, precision, OPTIONS, asked, log)
            made[precision, kept] = (data, outcome, facts)
        return made[precision, kept]

    return of


@pytest.fixture(scope="module")
def products(small_checkpoint_path) -> list[str]:
    """Of the backbone and TAFE."""
    checkpoint = load_checkpoint(small_checkpoint_path)
    return [p.name for p in placement_of(network_of(fold(checkpoint.model, checkpoint.preprocessing))).products]


def _typed(graph: bytes, tmp_path) -> list[TypedLayer]:
    with (tmp_path / "log").open("w") as file:
        log = log_to(trt, file)
        return typed_layers(parse(trt, trt.Builder(log), log, graph), 8)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_every_product_computes_in_what_was_asked_for(precision, typed, products):
    _, outcome, facts = typed(precision)
    assert len(outcome.plan) > 100_000
    assert precisions_of_products(outcome.layers, products) == dict.fromkeys(products, precision)
    assert facts["version"] == trt.__version__ and facts["capabilities"] == outcome.capabilities
    assert "8.6" in facts["capabilities"] and "9.0" not in facts["capabilities"]
    assert facts["gpu"] is facts["capability"] is facts["driver"] is None
    assert facts["profiles"] == [{"min": 1, "opt": 8, "max": 8}] * 2


def test_units_kept_float_compute_in_float16(typed, products, small_checkpoint_path, noise):
    kept = ("layer1.0.conv2", "tafe.merge")
    network = small_network(str(small_checkpoint_path), noise).network
    quantised = {p.name for p in placement_of(network, kept).products}
    ran = precisions_of_products(typed("int8", kept)[1].layers, products)
    assert ran == {name: "int8" if name in quantised else "float16" for name in products}
    assert set(ran.values()) == {"int8", "float16"}


def test_an_fp16_engine_has_float32_in_its_named_parts_alone(typed, tmp_path):
    graph, outcome, _ = typed("float16")
    wide = {layer.name for layer in _typed(graph, tmp_path) if layer.from_node and "FLOAT" in layer.writes}
    assert all(any(name.startswith(f"{part}.") for part in FLOAT32_PARTS) for name in wide), wide
    # The reductions that FP16 would overflow in, and all of the rest of each part.
    assert {"tafe.statistics.reducemean", "tafe.statistics.reducemean_2", "dcif.reducemean", "head.0.relu"} <= wide
    for layer in outcome.layers:
        if "float32" in {kind for _, kind in (*layer.reads, *layer.writes)} and layer.origin:
            assert any(name.startswith(FLOAT32_PARTS) for name in layer.origin), layer


def test_bytes_go_into_and_come_out_of_every_backbone_convolution(typed, tmp_path, products):
    graph, outcome, _ = typed("int8")
    layers = _typed(graph, tmp_path)
    readers = {
        tensor: [layer for layer in layers if tensor in layer.inputs] for layer in layers for tensor in layer.outputs
    }
    of = {layer.name: layer for layer in layers if layer.kind == "CONVOLUTION"}
    backbone = [name for name in products if name.startswith(("stem", "layer"))]
    assert len(backbone) == 20
    for name in backbone:
        assert _ends_in(of[name], readers) == {"QUANTIZE"}, name
    # The inputs: of the finished engine, where a pair that TensorRT did not use would have left float16.
    assert all(precisions_of_products(outcome.layers, backbone)[name] == "int8" for name in backbone)


def _ends_in(layer: TypedLayer, readers) -> set[str]:
    """The kinds of layer that a product's output comes to, through what works on bytes as well."""
    found = set()
    for tensor in layer.outputs:
        for reader in readers[tensor]:
            through = reader.kind in ("ACTIVATION", "ELEMENTWISE", "POOLING")
            found |= _ends_in(reader, readers) if through else {reader.kind}
    return found


@pytest.mark.parametrize(
    ("graph", "claimed", "expected"),
    [
        ("float16", "float32", {"layer1.0.conv1", "stem", "tafe.merge", "pixels.cast_2"}),
        ("float32", "float16", {"layer1.0.conv1", "layer4.1.relu", "tafe.merge"}),
        ("float16", "int8", {"layer1.0.conv1", "tafe.merge"}),
    ],
)
def test_a_graph_in_other_types_than_its_engine_says(graph, claimed, expected, typed, products, tmp_path):
    data = typed(graph)[0]
    asked = products if claimed == "int8" else []
    assert expected <= unexpected_types(_typed(data, tmp_path), claimed, asked).keys()
    with pytest.raises(BackendError, match=f"the typed graph is not {claimed} throughout: .*layer1.0.conv1"):
        plan_from_onnx(data, 64, claimed, OPTIONS, asked, str(tmp_path / "log"))


def test_a_dry_run_tells_layers_types_and_memory(typed, products, small_checkpoint_path, noise, tmp_path):
    network = small_network(str(small_checkpoint_path), noise).network
    data = typed("int8")[0]
    found = examined(data, 64, "int8", OPTIONS, products, str(tmp_path / "log"))
    assert found["unexpected"] == {} and found["memory"]["graph"] == len(data)
    # What quantises maps; the weights are bytes already.
    assert found["layers_by_type"]["INT8"] >= sum(not point.optional for point in placement_of(network).points) > 20
    # Of a batch of 8: the stem's map in FP16 alone is a lower bound, all maps together an upper one.
    every = sum(layer.activations for layer in _typed(data, tmp_path))
    assert 8 * 32 * 32 * 8 * 2 < found["memory"]["activations_at_most"] < every
    small = examined(
        data, 64, "int8", dataclasses.replace(OPTIONS, max_batch=1, opt_batch=1), products, str(tmp_path / "l")
    )
    assert small["memory"]["activations_at_most"] * 8 == found["memory"]["activations_at_most"]


def test_fp16_statistics_of_large_activations_do_not_overflow(small_checkpoint_path, noise):
    checkpoint = load_checkpoint(small_checkpoint_path)
    network = fold(checkpoint.model, checkpoint.preprocessing)
    split = network.tafe.split
    maps = []
    hook = split.register_forward_hook(lambda module, inputs, output: maps.append(output.chunk(2, 1)[1]))
    images = noise(16, 64, 3)
    network(torch.from_numpy(images))
    hook.remove()
    # x times 800 / its largest value: inside FP16, its squares are not. The gate undoes the scale.
    gain = 800 / float(maps[0].abs().max())
    half = split.out_channels // 2
    with torch.no_grad():
        split.weight[half:] *= gain
        split.bias[half:] *= gain
        network.tafe.of_pool /= gain
        network.tafe.of_variance /= gain**2
        network.tafe.merge.weight[:, :half] /= gain
        assert not torch.isfinite((maps[0] * gain).half().square().mean((2, 3))).all(), "a naive variance overflows"
        expected = network(torch.from_numpy(images)).numpy()
    answered = run_graph(bytes_from_onnx(onnx_from_folded(network.half(), {})), images)
    assert np.isfinite(answered).all() and compare(expected, answered, 40.0).sqnr_db > 40


def test_what_the_parser_refuses_is_said_with_its_node(typed, tmp_path):
    model = onnx.load_from_string(typed("float32")[0])
    node = next(node for node in model.graph.node if node.name == "dcif.sigmoid")
    node.op_type, node.domain = "NoSuchThing", "of.nobody"
    with pytest.raises(BackendError, match=r"tensorrt_rtx .* refuses the graph: dcif.sigmoid: .+"):
        plan_from_onnx(model.SerializeToString(), 64, "float32", OPTIONS, [], str(tmp_path / "log"))


def test_the_log_keeps_all_and_shows_little(typed, tmp_path, capfd):
    plan_from_onnx(typed("float16")[0], 64, "float16", OPTIONS, [], str(tmp_path / "kept.log"))
    shown = capfd.readouterr().err
    kept = (tmp_path / "kept.log").read_text()
    assert kept.count("\n") > 500 and "LayerType: correlation" in kept
    assert 0 < len(shown.splitlines()) < 15 and "layers by what they read" in shown
