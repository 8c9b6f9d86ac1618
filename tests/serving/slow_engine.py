"""An engine that takes a third of a second for any batch, so that requests are in flight while a test looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tkfnet_engine.bundle import read_bundle, write_bundle

# 34 GFLOP, on one thread.
SIDE, PRODUCTS = 2048, 2


def write_slow_engine(model: Path, path: Path) -> Path:
    """An engine file with the facts of `model`, whose logits are a random linear map of the pixels."""
    facts = dict(read_bundle(model).facts)
    size, classes = facts["preprocessing"]["size"], len(facts["labels"])
    weights = np.random.default_rng(0).standard_normal((size * size * 3, classes)).astype(np.float32) * 1e-4
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["map"]),
        # Of the input's mean, so that nothing can be computed beforehand.
        helper.make_node("ReduceMean", ["flat"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "side"], ["a0"]),
    ]
    for i in range(PRODUCTS):
        nodes.append(helper.make_node("MatMul", [f"a{i}", "a0"], [f"b{i}"]))
        nodes.append(helper.make_node("Tanh", [f"b{i}"], [f"a{i + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"a{PRODUCTS}"], ["all"], keepdims=0),
        helper.make_node("Mul", ["all", "zero"], ["nothing"]),
        helper.make_node("Add", ["map", "nothing"], ["logits"]),
    ]
    constants = {"weights": weights, "side": np.array([SIDE, SIDE]), "zero": np.float32(0)}
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    write_bundle(path, {"graph.onnx": made.SerializeToString()}, facts)
    return path
