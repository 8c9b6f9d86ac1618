"""The engine file: round trips, refusals by code, damage, mutations, memory, atomic writing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine import bundle as module
from tkfnet_engine.bundle import MAX_HEADER, SUFFIX, read_bundle, read_facts, write_atomically, write_bundle
from tkfnet_engine.errors import BundleError

SEED = 20_000
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and folders")
FACTS = {"labels": ["sadness", "fear"], "model": {"width": 0.5, "tafe": True}, "note": "\u00e9\U0001f600", "none": None}
TENSORS = {
    "graph.onnx": b"\x00onnx\xff",
    "weights/conv.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
    "weights/scale": np.array(1.5, np.float16),
    "counts": np.array([-1, 2**62], np.int64),
}
OURS = {"format": "tkfnet-engine", "format_version": 1}
ALONE = {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}
DIGEST = {"dtype": "U8", "shape": [32], "data_offsets": [4, 36]}


def sealed(content: bytes) -> bytes:
    """`content` with its last 32 bytes replaced by the digest of the others."""
    return content[:-32] + hashlib.sha256(content[:-32]).digest()


def plain(header: str | bytes, body: bytes) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + body


def container(header: str | bytes, body: bytes) -> bytes:
    return sealed(plain(header, body))


def craft(entries: dict | None = None, facts=OURS, body: bytes = bytes(36), metadata=None) -> bytes:
    """A file with a correct digest and anything else as asked; the default is a good file."""
    entries = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} if entries is None else entries
    if metadata is None:
        metadata = {"tkfnet": facts if isinstance(facts, str) else json.dumps(facts)}
    header = {"__metadata__": metadata, **entries}
    if "~sha256" not in entries:
        header["~sha256"] = DIGEST
    return container(json.dumps(header), body)


def one(dtype="F32", shape=(1,), offsets=(0, 4), name="a", **more) -> bytes:
    """A good file but for the fields of its only tensor."""
    shape, offsets = (list(v) if isinstance(v, tuple) else v for v in (shape, offsets))
    return craft({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}})


def header_text(inner: str, facts: str = json.dumps(OURS)) -> str:
    """A header whose text, not only whose value, is given: `inner` stands where tensor "a" stands."""
    return f'{{"__metadata__":{{"tkfnet":{json.dumps(facts)}}},{inner},"~sha256":{json.dumps(DIGEST)}}}'


def facts_text(inner: str) -> bytes:
    return craft(facts=f'{{"format":"tkfnet-engine","format_version":1,"x":{inner}}}')


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


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / ("engine" + SUFFIX)


@pytest.fixture
def ram_target():
    """As `target`, in memory where the system has such a folder: for tests of thousands of files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder) / ("engine" + SUFFIX)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """The bytes of a small engine file with several tensors."""
    path = tmp_path_factory.mktemp("small") / "small.tkf"
    write_bundle(path, TENSORS, FACTS)
    return path.read_bytes()


# --- round trips -----------------------------------------------------------------------------------------


def test_round_trip(target):
    write_bundle(target, TENSORS, FACTS)
    engine = read_bundle(target)
    assert engine.facts == {**OURS, **FACTS} == read_facts(target)
    assert sorted(engine.names()) == sorted(TENSORS) and "graph.onnx" in engine and "~sha256" not in engine
    assert engine.bytes("graph.onnx") == b"\x00onnx\xff" and type(engine.bytes("graph.onnx")) is bytes
    for name in ("weights/conv.weight", "weights/scale", "counts"):
        array = engine.array(name)
        assert array.dtype == TENSORS[name].dtype and array.shape == TENSORS[name].shape
        np.testing.assert_array_equal(array, TENSORS[name])
        with pytest.raises(ValueError):
            array[...] = 0
    content = target.read_bytes()
    assert engine.sha256 == hashlib.sha256(content[:-32]).hexdigest() == content[-32:].hex()


def test_pop_drops_the_reference(target):
    write_bundle(target, {"graph.onnx": bytes(1000)}, {})
    engine = read_bundle(target)
    before = sys.getrefcount(engine.bytes("graph.onnx"))
    graph = engine.pop("graph.onnx")
    assert sys.getrefcount(graph) == before  # the bundle's reference became ours
    assert "graph.onnx" not in engine and engine.names() == []
    with pytest.raises(BundleError) as caught:
        engine.pop("graph.onnx")
    assert caught.value.code == "tensor"


def test_arrays_of_any_layout_and_byte_order(target):
    base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    views = {"t": base.T, "step": base[:, ::2], "reversed": base[::-1]}
    views |= {"big": base.astype(">i4"), "scalar": np.array(7, ">i2")}
    write_bundle(target, views, {})
    engine = read_bundle(target)
    for name, view in views.items():
        assert engine.array(name).shape == view.shape
        np.testing.assert_array_equal(engine.array(name), view)


def test_it_is_a_safetensors_file(target):
    from safetensors.numpy import load_file

    write_bundle(target, TENSORS, FACTS)
    loaded = load_file(target)
    assert loaded.keys() == TENSORS.keys() | {"~sha256"}
    np.testing.assert_array_equal(loaded["weights/conv.weight"], TENSORS["weights/conv.weight"])


