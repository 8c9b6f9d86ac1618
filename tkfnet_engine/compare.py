"""How far one set of outputs is from another: max, RMS, SQNR, top-1 agreement. numpy only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import UsageError

# SQNR of identical outputs is infinite; JSON has no infinity, and no precision comes near this.
SQNR_CAP_DB = 200.0


@dataclass(frozen=True)
class Comparison:
    """`got` against `reference`, both logits [N, classes].

    max_error, rms_error: in logits. sqnr_db: signal to error power in decibels, of the reference with each
    class's mean over the images removed, so that a constant answer scores 0 dB or less. top1_agreement: share
    of images with the same highest class. disagreements: the others; near_ties: those of them whose two
    logits in question lie closer in the reference than `near_tie_margin`, so that rounding decides.
    """

    images: int
    max_error: float
    rms_error: float
    sqnr_db: float
    top1_agreement: float
    disagreements: int
    near_ties: int
    near_tie_margin: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, four significant digits; an infinite error is None."""
        return {
            name: (float(f"{value:.4g}") if math.isfinite(value) else None) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }

    def __str__(self) -> str:
        return (
            f"{self.images} images: max error {self.max_error:.3g}, RMS {self.rms_error:.3g}, "
            f"SQNR {self.sqnr_db:.1f} dB, top-1 agreement {self.top1_agreement:.2%} "
            f"({self.disagreements} differ, {self.near_ties} of them near-ties)"
        )


def compare(reference: np.ndarray, got: np.ndarray, required_sqnr_db: float) -> Comparison:
    """Compares float logits [N, classes], N >= 2. A NaN or infinity in `got` counts as an infinite error.

    A near-tie is a gap of at most four times the RMS error that `required_sqnr_db` allows (three standard
    deviations of a difference of two errors): it follows from the requirement, not from the error found.
    """
    if reference.shape != got.shape or reference.ndim != 2 or len(reference) < 2:
        raise UsageError(f"got shapes {reference.shape} and {got.shape}, expected two equal [N, classes] with N >= 2")
    wide, other = reference.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(wide).all():
        raise UsageError("the reference holds NaN or infinity; the checkpoint is not usable")
    signal = float(np.sqrt(((wide - wide.mean(0)) ** 2).mean()))
    margin = 4 * signal * 10 ** (-required_sqnr_db / 20)
    if not np.isfinite(other).all():
        return Comparison(len(wide), math.inf, math.inf, -SQNR_CAP_DB, 0.0, len(wide), 0, margin)
    error = other - wide
    rms = float(np.sqrt((error**2).mean()))
    if rms == 0 or signal == 0:
        sqnr = SQNR_CAP_DB if rms == 0 else -SQNR_CAP_DB
    else:
        sqnr = float(np.clip(20 * math.log10(signal / rms), -SQNR_CAP_DB, SQNR_CAP_DB))
    rows = np.arange(len(wide))
    chosen = other.argmax(1)
    gaps = wide.max(1) - wide[rows, chosen]
    differ = wide.argmax(1) != chosen
    return Comparison(
        images=len(wide),
        max_error=float(np.abs(error).max()),
        rms_error=rms,
        sqnr_db=sqnr,
        top1_agreement=float(1 - differ.mean()),
        disagreements=int(differ.sum()),
        near_ties=int((differ & (gaps <= margin)).sum()),
        near_tie_margin=margin,
    )
