"""Equalisation: channels that share one scale are brought to like ranges before they are rounded to eight bits.

TAFE's merge reads [x g ; h] with one scale, and the gate reads the statistics s. On a trained network a few channels
of x g are a hundred times larger than the others and than h; one scale for all leaves the others almost no levels.
A channel may be divided by a power of two and its column of weights multiplied by the same: exact in floating point,
and free, since the divisions join what is there (the split's weights, the factors of the statistics):

    x' = x / 2^e          split's rows / 2^e;  maximum * 2^e and variance * 4^e in the factors;  merge's columns * 2^e
    s' = s / 2^k          both factors / 2^k;  gate's columns * 2^k

(cross-layer equalisation, arXiv 1906.04721; shared between map and weights as in arXiv 2211.10438)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from .fold import FoldedTKFNet, put

# Beyond, a channel is all but dead, and FP16 runs out.
MOST_SHIFT = 8


@dataclass(frozen=True)
class Shifts:
    """Powers of two by channel: `gated` (e above) and `statistics` (k). Empty without TAFE."""

    gated: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()


def shifts_from_peaks(folded: FoldedTKFNet, merge: Tensor, gate: Tensor) -> Shifts:
    """The shifts for `folded`, whose merge and gate read magnitudes up to `merge` [3 C] and `gate` [C], by channel."""
    channels = len(gate)
    spread = _spread(merge, folded.tafe.merge.weight)
    # h comes out of a GELU, which no factor passes: x g is brought to it.
    gated = _shifts(spread[:channels], spread[channels:])
    spread = _spread(gate, folded.tafe.gate.weight)
    return Shifts(gated, _shifts(spread, spread))


def _spread(peaks: Tensor, weight: Tensor) -> Tensor:
    """Where map and column of weights lose the same by rounding: the root of the ratio of their ranges; 0 if dead."""
    columns = weight.detach().flatten(1).abs().amax(0)
    return torch.where((peaks > 0) & (columns > 0), (peaks / columns).sqrt(), 0.0)


def _shifts(spread: Tensor, towards: Tensor) -> tuple[int, ...]:
    alive = towards[towards > 0]
    if not len(alive):
        return (0,) * len(spread)
    shifts = torch.where(spread > 0, spread / alive.median(), 1.0).log2().round()
    return tuple(int(shift) for shift in shifts.clamp(-MOST_SHIFT, MOST_SHIFT))


def equalise(folded: FoldedTKFNet, shifts: Shifts) -> FoldedTKFNet:
    """A copy of `folded` (float32) with its channels shifted; it computes the same. `UsageError` for other widths."""
    equal = copy.deepcopy(folded)
    equalise_in_place(equal, shifts)
    return equal


def equalise_in_place(folded: FoldedTKFNet, shifts: Shifts) -> None:
    """As `equalise`, for the result of `fold_live` as well: gradients pass."""
    channels = folded.tafe.gate.weight.shape[0] if folded.config.tafe else 0
    if (len(shifts.gated), len(shifts.statistics)) != (channels, channels):
        raise UsageError(
            f"equalisation: got {len(shifts.gated)} and {len(shifts.statistics)} shifts, expected {channels} of each; "
            "calibrate again for this checkpoint"
        )
    if not channels:
        return
    tafe = folded.tafe
    device = tafe.gate.weight.device
    e, k = (2.0 ** torch.tensor(s, dtype=torch.float32, device=device) for s in (shifts.gated, shifts.statistics))
    one = torch.ones_like(e)
    split, merge = torch.cat([one, 1 / e]), torch.cat([e, one, one])
    put(tafe.split, "weight", tafe.split.weight * split[:, None, None, None])
    put(tafe.split, "bias", tafe.split.bias * split)
    put(tafe, "of_pool", tafe.of_pool * (e / k)[:, None, None])
    put(tafe, "of_variance", tafe.of_variance * (e * e / k)[:, None, None])
    put(tafe.gate, "weight", tafe.gate.weight * k[:, None, None])
    put(tafe.merge, "weight", tafe.merge.weight * merge[:, None, None])