def test_bfloat16(target):
    dtypes = pytest.importorskip("ml_dtypes")
    write_bundle(target, {"b": np.ones(3, dtypes.bfloat16)}, {})
    assert read_bundle(target).bytes("b") == b"\x80\x3f" * 3
    with pytest.raises(BundleError, match="BF16") as caught:
        read_bundle(target).array("b")
    assert caught.value.code == "bfloat16"


def test_same_inputs_same_bytes(target, small):
    write_bundle(target, dict(reversed(TENSORS.items())), dict(reversed(FACTS.items())))
    assert target.read_bytes() == small
    # A process with another hash seed writes the same bytes.
    script = "import sys; from tkfnet_engine.bundle import *; b = read_bundle(sys.argv[1]); f = b.facts\n"
    script += "write_bundle(sys.argv[2], {n: b.array(n) for n in b.names()}, f)"
    again = target.with_name("again.tkf")
    subprocess.run([sys.executable, "-c", script, target, again], check=True, env=environment(PYTHONHASHSEED="7"))
    assert again.read_bytes() == small


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1]), **more}


def test_an_engine_may_hold_facts_only(target):
    write_bundle(target, {}, FACTS)
    assert read_bundle(target).names() == [] and read_facts(target)["note"] == FACTS["note"]


def test_round_trips_of_any_content(ram_target):
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    path = ram_target
    names = st.text("abz09_./-", min_size=1, max_size=200).filter(lambda n: n[0] != "/" and ".." not in n)
    dtypes = st.sampled_from(["u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", ">f4"])
    shapes = st.lists(st.integers(1, 3), max_size=8).map(tuple)
    specs = st.dictionaries(names, st.tuples(dtypes, shapes), max_size=5)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    numbers = st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
    leaves = st.none() | st.booleans() | numbers | text
    grow = lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3)  # noqa: E731
    values = st.recursive(leaves, grow, max_leaves=8)
    facts = st.dictionaries(text.filter(lambda k: k not in OURS), values, max_size=4)

    @settings(max_examples=1000, deadline=None, database=None)
    @given(specs, facts, st.integers(0, 2**32))
    def check(specs, facts, seed):
        rng = np.random.default_rng(seed)
        # Random bits: NaN payloads and negative zeros have to survive as well.
        tensors = {}
        for name, (dtype, shape) in specs.items():
            bits = rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
            tensors[name] = np.frombuffer(bits, dtype).reshape(shape)
        write_bundle(path, tensors, facts)
        first = path.read_bytes()
        engine = read_bundle(path)
        assert engine.facts == {**OURS, **facts} and set(engine.names()) == set(tensors)
        for name, tensor in tensors.items():
            assert engine.bytes(name) == tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
            assert engine.array(name).shape == tensor.shape
        write_bundle(path, {n: engine.array(n) for n in engine.names()}, engine.facts)
        assert path.read_bytes() == first

    check()


# --- what the reader refuses -----------------------------------------------------------------------------

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
    "padded": container(header_text('"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}') + "   ", bytes(36)),
    "spaced": container(header_text('"a" : {"shape":[1],\n"dtype":"F32", "data_offsets":[0,4]}'), bytes(36)),
    "nesting-63": facts_text("[" * 63 + "]" * 63),
    "brackets-in-text": facts_text(json.dumps("[" * 500 + '\\"' + "{" * 500)),
    "number-32": facts_text("1" * 32),
    "digits-in-text": facts_text('"%s"' % ("1" * 500)),
    "surrogate-pair": facts_text('"\\ud83d\\ude00"'),
    "facts-unsorted": craft(facts='{"z":1,"format_version":1,"format":"tkfnet-engine"}'),
}

TWO = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
AB = {"dtype": "U8", "shape": [2]}


def no_digest(inner: str) -> str:
    return f'{{"__metadata__":{{"tkfnet":{json.dumps(json.dumps(OURS))}}}{inner}}}'


def two(first, second) -> bytes:
    return craft({"a": {**AB, "data_offsets": first}, "b": {**AB, "data_offsets": second}})


