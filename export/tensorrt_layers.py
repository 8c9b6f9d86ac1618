"""What TensorRT made of a graph, layer by layer: read from its build log, or from its inspector where there is a GPU.

A build log at detailed verbosity names every layer of the finished engine with the types that it reads and writes, the
kernel it chose and the graph's nodes that went into it. That needs no GPU. (TensorRT for RTX 1.7; its Myelin compiler
puts `_U7_myl0_4` behind the names.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError

_HEADING = "Layers:"
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: .*?Metadata: ?(?P<metadata>.*)$"
)
_OPERAND = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>.*?)\], .*?Datatype: (?P<type>\w+)")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_SUFFIX = re.compile(r"(_U\d+)?(_myl\d+_\d+)?$")
# Each optimisation profile has a copy of the network of its own, told by these: the first stands for all.
_FURTHER_PROFILE = re.compile(r" \[profile \d+\]|_myl[1-9]\d*_\d+$")
# They order streams and shapes, and compute nothing.
_BOOKKEEPING = {"signal", "wait", "shape_call", "NoOp", "ShapeHostToDevice"}
_POINTWISE = {"kgen"}
_TYPES = {"Float": "float32", "Half": "float16", "Int8": "int8", "UInt8": "uint8", "BFloat16": "bfloat16"}
_SHORT = {"FP32": "Float", "FP16": "Half", "INT8": "Int8", "UINT8": "UInt8", "BF16": "BFloat16"}


@dataclass(frozen=True)
class Layer:
    """One layer of a finished engine. reads, writes: (shape, type) of its maps; weights: types of its constants.
    origin: the graph's nodes in it, of which fused ones may go unnamed."""

    name: str
    kind: str
    reads: tuple[tuple[tuple[int, ...], str], ...]
    writes: tuple[tuple[tuple[int, ...], str], ...]
    weights: tuple[str, ...]
    tactic: str
    origin: tuple[str, ...]

    @property
    def precision(self) -> str:
        """What it computes on: the type of the map it reads first."""
        return (self.reads or self.writes)[0][1]

    def to_dict(self) -> dict[str, Any]:
        def operands(found: Sequence[tuple[tuple[int, ...], str]]) -> list[dict[str, Any]]:
            return [{"shape": list(shape), "type": kind} for shape, kind in found]

        return {
            "name": self.name,
            "kind": self.kind,
            "precision": self.precision,
            "reads": operands(self.reads),
            "writes": operands(self.writes),
            "weights": list(self.weights),
            "tactic": self.tactic,
            "origin": list(self.origin),
        }


def plain_name(name: str) -> str:
    """A layer's name without what TensorRT puts behind it, and without its profile."""
    return _SUFFIX.sub("", name).partition(" [profile ")[0]


def layers_from_log(messages: Iterable[str]) -> list[Layer]:
    """The layers of the engine that was built last, as its first profile runs them. `BackendError` where no message
    lists them."""
    listing = None
    for message in messages:
        if message.lstrip().startswith(_HEADING):
            listing = message
    if listing is None:
        raise BackendError(
            "TensorRT's build log lists no layers, expected them at detailed verbosity; it is another version than the "
            "tests know: report it with the log"
        )
    layers = []
    for line in listing.splitlines():
        if not line.startswith("Name: ") or "LayerType: " not in line:
            continue
        if not (match := _LINE.match(line)):
            raise BackendError(f"TensorRT's build log lists a layer in an unknown form: {line[:200]!r}; report it")
        if match["kind"] not in _BOOKKEEPING and not _FURTHER_PROFILE.search(match["name"]):
            layers.append(_layer(match))
    return layers


def _layer(match: re.Match[str]) -> Layer:
    origin = tuple(_ORIGIN.findall(match["metadata"]))
    return Layer(
        plain_name(match["name"]),
        match["kind"],
        _operands(match["inputs"]),
        _operands(match["outputs"]),
        tuple(kind for _, kind in _operands(match["constants"])),
        match["tactic"],
        origin,
    )


def _operands(text: str) -> tuple[tuple[tuple[int, ...], str], ...]:
    return tuple(
        (tuple(int(n) for n in found["shape"].split(",") if n), _TYPES.get(found["type"], found["type"].lower()))
        for found in _OPERAND.finditer(text)
    )


def layers_from_inspector(entries: Iterable[Any]) -> list[Layer]:
    """Of "Layers" in what `EngineInspector.get_engine_information` gives as JSON. `BackendError` without details."""
    layers = []
    for entry in entries:
        if not isinstance(entry, dict) or "LayerType" not in entry:
            raise BackendError("TensorRT's inspector gives names of layers only; build the engine again, in detail")
        if entry["LayerType"] in _BOOKKEEPING or _FURTHER_PROFILE.search(entry["Name"]):
            continue
        layers.append(
            Layer(
                plain_name(entry["Name"]),
                entry["LayerType"],
                _inspected(entry.get("Inputs", ())),
                _inspected(entry.get("Outputs", ())),
                tuple(kind for _, kind in _inspected(entry.get("Constants", ()))),
                entry.get("TacticName", ""),
                tuple(_ORIGIN.findall(entry.get("Metadata", ""))),
            )
        )
    return [layer for layer in layers if layer.reads or layer.writes]


def _inspected(operands: Iterable[Mapping[str, Any]]) -> tuple[tuple[tuple[int, ...], str], ...]:
    found = []
    for operand in operands:
        # "Float", or in older versions a format such as "Row major linear FP16 format".
        text = str(operand.get("Datatype") or operand.get("Format/Datatype") or "unknown")
        kind = next((long for short, long in _SHORT.items() if re.search(rf"\b{short}\b", text, re.IGNORECASE)), text)
        found.append((tuple(operand.get("Dimensions", ())), _TYPES.get(kind, kind.lower())))
    return tuple(found)


def precision_counts(layers: Iterable[Layer]) -> dict[str, int]:
    """Precision -> layers that compute in it."""
    return dict(sorted(Counter(layer.precision for layer in layers).items()))


def precisions_of_products(layers: Sequence[Layer], products: Sequence[str]) -> dict[str, str]:
    """Product of the graph -> precision of the layer that computes it. Where several name it, that is not one which
    only rearranges or rounds its operands."""
    found: dict[str, str] = {}
    for pointwise in (False, True):
        for layer in layers:
            if (layer.kind in _POINTWISE) != pointwise:
                continue
            for name in products:
                if name == layer.name or (name in layer.origin and name not in found):
                    found[name] = layer.precision
    return found
