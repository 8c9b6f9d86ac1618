"""The engine file's readers in C++ and Python: the same files taken, the others refused with the same code."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine.bundle import write_bundle

from ..engine_files import (
    ALONE,
    BAD,
    BIG,
    FACTS,
    GOOD,
    HUGE,
    OURS,
    TENSORS,
    claiming,
    container,
    craft,
    fact,
    mutated,
    one,
    sealed,
    text,
    two,
)
from .readers import ask, compare, lines_of, without_messages


@pytest.fixture
def folder():
    """A folder in memory where the system has such: for tests of thousands of files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    """The bytes of a small engine file with several tensors."""
    path = tmp_path_factory.mktemp("small") / "small.tkf"
    write_bundle(path, TENSORS, FACTS)
    return path.read_bytes()


# --- the same as Python's --------------------------------------------------------------------------------


def test_good_and_bad_files(native_build, folder):
    codes = compare(native_build, folder, [*GOOD.values(), *(content for _, content in BAD.values())])
    assert codes["ok"] == len(GOOD) and set(codes) == {"ok", *(code for code, _ in BAD.values())}


def test_every_prefix_and_every_tail(native_build, folder, small):
    contents = [small[:length] for length in range(len(small))]
    contents += [small + tail * more for more in range(1, 17) for tail in (b"\0", b"{")]
    assert set(compare(native_build, folder, contents)) == {"too-short", "truncated", "trailing"}


