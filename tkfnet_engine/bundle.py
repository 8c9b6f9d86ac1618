"""The engine file `*.tkf`: write it, validate it, read it. docs/engine-file.md is the format.

It is a safetensors file with rules of its own: one metadata key that holds the facts, and a last tensor
that holds the SHA-256 of every byte before it. Opening one runs no code and imports nothing. No length in
the file is trusted before it has been compared with the real size of the file.

Every refusal is a `BundleError` whose `code` is stable: tests and callers match on it, not on the text.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from safetensors.numpy import save

from .errors import BundleError

FORMAT = "tkfnet-engine"
FORMAT_VERSION = 1
SUFFIX = ".tkf"
MAX_HEADER = 1 << 20  # bytes; an engine's header is some 20 KB
MAX_NESTING = 64  # JSON depth, so that parsing cannot exhaust the stack
MAX_NUMBER = 32  # characters; a float64 needs 24, a uint64 20
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


def _refusal(path: str, code: str, found: str, expected: str, remedy: str = _REBUILD) -> BundleError:
    return BundleError(f"{path}: {found}; expected {expected}; {remedy}", code)


def _quoted(value: Any) -> str:
    """Something the file says, safe to print: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- strict JSON -----------------------------------------------------------------------------------------

# A string (left open: up to the end, so that the scan stays linear), a bracket, or an overlong number.
_TOKEN = re.compile(rf'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{{]|[\]}}]|[-+.0-9eE]{{{MAX_NUMBER + 1},}}', re.DOTALL)


class _JsonError(Exception):
    def __init__(self, code: str, found: str, expected: str):
        super().__init__(code, found, expected)
        self.code, self.found, self.expected = code, found, expected


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        # Two readers may each keep another of the two values.
        raise _JsonError("duplicate-key", f"a key twice in one object of {len(pairs)} keys", "every key once")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _JsonError("not-finite", f"the number {text}", "numbers that a float64 can hold")
    return number


def _constant(text: str) -> None:
    raise _JsonError("not-finite", f"the constant {text}", "JSON, which has no NaN and no Infinity")


def _json(text: str) -> Any:
    """Parses `text` as JSON in which every value has one meaning for every reader. `_JsonError` otherwise."""
    depth = 0
    # Python's parser recurses, and converts any number of digits: both are bounded before it starts.
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        elif first != '"':
            raise _JsonError(
                "number-length", f"a number of {token.end() - token.start()} characters", f"{MAX_NUMBER} at most"
            )
        if depth > MAX_NESTING:
            raise _JsonError("nesting", f"JSON nested deeper than {MAX_NESTING}", f"a depth of {MAX_NESTING} at most")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_constant)
    except ValueError as error:
        raise _JsonError("json", f"no valid JSON ({error})", "one JSON object") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _JsonError("surrogate", "half of a surrogate pair in a string", "Unicode text") from None
    return value


# --- validation ------------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def _is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and ".." not in name and name != _METADATA


def _facts(path: str, metadata: Any) -> dict[str, Any]:
    """The facts inside `__metadata__`. Format and version come first: a newer version may change the rest."""
    if metadata is None or (isinstance(metadata, dict) and _FACTS not in metadata):
        raise _refusal(
            path, "not-an-engine", "a safetensors file without our facts, so not an engine file",
            f"the metadata key {_FACTS!r}", _NOT_OURS,
        )  # fmt: skip
    if not isinstance(metadata, dict) or not isinstance(metadata[_FACTS], str):
        raise _refusal(path, "metadata", "metadata of another type", f"the key {_FACTS!r} with a string")
    try:
        facts = _json(metadata[_FACTS])
    except _JsonError as error:
        raise _refusal(path, error.code, f"in the facts: {error.found}", error.expected) from None
    if not isinstance(facts, dict):
        raise _refusal(path, "facts", f"facts that are a JSON {type(facts).__name__}", "a JSON object")
    if facts.get("format") != FORMAT:
        raise _refusal(path, "format", f"format {_quoted(facts.get('format'))}", f"{FORMAT!r}", _NOT_OURS)
    version = facts.get("format_version")
    if type(version) is not int or version < 1:
        raise _refusal(path, "version", f"format_version {_quoted(version)}", f"1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise _refusal(
            path, "version-newer", f"format_version {version}, written by a newer tkfnet-engine",
            f"{FORMAT_VERSION} at most", "upgrade tkfnet-engine, or build the engine again with this version",
        )  # fmt: skip
    if len(metadata) != 1:
        raise _refusal(path, "metadata", f"{len(metadata)} metadata keys", f"only {_FACTS!r}")
    return facts


