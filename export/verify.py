"""Is a built engine the network it was built from? Its answers against the float32 reference, on faces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..backends.registry import Runner
from ..compare import Comparison, compare
from ..console import progress, say
from ..data import open_data
from ..data.cache import load_all
from ..errors import UsageError, VerificationError
from ..model.net import TKFNet, normalise
from ..spec import Preprocessing
from .accuracy_gate import LEAST_IMAGES, gate_report

MIN_IMAGES = 256
# Of a larger set so many are drawn where accuracy is judged.
MOST_GATED_IMAGES = 5000
# Rendered faces of people that no training set of ours draws from (another seed).
DEFAULT_DATA = "synthetic:n=1400,seed=977"
DEFAULT_GATED_DATA = "synthetic:n=10500,seed=977"
BATCH = 32

# Signal over error, in decibels, that a precision must keep on the logits. Precisions below are judged by
# `accuracy_gate`; for them it is only what a near-tie is measured by.
REQUIRED_SQNR_DB = {"float32": 60.0, "float16": 40.0, "int8": 20.0, "float8": 20.0}
GATED = ("int8", "float8")


@dataclass(frozen=True)
class VerificationSet:
    """Images (uint8 [N, S, S, 3]), where they come from, their labels (int64 [N]), and the float32 reference's logits
    [N, classes]."""

    images: np.ndarray
    data: str
    fingerprint: str
    labels: np.ndarray
    reference: np.ndarray

    def first(self, count: int) -> VerificationSet:
        return replace(self, images=self.images[:count], labels=self.labels[:count], reference=self.reference[:count])


def verification_set(
    model: TKFNet, preprocessing: Preprocessing, data: str | None = None, precision: str = "float32"
) -> VerificationSet:
    """Test images of `data`, evenly drawn, answered by the unfolded float32 model: `MIN_IMAGES`, but as many as there
    are, up to `MOST_GATED_IMAGES`, for a precision that is judged by its accuracy."""
    gated = precision in GATED
    faces = open_data(data or (DEFAULT_GATED_DATA if gated else DEFAULT_DATA), "test")
    if faces.skipped:
        say(faces.skipped_summary())
    least = LEAST_IMAGES if gated else MIN_IMAGES
    if len(faces) < least:
        raise UsageError(
            f"verification data {faces.name}: got {len(faces)} test images, expected at least {least} for "
            f"{precision}; name a larger set"
        )
    name = faces.name
    count = min(len(faces), MOST_GATED_IMAGES) if gated else MIN_IMAGES
    faces = faces.subset(np.linspace(0, len(faces) - 1, count).astype(np.int64))
    images = load_all(faces, preprocessing.size, workers=None if gated else 1)
    logits = []
    with torch.inference_mode():
        for start in progress(range(0, len(images), BATCH), "running the float32 reference"):
            pixels = torch.from_numpy(images[start : start + BATCH])
            logits.append(model(normalise(pixels, preprocessing)).numpy())
    # The set's name and not `data`: an engine file should not tell its users where the builder keeps things.
    return VerificationSet(images, name, faces.fingerprint(), faces.labels, np.concatenate(logits))


def verify(runner: Runner, expected: VerificationSet, precision: str, max_batch: int) -> dict[str, Any]:
    """The report of `runner` against the reference. `VerificationError` if it asks too much of `precision`."""
    # A backend may take another path for one image, or for a batch that fills no vector: both occur here.
    sizes = [n for n in (1, 7) if n <= max_batch]
    sizes += [min(BATCH, max_batch)] * (len(expected.images) // min(BATCH, max_batch))
    bounds = np.minimum(np.cumsum([0, *sizes, len(expected.images)]), len(expected.images))
    parts = [slice(a, b) for a, b in pairwise(bounds) if b > a]
    got = [runner.run(expected.images[part]) for part in progress(parts, "verifying")]
    return judged(expected, np.concatenate(got), precision)


def judged(expected: VerificationSet, logits: np.ndarray, precision: str) -> dict[str, Any]:
    """The report of `logits` [N, classes] against the reference. `VerificationError` if they ask too much."""
    required = REQUIRED_SQNR_DB[precision]
    comparison = compare(expected.reference, logits, required)
    report = comparison.to_dict() | {"data": expected.data, "data_fingerprint": expected.fingerprint}
    if precision in GATED:
        report["gate"], faults = gate_report(precision, expected.labels, expected.reference, logits)
        what = "did not keep the network's accuracy"
    else:
        report["required_sqnr_db"] = required
        faults = _unlike(comparison, required, precision)
        what = "does not answer as the network"
    if faults:
        raise VerificationError(f"the engine {what}: {'; '.join(faults)} ({comparison})", report)
    return report


def _unlike(comparison: Comparison, required: float, precision: str) -> list[str]:
    faults = []
    if comparison.sqnr_db < required:
        faults.append(f"SQNR {comparison.sqnr_db:.1f} dB, expected at least {required:.0f} dB for {precision}")
    if comparison.disagreements > comparison.near_ties:
        count = comparison.disagreements - comparison.near_ties
        faults.append(f"{count} images get another label, expected none outside near-ties")
    return faults
