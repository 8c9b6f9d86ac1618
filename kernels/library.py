"""Kernels by the name that a plan gives them. Importing this needs Triton; importing `plan` does not."""

from __future__ import annotations

import importlib
from typing import Any

# Triton function -> the module here that defines it.
MODULES = {
    "pack_pixels_kernel": "stem",
    "stem_kernel": "stem",
    "conv_kernel": "conv",
    "split_kernel": "tafe",
    "detail_and_gate_kernel": "tafe",
    "merge_kernel": "tafe",
    "classify_kernel": "classify",
}


def kernel_named(name: str) -> Any:
    """The `@triton.jit` function `name`. `KeyError` if no module here defines it."""
    return getattr(importlib.import_module(f".{MODULES[name]}", __package__), name)