BAD = {
    # size and header
    "empty-file": ("too-short", b""),
    "seven-bytes": ("too-short", bytes(7)),
    "zero-header": ("header-start", bytes(8)),
    "header-over-cap": ("header-too-long", struct.pack("<Q", MAX_HEADER + 1) + b"{" * (MAX_HEADER + 1)),
    "header-2**63": ("header-too-long", struct.pack("<Q", 2**63) + b"{}"),
    "header-2**64-1": ("header-too-long", b"\xff" * 8 + b"{}"),
    "a-zip": ("header-too-long", b"PK\x03\x04" + bytes(range(100))),
    "header-behind-end": ("truncated", struct.pack("<Q", 100) + b"{}"),
    "bom": ("header-start", container(b"\xef\xbb\xbf" + header_text(TWO).encode(), bytes(36))),
    "leading-space": ("header-start", container(" " + header_text(TWO), bytes(36))),
    "an-array": ("header-start", container("[1]", bytes(32))),
    "utf16": ("json", container(header_text(TWO).encode("utf-16-le"), bytes(36))),
    "no-utf8": ("utf8", container(header_text(TWO).encode().replace(b'"a"', b'"\xff"'), bytes(36))),
    "encoded-surrogate": ("utf8", container(header_text(TWO).encode().replace(b'"a"', b'"\xed\xa0\x80"'), bytes(36))),
    "half-json": ("json", container('{"a":', bytes(32))),
    "two-objects": ("json", container(header_text(TWO) + "{}", bytes(36))),
    "trailing-comma": ("json", container(header_text(TWO)[:-1] + ",}", bytes(36))),
    "single-quotes": ("json", container(header_text(TWO).replace('"a"', "'a'"), bytes(36))),
    "comment": ("json", container(header_text(TWO) + "//x", bytes(36))),
    "nul-behind": ("json", container(header_text(TWO) + "\0", bytes(36))),
    "raw-control": ("json", container(header_text(TWO).replace('"a"', '"\n"'), bytes(36))),
    "leading-zero": ("json", container(header_text(TWO.replace("[0,4]", "[00,4]")), bytes(36))),
    "hexadecimal": ("json", container(header_text(TWO.replace("[0,4]", "[0,0x4]")), bytes(36))),
    "open-string-of-quotes": ("json", container("{" + '\\"' * 400_000, bytes(32))),
    "duplicate-tensor": ("duplicate-key", container(header_text(TWO + "," + TWO), bytes(36))),
    "duplicate-escaped": ("duplicate-key", container(
        header_text(TWO + "," + TWO.replace('"a"', '"\\u0061"')), bytes(36))),
    "duplicate-field": ("duplicate-key", container(header_text(TWO.replace("{", '{"dtype":"F32",')), bytes(36))),
    "duplicate-metadata": ("duplicate-key", container('{"__metadata__":{},' + header_text(TWO)[1:], bytes(36))),
    "duplicate-fact": ("duplicate-key", facts_text('1,"x":1')),
    "nan": ("not-finite", container(header_text(TWO.replace("[1]", "[NaN]")), bytes(36))),
    "infinity": ("not-finite", container(header_text(TWO.replace("[1]", "[-Infinity]")), bytes(36))),
    "1e999": ("not-finite", container(header_text(TWO.replace("[1]", "[1e999]")), bytes(36))),
    "nan-fact": ("not-finite", facts_text("NaN")),
    "infinity-fact": ("not-finite", facts_text("Infinity")),
    "1e999-fact": ("not-finite", facts_text("[-1e999]")),
    "5000-digits": ("number-length", container(header_text(TWO.replace("[1]", "[%s]" % ("1" * 5000))), bytes(36))),
    "33-digits-fact": ("number-length", facts_text("1" * 33)),
    "33-decimals-fact": ("number-length", facts_text("0." + "1" * 31)),
    "deep": ("nesting", container('{"a":' * 65 + "1" + "}" * 65, bytes(32))),
    "very-deep": ("nesting", container('{"a":' + "[" * 900_000, bytes(32))),
    "deep-facts": ("nesting", facts_text("[" * 64 + "]" * 64)),
    "lone-surrogate": ("surrogate", container(header_text(TWO.replace('"F32"', '"\\ud800"')), bytes(36))),
    "lone-surrogate-name": ("surrogate", container(header_text(TWO.replace('"a"', '"\\udc00"')), bytes(36))),
    "lone-surrogate-fact": ("surrogate", facts_text('["\\ud83d"]')),
    # metadata and facts
    "plain-safetensors": ("not-an-engine", plain(json.dumps({"a": {**AB, "data_offsets": [0, 2]}}), bytes(2))),
    "checkpoint": ("not-an-engine", craft(metadata={"format": "pt"})),
    "empty-object": ("not-an-engine", container("{}", bytes(32))),
    "metadata-list": ("metadata", craft(metadata=["tkfnet"])),
    "metadata-number": ("metadata", craft(metadata={"tkfnet": 1})),
    "metadata-object": ("metadata", craft(metadata={"tkfnet": OURS})),
    "metadata-two-keys": ("metadata", craft(metadata={"tkfnet": json.dumps(OURS), "x": "y"})),
    "facts-no-json": ("json", craft(facts="{")),
    "facts-empty": ("json", craft(facts="")),
    "facts-bom": ("json", craft(facts="\ufeff" + json.dumps(OURS))),
    "facts-list": ("facts", craft(facts="[]")),
    "format-absent": ("format", craft(facts={"format_version": 1})),
    "format-other": ("format", craft(facts={"format": "tkfnet-checkpoint", "format_version": 1})),
    "version-absent": ("version", craft(facts={"format": "tkfnet-engine"})),
    "version-0": ("version", craft(facts={**OURS, "format_version": 0})),
    "version-true": ("version", craft(facts={**OURS, "format_version": True})),
    "version-text": ("version", craft(facts={**OURS, "format_version": "1"})),
    "version-float": ("version", craft(facts={**OURS, "format_version": 1.0})),
    "version-2": ("version-newer", craft(facts={**OURS, "format_version": 2})),
    "version-2-with-more": ("version-newer", craft(
        metadata={"tkfnet": json.dumps({**OURS, "format_version": 2}), "x": ""})),
    # names
    "name-empty": ("name", one(name="")),
    "name-absolute": ("name", one(name="/a")),
    "name-parent": ("name", one(name="a/../b")),
    "name-dots": ("name", one(name="..")),
    "name-upper": ("name", one(name="A")),
    "name-backslash": ("name", one(name="a\\b")),
    "name-drive": ("name", one(name="c:a")),
    "name-nul": ("name", one(name="a\0")),
    "name-newline": ("name", one(name="a\n")),
    "name-unicode": ("name", one(name="\u00e9")),
    "name-digit-unicode": ("name", one(name="\u0663")),
    "name-tilde": ("name", one(name="~a")),
    "name-201": ("name", one(name="a" * 201)),
    # a tensor's fields
    "entry-number": ("entry", craft({"a": 1})),
    "entry-null": ("entry", craft({"a": None})),
    "entry-less": ("entry", craft({"a": {"dtype": "F32", "shape": [1]}})),
    "entry-more": ("entry", one(device="cuda")),
    "dtype-unknown": ("dtype", one("F8_E4M3", (4,))),
    "dtype-lower": ("dtype", one("f32")),
    "dtype-complex": ("dtype", one("C64")),
    "dtype-number": ("dtype", one(4)),
    "dtype-list": ("dtype", one(["F32"])),
    "shape-null": ("shape", one(shape=None)),
    "shape-number": ("shape", one(shape=1)),
    "shape-bool": ("shape", one(shape=(True,))),
    "shape-float": ("shape", one(shape=(1.0,))),
    "shape-text": ("shape", one(shape=("1",))),
    "shape-nested": ("shape", one(shape=([1],))),
    "rank-9": ("rank", one(shape=(1,) * 9)),
    "zero-size": ("dimension", one(shape=(0,), offsets=(0, 0))),
    "zero-size-at-end": ("dimension", one(shape=(1, 0), offsets=(4, 4))),
    "offsets-null": ("offsets", one(offsets=None)),
    "offsets-one": ("offsets", one(offsets=(0,))),
    "offsets-three": ("offsets", one(offsets=(0, 4, 4))),
    "offsets-bool": ("offsets", one(offsets=(False, 4))),
    "offsets-float": ("offsets", one(offsets=(0.0, 4))),
    "offsets-1e0": ("offsets", container(header_text(TWO.replace("[0,4]", "[0,4e0]")), bytes(36))),
    "offsets-swapped": ("hole", one(offsets=(4, 0))),
    "offsets-empty-range": ("length", one(offsets=(0, 0))),
    "offsets-backwards": ("length", one(offsets=(0, -4))),
    "begin-negative": ("overlap", one(offsets=(-4, 0))),
    "hole-at-start": ("hole", one(offsets=(1, 5))),
    "hole-between": ("hole", two([0, 2], [3, 5])),
    "overlap": ("overlap", two([0, 2], [1, 3])),
    "same-bytes-twice": ("overlap", two([0, 2], [0, 2])),
    "out-of-order": ("hole", two([2, 4], [0, 2])),
    "length-short": ("length", one(shape=(1,), offsets=(0, 3))),
    "length-long": ("length", one("U8", (3,))),
    # the file's end
    "body-short": ("truncated", craft(body=bytes(35))),
    "body-long": ("trailing", craft(body=bytes(37))),
    "body-absent": ("truncated", craft(body=b"")[:-32]),
    "digest-missing": ("digest-missing", plain(no_digest(""), b"")),
    "digest-missing-behind-a": ("digest-missing", plain(no_digest("," + TWO), bytes(4))),
    "digest-dtype": ("digest-form", craft({"~sha256": {**ALONE, "dtype": "I8"}}, body=bytes(32))),
    "digest-shape": ("digest-form", craft({"~sha256": {**ALONE, "shape": [4, 8]}}, body=bytes(32))),
    "digest-short": ("digest-form", plain(
        no_digest(',"~sha256":{"dtype":"U8","shape":[31],"data_offsets":[0,31]}'), bytes(31))),
    "digest-first": ("digest-not-last", craft(
        {"~sha256": ALONE, "a": {"dtype": "F32", "shape": [1], "data_offsets": [32, 36]}})),
    "digest-wrong": ("digest", craft()[:-1] + bytes([craft()[-1] ^ 1])),
    "digest-zero": ("digest", craft()[:-32] + bytes(32)),
    "body-changed": ("digest", craft()[:-36] + b"\1" + craft()[-35:]),
    "bool-2": ("bool-value", craft(
        {"a": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}}, body=b"\0\1\2\0" + bytes(32))),
}  # fmt: skip
for number in HUGE:
    BAD[f"dimension-{number}"] = ("dimension", one(shape=(number,)))
    BAD[f"end-{number}"] = ("length", one(offsets=(0, number)))
    if number:
        BAD[f"begin-{number}"] = ("hole" if number > 0 else "overlap", one(offsets=(number, number + 4)))


