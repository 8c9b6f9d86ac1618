"""Rounding to eight bits, as every backend does it: q = round(v / scale), half to even, clamped; one scale per map, one
per output channel of weights.

    int8   symmetric, -127 to 127                  uint8   0 to 255, with a zero point         float8   e4m3, up to 448
"""

from __future__ import annotations

import torch
from torch import Tensor

INT8_MOST = 127
# Weights of seven bits: 16 bits hold the sum of two products of them with uint8.
REDUCED_MOST = 63
FLOAT8_MOST = 448.0
# Shares of a channel's largest weight that are tried as the largest representable one.
_CLIPS = torch.linspace(0.5, 1.0, 26, dtype=torch.float64)


def quantised_weight(weight: Tensor, most: int = INT8_MOST) -> tuple[Tensor, Tensor]:
    """[N, ..] -> (int8 of the same shape, float32 scale [N]), the scale of each channel with the least squared error.

    most: the largest magnitude; `REDUCED_MOST` where a processor's sums of pairs of products saturate at 16 bits.
    """
    flat = weight.detach().double().flatten(1)
    largest = flat.abs().amax(1)
    # A channel of zeros has any scale.
    largest = torch.where(largest > 0, largest, 1.0)
    best, error = largest / most, torch.full_like(largest, torch.inf)
    for clip in _CLIPS:
        scale = largest * clip / most
        rounded = (flat / scale[:, None]).round().clamp(-most, most) * scale[:, None]
        found = ((rounded - flat) ** 2).sum(1)
        # A clip gains when it is nearer; at equal errors the wider range stays.
        best, error = torch.where(found <= error, scale, best), torch.minimum(found, error)
    scale = best.float()
    shape = (-1, *[1] * (weight.dim() - 1))
    # By the float32 scale that is stored: what is divided by here is what is multiplied by later.
    quantised = (weight.detach().double() / scale.double().reshape(shape)).round().clamp(-most, most)
    return quantised.to(torch.int8), scale


def float8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, ..] -> (float8_e4m3fn of the same shape, float32 scale [N]); a channel's largest weight becomes 448."""
    largest = weight.detach().abs().flatten(1).amax(1)
    scale = torch.where(largest > 0, largest, 1.0) / FLOAT8_MOST
    return to_float8(weight.detach() / scale.reshape(-1, *[1] * (weight.dim() - 1))), scale


def to_int8(values: Tensor) -> Tensor:
    """float32, in units of the scale -> int8."""
    return values.round().clamp(-INT8_MOST, INT8_MOST).to(torch.int8)


def to_float8(values: Tensor) -> Tensor:
    """float32, in units of the scale -> float8_e4m3fn; what is too large becomes the largest, not NaN."""
    return values.clamp(-FLOAT8_MOST, FLOAT8_MOST).to(torch.float8_e4m3fn)
