"""How the values of one map are distributed, gathered in one pass, in bounded memory.

`reach` is the smallest power of two above every magnitude seen, so that each growth merges bins in pairs exactly: the
counts depend on the values alone, not on how they were split into batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

# Per sign. After the last growth the largest magnitude fills at least half of them.
BINS = 4096
# torch.histc counts in float32, exact to 2**24.
_CHUNK = 2**23
# Below this, dividing by `reach` would overflow float32; such a map is zero to every format.
_LEAST_EXPONENT = -120


@dataclass(frozen=True)
class Bins:
    """The bins that hold something, ascending in value; values are taken to lie evenly within one.

    low, high: float64 [K], low < high. count: float64 [K]. zeros: values that are exactly zero, in no bin.
    """

    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    zeros: int

    @property
    def centre(self) -> np.ndarray:
        """float64 [K]."""
        return (self.low + self.high) / 2

    @property
    def power(self) -> float:
        """The sum of the squares of all values."""
        return float((self.count * (self.low**2 + self.low * self.high + self.high**2)).sum() / 3)


class Histogram:
    """Counts of the values of the map `name`, with their exact minimum, maximum and count.

    counts: int64 [2, BINS], magnitudes of the positive and of the negative values in bins of `reach` / BINS. zeros:
    how many are exactly zero; no rounding moves those.
    """

    def __init__(self, name: str):
        self.name = name
        self.count = self.zeros = 0
        self.minimum, self.maximum = math.inf, -math.inf
        self.counts = np.zeros((2, BINS), np.int64)
        self._exponent = _LEAST_EXPONENT

    @property
    def reach(self) -> float:
        """The upper edge of the last bin."""
        return 2.0**self._exponent

    def add(self, values: Tensor) -> None:
        """Counts `values`, float32 of any shape. `CheckpointError` that names the map if one is not finite."""
        if not values.numel():
            return
        flat = values.detach().float().reshape(-1)
        low, high = (float(v) for v in torch.aminmax(flat))
        if not math.isfinite(low) or not math.isfinite(high):
            raise CheckpointError(
                f"{self.name}: got NaN or infinite values on a calibration image, expected finite ones; the "
                "checkpoint's parameters overflow float32: train again"
            )
        self._grow(max(-low, high))
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self.count += flat.numel()
        for part in flat.split(_CHUNK):
            positive, negative = int((part > 0).sum()), int((part < 0).sum()) if low < 0 else 0
            self.zeros += part.numel() - positive - negative
            # Exact: by a power of two.
            shares = part * 2.0**-self._exponent
            self.counts[0] += self._counted(shares, positive)
            if negative:
                self.counts[1] += self._counted(shares.neg_(), negative)

    def _counted(self, shares: Tensor, among: int) -> np.ndarray:
        counts = torch.histc(shares, BINS, 0, 1).numpy().astype(np.int64)
        # The first bin took zeros as well, and what has underflowed to zero.
        counts[0] = among - counts[1:].sum()
        return counts

    def _grow(self, largest: float) -> None:
        # frexp calls zero's exponent 0, which is that of 0.5.
        exponent = math.frexp(largest)[1] if largest else _LEAST_EXPONENT
        # After as many merges as BINS has bits, all is in the first bin.
        for _ in range(min(exponent - self._exponent, BINS.bit_length() - 1)):
            merged = self.counts.reshape(2, BINS // 2, 2).sum(2)
            self.counts = np.concatenate([merged, np.zeros_like(merged)], 1)
        self._exponent = max(self._exponent, exponent)

    def bins(self) -> Bins:
        """The bins in use; the outermost end at the exact minimum and maximum."""
        width = self.reach / BINS
        (up,), (down,) = np.nonzero(self.counts[0]), np.nonzero(self.counts[1][::-1])
        low = np.concatenate([(down - BINS) * width, up * width])
        high = low + width
        if len(low):
            high[-1], low[0] = min(high[-1], self.maximum), max(low[0], self.minimum)
            # A bin has a width, also where the extreme stands on its inner edge.
            low[-1] = min(low[-1], high[-1] - width / 1024)
            high[0] = max(high[0], low[0] + width / 1024)
        count = np.concatenate([self.counts[1][::-1][down], self.counts[0][up]]).astype(np.float64)
        return Bins(low, high, count, self.zeros)

    def percentile(self, share: float, magnitudes: bool) -> float:
        """The value, or the magnitude, below which `share` (0..1) of all values lie; evenly within a bin."""
        width = self.reach / BINS
        if magnitudes:
            counts = np.concatenate([[self.zeros], self.counts.sum(0)])
            edges = np.concatenate([[0.0, 0.0], np.arange(1, BINS + 1) * width])
        else:
            counts = np.concatenate([self.counts[1][::-1], [self.zeros], self.counts[0]])
            edges = np.concatenate([np.arange(-BINS, 1) * width, np.arange(BINS + 1) * width])
        below = np.concatenate([[0], counts.cumsum()])
        wanted = share * self.count
        # The first bin at whose end the share is reached.
        index = int(np.searchsorted(below[1:], wanted))
        index = min(index, len(counts) - 1)
        part = (wanted - below[index]) / counts[index] if counts[index] else 0.0
        found = edges[index] + part * (edges[index + 1] - edges[index])
        largest = max(-self.minimum, self.maximum)
        return float(min(found, largest) if magnitudes else min(max(found, self.minimum), self.maximum))
