"""The engine file: round trips, refusals by code, damage, mutations, memory. The files are made in engine_files.py."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine import bundle as module
from tkfnet_engine.bundle import MAX_HEADER, SUFFIX, read_bundle, read_facts, write_bundle
from tkfnet_engine.errors import BundleError, FileError

from .engine_files import BAD, BAD_BY_CODE, FACTS, GOOD, OURS, TENSORS, claiming, code_of, craft, mutated, place, sealed

ROOT = Path(module.__file__).parents[1]


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
    seed = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, target, again], check=True, cwd=ROOT, env=seed)
    assert again.read_bytes() == small


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


def test_every_code_has_a_file_and_stands_in_the_documentation():
    code = Path(module.__file__).read_text()
    raised = set(re.findall(r'_Refused\(\s*"([a-z0-9-]+)"', code)) | set(re.findall(r'", "([a-z0-9-]+)"\)', code))
    raised |= {"truncated", "trailing"}  # one rule, two codes
    elsewhere = {"tensor", "bfloat16", "missing", "unreadable", "not-a-file", "changed", "memory"}  # other tests
    strict_json = {"utf8", "json", "duplicate-key", "not-finite", "number-length", "nesting", "surrogate"}
    assert elsewhere <= raised
    assert (raised - elsewhere) | strict_json == set(BAD_BY_CODE)
    table = (ROOT / "docs" / "engine-file.md").read_text().partition("## Errors")[2].partition("\n## ")[0]
    assert raised | strict_json == set(re.findall(r"`([a-z0-9-]+)`", table.partition("|---|")[2]))


def test_messages_say_what_to_do(target):
    def message(content: bytes) -> str:
        target.write_bytes(content)
        with pytest.raises(BundleError) as caught:
            read_bundle(target)
        return str(caught.value)

    text = message(BAD["not-an-engine: checkpoint"][1])
    assert "not an engine file" in text and "build --checkpoint" in text
    assert "upgrade tkfnet-engine" in message(BAD["version-newer: 2"][1])
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
    assert code_of(tmp_path / "absent.tkf") == code_of(tmp_path / "absent" / "engine.tkf") == "missing"
    assert code_of(tmp_path) == "not-a-file"
    assert code_of(tmp_path / ("x" * 300)) == "unreadable"
    for reader in (read_bundle, read_facts):
        with pytest.raises(BundleError) as caught:
            reader("nul\0byte.tkf")
        assert caught.value.code == "unreadable"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
def test_special_files_are_refused_without_waiting_and_links_are_followed(tmp_path):
    fifo, loop, link, good = (tmp_path / name for name in ("fifo.tkf", "loop.tkf", "link.tkf", "good.tkf"))
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    link.symlink_to(good)
    assert code_of(fifo) == code_of(Path("/dev/zero")) == "not-a-file"
    assert code_of(loop) == "unreadable"
    assert code_of(good, craft()) is None and code_of(link) is None


def test_unreadable_file(target, monkeypatch):
    def refuse(*args, **more):
        raise PermissionError(errno.EACCES, "Permission denied")

    target.write_bytes(craft())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BundleError, match="Permission denied") as caught:
        read_bundle(target)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("change", ["shrinks", "grows", "fails"])
def test_a_file_that_changes_while_it_is_read(target, monkeypatch, change):
    real = module._layout

    def layout(raw, size):
        if change == "fails":
            raise OSError(errno.EIO, "Input/output error")
        os.truncate(target, size + (1 if change == "grows" else -40))
        return real(raw, size)

    # Enough data that the part after the header is not in the file object's buffer yet.
    write_bundle(target, {"a": bytes(300_000)}, {})
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


@pytest.mark.parametrize("turns", [20_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_random_mutations(ram_target, small, turns):
    rng = random.Random(turns)
    codes: dict[str | None, int] = {}
    accepted = 0
    for turn in range(turns):
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
    assert accepted > 100 and len(codes) > 20 and codes["digest"] > 500, codes


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
    def exhausted(file, size):
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
    subprocess.run([sys.executable, "-c", script, target], check=True, cwd=ROOT)


# --- what the writer refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, tensors",
    [
        *(("name", {name: b"x"}) for name in ("A", "~sha256", "__metadata__", "a/../b", "", "a" * 201)),
        *(("dtype", {"a": np.array([value])}) for value in (object(), 1j, "text")),
        ("dtype", {"a": np.array([True])}),  # safetensors would put it behind the digest
        *(("dtype", {"a": value}) for value in ([1, 2], "text")),
        *(("shape", {"a": value}) for value in (b"", np.zeros((2, 0)), np.zeros((1,) * 9))),
        ("header-too-long", {f"{i:0200}": b"x" for i in range(5000)}),
    ],
)
def test_tensors_that_the_format_does_not_hold(target, code, tensors):
    target.write_bytes(b"old")
    with pytest.raises(BundleError) as caught:
        write_bundle(target, tensors, {})
    assert caught.value.code == code and str(target) in str(caught.value)
    assert target.read_bytes() == b"old" and os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize(
    "facts",
    [
        {"x": float("nan")}, {"x": object()}, {"x": b"bytes"}, {1: 2}, {"x": "\ud800"}, {"x": [10**5000]},
        {"format": "other"}, {"format_version": 2}, {"format_version": True}, {"format_version": 1.0},
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
    monkeypatch.setattr(module, "save", lambda tensors, metadata: BAD["digest-form: first"][1])
    with pytest.raises(AssertionError, match="safetensors"):
        write_bundle(target, {"a": np.ones(1, np.float32)}, {})
    assert os.listdir(target.parent) == []


def test_writing_is_atomic(target, small, monkeypatch):
    """A full disk at any write leaves the old engine; test_atomic.py has the rest."""
    real = os.write

    def full(descriptor, view):
        nonlocal room
        if room < 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= 97
        return real(descriptor, view[:97])

    target.write_bytes(craft())
    monkeypatch.setattr(os, "write", full)
    for start in range(0, len(small), 97):
        room = start
        with pytest.raises(FileError, match=rf"ENOSPC.* {len(small)} bytes"):
            write_bundle(target, TENSORS, FACTS)
        assert code_of(target) is None and target.read_bytes() == craft() and os.listdir(target.parent) == [target.name]
    room = 10**6
    write_bundle(target, TENSORS, FACTS)
    assert target.read_bytes() == small
