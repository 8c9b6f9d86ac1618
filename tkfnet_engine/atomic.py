"""Write a file whole or not at all: temporary file beside the target, flush, rename, flush the folder.

And open one without waiting: `open_regular`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, BinaryIO

from .errors import FileError

# Temporary files of this process that are being written: a file with our process id may still be stale,
# because a container gives the same id to each of its runs.
_writing: set[str] = set()


def write_atomically(path: str | os.PathLike[str], data: Any, mode: int = 0o666) -> None:
    """Writes `data` (bytes-like, or an iterable of bytes-like chunks) to `path`: all of it or nothing.

    A crash at any moment leaves the old file or the new one. The mode is `mode` less the umask. A symbolic link at
    `path` is replaced, not followed. `FileError` where the system refuses, or where `path` is no regular file;
    any other error of the iterable passes as it is.
    """
    if isinstance(data, str):
        raise TypeError("write_atomically: got str, expected bytes: encode it")
    try:
        chunks: Iterable[Any] = (memoryview(data),)
    except TypeError:
        chunks = data
    target = os.fsdecode(path)
    _check_target(target)
    folder, name = os.path.dirname(target) or os.curdir, os.path.basename(target)
    temporary = f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    where = os.path.join(folder, temporary)
    written, descriptor, replaced = 0, -1, False
    _writing.add(temporary)
    try:
        _remove_stale(folder, name)
        descriptor = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
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
        needed = sum(memoryview(c).nbytes for c in chunks) if isinstance(chunks, (tuple, list)) else f"over {written}"
        raise FileError(
            f"{target}: cannot write it: {error.strerror} ({errno.errorcode.get(error.errno or 0, 'unknown')}); "
            f"expected {folder} to take {needed} bytes; "
            + ("the new file is in place and complete, but may not survive a power cut: write it again" if replaced
               else "a file that was there is unchanged: free space or choose another path, and write it again")
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


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file to read. `FileError`, without waiting for a writer, for a FIFO, a folder or a device.

    Other errors of `open` pass as they are: `OSError`, and `ValueError` for a zero byte in the path.
    """
    flag = getattr(os, "O_NONBLOCK", 0)
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | flag))  # noqa: SIM115
    except IsADirectoryError:
        raise FileError("a folder, not a file") from None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise FileError("a pipe or a device, not a file")


def _check_target(target: str) -> None:
    """Replacing /dev/null, a FIFO or a folder is never what was meant."""
    try:
        special = not stat.S_ISREG(os.stat(target).st_mode)
    except OSError:
        return  # nothing there, or a path that os.open refuses
    except ValueError as error:
        raise FileError(f"{target!a}: cannot write it: {error}; expected a path; choose another path") from None
    if special:
        raise FileError(f"{target}: a folder, FIFO, socket or device; expected a file to replace; choose another path")


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


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives and is another user's
    return True


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
