"""The engine file `*.tkf`: write it, validate it, read it. docs/engine-file.md is the format.

It is a safetensors file with rules of its own: one metadata key that holds the facts, and a last tensor
that holds the SHA-256 of every byte before it. Opening one runs no code and imports nothing. No length in
the file is trusted before it has been compared with the real size of the file.

Every refusal is a `BundleError` whose `code` is stable: tests and callers match on it, not on the text.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors.numpy import save

from .atomic import open_regular, write_atomically
from .errors import BundleError, FileError
from .strict_json import StrictJsonError, canonical, parse

FORMAT = "tkfnet-engine"
FORMAT_VERSION = 1
SUFFIX = ".tkf"
MAX_HEADER = 1 << 20  # bytes; an engine's header is some 20 KB
MAX_NAME = 200
MAX_RANK = 8
MAX_DIM = 1 << 48

_METADATA, _FACTS, _DIGEST = "__metadata__", "tkfnet", "~sha256"
_DIGEST_SIZE = 32
_CHUNK = 1 << 20
_NAME = re.compile(rf"[a-z0-9_.-][a-z0-9_./-]{{0,{MAX_NAME - 1}}}")

# safetensors dtype -> (numpy's name, bytes per element). numpy itself has no bfloat16.
_DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "I16": ("int16", 2), "U16": ("uint16", 2),
    "I32": ("int32", 4), "U32": ("uint32", 4), "I64": ("int64", 8), "U64": ("uint64", 8),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8),
}  # fmt: skip

# safetensors orders tensors by dtype and then by name, and puts BOOL behind U8, where the digest has to be
# last. So the writer takes no bool arrays; the reader takes BOOL from a writer that orders otherwise.
_WRITABLE = {numpy_name for code, (numpy_name, _) in _DTYPES.items() if code != "BOOL"}

_REBUILD = "the file is damaged or was changed: copy it again, or build it again (python -m tkfnet_engine.build)"
_NOT_OURS = "is it a checkpoint? Build an engine from it: python -m tkfnet_engine.build --checkpoint FILE"
_CORRECT = "correct what is written: docs/engine-file.md has the rules"


class _Refused(Exception):
    """What is wrong with a file; `_naming` adds its path."""

    def __init__(self, code: str, found: str, expected: str, remedy: str = _REBUILD):
        self.code, self.found, self.expected, self.remedy = code, found, expected, remedy


@contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except _Refused as why:
        raise BundleError(f"{path}: {why.found}; expected {why.expected}; {why.remedy}", why.code) from why.__cause__
    except OSError as error:
        raise BundleError(f"{path}: reading failed ({error.strerror}); expected a sound disk", "unreadable") from error
    except MemoryError:
        raise BundleError(f"{path}: expected memory of the file's size; free some", "memory") from None


def _quoted(value: Any) -> str:
    """Something the file says, safe to print: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- rules -----------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def _check_name(name: Any, remedy: str = _REBUILD) -> None:
    if not _NAME.fullmatch(name) or ".." in name or name == _METADATA:
        expected = f"1 to {MAX_NAME} of a-z 0-9 _ . / - without '..' or a leading '/'"
        raise _Refused("name", f"a tensor named {_quoted(name)}", expected, remedy)


def _check_shape(name: str, shape: Any, remedy: str = _REBUILD) -> None:
    # `type(x) is int`, here and below, because to Python `true` is an int as well. An empty tensor would share
    # its offset with its neighbour, and so leave the order open.
    sound = isinstance(shape, (list, tuple)) and all(type(n) is int and 1 <= n < MAX_DIM for n in shape)
    if not sound or len(shape) > MAX_RANK:
        expected = f"at most {MAX_RANK} dimensions of 1 to 2**48 - 1"
        raise _Refused("shape", f"tensor {name}: shape {_quoted(shape)}", expected, remedy)


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return parse(text)
    except StrictJsonError as error:
        raise _Refused(error.code, f"in the {where}: {error.found}", error.expected) from None