def claiming(size: int) -> bytes:
    """A file of some 300 bytes whose header is sound, but for a file of `size` bytes more."""
    return craft({
        "a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]},
        "~sha256": {"dtype": "U8", "shape": [32], "data_offsets": [size, size + 32]},
    })  # fmt: skip


for number in BIG:
    # Products that wrap around in 32-bit or 64-bit arithmetic.
    BAD[f"product-{number}"] = ("length", one("F64", (number, number, number, 2**16)))
    BAD[f"size-{number}"] = ("truncated", claiming(number))
BAD["product-wraps-to-4"] = ("length", one("U8", (4, 2**31 - 2**16 + 1, 2**31 + 2**16 + 1), (0, 4)))  # 2**64 + 4
BAD["product-wraps-to-0"] = ("length", one("F32", (2**31, 2**31), (0, 0)))


@pytest.mark.parametrize("kind", GOOD)
def test_good_files_open(target, kind):
    assert code_of(target, GOOD[kind]) is None
    engine = read_bundle(target)
    assert "bf16" in kind or all(engine.array(n).size for n in engine.names())


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_by_code(target, kind):
    code, content = BAD[kind]
    start = time.perf_counter()
    assert code_of(target, content) == code
    assert time.perf_counter() - start < 5


def test_every_code_of_the_reader_has_a_file():
    source = Path(module.__file__).read_text()
    reading = source[source.index("# --- strict JSON") : source.index("# --- writing")]
    codes = set(re.findall(r'(?:_refusal\(\s*\w+(?:\.\w+)?, |_JsonError\(\s*)"([a-z0-9-]+)"', reading))
    codes |= {"hole", "overlap", "truncated", "trailing"}
    elsewhere = {"tensor", "bfloat16", "missing", "unreadable", "not-a-file", "changed", "memory"}  # other tests
    assert codes - elsewhere == {code for code, _ in BAD.values()}
    assert len(BAD) >= 40


