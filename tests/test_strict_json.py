"""The strict JSON subset: what it takes, what it refuses and by which code, and how it writes."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest

from tkfnet_engine.strict_json import MAX_NESTING, MAX_NUMBER, StrictJsonError, canonical, parse

GOOD = {
    "scalars": ('[null,true,false,0,-0,-1,1.0,1e0,0.5E-3,""]', [None, True, False, 0, 0, -1, 1.0, 1.0, 0.0005, ""]),
    "spaces": (' \t\r\n{ "a" : [ 1 , 2 ] } ', {"a": [1, 2]}),
    "escapes": ('"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\u00e9"', '"\\/\b\f\n\r\té\U0001f600é'),
    "uint64": (str(2**64 - 1), 2**64 - 1),
    "nesting": ("[" * MAX_NESTING + "]" * MAX_NESTING, None),
    "brackets-in-text": (json.dumps("[" * 500 + '\\"' + "{" * 500), "[" * 500 + '\\"' + "{" * 500),
    "number": ("1" * MAX_NUMBER, int("1" * MAX_NUMBER)),
    "digits-in-text": (json.dumps("1" * 500), "1" * 500),
    "same-key-in-two-objects": ('[{"a":1},{"a":{"a":2}}]', [{"a": 1}, {"a": {"a": 2}}]),
    "bytes": ('{"é":1}'.encode(), {"é": 1}),
}
BAD = {
    "json": [
        "", " ", "{", '{"a":', "{}{}", "[1,]", '{"a":1,}', "{'a':1}", "[1]//x", "[1]\0", '"\n"', "[01]", "[0x4]",
        "[+1]", "[.5]", "[1.]", "[--1]", "[1e]", "True", "nul", "\ufeff{}", "\u00a0{}", '"\\x41"', '"\\u12g4"', '"open',
        "\u0663", "{1:2}", '{"a" 1}', "[1 2]", "]", "[}", '{"a":1}'.encode("utf-16-le"), b"\xef\xbb\xbf{}",
    ],
    "utf8": [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xe2\x82'],
    "duplicate-key": ['{"a":1,"a":1}', '[{"b":{"a":1,"\\u0061":2}}]', '{"":1,"":2}'],
    "not-finite": ["NaN", "[Infinity]", "-Infinity", "1e999", "[-1e999]", '{"a":1e309}'],
    "number-length": ["1" * (MAX_NUMBER + 1), "[0." + "1" * MAX_NUMBER, "-" + "1" * 5000, "1" * 900_000],
    "nesting": ["[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1), '{"a":' * 65 + "1" + "}" * 65, "[" * 900_000],
    "surrogate": ['"\\ud800"', '{"\\udc00":1}', '["\\ud83d\\ud83d"]', '{"a":{"b":["\\ude00\\ud83d"]}}', '"\ud800"'],
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_values(kind):
    text, expected = GOOD[kind]
    value = parse(text)
    if expected is not None:
        assert value == expected and repr(value) == repr(expected)  # 1, 1.0 and True are equal to Python


@pytest.mark.parametrize(
    ("code", "text"),
    [pytest.param(code, text, id=f"{code}-{i}") for code, texts in BAD.items() for i, text in enumerate(texts)],
)
def test_refusals(code, text):
    with pytest.raises(StrictJsonError) as caught:
        parse(text)
    assert caught.value.code == code
    said = str(caught.value)
    assert said == f"{caught.value.found}; expected {caught.value.expected}" and said.isascii() and "\n" not in said


def test_time_is_linear():
    start = time.perf_counter()
    for text in ("{" + '\\"' * 400_000, '"' + "\\" * 800_001, "-" * 800_000, '["' * 400_000, "1 " * 400_000):
        with pytest.raises(StrictJsonError):
            parse(text)
    assert time.perf_counter() - start < 5


PIECES = ["", *'{}[]":,\\eE.-+019u ', "\\ud83d", "1e99", "NaN"]


def test_mutations():
    """Never another error, and what is taken means the same after it has been written again."""
    rng = random.Random(3)
    text = canonical({"a": [1, -2.5e-7, True, None, '\u00e9\U0001f600\\"'], "b": {"c": {}, "d": []}})
    taken = 0
    for turn in range(20_000):
        changed = list(text[: rng.randrange(len(text) + 1)] if turn % 4 == 0 else text)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed) + 1)
            changed[at : at + rng.randint(0, 2)] = rng.choice(PIECES)
        try:
            value = parse("".join(changed))
        except StrictJsonError as error:
            assert error.code in BAD
        else:
            assert parse(canonical(value)) == value
            taken += 1
    assert taken > 500


def test_canonical():
    assert canonical({"b": [1, 1.5, True], "a": "\u00e9\U0001f600"}) == '{"a":"\\u00e9\\ud83d\\ude00","b":[1,1.5,true]}'
    assert canonical({"b": (1,), "a": 2}) == canonical({"a": 2, "b": [1]})


DEEP: list = []
for _ in range(70):
    DEEP = [DEEP]
CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), [float("inf")], object(), {1, 2}, b"bytes", {1: 2}, {"x": {2: 3}}, [{None: 1}], "\ud800",
        {"\udc00": 1}, DEEP, CYCLE, 10**40, [10**5000], np.float32(1),
    ],
)  # fmt: skip
def test_values_without_a_text(value):
    with pytest.raises(StrictJsonError):
        canonical(value)