@pytest.mark.parametrize("reseal", [False, True])
def test_every_bit_of_the_header(native_build, folder, small, reseal):
    (length,) = struct.unpack_from("<Q", small)

    def flipped(bit: int) -> bytes:
        content = bytearray(small)
        content[bit // 8] ^= 1 << bit % 8
        return sealed(bytes(content)) if reseal else bytes(content)

    codes = compare(native_build, folder, map(flipped, range(8 * (8 + length))))
    assert ("ok" in codes) == reseal and len(codes) > 12, codes


def test_numbers_that_overflow(native_build, folder):
    numbers = [*BIG, *HUGE, 2**32 + 1, 2**106, 10**31, 10**32 - 1, -(10**30), 1, 2, 4, 8]
    contents = [one("U8", shape) for a in numbers for b in numbers for shape in ((a,), (a, b), (4, a, b), (a, b, a))]
    contents += [one("F64", (a,) * rank, (0, b)) for a in numbers for b in numbers for rank in range(1, 9)]
    for a in numbers:
        for b in numbers:
            contents += [two([0, a], [a, b]), two([0, 2], [a, b]), two([a, b], [0, 2])]
        contents.append(claiming(a))
        # Sums far beyond 64 bits that are right in themselves.
        entry = {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [a, a + 2**83]}
        contents.append(craft({"a": {"dtype": "U8", "shape": [a], "data_offsets": [0, a]}, "b": entry}))
        contents += [fact(str(a)), craft(facts={**OURS, "format_version": a})]
        contents.append(struct.pack("<Q", a % 2**64) + craft()[8:])
    exact = {"dtype": "U8", "shape": [2**40, 2**40, 2**20], "data_offsets": [0, 2**100]}
    end = {"dtype": "U8", "shape": [32], "data_offsets": [2**100, 2**100 + 32]}
    wrapped = {**end, "data_offsets": [0, 32]}
    contents += [craft({"a": exact, "~sha256": end}, body=bytes(n)) for n in (0, 32, 36)]
    contents += [craft({"a": exact, "~sha256": wrapped}), craft({"a": {**exact, "data_offsets": [0, 0]}})]
    # Products that wrap around to 0 in 128 bits, in files that would be sound.
    for dtype, shape in (("U8", [2**47, 2**47, 2**34]), ("F32", [2**42] * 3), ("F64", [2**47] * 8)):
        nothing = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
        contents.append(craft({"a": nothing, "~sha256": ALONE}, body=bytes(32)))
    codes = compare(native_build, folder, contents)
    assert {"truncated", "trailing", "offsets", "shape", "version", "version-newer", "number-length"} <= codes.keys()


ENTRY = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]'
# JSON that one parser takes and another does not, several faults at once; in the place of the only tensor.
ENTRIES = [
    '"a":1,"a":1', '"a":NaN,"b":1,"b":2', '"a":null', '"a":[]', '"a":{}', "/**/" + ENTRY + "}",
    *(ENTRY + end for end in (
        ',"dtype":"F32"}', ',"\\u0064type":"F32"}', "}," + ENTRY + "}", ",}", "}\0", "}//x\n", "},", ',"x":null}',
        "}\ufeff", '},"\\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}', "},NaN", '},"b":NaN',
        '},"\\ud800":1,"\\ud800":2',
    )),
    *(ENTRY.replace("[1]", shape) + "}" for shape in (
        "[1.0]", "[1e0]", "[true]", "[01]", "[+1]", "[-0]", "[-1]", "[18446744073709551617]", "[4294967297]", "[1,]",
        '{"0":1}',
    )),
    *(ENTRY.replace("0,4", offsets) + "}" for offsets in (
        "-0,4", "0.0,4", "0,4,4", "0,4.0", "0,18446744073709551620", "0,4294967300", "false,4", "0,4e0", "00,4",
    )),
    *(ENTRY.replace("F32", dtype) + "}" for dtype in ("F32\\u0000", "f32", "\\u0046\\u00332", "")),
    *(ENTRY.replace('"a"', name) + "}" for name in ('"a\\u0000"', '"\\ud800"', '"__metadata__"', '"~sha256"')),
]  # fmt: skip
TAILS = ["\0", " \0", "\n\n", "{}", ",", "\t\r\n ", "\x0b", "\u00a0", "//"]
HEADS = ["\0", "\ufeff", '"a":1,', '"":1,', " ", "{}", ","]
METADATA = [
    1, "x", [], {}, {"tkfnet": None}, {"x": 1}, {"tkfnet": ""}, {"tkfnet": "{}"}, {"tkfnet": "null"}, {"tkfnet": []},
    {"tkfnet": json.dumps({**OURS, "format_version": 3}), "y": 1}, {"y": 1, "tkfnet": json.dumps(OURS)},
]  # fmt: skip
FACT_TEXTS = [
    "", " ", "\0", "[1]", "1", "null", '"x"', '{"a":1,"a":1}', "NaN", "[" * 70, "1" * 40, '{"a":"\\ud800"}', "{}{}",
    *(json.dumps(OURS)[:-1] + e for e in ("", ",}", ',"x":NaN}', ',"format":"x"}', "}\0", "}} ", ',"x":-Infinity}')),
    *(json.dumps({**OURS, "format_version": v}) for v in (-1, 0, 2, 2**63, 2**64, 10**30, -(10**30), 1.0, True, "1")),
    *(f'{{"format":"tkfnet-engine","format_version":{v}}}' for v in ("-0", "1.0", "1e0", "01", "2e0", "1" * 33)),
    *(json.dumps({"format": v, "format_version": 1}) for v in (None, 1, [], "x", "tkfnet-engine\0", "TKFNET-ENGINE")),
    json.dumps({"format_version": 9}), json.dumps({"format": "x", "format_version": 9}), json.dumps({"format": 1}),
]  # fmt: skip


def test_what_two_parsers_may_read_otherwise(native_build, folder):
    contents = [container(text(entry)) for entry in ENTRIES]
    contents += [container(text() + tail) for tail in TAILS]
    contents += [container("{" + head + text()[1:]) for head in HEADS]
    contents += [craft(metadata=value) for value in METADATA] + [container('{"__metadata__":null}')]
    contents += [craft(facts=value) for value in FACT_TEXTS]
    codes = compare(native_build, folder, contents)
    assert len(codes) > 16 and codes["ok"] >= 3, codes


