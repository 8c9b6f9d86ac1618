"""The ONNX graph: its interface, what it holds and what it does not, the same bytes everywhere."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from tkfnet_engine.errors import BackendError
from tkfnet_engine.export import onnx_from_torch
from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

FACTS = {"labels": ["a", "\u00e9"], "model": {"width": 0.125}, "precision": "as named"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def networks(small_checkpoint_path):
    checkpoint = load_checkpoint(small_checkpoint_path)
    return {
        "float32": fold(checkpoint.model, checkpoint.preprocessing),
        "float16": fold(checkpoint.model, checkpoint.preprocessing).half(),
    }


@pytest.fixture(scope="module")
def models(networks, remembered_export):
    return {precision: remembered_export(network, FACTS) for precision, network in networks.items()}


@pytest.fixture(params=["float32", "float16"])
def model(request, models):
    return models[request.param]


def _dims(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_interface(model):
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, images.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert (logits.name, logits.type.tensor_type.elem_type) == ("logits", TensorProto.FLOAT)
    assert _dims(images) == ["batch", 64, 64, 3] and _dims(logits) == ["batch", 7]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not model.functions


def test_the_checker_passes_and_every_shape_is_known(model):
    onnx.checker.check_model(model, full_check=True)
    known = {v.name for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    known |= {i.name for i in model.graph.initializer}
    assert {name for node in model.graph.node for name in node.output} <= known


def test_metadata_is_the_facts(model):
    assert [p.key for p in model.metadata_props] == ["tkfnet"]
    assert json.loads(model.metadata_props[0].value) == FACTS
    assert (model.producer_name, model.producer_version, model.doc_string) == ("tkfnet-engine", "", "")


def test_a_built_graph_holds_the_engines_own_facts(engine_path):
    from tkfnet_engine.bundle import read_bundle

    bundle = read_bundle(engine_path)
    stored = json.loads(onnx.load_from_string(bundle.bytes("graph.onnx")).metadata_props[0].value)
    assert set(stored) == {"model", "labels", "preprocessing", "precision"}
    assert stored == {key: bundle.facts[key] for key in stored}


def test_nothing_of_this_machine_is_in_the_bytes(models):
    for model in models.values():
        for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
            assert item.doc_string == "" and not item.metadata_props
        data = bytes_from_onnx(model).lower()
        private = [os.fspath(ROOT), os.fspath(Path.home()), sys.prefix, os.getcwd(), "site-packages", "pkg.torch"]
        private += ["traceback", "stack_trace", 'file "', platform.node(), getpass.getuser()]
        # Shorter ones stand in random weights by chance.
        found = [text for text in private if len(text) > 5 and text.lower().encode() in data]
        assert not found
        assert not re.search(rb"\.py\b", data)


def test_pixels_are_cast_before_they_are_transposed(model):
    """One ONNX parser refuses to transpose uint8."""
    (first,) = [node for node in model.graph.node if "images" in node.input]
    assert first.op_type == "Cast"
    assert {a.name: a.i for a in first.attribute}["to"] == TensorProto.FLOAT
    (second,) = [node for node in model.graph.node if first.output[0] in node.input]
    assert second.op_type == "Transpose" and list(second.attribute[0].ints) == [0, 3, 1, 2]


def test_no_batch_norm_is_left_and_no_custom_operator(model):
    kinds = Counter(node.op_type for node in model.graph.node)
    assert "BatchNormalization" not in kinds and "InstanceNormalization" not in kinds
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    # ResNet-18: 20 convolutions; TAFE: split, two of detail, gate, merge; DCIF: one. The classifier and DCIF: 5 linear.
    assert kinds["Conv"] == 26 and kinds["Gemm"] + kinds["MatMul"] == 5


def _weights(model, *kinds):
    """dtype of the weights of every node of these kinds, by the weight's name."""
    types = {i.name: i.data_type for i in model.graph.initializer}
    return {
        name: types[name] for node in model.graph.node if node.op_type in kinds for name in node.input if name in types
    }


def test_float32_is_float32_throughout(models):
    kinds = {i.data_type for i in models["float32"].graph.initializer}
    assert TensorProto.FLOAT in kinds and not kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    casts = [a.i for n in models["float32"].graph.node if n.op_type == "Cast" for a in n.attribute]
    assert TensorProto.FLOAT16 not in casts


def test_float16_lives_in_the_graph(models):
    convolutions = _weights(models["float16"], "Conv")
    single = {name for name, kind in convolutions.items() if kind == TensorProto.FLOAT}
    assert single == {name for name in convolutions if "dcif" in name} and len(single) == 1
    assert set(convolutions.values()) == {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert sum(kind == TensorProto.FLOAT16 for kind in convolutions.values()) >= 2 * 25
    linear = _weights(models["float16"], "Gemm", "MatMul")
    assert linear and set(linear.values()) == {TensorProto.FLOAT}
    assert {name for name in linear if "head" in name} and {name for name in linear if "dcif" in name}


def test_float16_halves_the_weights(models):
    sizes = {precision: len(bytes_from_onnx(model)) for precision, model in models.items()}
    assert sizes["float16"] < 0.7 * sizes["float32"]


def test_the_graph_answers_as_the_network_for_any_batch(models, networks, noise):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(bytes_from_onnx(models["float32"]), options, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 8):
        images = noise(batch, 64)
        with torch.inference_mode():
            expected = networks["float32"](torch.from_numpy(images)).numpy()
        assert np.abs(session.run(None, {"images": images})[0] - expected).max() <= 1e-4


EXPORT = """
import hashlib, json, sys
from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold
checkpoint = load_checkpoint(sys.argv[1])
network = fold(checkpoint.model, checkpoint.preprocessing)
for change in (lambda: network, network.half):
    print(hashlib.sha256(bytes_from_onnx(onnx_from_folded(change(), json.loads(sys.argv[2])))).hexdigest())
"""


def test_two_processes_export_the_same_bytes(models, small_checkpoint_path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, small_checkpoint_path, json.dumps(FACTS)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(bytes_from_onnx(m)).hexdigest() for m in models.values()]


@pytest.mark.parametrize(("tafe", "dcif", "pool"), [(False, False, "max"), (True, True, "nearest")])
def test_ablations_export_too(tafe, dcif, pool):
    config = TKFNetConfig(width=0.0625, tafe=tafe, dcif=dcif, pool=pool, classes=3)
    model = onnx_from_folded(fold(TKFNet(config).eval(), Preprocessing(size=32)), {})
    assert _dims(model.graph.output[0]) == ["batch", 3] and _dims(model.graph.input[0]) == ["batch", 32, 32, 3]


def test_a_failing_exporter_is_a_backend_error(networks, monkeypatch):
    import logging

    level = logging.getLogger("torch.onnx").level

    def fail(*_, **__):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(onnx_from_torch.torch.onnx, "export", fail)
    with pytest.raises(BackendError, match="could not export the network to ONNX: no such operator"):
        onnx_from_folded(networks["float32"], {})
    assert logging.getLogger("torch.onnx").level == level
