"""The nodes and weights of an ONNX graph read from its bytes, and tensors made outputs of it, without the onnx package.

Of Protocol Buffers' wire format only what that takes: https://protobuf.dev/programming-guides/encoding/. Field numbers
are those of onnx.proto (IR version 10).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import BackendError

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_WEIGHT, _GRAPH_OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND = 1, 2, 3, 4
_VALUE_NAME = 1
_TENSOR_SIDE, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_DTYPES = {1: "<f4", 3: "<i1", 10: "<f2"}


@dataclass(frozen=True)
class Node:
    """kind: its operator ("Conv"). inputs, outputs: names of tensors."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def graph_nodes(model: bytes) -> list[Node]:
    """The nodes of a serialised `ModelProto`, in its order. `BackendError` for damaged bytes."""
    try:
        return [_node(part) for part in _parts(model, _GRAPH_NODE)]
    except (ValueError, IndexError) as error:
        raise _damaged(error) from None


def graph_weight(model: bytes, name: str) -> np.ndarray | None:
    """A weight (float32, float16 or int8) of a serialised `ModelProto`, None if it has none of that name.
    `BackendError` for damaged bytes or another type."""
    try:
        for part in _parts(model, _GRAPH_WEIGHT):
            fields = list(_fields(part))
            if any(field == _TENSOR_NAME and _text(value) == name for field, value in fields):
                return _weight(fields)
    except (ValueError, IndexError) as error:
        raise _damaged(error) from None
    return None


def with_outputs(model: bytes, tensors: Iterable[str]) -> bytes:
    """`model` with more outputs, whose types its reader infers.

    By the format's rules a message that comes twice is merged: the second graph, of outputs alone, joins the first.
    """
    outputs = b"".join(_message(_GRAPH_OUTPUT, _message(_VALUE_NAME, name.encode())) for name in tensors)
    return bytes(model) + _message(_MODEL_GRAPH, outputs)


def _damaged(error: Exception) -> BackendError:
    return BackendError(
        f"the engine's graph is no ONNX model: {error}; expected one that python -m tkfnet_engine.build wrote; build "
        "the engine again"
    )


def _parts(model: bytes, kind: int) -> Iterator[memoryview]:
    """Fields `kind` of the graph."""
    for field, graph in _fields(memoryview(model)):
        if field == _MODEL_GRAPH:
            yield from (_message_of(value) for field, value in _fields(_message_of(graph)) if field == kind)


def _weight(fields: list[tuple[int, memoryview | int]]) -> np.ndarray:
    shape = [value for field, value in fields if field == _TENSOR_SIDE]
    kind = next((value for field, value in fields if field == _TENSOR_TYPE), None)
    raw = next((_message_of(value) for field, value in fields if field == _TENSOR_RAW), memoryview(b""))
    if kind not in _DTYPES or not all(isinstance(side, int) for side in shape):
        raise ValueError(f"a weight of type {kind} and shape {shape}")
    if math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for a weight of type {kind} and shape {shape}")
    return np.frombuffer(raw, _DTYPES[kind]).reshape(shape)


def _message_of(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError(f"the number {value} in place of a message")
    return value


def _text(value: memoryview | int) -> str:
    return bytes(_message_of(value)).decode()


def _node(part: memoryview) -> Node:
    texts: dict[int, list[str]] = {field: [] for field in (_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND)}
    for field, value in _fields(part):
        if field in texts:
            texts[field].append(_text(value))
    # Of a field that is not repeated the last one counts.
    name, kind = ((texts[field] or [""])[-1] for field in (_NODE_NAME, _NODE_KIND))
    return Node(name, kind, tuple(texts[_NODE_INPUT]), tuple(texts[_NODE_OUTPUT]))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each field; a number of fixed width is 0, for none of them is looked at."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        wire, value = key & 7, 0
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _LEN:
            length, start = _varint(data, at)
            at = start + length
            value = data[start:at]
        elif wire in (_I64, _I32):
            at += 8 if wire == _I64 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if at > end:
            raise ValueError(f"a field that ends {at - end} bytes behind its message")
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _message(field: int, content: bytes) -> bytes:
    return _varint_bytes(field << 3 | _LEN) + _varint_bytes(len(content)) + content


def _varint_bytes(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