def _facts(metadata: Any) -> dict[str, Any]:
    """The facts inside `__metadata__`. Format and version come first: a newer version may change the rest."""
    if metadata is None or (isinstance(metadata, dict) and _FACTS not in metadata):
        found = "a safetensors file without our facts, so not an engine file"
        raise _Refused("not-an-engine", found, f"the metadata key {_FACTS!r}", _NOT_OURS)
    if not isinstance(metadata, dict) or not isinstance(metadata[_FACTS], str):
        raise _Refused("metadata", "metadata of another type", f"the key {_FACTS!r} with a string")
    facts = _parsed(metadata[_FACTS], "facts")
    if not isinstance(facts, dict):
        raise _Refused("facts", f"facts that are a JSON {type(facts).__name__}", "a JSON object")
    if facts.get("format") != FORMAT:
        raise _Refused("format", f"format {_quoted(facts.get('format'))}", f"{FORMAT!r}", _NOT_OURS)
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise _Refused("version", f"format_version {_quoted(version)}", f"1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        found = f"format_version {version}, written by a newer tkfnet-engine"
        todo = "upgrade tkfnet-engine, or build the engine again with this version"
        raise _Refused("version-newer", found, f"{FORMAT_VERSION} at most", todo)
    if len(metadata) != 1:
        raise _Refused("metadata", f"{len(metadata)} metadata keys", f"only {_FACTS!r}")
    return facts


def _entry(name: str, fields: Any, position: int) -> _Entry:
    """One tensor's line of the header, given that the bytes before `position` are taken."""
    if name != _DIGEST:
        _check_name(name)
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Refused("entry", f"tensor {name}: {_quoted(fields)}", "exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _Refused("dtype", f"tensor {name}: dtype {_quoted(dtype)}", f"one of {' '.join(_DTYPES)}")
    _check_shape(name, shape)
    nbytes = math.prod(shape) * _DTYPES[dtype][1]
    # No holes, no overlaps, nothing behind the end: each tensor starts where the one before it ends.
    if offsets != [position, position + nbytes] or any(type(n) is not int for n in offsets):
        expected = f"[{position}, {position + nbytes}] for {dtype} {_quoted(shape)}"
        raise _Refused("offsets", f"tensor {name}: data_offsets {_quoted(offsets)}", expected)
    return _Entry(dtype, tuple(shape), nbytes)


def _layout(raw: bytes, size: int) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Facts and tensors, in file order, of a file of `size` bytes with the header `raw`."""
    if not raw.startswith(b"{"):
        raise _Refused("header-start", f"a header that starts with {_quoted(raw[:4])}", "'{'", _NOT_OURS)
    header = _parsed(raw, "header")
    facts = _facts(header.pop(_METADATA, None))
    entries: dict[str, _Entry] = {}
    position = 0
    for name, fields in header.items():
        entries[name] = _entry(name, fields, position)
        position += entries[name].nbytes
    expected = 8 + len(raw) + position
    if expected != size:
        code = "truncated" if size < expected else "trailing"
        raise _Refused(code, f"a file of {size} bytes", f"{expected} bytes, as its header says")
    last = next(reversed(entries), None)
    if last != _DIGEST or entries[last] != _Entry("U8", (_DIGEST_SIZE,), _DIGEST_SIZE):
        found = f"the last tensor {_quoted(last)} {_quoted(entries.get(last))}"
        raise _Refused("digest-form", found, f"the digest {_DIGEST!r}, U8 [32]")
    return facts, entries


# --- reading ---------------------------------------------------------------------------------------------


class Bundle:
    """The verified content of an engine file, held in memory: later changes to the file do not reach it.

    facts: docs/engine-file.md. sha256: the file's digest. path: as it was opened.
    """

    def __init__(self, path: str, facts: dict[str, Any], entries: dict[str, _Entry], data: dict, sha256: str):
        self.facts = facts
        self.sha256 = sha256
        self.path = path
        self._entries, self._data = entries, data

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def names(self) -> list[str]:
        """The tensors still held, in file order; the digest is not among them."""
        return list(self._data)

    def bytes(self, name: str):
        """The tensor's `bytes`, not copied. `BundleError` if the file has no such tensor."""
        if name not in self._data:
            found = f"{self.path}: no tensor {_quoted(name)} among {len(self._data)}"
            raise BundleError(f"{found}; expected it in this engine; build it again with this version", "tensor")
        return self._data[name]

    def array(self, name: str) -> np.ndarray:
        """A read-only view of the tensor. BF16 has no numpy dtype: `BundleError`, take `.bytes`."""
        data, (dtype, shape, _) = self.bytes(name), self._entries[name]
        if dtype == "BF16":
            raise BundleError(f"{self.path}: tensor {name} is BF16; expected a dtype of numpy; use .bytes", "bfloat16")
        return np.frombuffer(data, np.dtype(_DTYPES[dtype][0]).newbyteorder("<")).reshape(shape)

    def pop(self, name: str):
        """As `bytes`, and drops this bundle's reference, so that a large graph does not live twice."""
        data = self.bytes(name)
        del self._data[name]
        return data


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Reads an engine file. Everything is verified before anything is returned. `BundleError` otherwise."""
    return _read(os.fsdecode(path), keep=True)


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Only the facts. The whole file is verified as by `read_bundle`, in about 2 MiB of memory."""
    return _read(os.fsdecode(path), keep=False).facts


def _read(path: str, keep: bool) -> Bundle:
    """The whole file, checked. Without `keep` the tensors are only hashed, a chunk at a time."""
    with _naming(path), _open(path) as file:
        return _verified(path, file, keep)


def _verified(path: str, file: BinaryIO, keep: bool) -> Bundle:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise _Refused("too-short", f"a file of {size} bytes", "at least an 8-byte header length")
    prefix = _exactly(file, 8)
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER:
        raise _Refused("header-too-long", f"a {length}-byte header", f"{MAX_HEADER} at most", _NOT_OURS)
    if length > size - 8:
        raise _Refused("truncated", f"a file of {size} bytes", f"at least {length + 8}, as it says")
    raw = _exactly(file, length)
    facts, entries = _layout(raw, size)
    digest = hashlib.sha256(prefix + raw)
    data: dict[str, bytes] = {}
    for name, (dtype, _, nbytes) in entries.items():
        if name == _DIGEST:
            break  # it is the last
        # `_layout` has compared the sum of these sizes with the size of the file.
        for start in range(0, nbytes, nbytes if keep else _CHUNK):
            part = _exactly(file, nbytes if keep else min(_CHUNK, nbytes - start))
            digest.update(part)
            if dtype == "BOOL" and part.translate(None, b"\0\1"):
                raise _Refused("bool-value", f"tensor {name}: bytes other than 0 and 1", "0 or 1")
            if keep:
                data[name] = part
    stored = _exactly(file, _DIGEST_SIZE)
    if file.read(1):
        raise _Refused("changed", "the file grew while it was read", "a file that nobody writes to")
    if digest.digest() != stored:
        raise _Refused("digest", f"content with SHA-256 {digest.hexdigest()}", stored.hex())
    return Bundle(path, facts, entries, data, stored.hex())


def _open(path: str) -> BinaryIO:
    remedy = "name an engine file (*.tkf), as python -m tkfnet_engine.build writes it"
    try:
        return open_regular(path)
    except FileError as error:
        raise _Refused("not-a-file", str(error), "an engine file", remedy) from None
    except FileNotFoundError:
        raise _Refused("missing", "no such file", "an engine file", remedy) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _Refused("unreadable", f"cannot open it ({reason})", "a file to read", remedy) from error


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _Refused("changed", "the file shrank while it was read", "a file that nobody writes to")
    return data


# --- writing ---------------------------------------------------------------------------------------------


def write_bundle(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray | bytes], facts: Mapping[str, Any]
) -> None:
    """Writes an engine file, atomically. Equal inputs give equal bytes.

    tensors: arrays of the dtypes in docs/engine-file.md (no bool), or bytes, which become U8 tensors.
    facts: JSON types; "format" and "format_version" are added.
    `BundleError` for a name, dtype, shape or fact that the format does not hold, `FileError` if writing fails.
    """
    target = os.fsdecode(path)
    with _naming(target):
        arrays = {name: _array(name, value) for name, value in tensors.items()}
        arrays[_DIGEST] = np.zeros(_DIGEST_SIZE, np.uint8)
        blob = memoryview(save(arrays, metadata={_FACTS: _canonical(facts)}))
        (length,) = struct.unpack("<Q", blob[:8])
        if length > MAX_HEADER:
            raise _Refused("header-too-long", f"a {length}-byte header", f"{MAX_HEADER} at most", "shorten the facts")
    try:
        # The digest is in place only if the library put it last: our own reader is the judge.
        _layout(bytes(blob[8 : 8 + length]), len(blob))
    except _Refused as why:
        raise AssertionError(f"safetensors wrote a layout that our reader refuses: {why.found}") from why
    body = blob[:-_DIGEST_SIZE]
    write_atomically(target, (body, hashlib.sha256(body).digest()))


def _array(name: str, value: Any) -> np.ndarray:
    """`value` as a native, C-contiguous array of a dtype that the file may hold."""
    _check_name(name, _CORRECT)
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = np.frombuffer(value, np.uint8)
    what = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
    if not isinstance(value, np.ndarray) or what not in _WRITABLE:
        raise _Refused("dtype", f"tensor {name}: {what}", f"bytes or {' '.join(sorted(_WRITABLE))}", _CORRECT)
    _check_shape(name, value.shape, _CORRECT)
    return np.asarray(value, value.dtype.newbyteorder("=") if not value.dtype.isnative else None, order="C")


def _canonical(facts: Mapping[str, Any]) -> str:
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts}
    # As text, because to Python `True` and `1.0` equal 1.
    if (fields["format"], repr(fields["format_version"])) != (FORMAT, repr(FORMAT_VERSION)):
        raise _Refused("facts", "another format or format_version", f"{FORMAT!r}, {FORMAT_VERSION}", "omit both")
    try:
        return canonical(fields)
    except StrictJsonError as error:
        raise _Refused("facts", f"in the facts: {error.found}", error.expected, _CORRECT) from None
