"""The scale of a map from the distribution of its values: several methods, judged by the noise that each leaves.

    int8   symmetric, -127 to 127     uint8   0 to 255, with a zero point     float8   e4m3, up to 448

A method gives a range; the range gives a scale; the scale gives an SQNR, rounding and clipping together, by integrating
the squared error over each bin of the histogram. The best is kept, and what every method came to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..compare import SQNR_CAP_DB
from ..kernels.quantise import FLOAT8_MOST, INT8_MOST
from .histogram import Bins, Histogram

UINT8_MOST = 255
# At equal SQNR the earlier stays: max clips nothing.
METHODS = ("max", "percentile-99.999", "percentile-99.99", "percentile-99.9", "entropy", "mse")
_PERCENTILES = {name: float(name.partition("-")[2]) / 100 for name in METHODS if name.startswith("percentile-")}
# Entropy is tried from a sixteenth of the range up, as TensorRT does (128 of 2048 bins).
_ENTROPY_SHARES = np.arange(8, 129) / 128
# The share of the range that loses least is looked for coarsely, then twice around the best.
_COARSE_SHARES = np.geomspace(1 / 128, 1, 128)
_FINE_SHARES = np.geomspace(0.93, 1.07, 15)
_TINIEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Scale:
    """value = scale (q - zero_point). scale: exactly a float32. sqnr_db: what each of `METHODS` comes to; `method` is
    the one that was kept."""

    scale: float
    zero_point: int
    method: str
    sqnr_db: Mapping[str, float]


class Grid:
    """The values that a kind represents, in units of the scale, before the zero point. levels: float64 [Q], rising."""

    def __init__(self, levels: np.ndarray):
        self.levels = levels.astype(np.float64)
        self._even = bool((np.diff(self.levels) == 1).all())
        self._middles = (self.levels[1:] + self.levels[:-1]) / 2
        rises = 2 * ((self.levels[1:] - self.levels[:-1]) / 2) ** 3 / 3
        self._base = np.concatenate([[0.0], rises.cumsum()])
        # From zero outwards: differences of what is near zero keep their digits.
        self._base -= self._base[np.searchsorted(self.levels, 0.0)]

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The index of the level that each of `values` is rounded to; beyond the ends, the last."""
        if self._even:  # much faster than a search
            return np.clip(np.rint(values - self.levels[0]), 0, len(self.levels) - 1).astype(np.int64)
        return np.searchsorted(self._middles, values)

    def error_integral(self, values: np.ndarray) -> np.ndarray:
        """An antiderivative of the squared distance to the nearest level, at `values`."""
        level = self.nearest(values)
        distance = values - self.levels[level]
        return self._base[level] + distance * distance * distance / 3


def _float8_levels() -> np.ndarray:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return np.unique(values[values.isfinite()].numpy())


GRIDS = {
    "int8": Grid(np.arange(-INT8_MOST, INT8_MOST + 1)),
    "uint8": Grid(np.arange(UINT8_MOST + 1)),
    "float8": Grid(_float8_levels()),
}
KINDS = tuple(GRIDS)


