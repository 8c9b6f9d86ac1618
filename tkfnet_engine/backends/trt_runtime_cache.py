"""What TensorRT for RTX compiles for this GPU while it runs, kept for the next time the same plan is opened here."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from typing import Any

from ..atomic import open_regular, write_atomically
from ..cache_folder import cache_folder
from ..errors import FileError


def runtime_cache_path(version: str, gpu: str, capability: tuple[int, int], driver: int, plan: Any) -> str | None:
    """Where the cache for this library, GPU, driver and plan (bytes-like) is kept; None where there is no place."""
    folder = cache_folder()
    if folder is None:
        return None
    facts = [version, gpu, list(capability), driver, hashlib.sha256(plan).hexdigest()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return os.path.join(folder, f"tensorrt-rtx-{key[:32]}.cache")


class RuntimeCache:
    """A cache of the library's, filled from its file. Where that cannot be read or is damaged the library compiles
    anew, and where it cannot be written it will again: it saves time, and nothing else depends on it."""

    def __init__(self, config: Any, path: str | None):
        """config: an `IRuntimeConfig`, which gets the cache."""
        self._path = path
        self._cache = config.create_runtime_cache()
        # What is in the file as far as this library took it; it refuses what is damaged or not of this GPU.
        kept = _read(path) if path else b""
        self._kept = kept if kept and self._cache.deserialize(kept) else b""
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Writes what has been compiled so far to the file, unless it is there."""
        if self._path is None:
            return
        made = self._cache.serialize()
        content = b"" if made is None else bytes(made)
        if content in (b"", self._kept):
            return
        with suppress(OSError):  # FileError is one
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            # It holds code for the GPU: nobody else may write it.
            write_atomically(self._path, content, mode=0o600)
            self._kept = content


def _read(path: str) -> bytes:
    """The file's content; nothing where it cannot be read, or where others may have written it."""
    with suppress(OSError, FileError, ValueError), open_regular(path) as file:
        state = os.fstat(file.fileno())
        if not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & 0o022):
            return file.read()
    return b""
