"""The index of a fused engine's machine code, `cubins/<arch>/index`: what loading a kernel takes beside its code."""

from __future__ import annotations

from typing import Any

from ..errors import BundleError
from ..strict_json import parse

# What one thread block of any GPU could have, and more.
MAX_SHARED_BYTES = 1 << 30


def index_from_json(data: bytes) -> dict[str, Any]:
    """{"driver": .., "cubins": {variant: {"entry": .., "registers": .., "shared_bytes": .., ..}}}, validated.

    driver: the least version that loads the code, as 13000. entry: the kernel's name in its cubin. registers: per
    thread. shared_bytes: that a launch must ask for. `BundleError` for anything else; further fields may be there.
    """
    try:
        index = parse(bytes(data))
        _check_count("driver", index["driver"], 2**31 - 1)
        for variant, about in index["cubins"].items():
            entry = about["entry"]
            if type(entry) is not str or not entry.isidentifier() or not entry.isascii():
                raise ValueError(f"{variant}: entry {entry!r}")
            _check_count(f"{variant}: registers", about["registers"], 2**31 - 1)
            _check_count(f"{variant}: shared_bytes", about["shared_bytes"], MAX_SHARED_BYTES)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(
            f"index of kernels: it is not one of this version ({error!r}); build the engine again", "cubins"
        ) from None
    return index


def _check_count(what: str, value: Any, high: int) -> None:
    if type(value) is not int or not 0 <= value <= high:
        raise ValueError(f"{what}: got {value!r}, expected a whole number from 0 to {high}")