def _entry(path: str, name: str, fields: Any, position: int) -> _Entry:
    """One tensor's line of the header, given that the bytes before `position` are taken."""
    if name != _DIGEST and not _is_name(name):
        raise _refusal(
            path, "name", f"a tensor named {_quoted(name)}",
            f"1 to {MAX_NAME} of a-z 0-9 _ . / - without '..' or a leading '/'",
        )  # fmt: skip
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise _refusal(path, "entry", f"tensor {name}: {_quoted(fields)}", "exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _refusal(path, "dtype", f"tensor {name}: dtype {_quoted(dtype)}", f"one of {' '.join(_DTYPES)}")
    # `type(x) is int`, because to Python `true` is an int as well.
    if not isinstance(shape, list) or any(type(n) is not int for n in shape):
        raise _refusal(path, "shape", f"tensor {name}: shape {_quoted(shape)}", "a list of integers")
    if len(shape) > MAX_RANK:
        raise _refusal(path, "rank", f"tensor {name}: {len(shape)} dimensions", f"{MAX_RANK} at most")
    # An empty tensor would share its offset with its neighbour, and so leave the order open.
    if any(not 1 <= n < MAX_DIM for n in shape):
        raise _refusal(path, "dimension", f"tensor {name}: shape {_quoted(shape)}", "dimensions of 1 to 2**48 - 1")
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
        raise _refusal(path, "offsets", f"tensor {name}: data_offsets {_quoted(offsets)}", "two integers")
    begin, end = offsets
    if begin != position:
        raise _refusal(
            path, "hole" if begin > position else "overlap", f"tensor {name} starts at byte {begin} of the buffer",
            f"{position}, where the tensor before it ends",
        )  # fmt: skip
    nbytes = math.prod(shape) * _DTYPES[dtype][1]
    if end - begin != nbytes:
        raise _refusal(
            path, "length", f"tensor {name}: {end - begin} bytes",
            f"{nbytes} bytes for {dtype} {_quoted(shape)}",
        )  # fmt: skip
    return _Entry(dtype, tuple(shape), nbytes)


def _layout(path: str, raw: bytes, size: int) -> tuple[dict[str, Any], dict[str, _Entry]]:
    """Facts and tensors, in file order, of a file of `size` bytes with the header `raw`."""
    if not raw.startswith(b"{"):
        raise _refusal(path, "header-start", f"a header that starts with {_quoted(raw[:4])}", "'{'", _NOT_OURS)
    try:
        header = _json(raw.decode())
    except UnicodeDecodeError as error:
        raise _refusal(path, "utf8", f"no UTF-8 at byte {error.start} of the header", "UTF-8") from None
    except _JsonError as error:
        raise _refusal(path, error.code, f"in the header: {error.found}", error.expected) from None
    facts = _facts(path, header.pop(_METADATA, None))
    entries: dict[str, _Entry] = {}
    position = 0
    for name, fields in header.items():
        entries[name] = _entry(path, name, fields, position)
        position += entries[name].nbytes
    expected = 8 + len(raw) + position
    if expected != size:
        raise _refusal(
            path, "truncated" if size < expected else "trailing", f"a file of {size} bytes",
            f"{expected} bytes, as its header says",
        )  # fmt: skip
    digest = entries.get(_DIGEST)
    if digest is None:
        raise _refusal(path, "digest-missing", "no digest", f"a last tensor {_DIGEST!r}")
    if digest != _Entry("U8", (_DIGEST_SIZE,), _DIGEST_SIZE):
        raise _refusal(path, "digest-form", f"a digest of {digest.dtype} {_quoted(digest.shape)}", "U8 [32]")
    if next(reversed(entries)) != _DIGEST:
        raise _refusal(path, "digest-not-last", f"tensors behind {_DIGEST!r}", "the digest as the last tensor")
    return facts, entries


# --- reading ---------------------------------------------------------------------------------------------


class Bundle:
    """The verified content of an engine file, held in memory: later changes to the file do not reach it."""

    def __init__(self, path: str, facts: dict[str, Any], entries: dict[str, _Entry], data: dict, sha256: str):
        self.facts = facts
        self.sha256 = sha256
        self._path, self._entries, self._data = path, entries, data

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def names(self) -> list[str]:
        """The tensors still held, in file order; the digest is not among them."""
        return list(self._data)

    def bytes(self, name: str):
        """The tensor's `bytes`, not copied. `BundleError` if the file has no such tensor."""
        if name not in self._data:
            raise _refusal(
                self._path, "tensor", f"no tensor {_quoted(name)} among {len(self._data)}", "it in this engine",
                "build it again with this version of tkfnet-engine",
            )  # fmt: skip
        return self._data[name]

    def array(self, name: str) -> np.ndarray:
        """A read-only view of the tensor. BF16 has no numpy dtype: `BundleError`, take `.bytes`."""
        data = self.bytes(name)
        dtype, shape, _ = self._entries[name]
        if dtype == "BF16":
            raise _refusal(self._path, "bfloat16", f"tensor {name} is BF16", "a dtype of numpy", "use its .bytes")
        return np.frombuffer(data, np.dtype(_DTYPES[dtype][0]).newbyteorder("<")).reshape(shape)

    def pop(self, name: str):
        """As `bytes`, and drops this bundle's reference, so that a large graph does not live twice."""
        data = self.bytes(name)
        del self._data[name]
        return data


def _open(path: str) -> BinaryIO:
    """Opens a regular file. Never waits: a FIFO, a socket or a device is refused."""
    remedy = "name an engine file (*.tkf), as python -m tkfnet_engine.build writes it"
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            # O_NONBLOCK: the path may have become a FIFO since; open must not wait for a writer.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            file = open(os.open(path, flags), "rb")  # noqa: SIM115
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode):
                return file
            file.close()
    except FileNotFoundError:
        raise _refusal(path, "missing", "no such file", "an engine file", remedy) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refusal(path, "unreadable", f"cannot open it ({reason})", "a file to read", remedy) from error
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO, socket or device"
    raise _refusal(path, "not-a-file", kind, "a regular file", remedy)


