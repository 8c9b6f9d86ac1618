"""Strict JSON in C++ and in Python: the same texts taken, the others refused with the same code, the same values."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest

from tkfnet_engine.strict_json import StrictJsonError, parse

from ..test_strict_json import BAD, GOOD
from .readers import lines_of


def compare(native_build, texts: Iterable[bytes]) -> dict[str, int]:
    """Both readers say the same of every text. How many of each code."""
    texts, codes = list(texts), {}
    for text, line in zip(texts, lines_of(native_build, (t.hex() for t in texts), "json"), strict=True):
        answer = json.loads(line)
        try:
            expected: tuple[str, Any] = ("ok", parse(text))
        except StrictJsonError as error:
            expected = (error.code, None)
            assert answer["message"].isascii() and "; expected " in answer["message"] and "\n" not in answer["message"]
        # As text, because to Python 1, 1.0 and True are equal, and dicts of another order.
        assert (answer["code"], repr(answer.get("value"))) == (expected[0], repr(expected[1])), text[:2000]
        codes[expected[0]] = codes.get(expected[0], 0) + 1
    return codes


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


TEXTS = {f"good-{kind}": as_bytes(text) for kind, (text, _) in GOOD.items()}
TEXTS |= {
    f"{code}-{i}": as_bytes(text)
    for code, texts in BAD.items()
    for i, text in enumerate(texts)
    if text != '"\ud800"'  # which no bytes stand for
}


@pytest.fixture(scope="module")
def answers(native_build):
    lines = lines_of(native_build, (text.hex() for text in TEXTS.values()), "json")
    return dict(zip(TEXTS, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("kind", TEXTS)
def test_the_cases_of_the_python_reader(answers, kind):
    code = kind.rpartition("-")[0] if kind.rpartition("-")[2].isdecimal() else "ok"
    assert answers[kind]["code"] == code
    if code == "ok":
        assert repr(answers[kind]["value"]) == repr(parse(TEXTS[kind]))


# Several faults at once, faults beside their like, and what nlohmann's parser takes by itself.
TRAPS = [
    b'{"a":1,"a":2', b'{"a":1,"a":2}x', b'{"a":1,"a":1e999}', b'["\\ud800",NaN]', b'["\\ud800",', b'["\\ud800"]x',
    b'{"\\ud800":1,"\\ud800":2}', b'{"\\ud800":1,"\\uD800":2}', b'{"\\ud800":1,"\\\\ud800":2}',
    b'{"\\ud800":1,"\\\\u55296":2}', b'{"\\ud800":1,"\\u005cu55296":2}', b'{"\\\\":1,"\\u005C":2,"\\ud800":3}',
    b'{"a":"\\ud83d\\ude00","b":"\\ude00\\ud83d"}', b'"\\ud83d\\u0041"', b'"\\ud83d\\ud83d\\ude00"', b'"\\ud83d\\ude0"',
    b'"\\ud83d\\', b'"\\ud83d', b'"\\ud83', b'"\\u"', b'\\ud800', b'[1]\\ud800', b'"\\ud800"\\ud800',
    b'"\\uD83D\\uDE00"', b"[NaN", b"[1 NaN", b"[1,NaN", b'{"a":NaN', b'{"a" NaN', b'{"a":1,NaN', b"{NaN",
    b"NaNx", b"Infinityx", b"Infinit",
    b"-Infinity", b"-Infinit", b"--Infinity", b"-NaN", b"- Infinity", b"1Infinity", b"[-Infinity]", b"[1,-Infinity]",
    b'{"a":-Infinity}', b'"a"NaN', b"[[]NaN", b"nan", b"inf", b"[nNaN]", b"[tNaN", b"[,NaN]", b"[\n\t NaN]", b"NNaN",
    b"1e999x", b"1e999.5", b"1e999e5", b"[1e999", b"1e400", b"-1e400",
    b"1.7976931348623157e308", b"1.7976931348623159e308", b"1e-400",
    b"4.9e-324", b"2.5e-324", b"-0", b"-0.0", b"0e999", b"-1e-999", b"123456789012345678901234567890.5",
    b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809",
    b"18446744073709551615", b"18446744073709551616", b"-18446744073709551616", b"9" * 32, b"-" + b"9" * 31,
    b"1\0", b"[1]\0[2]", b"\0", b"1 \0", b"[\0]", b'"\0"', b'{"a":1\0}', b"\0NaN", b'"a\x1fb"', b'"\x7f"', b"\x7f",
    b"\xef\xbb\xbf1", b"\xef\xbb\xbf", b"\xef\xbb", b" \xef\xbb\xbf1", b"1\xef\xbb\xbf", b"\xef\xbb\xbfNaN",
    b"\xef\xbb\xbf" + b"[" * 70, b"/**/1", b"1//", b"1,", b"1 2", b"[1,,2]", b"]" * 70 + b"[" * 100, b"[" * 70 + b'"',
    b'"' + b"[" * 70, b'"\\"' + b"[" * 70, b'"\\' + b"[" * 70, b"e" * 33, b"[" + b"-" * 40,
    b"1" * 32 + b"x" + b"[" * 99,
    b'"' + b"1" * 40, b"[" * 65 + b"1" * 40, b"1" * 40 + b"[" * 65, b'"\xff' + b"[" * 70, b"[1" + b" " * 40 + b"2]",
    b'{"a":1,"b":{"a":1,"b":2,"c":3},"c":[{"a":1}]}', b'{"":{"":{"":0}}}', b"{}", b"[]", b"[[],{}]", b"\x80", b"\xc3",
    b"\xe2\x82\xac", b'"\xe2\x82\xac\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf"', b'"\xf4\x90\x80\x80"', b'"\xf0\x8f\xbf\xbf"',
    b'"\xe0\x9f\xbf"', b'"\xed\x9f\xbf\xee\x80\x80"', b'"\xc1\xbf"', b'"\xf8\x88\x80\x80\x80"',
    b'"\xf5\x80\x80\x80"', b'"\xe2\x28\xa1"',
]  # fmt: skip


def test_traps(native_build):
    codes = compare(native_build, TRAPS)
    assert set(codes) == {"ok", *BAD}


def test_long_texts_take_linear_time_and_little_stack(native_build):
    texts = ["{" + '\\"' * 400_000, '"' + "\\" * 800_001, "-" * 800_000, '["' * 400_000, "1 " * 400_000, "[" * 900_000]
    texts += ["[" + "0," * 400_000 + "0]", "{" + ",".join(f'"{i}":0' for i in range(80_000)) + "}", '"\\ud800' * 99_999]
    texts += ['"' + "\\u005c" * 99_999 + '\\ud800"', json.dumps("\\" * 400_000)]
    assert compare(native_build, map(str.encode, texts))["ok"] == 3


DOCUMENT = json.dumps({"a": [1, -2.5e-7, True, None, 'é\U0001f600\\"'], "b": {"c": {}, "d": [""]}}).encode()


def test_every_byte_and_every_prefix_of_a_document(native_build):
    texts = [DOCUMENT[:i] for i in range(len(DOCUMENT))]
    texts += [DOCUMENT[:i] + bytes([byte]) + DOCUMENT[i + 1 :] for i in range(len(DOCUMENT)) for byte in range(256)]
    assert set(compare(native_build, texts)) >= {"ok", "json", "utf8", "duplicate-key", "surrogate"}


PIECES = ["", *'{}[]":,\\eE.-+019u \0\n', "\\ud83d", "\\ude00", "\\u0061", "\\\\", "1e99", "1e999", "NaN", "Infinity"]
PIECES += ["-Infinity", "true", "null", "1" * 40, "\ufeff", "é", "\U0001f600", '"a":', "[" * 70, "//", '{"a":1,"a":2}']
KEYS = ["", "a", "b", "\\", "a\\", "é", "\ud83d", "\ude00", "\ud83d\ude00", "\0", "a" * 40]
LEAVES = [None, True, False, 0, 1, -1, 2**53, 2**63, 10**31, 0.5, -0.0, 1e300, 1e-320, math.nan, math.inf, *KEYS]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(4)
    if kind == 0 and depth < 5:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 1 and depth < 5:
        return {rng.choice(KEYS): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return rng.choice(LEAVES)


def random_text(rng: random.Random) -> bytes:
    """JSON of a random value, half of them changed."""
    separators = rng.choice([None, (",", ":"), (" ,\n", "\t: ")])
    characters = list(json.dumps(random_value(rng), separators=separators))
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(characters) + 1)
            characters[at : at + rng.randint(0, 2)] = rng.choice(PIECES)
    data = bytearray("".join(characters).encode("utf-8"))
    if rng.random() < 0.05 and data:
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    return bytes(data)


@pytest.mark.parametrize("count", [30_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_random_documents(native_build, count):
    rng, codes = random.Random(count), {}
    for _ in range(0, count, 10_000):
        for code, found in compare(native_build, (random_text(rng) for _ in range(10_000))).items():
            codes[code] = codes.get(code, 0) + found
    assert set(codes) == {"ok", *BAD} and codes["ok"] > count / 4 and codes["duplicate-key"] > 20, codes


def test_text_is_written_as_python_writes_it(native_build):
    characters = [chr(i) for i in [*range(0xD800), *range(0xE000, 0x10000), 0x10000, 0x1F600, 0x10FFFF]]
    texts = ["".join(characters[i : i + 999]) for i in range(0, len(characters), 999)]
    lines = lines_of(native_build, (json.dumps(text).encode().hex() for text in texts), "json")
    assert lines == [f'{{"code":"ok","value":{json.dumps(text)}}}' for text in texts]
