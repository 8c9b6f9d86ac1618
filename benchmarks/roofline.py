"""Each engine's part of the processor's measured peak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .record import Measurement

# float16 engines compute in float32 on a CPU.
_PRODUCTS = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16", "int8": "int8"}


def with_fractions(measurements: Iterable[Measurement], flops: int) -> list[Measurement]:
    """The same with `of_peak` of the engines on the CPU. flops: of one image."""
    found = list(measurements)
    peaks = {m.subject: m.median for m in found if m.suite == "roofline" and m.median}

    def fraction(m: Measurement) -> float | None:
        peak = peaks.get(f"{_PRODUCTS.get(m.precision or '')} products")
        if m.suite != "engines" or m.device != "cpu" or m.mode != "network" or not (peak and m.median and m.batch):
            return None
        return round(m.batch * flops / (m.median * 1e6) / peak, 4)  # ms and GFLOP/s

    return [m if (part := fraction(m)) is None else replace(m, of_peak=part) for m in found]
