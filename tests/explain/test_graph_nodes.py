"""The reader of ONNX bytes agrees with the onnx package, and refuses what is none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tkfnet_engine.errors import BackendError
from tkfnet_engine.explain.graph_nodes import graph_nodes, graph_weight, with_outputs


def model() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "a.conv", kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Sigmoid", ["c"], ["s"]),
            helper.make_node("Split", ["s"], ["one", "two"], "ünï", axis=1, num_outputs=2),
            helper.make_node("Mul", ["one", "two"], ["y"], "n" * 300),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [info("y", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_nodes_are_those_that_onnx_reads():
    made = model()
    found = graph_nodes(made.SerializeToString())
    assert [(n.name, n.kind, n.inputs, n.outputs) for n in found] == [
        (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in made.graph.node
    ]


@pytest.mark.parametrize("name", ["s", "c" * 200])
def test_outputs_are_added_and_nothing_else_changes(name):
    made = model()
    more = onnx.ModelProto.FromString(with_outputs(made.SerializeToString(), [name, "two"]))
    assert [o.name for o in more.graph.output] == ["y", name, "two"]
    del more.graph.output[1:]
    assert more == made


def test_onnxruntime_infers_their_types():
    import onnxruntime as ort

    session = ort.InferenceSession(with_outputs(model().SerializeToString(), ["s"]), providers=["CPUExecutionProvider"])
    x = np.ones((2, 3, 4, 4), np.float32)
    y, s = session.run(None, {"x": x})
    assert y.shape == (2, 1, 4, 4) and s.shape == (2, 2, 4, 4)
    assert s[0, 0, 1, 1] == pytest.approx(1 / (1 + np.exp(-27)))
    np.testing.assert_array_equal(y[:, 0], s[:, 0] * s[:, 1])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_or_refused(data):
    whole = bytearray(model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole))) :]
    for read in (graph_nodes, lambda content: graph_weight(content, "w")):
        try:
            read(bytes(whole))
        except BackendError as error:
            assert "no ONNX model" in str(error)


@pytest.mark.parametrize(
    "damaged",
    [b"\x3a\x7f\x0a", b"\x3b\x01", b"\xff" * 12, b"\x3a", b"\x3d\0\0", b"\x3a\x04\x0a\x02\x1a\x09"],
)
def test_no_length_is_trusted(damaged):
    with pytest.raises(BackendError, match="no ONNX model"):
        graph_nodes(damaged)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 1, 1)])
def test_weights_are_those_that_onnx_reads(kind, shape):
    made, values = model(), (np.arange(int(np.prod(shape))) - 2).astype(kind).reshape(shape)
    made.graph.initializer.append(numpy_helper.from_array(values, "more"))
    found = graph_weight(made.SerializeToString(), "more")
    assert found.dtype == values.dtype and found.shape == values.shape and (found == values).all()
    assert graph_weight(made.SerializeToString(), "none") is None


def test_other_weights_are_refused():
    made = model()
    made.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.int64), "whole"))
    short = numpy_helper.from_array(np.ones(3, np.float32), "short")
    short.dims[0] = 2**62
    made.graph.initializer.append(short)
    listed = onnx.TensorProto(name="listed", data_type=1, dims=[2], float_data=[1, 2])
    made.graph.initializer.append(listed)
    for name in ("whole", "short", "listed"):
        with pytest.raises(BackendError, match="weight of type"):
            graph_weight(made.SerializeToString(), name)