def test_messages_say_what_to_do(target):
    def message(content: bytes) -> str:
        target.write_bytes(content)
        with pytest.raises(BundleError) as caught:
            read_bundle(target)
        return str(caught.value)

    assert "not an engine file" in (text := message(BAD["checkpoint"][1])) and "build --checkpoint" in text
    assert "upgrade tkfnet-engine" in message(BAD["version-2"][1])
    assert "a file of 41 bytes" in (text := message(craft()[:41])) and "copy it again" in text
    for _, content in BAD.values():
        text = message(content)
        assert text.isascii() and "\n" not in text and "\0" not in text and len(text) < 600
        assert text.startswith(f"{target}: ") and "; expected " in text and text.count("; ") >= 2


def test_errors_keep_their_code_across_processes():
    error = pickle.loads(pickle.dumps(BundleError("text", "digest")))
    assert (str(error), error.code, BundleError("text").code) == ("text", "digest", "bundle")


# --- paths -----------------------------------------------------------------------------------------------


def test_paths_that_are_no_file(tmp_path):
    assert code_of(tmp_path / "absent.tkf") == "missing"
    assert code_of(tmp_path) == "not-a-file"
    assert code_of(tmp_path / "absent" / "engine.tkf") == "missing"
    assert code_of(tmp_path / ("x" * 300)) == "unreadable"
    for reader in (read_bundle, read_facts):
        with pytest.raises(BundleError) as caught:
            reader("nul\0byte.tkf")
        assert caught.value.code == "unreadable"


@POSIX
def test_special_files_are_refused_without_waiting(tmp_path):
    fifo, loop = tmp_path / "fifo.tkf", tmp_path / "loop.tkf"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    assert code_of(fifo) == code_of(Path("/dev/zero")) == "not-a-file"
    assert code_of(loop) == "unreadable"
    for special in (fifo, Path(os.devnull), tmp_path):
        with pytest.raises(BundleError) as caught:
            write_atomically(special, b"x")
        assert caught.value.code == "not-a-file"
    assert stat.S_ISFIFO(fifo.stat().st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)


@POSIX
def test_a_file_that_becomes_a_fifo_does_not_block(tmp_path, monkeypatch):
    good, fifo = tmp_path / "good.tkf", tmp_path / "fifo.tkf"
    good.write_bytes(craft())
    os.mkfifo(fifo)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: real(good if path == str(fifo) else path, **more))
    assert code_of(fifo) == "not-a-file"


def test_unreadable_file(target, monkeypatch):
    def refuse(*args, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    target.write_bytes(craft())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BundleError, match="Permission denied") as caught:
        read_bundle(target)
    assert caught.value.code == "unreadable"


def test_links_to_engines_open(tmp_path, target):
    target.write_bytes(craft())
    link = tmp_path / "link.tkf"
    link.symlink_to(target)
    assert code_of(link) is None


