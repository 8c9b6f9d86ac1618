"""Q/DQ graphs: pairs where the placement says so, eight bits where it was asked for, the network's answer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tkfnet_engine.build import reference_checkpoint
from tkfnet_engine.compare import compare
from tkfnet_engine.data import open_data
from tkfnet_engine.errors import BackendError
from tkfnet_engine.export.layer_precisions import (
    precisions_from_onnxruntime,
    precisions_from_openvino,
    silently_float,
)
from tkfnet_engine.export.qdq_from_onnx import FLAVOURS, qdq_from_onnx
from tkfnet_engine.hardware import has_exact_byte_products
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.quantise import REDUCED_MOST, quantised_weight

from .quantised_network import Small, small_network


@pytest.fixture(scope="module")
def small(small_checkpoint_path, noise) -> Small:
    return small_network(str(small_checkpoint_path), noise)


def _quantised(small: Small, flavour: str, kept_float=(), **options) -> onnx.ModelProto:
    model = small.half if FLAVOURS[flavour].half else small.model
    placement = placement_of(small.network, kept_float)
    return qdq_from_onnx(model, small.folded, small.network, placement, small.table, FLAVOURS[flavour], **options)


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def _arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_product_reads_eight_bits(flavour, small):
    model = _quantised(small, flavour)
    onnx.checker.check_model(model, full_check=True)
    made_by = {output: node for node in model.graph.node for output in node.output}
    convs = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
    layers = {product.name for product in placement_of(small.network).products}
    assert layers < convs.keys()
    for name, conv in convs.items():
        pairs = [made_by[i].op_type == "DequantizeLinear" if i in made_by else False for i in conv.input]
        assert pairs[:2] == [name in layers] * 2, name
        if name in layers:
            assert pairs[2] == FLAVOURS[flavour].narrow
            # A map that is stored in eight bits comes from a QuantizeLinear, or is the pixels.
            source = made_by[made_by[conv.input[0]].input[0]]
            assert source.op_type == "QuantizeLinear" or source.input[0] == "images"


def test_the_addition_at_a_blocks_end_reads_eight_bits_too(small):
    model = _quantised(small, "unsigned")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    additions = [n for n in model.graph.node if n.op_type == "Add" and "Conv" in (made_by.get(i) for i in n.input)]
    assert len(additions) == len(small.network.blocks)
    for node in additions:
        assert sorted(made_by[i] for i in node.input) == ["Conv", "DequantizeLinear"]
    # A narrow runtime adds bytes.
    model = _quantised(small, "narrow")
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    both = [
        n
        for n in model.graph.node
        if n.op_type == "Add" and [made_by.get(i) for i in n.input].count("DequantizeLinear") == 2
    ]
    assert len(both) == len(small.network.blocks)


@pytest.mark.parametrize("flavour", ["narrow", "unsigned", "symmetric"])
def test_weights_are_those_of_every_other_backend(flavour, small):
    arrays, layers = _arrays(_quantised(small, flavour)), dict(small.folded.named_modules())
    for product in placement_of(small.network).products:
        weight, scale = quantised_weight(layers[product.module].weight)
        assert np.array_equal(arrays[f"{product.module}.weight.q"], weight.numpy()), product.name
        assert np.array_equal(arrays[f"{product.module}.weight.scale"], scale.numpy())
        assert f"{product.module}.weight" not in arrays, "the float weights are still in the file"


def test_scales_are_the_tables(small):
    symmetric, unsigned = _arrays(_quantised(small, "symmetric")), _arrays(_quantised(small, "unsigned"))
    for point in placement_of(small.network).points:
        if point.optional:
            assert f"{point.name}.scale" not in unsigned
            continue
        assert symmetric[f"{point.name}.scale"] == np.float32(small.table.scales("int8")[point.name])
        assert symmetric[f"{point.name}.zero"] == 0 and symmetric[f"{point.name}.zero"].dtype == np.int8
        scale, zero = small.table.affine(point.name)
        assert (unsigned[f"{point.name}.scale"], unsigned[f"{point.name}.zero"]) == (np.float32(scale), zero)
    half = _arrays(_quantised(small, "symmetric-half"))
    assert {half[f"{p.name}.scale"].dtype for p in placement_of(small.network).points if not p.optional} == {
        np.dtype(np.float16)
    }


@pytest.fixture(scope="module")
def reference(noise) -> Small:
    """The shipped network: on random weights the ratio of signal to noise says nothing."""
    faces = open_data("synthetic:n=196,seed=11", "train")
    images = np.stack([faces.image(i) for i in range(len(faces))])
    return small_network(reference_checkpoint(), lambda count, size, seed: images)


@pytest.mark.parametrize(("flavour", "required"), [("narrow", 30), ("unsigned", 32), ("symmetric", 28)])
def test_it_answers_as_the_network(flavour, required, reference):
    expected = _run(reference.model, reference.images)
    found = compare(expected, _run(_quantised(reference, flavour), reference.images), required)
    assert found.sqnr_db >= required and found.disagreements <= 2, found
    assert found.sqnr_db < 60, "nothing was rounded"


@pytest.mark.parametrize(
    ("read", "flavour"), [(precisions_from_onnxruntime, "narrow"), (precisions_from_openvino, "unsigned")]
)
@pytest.mark.parametrize("kept", [(), ("layer2.0", "tafe.detail_and_gate"), ("stem", "layer1.0.conv2")])
def test_what_was_asked_for_is_what_runs(read, flavour, kept, small):
    layers = read(_quantised(small, flavour, kept).SerializeToString())
    asked = {product.name for product in placement_of(small.network, kept).products}
    every = {product.name for product in placement_of(small.network).products}
    assert silently_float(asked, layers, "int8") == {}
    assert {layers[name] for name in every - asked} <= {"float32"}
    assert Counter(layers.values())["int8"] == len(asked)
    assert layers["tafe.detail_dw"] == "float32"


def test_a_layer_that_runs_in_float_is_found(small):
    """ONNX Runtime computes in float what ends in an addition of floats: the graph made for OpenVINO shows it."""
    layers = precisions_from_onnxruntime(_quantised(small, "unsigned").SerializeToString())
    asked = [product.name for product in placement_of(small.network).products]
    astray = silently_float(asked, layers, "int8")
    assert astray["layer1.0.conv2"] == "float32" and "layer1.0.conv1" not in astray
    assert silently_float(["gone"], layers, "int8") == {"gone": "absent"}


def test_kept_units_keep_their_float_weights(small):
    arrays = _arrays(_quantised(small, "unsigned", ("layer3.0", "tafe.merge")))
    for module in ("blocks.4.convs.0", "blocks.4.convs.1", "blocks.4.project", "tafe.merge"):
        assert f"{module}.weight" in arrays and f"{module}.weight.q" not in arrays
    assert "layer3.0.scale" not in arrays and "layer3.0.conv2.scale" not in arrays


def test_seven_bits_where_sums_saturate(small):
    arrays = _arrays(_quantised(small, "narrow", most=REDUCED_MOST))
    weights = [array for name, array in arrays.items() if name.endswith(".weight.q")]
    assert max(np.abs(w.astype(int)).max() for w in weights) == REDUCED_MOST
    # Two products of such weights with uint8 fit into 16 bits.
    assert 2 * 255 * REDUCED_MOST <= np.iinfo(np.int16).max < 2 * 255 * 127


def test_the_processor_says_whether_it_saturates(monkeypatch):
    for machine, flags, exact in (
        ("x86_64", "sse avx2", False),
        ("x86_64", "avx2 avx512_vnni", True),
        ("x86_64", "avx2 avx_vnni", True),
        ("aarch64", "", True),
    ):
        monkeypatch.setattr("tkfnet_engine.hardware.platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr("tkfnet_engine.hardware._cpuinfo", lambda field, flags=flags: flags)
        assert has_exact_byte_products() is exact


def test_equal_inputs_give_equal_bytes(small):
    first, second = (_quantised(small, "narrow").SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_graph_of_another_exporter_is_refused(small):
    model = onnx.ModelProto()
    model.CopyFrom(small.model)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "tafe.merge.weight":
                node.input[i] = "val_7"
    for initializer in model.graph.initializer:
        if initializer.name == "tafe.merge.weight":
            initializer.name = "val_7"
    with pytest.raises(BackendError, match=r"no convolution with weights tafe\.merge\.weight"):
        qdq_from_onnx(model, small.folded, small.network, placement_of(small.network), small.table, FLAVOURS["narrow"])