def _exactly(path: str, file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _refusal(
            path, "changed", f"the file ended {size - len(data)} bytes early", "a file that nobody writes to"
        )
    return data


def _verified(where: str | os.PathLike[str], keep: bool) -> Bundle:
    """The whole file, checked. Without `keep` the tensors are only hashed, a chunk at a time."""
    path = os.fsdecode(where)
    try:
        with _open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _refusal(path, "too-short", f"a file of {size} bytes", "at least an 8-byte header length")
            prefix = _exactly(path, file, 8)
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER:
                raise _refusal(path, "header-too-long", f"a {length}-byte header", f"{MAX_HEADER} at most", _NOT_OURS)
            if length > size - 8:
                raise _refusal(path, "truncated", f"a file of {size} bytes", f"at least {length + 8}, as it says")
            raw = _exactly(path, file, length)
            facts, entries = _layout(path, raw, size)
            digest = hashlib.sha256(prefix + raw)
            data: dict[str, bytes] = {}
            stored = b""
            for name, (dtype, _, nbytes) in entries.items():
                if name == _DIGEST:
                    stored = _exactly(path, file, nbytes)
                    break
                # `_layout` has compared the sum of these sizes with the size of the file.
                for start in range(0, nbytes, nbytes if keep else _CHUNK):
                    part = _exactly(path, file, nbytes if keep else min(_CHUNK, nbytes - start))
                    digest.update(part)
                    if dtype == "BOOL" and part.translate(None, b"\0\1"):
                        raise _refusal(path, "bool-value", f"tensor {name}: bytes other than 0 and 1", "0 or 1")
                    if keep:
                        data[name] = part
            if file.read(1):
                raise _refusal(path, "changed", "the file grew while it was read", "a file that nobody writes to")
    except OSError as error:
        raise _refusal(path, "unreadable", f"reading failed ({error.strerror})", "a readable file") from error
    except MemoryError:
        raise _refusal(path, "memory", "too little memory for it", "memory of the file's size", "free memory") from None
    if digest.digest() != stored:
        raise _refusal(path, "digest", f"content with SHA-256 {digest.hexdigest()}", stored.hex())
    return Bundle(path, facts, entries, data, stored.hex())


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Reads an engine file. Everything is verified before anything is returned. `BundleError` otherwise."""
    return _verified(path, keep=True)


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Only the facts. The whole file is verified as by `read_bundle`, in about 2 MiB of memory."""
    return _verified(path, keep=False).facts


# --- writing ---------------------------------------------------------------------------------------------


def _array(path: str, name: str, value: Any) -> np.ndarray:
    """`value` as a native, C-contiguous array of a dtype that the file may hold."""
    if not _is_name(name):
        raise _refusal(
            path, "name", f"a tensor named {_quoted(name)}",
            f"1 to {MAX_NAME} of a-z 0-9 _ . / - without '..' or a leading '/'", "rename it",
        )  # fmt: skip
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = np.frombuffer(value, np.uint8)
    if not isinstance(value, np.ndarray) or value.dtype.name not in _WRITABLE:
        what = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise _refusal(path, "dtype", f"tensor {name}: {what}", f"bytes or {' '.join(sorted(_WRITABLE))}", "convert it")
    if not value.size or value.ndim > MAX_RANK:
        raise _refusal(
            path, "shape", f"tensor {name}: shape {value.shape}", f"no empty tensor, {MAX_RANK} dimensions at most",
            "leave it out or reshape it",
        )  # fmt: skip
    return np.asarray(value, value.dtype.newbyteorder("=") if not value.dtype.isnative else None, order="C")


def _only_str_keys(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_only_str_keys, value))
    return not isinstance(value, dict) or all(type(k) is str and _only_str_keys(v) for k, v in value.items())


