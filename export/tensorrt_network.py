"""The typed network that TensorRT's parser makes of a graph: built in every precision that its tensors have, and in no
other. Read before anything is built from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError
from .node_names import PIXELS

# Parts that stay float32 in a typed FP16 graph: sums over maps, and what comes after the last map.
FLOAT32_PARTS = (PIXELS, "tafe.statistics", "dcif", "head")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_BYTES = {"FLOAT": 4, "HALF": 2, "INT8": 1, "UINT8": 1, "INT64": 8, "INT32": 4, "BF16": 2, "BOOL": 1, "FP8": 1}


@dataclass(frozen=True)
class TypedLayer:
    """name: of the graph's node, or of a helper of the parser's. kind: TensorRT's, "CONVOLUTION". reads, writes:
    TensorRT's types, "HALF"; inputs, outputs: the tensors. from_node: whether a node of the graph is behind it.
    activations: bytes of the maps that it writes, at the largest batch."""

    name: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    from_node: bool
    activations: int


def parse(trt: Any, builder: Any, log: Any, graph: bytes) -> Any:
    """`trt.INetworkDefinition` of an ONNX graph, strongly typed. `BackendError` with all that the parser refuses."""
    # TensorRT 11 knows typed networks only, and has dropped the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = "; ".join(_described(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"{trt.__name__} {trt.__version__} refuses the graph: {reasons or 'it gives no reason'}")
    return network


def _described(error: Any) -> str:
    node = error.node_name() if hasattr(error, "node_name") else ""
    return f"{node}: {error.desc()}" if node else error.desc()


def typed_layers(network: Any, max_batch: int) -> list[TypedLayer]:
    """Every layer of a parsed network, in its order."""
    layers = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        inputs = [tensor for k in range(layer.num_inputs) if (tensor := layer.get_input(k)) is not None]
        outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
        origin = _ORIGIN.findall(layer.metadata)
        layers.append(
            TypedLayer(
                origin[0] if origin else layer.name,
                layer.type.name,
                tuple(tensor.dtype.name for tensor in inputs),
                tuple(tensor.dtype.name for tensor in outputs),
                tuple(tensor.name for tensor in inputs),
                tuple(tensor.name for tensor in outputs),
                bool(origin),
                sum(_nbytes(tensor, max_batch) for tensor in outputs),
            )
        )
    return layers


def _nbytes(tensor: Any, max_batch: int) -> int:
    """Of a map; what has no batch is a weight or a shape."""
    if all(n >= 0 for n in tensor.shape):
        return 0
    return math.prod(max_batch if n < 0 else n for n in tensor.shape) * _BYTES.get(tensor.dtype.name, 4)


def unexpected_types(layers: Iterable[TypedLayer], precision: str, products: Sequence[str]) -> dict[str, str]:
    """Layers that are not in the types of an engine of `precision`: name -> what was found and expected.

    products: names of the convolutions that are asked for in int8. Helpers of the parser's (constants, shapes) follow
    the layers that read them.
    """
    found, layers = {}, list(layers)
    writer = {tensor: layer for layer in layers for tensor in layer.outputs}
    for layer in layers:
        # What comes second is of the same type, or the scale of a Q/DQ pair, which the parser makes float32.
        floats = {kind for kind in (*layer.reads[:1], *layer.writes) if kind in ("FLOAT", "HALF", "BF16")}
        if precision == "float32" and floats - {"FLOAT"}:
            found[layer.name] = f"{'/'.join(sorted(floats))}, expected FLOAT"
        elif precision != "float32" and layer.from_node and "FLOAT" in floats and not _may_be_float32(layer.name):
            found[layer.name] = f"{'/'.join(sorted(floats))}, expected HALF"
    if precision == "int8":
        by_name = {layer.name: layer for layer in layers if layer.kind == "CONVOLUTION"}
        for name in products:
            reads = by_name[name].inputs[:2] if name in by_name else ()
            kinds = [writer[tensor].kind if tensor in writer else "an input" for tensor in reads]
            if kinds != ["DEQUANTIZE", "DEQUANTIZE"]:
                found[name] = f"reads from {', '.join(kinds) or 'nothing'}, expected DEQUANTIZE twice"
    return found


def _may_be_float32(name: str) -> bool:
    # What casts at the border of such a part belongs to it.
    return any(name == part or name.startswith(f"{part}.") for part in FLOAT32_PARTS)


def activation_bytes(layers: Sequence[TypedLayer]) -> int:
    """Bytes that the maps take at the largest batch, where every one lives until its last reader has run. An upper
    bound: fusion leaves most maps out."""
    last = {tensor: i for i, layer in enumerate(layers) for tensor in layer.inputs}
    live, most = 0, 0
    ends: dict[int, int] = {}
    for i, layer in enumerate(layers):
        live += layer.activations
        most = max(most, live)
        end = max((last.get(tensor, i) for tensor in layer.outputs), default=i)
        ends[end] = ends.get(end, 0) + layer.activations
        live -= ends.pop(i, 0)
    return most
