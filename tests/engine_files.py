"""Engine files made by hand: good ones, bad ones with the code they are refused with, and random changes to them."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from pathlib import Path

import numpy as np

from tkfnet_engine.bundle import MAX_HEADER, read_bundle, read_facts
from tkfnet_engine.errors import BundleError

FACTS = {"labels": ["sadness", "fear"], "model": {"width": 0.5, "tafe": True}, "note": "\u00e9\U0001f600", "none": None}
TENSORS = {
    "graph.onnx": b"\x00onnx\xff",
    "weights/conv.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "weights/scale": np.array(1.5, np.float16),
    "counts": np.array([-1, 2**62], np.int64),
}
OURS = {"format": "tkfnet-engine", "format_version": 1}
A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DIGEST = {"dtype": "U8", "shape": [32], "data_offsets": [4, 36]}
ALONE = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}


def sealed(content: bytes) -> bytes:
    """`content` with its last 32 bytes replaced by the digest of the others."""
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def plain(header: str | bytes, body: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + body


def text(inner: str = f'"a":{json.dumps(A)}') -> str:
    """A header whose text, not only whose value, is given: `inner` stands where tensor "a" stands."""
    return f'{{"__metadata__":{{"tkfnet":{json.dumps(json.dumps(OURS))}}},{inner},"~sha256":{json.dumps(DIGEST)}}}'


def container(header: str | bytes, body: bytes = bytes(36)) -> bytes:
    return sealed(plain(header, body))


def craft(entries: dict | None = None, facts=OURS, body: bytes = bytes(36), metadata=None) -> bytes:
    """A file with a correct digest and anything else as asked; the default is a good file."""
    if metadata is None:
        metadata = {"tkfnet": facts if isinstance(facts, str) else json.dumps(facts)}
    header = {"__metadata__": metadata, **({"a": A} if entries is None else entries)}
    header.setdefault("~sha256", DIGEST)
    return container(json.dumps(header), body)


def one(dtype="F32", shape=(1,), offsets=(0, 4), name="a", **more) -> bytes:
    """A good file but for the fields of its only tensor."""
    return craft({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}})


def two(first, second) -> bytes:
    entry = {"dtype": "U8", "shape": [2]}
    return craft({"a": {**entry, "data_offsets": first}, "b": {**entry, "data_offsets": second}})


def fact(value: str) -> bytes:
    return craft(facts=f'{{"format":"tkfnet-engine","format_version":1,"x":{value}}}')


def claiming(size: int) -> bytes:
    """A file of some 300 bytes whose header is sound, but for a file of `size` bytes more."""
    a = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    return craft({"a": a, "~sha256": {**DIGEST, "data_offsets": [size, size + 32]}})


def place(path: Path, content: bytes) -> None:
    """`path.write_bytes`, but without emptying the file first, which makes some file systems wait for the disk."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def code_of(path: Path, content: bytes | None = None) -> str | None:
    """The code with which both readers refuse the file; None if both take it."""
    if content is not None:
        place(path, content)
    codes = []
    for reader in (read_bundle, read_facts):
        try:
            reader(path)
            codes.append(None)
        except BundleError as error:
            assert str(path) in str(error) and error.code != "bundle"
            codes.append(error.code)
    assert codes[0] == codes[1]
    return codes[0]


BIG = [2**31 - 1, 2**31, 2**32, 2**47, 2**48 - 1]
HUGE = [2**48, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, 0]

GOOD = {
    "default": craft(),
    "no-tensor": craft({"~sha256": ALONE}, body=bytes(32)),
    "scalar": one(shape=()),
    "rank-8": one(shape=(1,) * 8),
    "bool": one("BOOL", (4,)),
    "bf16": one("BF16", (2,)),
    "u8": one("U8", (4,)),
    "name-200": one(name="a" * 200),
    "name-dots": one(name="a.b/c-d_0/.e"),
    "padded": container(text() + "   "),
    "spaced": container(text('"a" : {"shape":[1],\n"dtype":"F32", "data_offsets":[0,4]}')),
    "facts-unsorted": craft(facts='{"z":1,"format_version":1,"format":"tkfnet-engine"}'),
}