def _canonical(path: str, facts: Mapping[str, Any]) -> str:
    """The facts as canonical JSON, so that equal facts are equal bytes."""
    fields = {"format": FORMAT, "format_version": FORMAT_VERSION, **facts}
    try:
        text = json.dumps(fields, sort_keys=True, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
        _json(text)
        if not _only_str_keys(fields):
            raise TypeError("a key that is no string")
    except _JsonError as error:
        raise _refusal(path, "facts", error.found, error.expected, "correct the facts") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(path, "facts", f"facts that JSON cannot hold ({error})", "JSON types", "correct them") from None
    # As text, because to Python `True` and `1.0` equal 1.
    if (fields["format"], repr(fields["format_version"])) != (FORMAT, repr(FORMAT_VERSION)):
        raise _refusal(path, "facts", "another format or format_version", f"{FORMAT!r}, {FORMAT_VERSION}", "omit both")
    return text


def write_bundle(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray | bytes], facts: Mapping[str, Any]
) -> None:
    """Writes an engine file. Equal inputs give equal bytes. On failure the file that was there stays.

    tensors: arrays of the dtypes in docs/engine-file.md (no bool), or bytes, which become U8 tensors.
    facts: JSON types; "format" and "format_version" are added.
    A symbolic link at `path` is replaced, not followed.
    Raises `BundleError` for a name, dtype, shape or fact that the format does not hold, or if writing fails.
    """
    target = os.fsdecode(path)
    arrays = {name: _array(target, name, value) for name, value in tensors.items()}
    text = _canonical(target, facts)
    arrays[_DIGEST] = np.zeros(_DIGEST_SIZE, np.uint8)
    blob = memoryview(save(arrays, metadata={_FACTS: text}))
    (length,) = struct.unpack("<Q", blob[:8])
    if length > MAX_HEADER:
        raise _refusal(target, "header-too-long", f"a {length}-byte header", f"{MAX_HEADER} at most", "shorten facts")
    try:
        # The digest is in place only if the library put it last: our own reader is the judge.
        _layout(target, bytes(blob[8 : 8 + length]), len(blob))
    except BundleError as error:
        raise AssertionError(f"safetensors wrote a layout that our reader refuses: {error}") from error
    body = blob[:-_DIGEST_SIZE]
    write_atomically(target, (body, hashlib.sha256(body).digest()))