def test_bool_bytes(native_build, folder):
    big = {"dtype": "BOOL", "shape": [3 << 20], "data_offsets": [0, 3 << 20]}
    digest = {"dtype": "U8", "shape": [32], "data_offsets": [3 << 20, (3 << 20) + 32]}
    contents = [one("BOOL", (4,)), one("BOOL", (4,), (0, 4), "b")]
    for at, byte in ((0, 1), (0, 2), ((1 << 20) - 1, 2), (1 << 20, 255), ((3 << 20) - 1, 128), (1 << 20, 1)):
        body = bytearray((3 << 20) + 32)
        body[at] = byte
        contents.append(craft({"a": big, "~sha256": digest}, body=bytes(body)))
    assert compare(native_build, folder, contents) == {"ok": 4, "bool-value": 4}


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_random_mutations(native_build, folder, small, count):
    rng = random.Random(count)

    def changed(turn: int) -> bytes:
        content = mutated(rng, small)
        return sealed(content) if turn % 4 and len(content) >= 32 else content

    codes = compare(native_build, folder, map(changed, range(count)))
    # The run has to reach the rules behind the digest, on both sides of them.
    assert codes["ok"] > count / 100 and codes["digest"] > count / 100 and len(codes) > 15, codes


def test_the_fuzzers_kept_inputs(native_build, folder):
    """No crash, and the same as Python's. An odd first byte says that the fuzzer seals the others."""
    kept = sorted((Path(__file__).parent / "corpus" / "engine_file").iterdir())
    command = [native_build / "programs" / "replay_engine_file", *kept]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"{len(kept)} inputs\n"
    inputs = [path.read_bytes() for path in kept]
    contents = [sealed(i[1:]) if i[0] % 2 and len(i) > 32 else i[1:] for i in inputs if i]
    codes = compare(native_build, folder, contents)
    assert codes["ok"] > 10 and len(codes) > 25, codes


def test_tensors_of_every_size_and_dtype(native_build, folder):
    rng = np.random.default_rng(5)
    sizes = [1, 7, 63, 64, 65, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 13]
    dtypes = ["u1", "i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
    arrays = {f"bytes/{size}": rng.integers(0, 256, size, np.uint8) for size in sizes}
    arrays |= {f"{d.strip('<')}/x": rng.integers(0, 9, (2, 3, 1, 5)).astype(d) for d in dtypes}
    write_bundle(folder / "all.tkf", {**arrays, "scalar": np.array(7, np.int16)}, FACTS)
    assert compare(native_build, folder, [(folder / "all.tkf").read_bytes()]) == {"ok": 1}


# --- paths and the system --------------------------------------------------------------------------------


def test_paths(native_build, folder):
    """`missing`, `not-a-file` and `unreadable` as Python says; no FIFO is waited for and links are followed."""
    names = ["fifo", "loop", "link", "good", "shut", "empty"]
    fifo, loop, link, good, shut, empty = (folder / f"{name}.tkf" for name in names)
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    link.symlink_to(good)
    good.write_bytes(craft())
    shut.write_bytes(craft())
    shut.chmod(0)
    empty.write_bytes(b"")
    expected = {
        folder / "absent.tkf": "missing", folder / "absent" / "x.tkf": "missing", good / "x.tkf": "unreadable",
        folder: "not-a-file", Path("/dev/zero"): "not-a-file", Path("/dev/null"): "not-a-file", fifo: "not-a-file",
        loop: "unreadable", folder / ("x" * 300): "unreadable", good: "ok", link: "ok", empty: "too-short",
        shut: "ok" if os.geteuid() == 0 else "unreadable", Path("/proc/self/cmdline"): "too-short",
    }  # fmt: skip
    for path, answer in zip(expected, ask(native_build, expected), strict=True):
        answer.pop("memory", None)
        assert without_messages(answer, str(path))["code"] == expected[path], path
        if expected[path] == "not-a-file":
            assert ("a folder" if path == folder else "a pipe or a device") in answer["message"]
    [answer] = ask(native_build, [Path("")])  # "."
    assert answer["code"] == "not-a-file"


def test_reads_that_are_short_and_interrupted(native_build, folder, small):
    (folder / "small.tkf").write_bytes(small)
    whole, parts = (ask(native_build, [folder / "small.tkf"], *how)[0] for how in ((), ("interrupts",)))
    assert whole.pop("memory") and whole == parts and whole["code"] == "ok"


@pytest.mark.parametrize(("how", "code"), [("shrinks", "changed"), ("grows", "changed"), ("fails", "unreadable")])
def test_a_file_that_changes_while_it_is_read(native_build, folder, how, code):
    write_bundle(folder / "large.tkf", {"a": bytes(5 << 20)}, {})
    [answer] = ask(native_build, [folder / "large.tkf"], how)
    assert (answer["code"], answer["status"]) == (code, 2)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (96 << 20, 96 << 20))


