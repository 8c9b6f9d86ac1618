"""TensorRT's parser and builder on the symmetric Q/DQ graph. TensorRT for RTX builds without a GPU; its log names the
types that each layer reads and writes."""

from __future__ import annotations

import re

import pytest

from tkfnet_engine.export.qdq_from_onnx import FLAVOURS, qdq_from_onnx
from tkfnet_engine.kernels.placement import placement_of

from .quantised_network import small_network

trt = pytest.importorskip("tensorrt_rtx")


class _Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity, message: str) -> None:
        self.lines.append(message)


def _built(graph: bytes, size: int) -> list[str]:
    """The log of a build that succeeded."""
    log = _Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(graph)
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape("images", *((n, size, size, 3) for n in (1, 8, 32)))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.lines[-5:]
    return log.lines


def _convolutions(lines: list[str]) -> dict[str, str]:
    """Convolution -> the type it reads."""
    found = {}
    for line in "\n".join(lines).splitlines():
        of = r"Name: (.+?)(?:_U\d+)?(?:_myl\d+_\d+)?, LayerType: correlation, Inputs: \[ \{.*?Datatype: (\w+)"
        if match := re.match(of, line):
            found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("kept", [(), ("layer1.0.conv2", "tafe.merge")])
def test_every_quantised_convolution_multiplies_bytes(kept, small_checkpoint_path, noise):
    small = small_network(str(small_checkpoint_path), noise)
    placement = placement_of(small.network, kept)
    model = qdq_from_onnx(small.half, small.folded, small.network, placement, small.table, FLAVOURS["symmetric-half"])
    found = _convolutions(_built(model.SerializeToString(), small.network.size))
    asked = {product.name for product in placement.products}
    assert {name for name in asked if found.get(name) == "Int8"} == asked, found
    every = {product.name for product in placement_of(small.network).products}
    assert all(found[name] == "Half" for name in every - asked if name in found)