# Temporary files of this process that are being written: a file with our process id may still be stale,
# because a container gives the same id to each of its runs.
_writing: set[str] = set()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives and is another user's
    return True


def _remove_stale(folder: str, name: str) -> None:
    """Removes what killed writers of the file `name` have left behind."""
    if os.name != "posix":
        return  # elsewhere os.kill(pid, 0) is not a question
    pattern = re.compile(rf"\.{re.escape(name)}\.([0-9]{{1,9}})\.[0-9a-f]{{8}}\.tmp")
    # Tidying is a courtesy: where it fails, the write that follows reports what matters.
    with suppress(OSError):
        for found in os.listdir(folder):
            match = pattern.fullmatch(found)
            if match and found not in _writing and (int(match[1]) == os.getpid() or not _lives(int(match[1]))):
                os.unlink(os.path.join(folder, found))


def _write_all(descriptor: int, view: memoryview) -> None:
    view = view.cast("B") if view.nbytes else view[:0]
    while len(view):
        count = os.write(descriptor, view)  # the system may take less than it is given
        if count <= 0:
            raise OSError(errno.EIO, "the system accepted no bytes")
        view = view[count:]


def _sync_folder(folder: str) -> None:
    """Makes the new name durable. Without it a power cut may bring the old file back."""
    if os.name != "posix":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such thing
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], data: Any) -> None:
    """Writes `data` (bytes-like, or an iterable of bytes-like chunks) to `path`: all of it or nothing.

    A temporary file beside the target is written and flushed to the disk, then takes the target's name, then
    the folder is flushed. A crash at any moment leaves the old file or the new one. The mode follows the
    umask. `BundleError` with code "write" for an `OSError`; any other error of the iterable passes as it is.
    """
    if isinstance(data, str):
        raise TypeError("write_atomically: got str, expected bytes: encode it")
    try:
        chunks: Iterable[Any] = (memoryview(data),)
    except TypeError:
        chunks = data
    needed = sum(memoryview(c).nbytes for c in chunks) if isinstance(chunks, (tuple, list)) else None
    target = os.fsdecode(path)
    try:
        # Replacing /dev/null, a FIFO or a folder is never what was meant.
        special = not stat.S_ISREG(os.stat(target).st_mode)
    except OSError:
        special = False  # nothing there, or a path that os.open refuses below
    except ValueError as error:
        raise _refusal(target, "write", str(error), "a path", "choose another path") from None
    if special:
        raise _refusal(
            target, "not-a-file", "a folder, FIFO, socket or device", "a file to replace", "choose another path"
        )
    folder, name = os.path.dirname(target) or os.curdir, os.path.basename(target)
    temporary = f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    where = os.path.join(folder, temporary)
    written, descriptor, replaced = 0, -1, False
    _writing.add(temporary)
    try:
        _remove_stale(folder, name)
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        for chunk in chunks:
            view = memoryview(chunk)
            _write_all(descriptor, view)
            written += view.nbytes
        os.fsync(descriptor)
        closing, descriptor = descriptor, -1  # after a failed close the descriptor is gone all the same
        os.close(closing)
        os.replace(where, target)
        replaced = True
        _sync_folder(folder)
    except OSError as error:
        raise _refusal(
            target, "write",
            f"cannot write it: {error.strerror} ({errno.errorcode.get(error.errno or 0, 'unknown')})",
            f"{folder} to take {needed} bytes" if needed is not None else f"{folder} to take over {written} bytes",
            "the new file is in place and complete, but may not survive a power cut: write it again" if replaced
            else "a file that was there is unchanged: free space or choose another path, and write it again",
        ) from error  # fmt: skip
    finally:
        # Nothing here may hide the error that brought us here.
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
        if not replaced:
            with suppress(OSError):
                os.unlink(where)
        _writing.discard(temporary)
