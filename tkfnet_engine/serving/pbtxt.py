"""Protobuf's text format, of what a `config.pbtxt` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Enum(str):
    """A name that is written without quotes."""


def pbtxt(message: Mapping[str, Any]) -> str:
    """Fields in order: str, `Enum`, bool, int; a mapping is a message, a list is a repeated field."""
    return "\n".join(line for name, value in message.items() for line in _field(name, value)) + "\n"


def quoted(text: str) -> str:
    """As C writes it: the UTF-8 bytes, those that are not printable ASCII in octal."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'


def _field(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{"
        yield from (f"  {line}" for inner, held in value.items() for line in _field(inner, held))
        yield "}"
    elif isinstance(value, (list, tuple)):
        if all(isinstance(one, Mapping) for one in value):
            for one in value:
                yield from _field(name, one)
        else:
            yield f"{name}: [ {', '.join(map(_scalar, value))} ]"
    else:
        yield f"{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return str.__str__(value)
    return quoted(value) if isinstance(value, str) else str(int(value))