def test_a_lying_header_allocates_nothing(native_build, folder):
    """Allocating what is claimed would be refused as `memory`."""
    contents = [claiming(n) for n in (2**31, 2**40, 2**47)] + [struct.pack("<Q", 2**40) + b"{}", b"\xff" * 64]
    contents += [struct.pack("<Q", 1 << 20) + b"{" + bytes(99), craft(), claiming(2**47)]
    paths = [folder / f"{i}.tkf" for i in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    codes = [answer["code"] for answer in ask(native_build, paths, prepare=limited)]
    assert codes == [*["truncated"] * 3, *["header-too-long"] * 2, "truncated", "ok", "truncated"]


def test_memory_that_does_not_suffice(native_build, folder):
    """A file that is as large as it says; the next one opens all the same."""
    header = claiming(1 << 30)[:-36]
    with open(folder / "sparse.tkf", "wb") as file:
        file.write(header)
        file.truncate(len(header) + (1 << 30) + 32)
    (folder / "good.tkf").write_bytes(craft())
    large, good = ask(native_build, [folder / "sparse.tkf", folder / "good.tkf"], prepare=limited)
    assert (large["code"], large["status"], good["code"]) == ("memory", 7, "ok")
    assert large["message"] == f"{folder / 'sparse.tkf'}: expected memory of the file's size; free some"


@pytest.mark.soak
def test_a_file_beyond_four_gibibytes(native_build, tmp_path):
    size = (1 << 32) + 12345
    header = claiming(size)[:-36]
    digest = hashlib.sha256(header)
    for start in range(0, size, 1 << 20):
        digest.update(bytes(min(1 << 20, size - start)))
    with open(tmp_path / "sparse.tkf", "wb") as file:
        file.write(header)
        file.seek(size, os.SEEK_CUR)
        file.write(digest.digest())
    [answer] = ask(native_build, [tmp_path / "sparse.tkf"])
    assert answer["code"] == "ok" and answer["sha256"] == digest.hexdigest()


# --- SHA-256 ---------------------------------------------------------------------------------------------


def test_sha256_in_parts(native_build):
    """Both paths, where the processor has the instructions: every length to 1000, and random parts."""
    rng = random.Random(1)
    parts = [[n] for n in range(1001)] + [[rng.randrange(200) for _ in range(rng.randrange(9))] for _ in range(1000)]
    parts += [[55, 1], [56], [63, 1], [64, 64], [1] * 130, [100_000, 7], [0, 0, 3]]
    answers = map(json.loads, lines_of(native_build, (" ".join(map(str, p)) for p in parts), "sha256"))
    for part, answer in zip(parts, answers, strict=True):
        data, start = b"", 0
        for size in part:
            data += bytes((start + i) % 256 for i in range(size))
            start += size
        assert answer["chosen"] == answer["portable"] == hashlib.sha256(data).hexdigest(), part
        assert answer["instructions"] == ("sha_ni" in Path("/proc/cpuinfo").read_text().split())
