"""The folded network's ONNX graph -> the same with QuantizeLinear / DequantizeLinear pairs where `placement` says so.

A pair around a tensor tells a runtime that it may keep the tensor in eight bits. What it makes of that differs, so
there is a `Flavour` for each: where it needs pairs to compute in integers at all, and where one only costs accuracy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper

from ..errors import BackendError
from ..kernels.network import Network
from ..kernels.placement import Placement, Point
from ..kernels.quantise import INT8_MOST, quantised_weight
from ..model.fold import HALF_PIXEL_SCALE
from .calibration_table import CalibrationTable
from .scales_from_histogram import UINT8_MOST

HALF_OPSET = 21


@dataclass(frozen=True)
class Flavour:
    """symmetric: int8 maps, else uint8 with zero points. narrow: for integer products that can only end in eight bits,
    with integer biases (see `placement.Point.optional`). half: the float parts are FP16, and so are the scales."""

    name: str
    symmetric: bool
    narrow: bool
    half: bool


# ONNX Runtime's CPU kernels take unsigned maps and end in eight bits. OpenVINO adds and ends in float by itself.
# TensorRT knows no zero points; its float parts are to be FP16. (In TensorRT for RTX 1.7.1 an INT8 convolution writes
# float32 for a kernel of its own to round, whatever the types in the graph.)
FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("narrow", False, True, False),
        Flavour("unsigned", False, False, False),
        Flavour("symmetric", True, False, False),
        Flavour("symmetric-half", True, False, True),
    )
}


def qdq_from_onnx(
    model: onnx.ModelProto,
    folded: Any,
    network: Network,
    placement: Placement,
    table: CalibrationTable,
    flavour: Flavour,
    most: int = INT8_MOST,
) -> onnx.ModelProto:
    """A quantised copy of `model`, `onnx_from_folded`'s graph of `folded`.

    folded: `FoldedTKFNet` in float32, the source of the weights. most: of their magnitudes. `BackendError` where the
    graph is not as the exporter of this version makes it.
    """
    return _Rewriter(model, network, placement, table, flavour).quantised(folded, most)


class _Rewriter:
    """One graph being rewritten: nodes to insert are collected by the tensor after which they belong."""

    def __init__(
        self,
        model: onnx.ModelProto,
        network: Network,
        placement: Placement,
        table: CalibrationTable,
        flavour: Flavour,
    ):
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        if flavour.half:
            # FP16 scales came with opset 19; what else the graph uses is the same in both.
            self.model.opset_import[0].version = HALF_OPSET
        self.graph = self.model.graph
        self.network, self.placement, self.table, self.flavour = network, placement, table, flavour
        self.float_type = np.float16 if flavour.half else np.float32
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        self.convs: dict[str, NodeProto] = {}
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                self.readers[name].append((node, i))
            if node.op_type == "Conv":
                self.convs[node.input[1].removesuffix(".weight")] = node
        self.inserted: dict[str, list[NodeProto]] = defaultdict(list)
        self.first: list[NodeProto] = []

    def quantised(self, folded: Any, most: int) -> onnx.ModelProto:
        # The optional ones last: they are for products whose output no other point stores.
        for point in sorted(self.placement.points, key=lambda point: point.optional):
            if not point.optional or (self.flavour.narrow and not self._stored(self._conv(point.module).output[0])):
                self._store(point)
        layers = dict(folded.named_modules())
        for product in self.placement.products:
            layer, conv = layers[product.module], self._conv(product.module)
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
            if product.point is None:
                weight, bias, unit = self._pixels(conv, weight, bias)
            else:
                unit = self._scale(product.point)[0]
            scale = self._weight(product.module, conv, weight, most)
            self._bias(product.module, conv, bias.numpy(), unit * scale.astype(np.float64))
        self._finish()
        return self.model

    def _conv(self, module: str) -> NodeProto:
        if module not in self.convs:
            raise BackendError(
                f"quantising the graph: got no convolution with weights {module}.weight, expected the exporter to keep "
                "their names; install the versions of torch and onnxscript that constraints.txt names"
            )
        return self.convs[module]

    def _stored(self, output: str) -> bool:
        """Whether a product's output is stored in eight bits, as it is or after its ReLU."""
        outputs = [output, *(node.output[0] for node, _ in self.readers[output] if node.op_type == "Relu")]
        return any(tensor in self.inserted for tensor in outputs)

    def _scale(self, point: str) -> tuple[float, int]:
        scale, zero = (self.table.scales("int8")[point], 0) if self.flavour.symmetric else self.table.affine(point)
        return float(self.float_type(scale)), zero

    def _store(self, point: Point) -> None:
        """A pair around the tensor of `point`, which all its readers then read from."""
        if point.of_output:
            tensor = self._conv(point.module).output[0]
        else:
            reader = next(p.module for p in self.placement.products if p.point == point.name)
            tensor = self._conv(reader).input[0]
        scale, zero = self._scale(point.name)
        zero = np.int8(zero) if self.flavour.symmetric else np.uint8(zero)
        self._constants(point.name, scale=self.float_type(scale), zero=zero)
        producer = next((node for node in self.graph.node if tensor in node.output), None)
        if producer is not None and producer.op_type == "MaxPool":
            # Rounding and maximum commute, and a maximum of bytes is cheaper: a pair on either side.
            self._pair(f"{point.name}.before", point.name, producer.input[0], [(producer, 0)])
        self._pair(point.name, point.name, tensor, self.readers[tensor])

    def _pair(self, name: str, constants: str, tensor: str, readers: Iterable[tuple[NodeProto, int]]) -> None:
        scale, zero = f"{constants}.scale", f"{constants}.zero"
        quantise = helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{name}.q"], f"{name}.quantize")
        widen = helper.make_node("DequantizeLinear", [f"{name}.q", scale, zero], [f"{name}.dq"], f"{name}.dequantize")
        self.inserted[tensor] += [quantise, widen]
        for node, i in readers:
            node.input[i] = f"{name}.dq"

    def _weight(self, module: str, conv: NodeProto, weight: torch.Tensor, most: int) -> np.ndarray:
        """int8 weights and their scales [N] in place of `conv`'s."""
        quantised, scale = quantised_weight(weight, most)
        values = scale.numpy().astype(self.float_type)
        name = f"{module}.weight"
        self._constants(name, q=quantised.numpy(), scale=values, zero=np.zeros(len(values), np.int8))
        self._widened(name, conv, 1)
        return values

    def _bias(self, module: str, conv: NodeProto, bias: np.ndarray, unit: np.ndarray) -> None:
        name = f"{module}.bias"
        if not self.flavour.narrow:
            conv.input[2] = f"{name}.float"
            self._constants(name, float=bias.astype(self.float_type))
            return
        unit = unit.astype(np.float32)
        integer = np.clip(np.rint(bias / unit), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        self._constants(name, q=integer, scale=unit, zero=np.zeros(len(unit), np.int32))
        self._widened(name, conv, 2)

    def _widened(self, name: str, conv: NodeProto, at: int) -> None:
        inputs = [f"{name}.{part}" for part in ("q", "scale", "zero")]
        self.first.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], f"{name}.dequantize", axis=0))
        conv.input[at] = f"{name}.dq"

    def _pixels(
        self, conv: NodeProto, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The stem's (weight, bias, scale of the pixels), in units of pixels.

        A narrow runtime takes the bytes as they are, less one whole number for all channels, near their means; what is
        left of the means joins the bias, and the padding is that number instead of the mean (a fifth of a decibel of
        the logits). Others subtract the means in float and round once more: OpenVINO leaves a stem in float that pads a
        map with a zero point.
        """
        means = torch.tensor(self.network.channel_means, dtype=torch.float64)
        if self.flavour.narrow:
            zero = round(float(means.mean()))
            self._constants("pixels", scale=np.float32(1), zero=np.uint8(zero))
            inputs = ["pixels.map", "pixels.scale", "pixels.zero"]
            self.inserted["images"] += [
                helper.make_node("Transpose", ["images"], ["pixels.map"], "pixels.transpose", perm=[0, 3, 1, 2]),
                helper.make_node("DequantizeLinear", inputs, ["pixels.dq"], "pixels.dequantize"),
            ]
            conv.input[0] = "pixels.dq"
            return weight, bias + (weight * (zero - means)[:, None, None]).sum((1, 2, 3)), 1.0
        pixel = HALF_PIXEL_SCALE if self.flavour.half else 1.0
        low, high = -pixel * float(means.max()), pixel * (255 - float(means.min()))
        if self.flavour.symmetric:
            scale, zero = self.float_type(max(-low, high) / INT8_MOST), np.int8(0)
        else:
            scale = self.float_type((high - low) / UINT8_MOST)
            zero = np.uint8(round(-low / scale))
        self._constants("pixels", scale=scale, zero=zero)
        self._pair("pixels", "pixels", conv.input[0], [(conv, 0)])
        return weight / pixel, bias, float(scale)

    def _constants(self, name: str, **arrays: np.ndarray) -> None:
        for part, array in arrays.items():
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), f"{name}.{part}"))

    def _finish(self) -> None:
        """Nodes in order, and nothing that no output needs."""
        nodes = [*self.first, *self.inserted.pop("images", [])]
        for node in self.graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self.inserted.pop(name, [])
        needed, kept = {output.name for output in self.graph.output}, []
        for node in reversed(nodes):
            if needed & set(node.output):
                kept.append(node)
                needed |= set(node.input)
        initializers = [i for i in self.graph.initializer if i.name in needed]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(reversed(kept))
        self.graph.initializer.extend(initializers)
        onnx.checker.check_model(self.model, full_check=True)