@pytest.mark.parametrize("change", ["shrinks", "grows", "fails"])
def test_a_file_that_changes_while_it_is_read(target, small, monkeypatch, change):
    target.write_bytes(small)
    real = module._layout

    def layout(path, raw, size):
        result = real(path, raw, size)
        if change == "fails":
            raise OSError(errno.EIO, "Input/output error")
        if change == "grows":
            target.write_bytes(small + b"x")
        else:
            os.truncate(target, size - 40)
        return result

    # Enough data that the part after the header is not in the file object's buffer yet.
    write_bundle(target, {"a": bytes(300_000)}, {})
    small = target.read_bytes()
    monkeypatch.setattr(module, "_layout", layout)
    with pytest.raises(BundleError) as caught:
        read_bundle(target)
    assert caught.value.code == ("unreadable" if change == "fails" else "changed")


def test_a_read_bundle_does_not_see_later_changes(target):
    write_bundle(target, TENSORS, FACTS)
    engine = read_bundle(target)
    target.write_bytes(b"")
    np.testing.assert_array_equal(engine.array("counts"), TENSORS["counts"])


# --- damage and mutation ---------------------------------------------------------------------------------


def test_every_prefix_and_every_tail(ram_target, small):
    for length in range(len(small)):
        assert code_of(ram_target, small[:length]) in {"too-short", "truncated"}, length
    for more in range(1, 17):
        assert code_of(ram_target, small + bytes(more)) == code_of(ram_target, small + b"{" * more) == "trailing", more
    assert code_of(ram_target, small) is None