def scale_of_range(kind: str, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges [T] that hold zero -> (float32 scales as float64 [T], zero points [T]). An empty range has any scale."""
    span = high - low if kind == "uint8" else np.maximum(-low, high)
    span = np.where(span > 0, span, 1.0)
    most = {"int8": INT8_MOST, "uint8": UINT8_MOST, "float8": FLOAT8_MOST}[kind]
    scale = np.maximum(span / most, _TINIEST).astype(np.float32).astype(np.float64)
    zero_point = np.clip(np.rint(-low / scale), 0, UINT8_MOST) if kind == "uint8" else np.zeros_like(scale)
    return scale, zero_point


def noise(bins: Bins, kind: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The sum of squared errors over all values, float64 [T], when they are quantised for each range [T]."""
    scale, zero_point = (v[:, None] for v in scale_of_range(kind, low, high))
    grid = GRIDS[kind]
    ends = grid.error_integral(bins.high / scale + zero_point), grid.error_integral(bins.low / scale + zero_point)
    mean = (ends[0] - ends[1]) * scale**3 / (bins.high - bins.low)
    return (np.maximum(mean, 0.0) * bins.count).sum(1)


def sqnr_db(signal: float, error: float) -> float:
    """Decibels, within `SQNR_CAP_DB`."""
    if not error or not signal:
        return SQNR_CAP_DB if not error else -SQNR_CAP_DB
    return float(np.clip(10 * math.log10(signal / error), -SQNR_CAP_DB, SQNR_CAP_DB))


def best_scale(histogram: Histogram, kind: str) -> Scale:
    """The scale of `kind` that leaves the least noise, of those that `METHODS` choose."""
    bins, ranges = histogram.bins(), ranges_of_methods(histogram, kind)
    low, high = (np.array(ends) for ends in zip(*ranges.values()))
    found = {name: sqnr_db(bins.power, error) for name, error in zip(ranges, noise(bins, kind, low, high))}
    method = max(found, key=found.__getitem__)
    scales, zero_points = scale_of_range(kind, low, high)
    chosen = METHODS.index(method)
    # Plus zero: not -0.0, which is another text for the same.
    shown = {name: round(decibels, 2) + 0.0 for name, decibels in found.items()}
    return Scale(float(scales[chosen]), int(zero_points[chosen]), method, shown)


def ranges_of_methods(histogram: Histogram, kind: str) -> dict[str, tuple[float, float]]:
    """The range that each of `METHODS` gives, in their order; it holds zero."""
    bins = histogram.bins()
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    two_sided = kind == "uint8" and low < 0
    if not two_sided:
        high = max(-low, high)
        low = 0.0 if kind == "uint8" else -high
    ranges = {"max": (low, high)}
    for name, share in _PERCENTILES.items():
        if two_sided:
            # Half of what is cut, at either end.
            cut = (1 - share) / 2
            ends = histogram.percentile(cut, False), histogram.percentile(1 - cut, False)
            ranges[name] = min(ends[0], 0.0), max(ends[1], 0.0)
        else:
            most = histogram.percentile(share, True)
            ranges[name] = (-most if low else 0.0), most
    ranges["entropy"] = _by_entropy(bins, kind, low, high)
    ranges["mse"] = _by_noise(bins, kind, low, high, two_sided)
    return ranges


def _by_entropy(bins: Bins, kind: str, low: float, high: float) -> tuple[float, float]:
    """The share of the range whose quantised distribution diverges least (Kullback-Leibler) from the clipped one."""
    found = [divergence(bins, kind, low * share, high * share) for share in _ENTROPY_SHARES]
    share = _ENTROPY_SHARES[_least(np.array(found))]
    return float(low * share), float(high * share)


def divergence(bins: Bins, kind: str, low: float, high: float) -> float:
    """KL(P || Q) for one range, as TensorRT and ONNX Runtime define it, on the levels of `kind`.

    P: the counts inside the range, those outside added to its first and last bin. Q: the counts inside, spread evenly
    over the bins that share a level. Zeros, which every kind holds exactly, are in neither.
    """
    centre = bins.centre
    first, last = np.searchsorted(centre, low), np.searchsorted(centre, high, "right")
    if first >= last:
        return math.inf
    inside = bins.count[first:last]
    wanted = inside.copy()
    wanted[0] += bins.count[:first].sum()
    wanted[-1] += bins.count[last:].sum()
    scale, zero_point = scale_of_range(kind, np.array([low]), np.array([high]))
    level = GRIDS[kind].nearest(centre[first:last] / scale + zero_point)
    spread = (np.bincount(level, inside) / np.maximum(np.bincount(level), 1))[level]
    p, q = wanted / wanted.sum(), spread / spread.sum()
    return float((p * np.log(p / q)).sum())


def _by_noise(bins: Bins, kind: str, low: float, high: float, two_sided: bool) -> tuple[float, float]:
    """The range that leaves the least noise: both ends together, then, where there are two, each by itself."""
    share = 1.0
    for shares in (_COARSE_SHARES, _FINE_SHARES, _FINE_SHARES**0.15):
        tried = np.minimum(share * shares, 1.0)
        share = float(tried[_least(noise(bins, kind, low * tried, high * tried))])
    if not two_sided:
        return low * share, high * share
    ends = low * share, high * share
    for shares in (np.geomspace(1 / 32, 2, 49), np.geomspace(0.7, 1.4, 33), _FINE_SHARES, _FINE_SHARES**0.15):
        tried = np.maximum(ends[0] * shares, low)
        ends = float(tried[_least(noise(bins, kind, tried, np.full_like(tried, ends[1])))]), ends[1]
        tried = np.minimum(ends[1] * shares, high)
        ends = ends[0], float(tried[_least(noise(bins, kind, np.full_like(tried, ends[0]), tried))])
    return ends


def _least(errors: np.ndarray) -> int:
    """The last of the least: at equal errors the wider range stays."""
    return len(errors) - 1 - int(np.argmin(errors[::-1]))