# code -> files. What strict JSON refuses is in test_strict_json.py; here is one of each place it is read in.
BAD_BY_CODE = {
    "too-short": {"empty": b"", "seven-bytes": bytes(7)},
    "header-too-long": {
        "over-the-cap": struct.pack("<Q", MAX_HEADER + 1) + b"{" * (MAX_HEADER + 1),
        "2**63": struct.pack("<Q", 2**63) + b"{}",
        "2**64-1": b"\xff" * 8 + b"{}",
        "a-zip": b"PK\x03\x04" + bytes(range(100)),
    },
    "truncated": {
        "header-behind-end": struct.pack("<Q", 100) + b"{}",
        "body-short": craft(body=bytes(35)),
        "body-absent": craft(body=b"")[:-32],
        **{f"claims-{number}": claiming(number) for number in BIG},
    },
    "trailing": {"body-long": craft(body=bytes(37))},
    "header-start": {
        "zero-header": bytes(8),
        "bom": container(b"\xef\xbb\xbf" + text().encode()),
        "leading-space": container(" " + text()),
        "an-array": container("[1]", bytes(32)),
    },
    "utf8": {
        "byte": container(text().encode().replace(b'"a"', b'"\xff"')),
        "encoded-surrogate": container(text().encode().replace(b'"a"', b'"\xed\xa0\x80"')),
    },
    "json": {
        "half": container('{"a":', bytes(32)),
        "utf16": container(text().encode("utf-16-le")),
        "two-objects": container(text() + "{}"),
        "facts-empty": craft(facts=""),
        "facts-bom": craft(facts="\ufeff" + json.dumps(OURS)),
    },
    "duplicate-key": {
        "tensor": container(text(f'"a":{json.dumps(A)},"a":{json.dumps(A)}')),
        "metadata": container('{"__metadata__":{},' + text()[1:]),
        "fact": fact('1,"x":1'),
    },
    "not-finite": {"shape": container(text().replace("[1]", "[NaN]")), "fact": fact("[-1e999]")},
    "number-length": {"shape": container(text().replace("[1]", f"[{'1' * 5000}]")), "fact": fact("1" * 33)},
    "nesting": {"header": container('{"a":' + "[" * 900_000, bytes(32)), "facts": fact("[" * 64 + "]" * 64)},
    "surrogate": {"name": container(text().replace('"a"', '"\\udc00"')), "fact": fact('["\\ud83d"]')},
    "not-an-engine": {
        "plain-safetensors": plain(json.dumps({"a": A}), bytes(4)),
        "checkpoint": craft(metadata={"format": "pt"}),
        "empty-object": container("{}", bytes(32)),
    },
    "metadata": {
        "list": craft(metadata=["tkfnet"]),
        "number": craft(metadata={"tkfnet": 1}),
        "object": craft(metadata={"tkfnet": OURS}),
        "two-keys": craft(metadata={"tkfnet": json.dumps(OURS), "x": "y"}),
    },
    "facts": {"list": craft(facts="[]")},
    "format": {
        "absent": craft(facts={"format_version": 1}),
        "other": craft(facts={"format": "tkfnet-checkpoint", "format_version": 1}),
    },
    "version": {repr(v): craft(facts={**OURS, "format_version": v}) for v in (None, 0, True, "1", 1.0)},
    "version-newer": {
        "2": craft(facts={**OURS, "format_version": 2}),
        "2-with-more": craft(metadata={"tkfnet": json.dumps({**OURS, "format_version": 2}), "x": ""}),
    },
    "name": {
        ascii(name): one(name=name)
        for name in ("", "/a", "a/../b", "..", "A", "a\\b", "c:a", "a\0", "a\n", "\u00e9", "\u0663", "~a", "a" * 201)
    },
    "entry": {
        "number": craft({"a": 1}),
        "null": craft({"a": None}),
        "less": craft({"a": {"dtype": "F32", "shape": [1]}}),
        "more": one(device="cuda"),
    },
    "dtype": {repr(dtype): one(dtype) for dtype in ("F8_E4M3", "f32", "C64", 4, ["F32"], None)},
    "shape": {
        repr(shape): one(shape=shape, offsets=(0, 4))
        for shape in (None, 1, (True,), (1.0,), ("1",), ([1],), (1,) * 9, (1, 0), *([n] for n in HUGE))
    },
    "offsets": {
        **{
            repr(offsets): one(offsets=offsets)
            for offsets in (
                None, (0,), (0, 4, 4), (False, 4), (0.0, 4), (4, 0), (0, 0), (0, -4), (-4, 0), (1, 5), (0, 3), (0, 5),
                *((0, n) for n in HUGE), *((n, n + 4) for n in HUGE[:-1]),
            )
        },
        "4e0": container(text().replace("[0, 4]", "[0,4e0]")),
        "hole": two([0, 2], [3, 5]),
        "overlap": two([0, 2], [1, 3]),
        "same-bytes-twice": two([0, 2], [0, 2]),
        "out-of-order": two([2, 4], [0, 2]),
        # Products that wrap around in 32-bit or 64-bit arithmetic: to 4 and to 0 are the last two.
        **{f"product-{n}": one("F64", (n, n, n, 2**16)) for n in BIG},
        "product-wraps-to-4": one("U8", (4, 2**31 - 2**16 + 1, 2**31 + 2**16 + 1), (0, 4)),
        "product-wraps-to-0": one("F32", (2**31, 2**31), (0, 0)),
    },
    "digest-form": {
        "missing": plain(json.dumps({"__metadata__": {"tkfnet": json.dumps(OURS)}}), b""),
        "missing-behind-a": plain(json.dumps({"__metadata__": {"tkfnet": json.dumps(OURS)}, "a": A}), bytes(4)),
        "dtype": craft({"~sha256": {**ALONE, "dtype": "I8"}}, body=bytes(32)),
        "shape": craft({"~sha256": {**ALONE, "shape": [4, 8]}}, body=bytes(32)),
        "short": craft({"~sha256": {**ALONE, "shape": [31], "data_offsets": [0, 31]}}, body=bytes(32))[:-1],
        "first": craft({"~sha256": ALONE, "a": {**A, "data_offsets": [32, 36]}}),
    },
    "digest": {
        "wrong": craft()[:-1] + bytes([craft()[-1] ^ 1]),
        "zero": craft()[:-32] + bytes(32),
        "body-changed": craft()[:-36] + b"\1" + craft()[-35:],
    },
    "bool-value": {"2": craft({"a": {**A, "dtype": "BOOL", "shape": [4]}}, body=b"\0\1\2\0" + bytes(32))},
}  # fmt: skip
BAD = {f"{code}: {kind}": (code, file) for code, files in BAD_BY_CODE.items() for kind, file in files.items()}