def test_every_bit(ram_target, small):
    for bit in range(8 * len(small)):
        flipped = bytearray(small)
        flipped[bit // 8] ^= 1 << bit % 8
        assert code_of(ram_target, bytes(flipped)) is not None, bit


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


def parses_as_its_header_says(path: Path, content: bytes) -> bool:
    """Compares what `read_bundle` returned with an independent, plain reading of the same bytes."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    engine = read_bundle(path)
    assert engine.facts == json.loads(header.pop("__metadata__")["tkfnet"]) == read_facts(path)
    digest = header.pop("~sha256")["data_offsets"]
    body = content[8 + length :]
    assert digest == [len(body) - 32, len(body)]
    assert engine.names() == list(header)
    covered = 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert begin == covered and engine.bytes(name) == body[begin:end]
        covered = end
        if entry["dtype"] != "BF16":
            array = engine.array(name)
            assert list(array.shape) == entry["shape"] and array.nbytes == end - begin
            assert array.dtype.name in {"bool"} | module._WRITABLE
    return covered == len(body) - 32


def test_random_mutations(ram_target, small):
    rng = random.Random(SEED)
    codes: dict[str | None, int] = {}
    accepted = 0
    for turn in range(20_000):
        content = mutated(rng, small)
        reseal = turn % 2 and len(content) >= 32
        if reseal:
            content = sealed(content)
        place(ram_target, content)
        try:
            read_bundle(ram_target)
            code = None
        except BundleError as error:
            code = error.code
        codes[code] = codes.get(code, 0) + 1
        if code is None and content != small:
            assert reseal, f"turn {turn}: accepted a changed file"
            assert parses_as_its_header_says(ram_target, content), turn
            accepted += 1
    # The run has to reach the rules behind the digest, on both sides of them.
    assert accepted > 100 and len(codes) > 25 and codes["digest"] > 500, codes


# --- memory ----------------------------------------------------------------------------------------------


def peak(action) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", [2**40, 2**47])
def test_a_lying_header_allocates_nothing(target, claim):
    for content in (claiming(claim), struct.pack("<Q", claim) + b"{}", b"\xff" * 64):
        place(target, content)
        assert peak(lambda: code_of(target)) < 1 << 20


def test_a_real_file_of_that_size_is_streamed_or_refused(target, monkeypatch):
    def exhausted(path, file, size):
        raise MemoryError

    target.write_bytes(craft())
    monkeypatch.setattr(module, "_exactly", exhausted)
    assert code_of(target) == "memory"


def test_one_copy_of_each_tensor(target):
    size = 8 << 20
    write_bundle(target, {"graph.onnx": bytes(size), "weights/a": np.ones(size // 8, np.float32)}, {})
    assert peak(lambda: read_bundle(target)) < 1.5 * size + (1 << 20)
    assert peak(lambda: read_facts(target)) < 3 << 20


def test_opening_imports_nothing(target):
    write_bundle(target, TENSORS, FACTS)
    script = (
        "import sys, hashlib; from tkfnet_engine.bundle import read_bundle\n"
        "seen = []; sys.addaudithook(lambda event, args: seen.append((event, args)))\n"
        "before = set(sys.modules); b = read_bundle(sys.argv[1]); b.array('counts')\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
        "names = {e for e, _ in seen}\n"
        "banned = {'import', 'exec', 'compile', 'socket', 'subprocess', 'ctypes', 'pickle', 'mmap'}\n"
        "assert not banned & {n.split('.')[0] for n in names}, names\n"
    )
    subprocess.run([sys.executable, "-c", script, target], check=True, env=environment())


# --- what the writer refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, tensors",
    [
        ("name", {"A": b"x"}),
        ("name", {"~sha256": b"x"}),
        ("name", {"__metadata__": b"x"}),
        ("name", {"a/../b": b"x"}),
        ("name", {"": b"x"}),
        ("name", {"a" * 201: b"x"}),
        ("dtype", {"a": [1, 2]}),
        ("dtype", {"a": "text"}),
        ("dtype", {"a": np.array([True])}),  # safetensors would put it behind the digest
        ("dtype", {"a": np.array([object()])}),
        ("dtype", {"a": np.array([1j])}),
        ("dtype", {"a": np.array(["text"])}),
        ("shape", {"a": b""}),
        ("shape", {"a": np.zeros((2, 0))}),
        ("shape", {"a": np.zeros((1,) * 9)}),
        ("header-too-long", {f"{i:0200}": b"x" for i in range(5000)}),
    ],
)
def test_tensors_that_the_format_does_not_hold(target, code, tensors):
    target.write_bytes(b"old")
    with pytest.raises(BundleError) as caught:
        write_bundle(target, tensors, {})
    assert caught.value.code == code and str(target) in str(caught.value)
    assert target.read_bytes() == b"old" and os.listdir(target.parent) == [target.name]


DEEP: list = []
for _ in range(70):
    DEEP = [DEEP]
CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "facts",
    [
        {"x": float("nan")}, {"x": [float("inf")]}, {"x": object()}, {"x": {1, 2}}, {"x": b"bytes"}, {1: 2},
        {"x": {2: 3}}, {"x": [{None: 1}]}, {"x": "\ud800"}, {"\udc00": 1}, {"x": DEEP}, {"x": CYCLE},
        {"x": 10**40}, {"x": 10**5000}, {"x": np.float32(1)}, {"format": "other"}, {"format_version": 2},
        {"format_version": True}, {"format_version": 1.0},
    ],
)  # fmt: skip
def test_facts_that_json_does_not_hold(target, facts):
    with pytest.raises(BundleError) as caught:
        write_bundle(target, {}, facts)
    assert caught.value.code == "facts" and os.listdir(target.parent) == []


def test_facts_over_the_header_limit(target):
    with pytest.raises(BundleError) as caught:
        write_bundle(target, {}, {"x": "a" * MAX_HEADER})
    assert caught.value.code == "header-too-long" and os.listdir(target.parent) == []


def test_a_library_that_orders_otherwise_is_an_internal_error(target, monkeypatch):
    # What would happen if a later safetensors put the digest first.
    first = json.loads(header_text(TWO))
    first = {"__metadata__": first["__metadata__"], "~sha256": {**DIGEST, "data_offsets": [0, 32]}}
    first["a"] = {"dtype": "F32", "shape": [1], "data_offsets": [32, 36]}
    raw = json.dumps(first).encode()
    monkeypatch.setattr(module, "save", lambda tensors, metadata: struct.pack("<Q", len(raw)) + raw + bytes(36))
    with pytest.raises(AssertionError, match="safetensors"):
        write_bundle(target, {"a": np.ones(1, np.float32)}, {})
    assert os.listdir(target.parent) == []


# --- atomic writing --------------------------------------------------------------------------------------


def test_write_atomically_takes_buffers_and_chunks(target):
    for data, expected in [
        (b"abc", b"abc"), (bytearray(b"abc"), b"abc"), (memoryview(b"abc"), b"abc"), (b"", b""), ([], b""),
        ([b"a", b"", bytearray(b"bc")], b"abc"), ((c for c in (b"a", b"bc")), b"abc"),
        (np.arange(3, dtype="<u2"), b"\0\0\1\0\2\0"), (np.zeros((2, 0)), b""), (np.array(1, "<u2"), b"\1\0"),
    ]:  # fmt: skip
        write_atomically(target, data)
        assert target.read_bytes() == expected
    for wrong in ("text", 5, [1, 2], ["a"]):
        with pytest.raises(TypeError):
            write_atomically(target, wrong)
    assert target.read_bytes() == b"\1\0" and os.listdir(target.parent) == [target.name]


def test_an_error_of_the_chunks_passes_and_leaves_nothing(target):
    def chunks(error):
        yield b"some"
        raise error

    for error in (KeyError("x"), ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_atomically(target, chunks(error))
        assert os.listdir(target.parent) == []


def test_a_relative_path_and_a_folder_that_is_absent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically("here.json", b"{}")
    assert os.listdir() == ["here.json"]
    with pytest.raises(BundleError, match=r"absent.*No such file.*ENOENT.* 2 bytes") as caught:
        write_atomically("absent/here.json", b"{}")
    assert caught.value.code == "write"
    with pytest.raises(BundleError):
        write_atomically("nul\0byte", b"{}")
    with pytest.raises(BundleError):
        write_atomically("", b"{}")
    assert os.listdir() == ["here.json"]


@POSIX
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_follows_the_umask(target, umask, mode):
    before = os.umask(umask)
    try:
        write_bundle(target, TENSORS, FACTS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


CALLS = ("open", "write", "fsync", "close", "replace")


@POSIX
def test_the_order_of_system_calls(target, monkeypatch):
    calls: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def spy(*args, _name=name, _real=real, **more):
            kind = "folder" if _name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
            calls.append(f"{_name} {kind}" if _name == "fsync" else _name)
            return _real(*args, **more)

        monkeypatch.setattr(os, name, spy)
    write_bundle(target, TENSORS, FACTS)
    assert calls == ["open", "write", "write", "fsync file", "close", "replace", "open", "fsync folder", "close"]


@POSIX
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])
def test_the_kth_call_fails(target, small, monkeypatch, number):
    """Fails each system call of a write in turn, with writes cut to 97 bytes so that there are many."""
    calls, failing = 0, 0
    trouble: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def faulty(name):
        def call(*args, **more):
            nonlocal calls
            calls += 1
            if calls == failing:
                trouble.append(name)
                if name == "close":
                    real["close"](*args)  # as Linux does: closed, and the error reported
                raise OSError(number, os.strerror(number))
            if name == "write":
                args = (args[0], args[1][:97])
            return real[name](*args, **more)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, faulty(name))
    old = craft()
    open_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    outcomes = []
    while True:
        failing += 1
        calls = -(10**9)
        target.write_bytes(old)
        calls = 0
        try:
            write_bundle(target, TENSORS, FACTS)
            break
        except BundleError as error:
            calls = -(10**9)
            message = str(error)
        assert str(target) in message and f"{len(small)} bytes" in message and os.strerror(number) in message
        assert errno.errorcode[number] in message
        assert os.listdir(target.parent) == [target.name], trouble
        kept = target.read_bytes()
        outcomes.append(kept == old)
        assert kept == old or (kept == small and "is in place" in message), trouble
    calls = -(10**9)
    assert target.read_bytes() == small
    # Only what follows the replacement (the folder's open, fsync, close) may leave the new file.
    after = trouble[trouble.index("replace") + 1 :]
    assert outcomes == [True] * (len(outcomes) - len(after)) + [False] * len(after)
    assert after == ["open", "fsync", "close"] and trouble.count("write") > 5
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files


@POSIX
def test_a_folder_that_cannot_be_flushed_is_no_error(target, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bundle(target, TENSORS, FACTS)
    assert code_of(target) is None


def test_a_system_that_accepts_nothing_is_an_error(target, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, view: 0)
    with pytest.raises(BundleError, match="accepted no bytes"):
        write_atomically(target, b"abc")
    assert os.listdir(target.parent) == []


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a file size limit")
def test_a_real_size_limit(target):
    script = (
        "import resource, signal, sys\n"
        "from tkfnet_engine.bundle import BundleError, write_bundle\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: write_bundle(sys.argv[1], {'a': bytes(20000)}, {})\n"
        "except BundleError as error: print(error)\n"
    )
    target.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", script, target], capture_output=True, text=True, env=environment())
    assert "File too large (EFBIG)" in result.stdout and not result.stderr
    assert target.read_bytes() == b"old" and os.listdir(target.parent) == [target.name]


def test_threads_may_write_one_target(target):
    errors: list[BaseException] = []

    def work(value: int):
        try:
            for _ in range(10):
                write_bundle(target, {"a": bytes([value]) * 5000}, {"by": value})
                engine = read_bundle(target)
                assert set(engine.bytes("a")) == {engine.facts["by"]}
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and os.listdir(target.parent) == [target.name]


WRITER = """
import sys
from tkfnet_engine.bundle import write_bundle
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_bundle(sys.argv[1], {"a": bytes([turn % 256]) * (1 << 20)}, {"turn": turn % 256})
"""


@POSIX
def test_killed_writers_leave_nothing_or_a_valid_file(target):
    rng = random.Random(SEED)
    stale = 0
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.random() * 0.05)
            child.kill()
            child.wait()
        left = set(os.listdir(target.parent)) - {target.name}
        assert all(re.fullmatch(rf"\.engine\.tkf\.{child.pid}\.[0-9a-f]{{8}}\.tmp", name) for name in left)
        stale += len(left)
        if target.exists():
            engine = read_bundle(target)
            assert engine.bytes("a") == bytes([engine.facts["turn"]]) * (1 << 20)
        write_bundle(target, {"a": bytes([7]) * (1 << 20)}, {"turn": 7})
        assert os.listdir(target.parent) == [target.name]
    print(f"{stale} of 20 killed writers left a temporary file")


@POSIX
def test_only_stale_files_of_the_same_target_go(target):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    folder = target.parent
    dead, ours, token = ended.pid, os.getpid(), "0123abcd"
    stay = [
        f".other.tkf.{dead}.{token}.tmp",  # another target's
        f".engine.tkf.{os.getppid()}.{token}.tmp",  # its writer lives
        f".engine.tkf.{dead}.{token}",
        f".engine.tkf.{dead}.xyz.tmp",
        f"engine.tkf.{dead}.{token}.tmp",
        f".engineXtkf.{dead}.{token}.tmp",
        f".engine.tkf.{'9' * 30}.{token}.tmp",
    ]
    go = [f".engine.tkf.{dead}.{token}.tmp", f".engine.tkf.{ours}.{token}.tmp"]
    for name in stay + go:
        (folder / name).write_bytes(b"x")
    write_bundle(target, TENSORS, FACTS)
    assert set(os.listdir(folder)) == {target.name, *stay}
