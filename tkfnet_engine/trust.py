"""Which TensorRT plans this user built on this machine. Those run without being asked for; others only when trusted.

A plan is a program: whoever made it may run code here when it is loaded, with all the rights of the user. So a build
notes the SHA-256 of its plan, in a folder that this user alone can write. A note is about bytes, not about a file: a
copy of an own plan is own, and to change the engine file gains nothing. A note holds for one machine, also where
several share a home folder. A note is some 100 bytes; deleting one, or the folder, only takes trust away.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import stat
from contextlib import suppress
from typing import Any

from .atomic import write_atomically
from .errors import FileError

TRUST_HELP = (
    "run an engine whose tensors are a program (TensorRT) and that was not built here; only from people you trust"
)

_OURS, _NOTES = "tkfnet-engine", "plans"
_MACHINE_ID = "/etc/machine-id"


class _Refused(Exception):
    """Why there is no note to rely on, as a clause."""


def remember(plan: Any) -> str | None:
    """Notes that this user built `plan` (bytes-like) on this machine: None. Where that cannot be: why, as a clause.

    Many processes may do so at once. The system's refusals are returned, not raised: a build is good without a note.
    """
    name = _name(plan)
    try:
        base = _base()
        path = os.path.join(base, _OURS, _NOTES)
        os.makedirs(base, exist_ok=True)
        for folder in (os.path.dirname(path), path):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700)
        write_atomically(os.path.join(path, name), _content(name), mode=0o600)
        _check(base, name)  # what was there before may belong to another
    except _Refused as why:
        return str(why)
    except OSError as error:  # FileError is one
        cause = error.__cause__ if isinstance(error, FileError) else error
        return f"{path} cannot be written: {getattr(cause, 'strerror', None) or error}"
    return None


def why_not_own(plan: Any) -> str | None:
    """None if this user built exactly these bytes (bytes-like, not copied) on this machine, else why not, as a clause.

    A note that another user could have written counts as none.
    """
    try:
        _check(_base(), _name(plan))
    except _Refused as why:
        return str(why)
    return None


def _name(plan: Any) -> str:
    """Of the note on `plan`: its SHA-256, and 16 digits for this machine."""
    try:
        with open(_MACHINE_ID, "rb") as file:
            number = file.read(256)
    except OSError:
        number = b""  # a container without one has its host name
    machine = hashlib.sha256(number + b"\0" + platform.node().encode(errors="surrogateescape"))
    return f"{hashlib.sha256(plan).hexdigest()}-{machine.hexdigest()[:16]}"


def _content(name: str) -> bytes:
    return f"{name}\n".encode()


def _base() -> str:
    """The folder for what programs keep between runs: $XDG_STATE_HOME, by default ~/.local/state."""
    if not hasattr(os, "geteuid"):
        raise _Refused("this system has no user numbers to tell a note's author by")
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has a relative one ignored.
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    if not os.path.isabs(base):
        raise _Refused("there is no home folder to note it in; set XDG_STATE_HOME")
    return base


def _check(base: str, name: str) -> None:
    """Returns if the note is there and only this user can have written it. Else `_Refused`.

    Each step opens below what the step before has opened and checked, so that a path exchanged meanwhile, or a link,
    leads nowhere.
    """
    opened: list[int] = []
    path, below = base, None
    try:
        for part, kind in ((_OURS, stat.S_ISDIR), (_NOTES, stat.S_ISDIR), (name, stat.S_ISREG)):
            path = os.path.join(path, part)
            # Without O_NONBLOCK a FIFO would be waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            below = os.open(path if below is None else part, flags, dir_fd=below)
            opened.append(below)
            _check_owner(path, os.fstat(below), kind)
        if os.read(below, 256) != _content(name):
            raise _Refused(f"the note {path} is damaged; delete it")
    except FileNotFoundError:
        raise _Refused("this user has not built it on this machine") from None
    except OSError as error:
        raise _Refused(f"{path} cannot be read: {error.strerror}") from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _check_owner(path: str, found: os.stat_result, kind: Any) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if not kind(found.st_mode):
        raise _Refused(f"{path} is no {'folder' if kind is stat.S_ISDIR else 'file'}; delete it")
    if found.st_uid != os.geteuid():
        raise _Refused(f"{path} belongs to user {found.st_uid}, expected {os.geteuid()}")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        # What others have put into a folder is theirs, and what they have moved there has another name inside.
        remedy = f"chmod go-w {shlex.quote(path)}" if kind is stat.S_ISDIR else "delete it"
        raise _Refused(f"others can write {path} (mode {mode:04o}); {remedy}")
