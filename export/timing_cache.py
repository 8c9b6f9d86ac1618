"""TensorRT's timing cache: which kernel was fastest, kept from build to build.

One file per TensorRT version and GPU, shared by all builds of this user. A build reads it, measures what it lacks, and
adds that to the file as it is by then, under a lock: builds at the same time lose nothing of each other's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..atomic import write_atomically
from ..cache_folder import cache_folder
from ..console import say
from ..errors import FileError


def timing_cache_path(version: str, gpu: str, capability: str) -> str | None:
    """Where the cache of this TensorRT and this GPU is kept by default; None where there is no place."""
    folder = cache_folder()
    if folder is None:
        return None
    named = "-".join(re.sub(r"[^a-z0-9.]+", "_", part.lower()) for part in (version, gpu, capability))
    return os.path.join(folder, f"tensorrt-timing-{named}.cache")


def read_cache(path: str) -> bytes:
    """What is in the file; nothing where there is none, or where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        say(f"timing cache {path}: {error.strerror}; building without it")
        return b""


def add_to_cache(path: str, merged: Callable[[bytes], bytes]) -> None:
    """Replaces the file by `merged` of its content, while nobody else does. What cannot be written is said."""
    try:
        os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
        with _locked(f"{path}.lock"):
            content = read_cache(path)
            grown = merged(content)
            if grown != content:
                write_atomically(path, grown)
    except (OSError, FileError) as error:
        say(f"timing cache {path}: cannot be kept: {error}; builds stay right, and take longer")


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds an exclusive lock. The system drops it with the process, however that ends."""
    import fcntl

    # Never removed: between opening and locking it, another would lock a file that is gone.
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
