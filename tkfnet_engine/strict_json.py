"""JSON in which every text has one meaning for every reader, within limits that no parser can be broken with.

It is RFC 8259, in UTF-8, and less:

- no key twice in one object, compared after escapes: two readers may each keep another of the two values
- no NaN, no Infinity, no number that a float64 cannot hold
- no half of a surrogate pair, escaped or not
- no byte order mark
- at most `MAX_NESTING` arrays and objects in one another, and `MAX_NUMBER` characters in a number: checked
  before the parse, because Python's parser recurses and converts any number of digits

`1`, `1.0` and `1e0` stay apart: the first is an int, the others are floats. `true` is a bool and no number.
The engine file is read with it, whatever the reader's language; docs/engine-file.md refers to these rules.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_NESTING = 64
MAX_NUMBER = 32  # characters; a float64 needs 24, a uint64 20

# A string (left open: up to the end, so that the scan stays linear), a bracket, or an overlong number.
_TOKEN = re.compile(rf'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{{]|[\]}}]|[-+.0-9eE]{{{MAX_NUMBER + 1},}}', re.DOTALL)


class StrictJsonError(ValueError):
    """`code` is stable: json, duplicate-key, not-finite, number-length, nesting, surrogate, utf8."""

    def __init__(self, code: str, found: str, expected: str):
        super().__init__(code, found, expected)
        self.code, self.found, self.expected = code, found, expected

    def __str__(self) -> str:
        return f"{self.found}; expected {self.expected}"


def parse(text: str | bytes) -> Any:
    """The value that `text` stands for. `StrictJsonError` where it breaks a rule of the module's docstring."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise StrictJsonError("utf8", f"no UTF-8 at byte {error.start}", "UTF-8") from None
    _check_limits(text)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)
    except StrictJsonError:
        raise
    except ValueError as error:
        raise StrictJsonError("json", f"no valid JSON ({error})", "JSON") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise StrictJsonError("surrogate", "half of a surrogate pair in a string", "Unicode text") from None
    return value


def _check_limits(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        elif first != '"':
            length = token.end() - token.start()
            raise StrictJsonError("number-length", f"a number of {length} characters", f"{MAX_NUMBER} at most")
        if depth > MAX_NESTING:
            raise StrictJsonError("nesting", f"JSON nested deeper than {MAX_NESTING}", f"{MAX_NESTING} at most")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise StrictJsonError("duplicate-key", f"a key twice in one object of {len(pairs)} keys", "every key once")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictJsonError("not-finite", f"the number {text}", "numbers that a float64 can hold")
    return number


def _constant(text: str) -> None:
    raise StrictJsonError("not-finite", f"the constant {text}", "JSON, which has no NaN and no Infinity")


def canonical(value: Any) -> str:
    """`value` as the one strict JSON text for it: keys sorted, no spaces, ASCII. `StrictJsonError` if it has none."""
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
        if not _only_str_keys(value):
            raise TypeError("a key that is no string")
    except (TypeError, ValueError, RecursionError) as error:
        raise StrictJsonError("json", f"what JSON cannot hold ({error})", "JSON types") from None
    parse(text)
    return text


def _only_str_keys(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_only_str_keys, value))
    return not isinstance(value, dict) or all(type(k) is str and _only_str_keys(v) for k, v in value.items())