NUMBERS = [*BIG, *HUGE, 1, 2, 3, 4, 8, 31, 32, 33, 36, 40, 64]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """`content` after one to three changes, most of them made to its header as text or as a tree."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        (length,) = struct.unpack_from("<Q", data)
        size = len(data)
        length = min(length, max(len(data) - 8, 0))
        kind = rng.randrange(9)
        at = rng.randrange(max(len(data), 1))
        if kind == 0:
            data[at] ^= rng.randrange(1, 32 if rng.random() < 0.8 else 256)  # below 32, ASCII mostly stays ASCII
        elif kind == 1:
            data[at:at] = bytes(rng.randrange(32, 127) for _ in range(rng.randint(1, 9)))
        elif kind == 2:
            del data[at : at + rng.randint(1, 9)]
        elif kind == 3:
            start, count = rng.randrange(len(data)), rng.randint(1, 60)
            data[at : at + rng.choice([0, count])] = data[start : start + count]
        elif kind == 4:
            struct.pack_into("<Q", data, 0, rng.choice([*NUMBERS[:10], length + 1, length - 8, length + 8]) % 2**64)
        else:
            try:
                header = json.loads(data[8 : 8 + length])
                if kind == 5:
                    edit_tree(rng, header)
                text = json.dumps(header, separators=(",", ":"))
                if kind == 6:  # another number
                    found = rng.choice(list(re.finditer(r"\d+", text)))
                    text = text[: found.start()] + str(rng.choice(NUMBERS)) + text[found.end() :]
                elif kind == 7:  # other text
                    found = rng.randrange(len(text))
                    text = text[:found] + rng.choice([*'{}[]":,\\eE.-0', "null", "true", "NaN"]) + text[found:]
                elif kind == 8:  # other whitespace, or the same key twice
                    text = text.replace(",", ", ", 1) if rng.random() < 0.5 else text[:-1] + "," + text[1:]
                raw = text.encode()
                data[: 8 + length] = struct.pack("<Q", len(raw)) + raw
            except (ValueError, AttributeError, TypeError, KeyError, IndexError):
                data[at] ^= 1
        if len(data) < 8:
            break
        if kind in (1, 2, 3) and 8 <= at < 8 + length and rng.random() < 0.8:  # so that the body stays the body
            struct.pack_into("<Q", data, 0, max(0, length + len(data) - size))
    return bytes(data)


def edit_tree(rng: random.Random, header: dict) -> None:
    names = [n for n in header if n != "__metadata__"]
    first, second = rng.choice(names), rng.choice(names)
    kind = rng.randrange(6)
    if kind == 0:
        header[first], header[second] = header[second], header[first]
    elif kind == 1:
        header[rng.choice(["new", "a/b", "..", "/x", "X", "~z", ""])] = header.pop(first)
    elif kind == 2:
        header[first]["dtype"] = rng.choice(["U8", "I8", "BOOL", "F16", "BF16", "F32", "I64", "F8_E5M2", None, 1])
    elif kind == 3:
        header[first]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
    elif kind == 4:
        header[first]["shape"] = header[first]["shape"][::-1] + [1] * rng.randrange(9)
    else:
        header[first]["data_offsets"] = [rng.choice(NUMBERS), rng.choice(NUMBERS)]
