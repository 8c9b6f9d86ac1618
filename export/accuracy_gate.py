"""Did an engine in fewer bits keep its accuracy? Its labels against the float32 network's, on labelled faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError

# Fewer say little about a percent.
LEAST_IMAGES = 2000
# A network that guesses has no accuracy to keep: at least so many times chance.
LEAST_SKILL = 2.0


@dataclass(frozen=True)
class Gate:
    """What is asked. accuracy: at least this share of float32's. agreement: least share of images with its label.
    recall: most that a class may lose, of its images; the last two None where they are not asked."""

    accuracy: float
    agreement: float | None = None
    recall: float | None = None


GATES = {
    "float16": Gate(0.999),
    "int8": Gate(0.99, 0.985, 0.02),
    "float8": Gate(0.99, 0.985, 0.02),
}


def gate_report(
    precision: str, truth: np.ndarray, reference: np.ndarray, logits: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
    """(what the engine kept, in which it fell short: nothing if it passes).

    truth: int [N] labels. reference, logits: float32 [N, classes] of the float32 network and of the engine.
    `UsageError` for fewer images than `LEAST_IMAGES`, or a reference that guesses: nothing could be said of them.
    """
    gate, classes = GATES[precision], reference.shape[1]
    if len(truth) < LEAST_IMAGES:
        raise UsageError(
            f"accuracy gate: got {len(truth)} labelled test images, expected at least {LEAST_IMAGES}; name a larger set"
        )
    before = reference.argmax(1)
    # An answer with NaN in it is nobody's label.
    after = np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)
    own = float((before == truth).mean())
    if own < LEAST_SKILL / classes:
        raise UsageError(
            f"accuracy gate: the float32 network names {own:.1%} of the faces rightly, expected at least "
            f"{LEAST_SKILL / classes:.0%}, twice what guessing does; train it first, or verify on faces like those it "
            "was trained on"
        )
    accuracy = float((after == truth).mean())
    agreement = float((after == before).mean())
    lost = _lost_recall(truth, before, after, classes)
    faults = []
    if accuracy < gate.accuracy * own:
        faults.append(f"accuracy {accuracy:.2%}, expected at least {gate.accuracy:.1%} of float32's {own:.2%}")
    if gate.agreement is not None and agreement < gate.agreement:
        faults.append(f"the label of float32 on {agreement:.2%} of the images, expected {gate.agreement:.1%}")
    # Two points exactly are not more than two, whatever a division leaves.
    if gate.recall is not None and round(float(lost.max()), 9) > gate.recall:
        faults.append(
            f"class {int(lost.argmax())} loses {lost.max():.1%} of its recall, expected {gate.recall:.0%} at most"
        )
    report = {
        "images": len(truth),
        "float32_accuracy": round(own, 6),
        "accuracy": round(accuracy, 6),
        "accuracy_kept": round(accuracy / own, 6),
        "agreement": round(agreement, 6),
        "recall_lost": [round(float(v), 6) for v in lost],
        "asked": {"accuracy_kept": gate.accuracy, "agreement": gate.agreement, "recall_lost": gate.recall},
    }
    return report, faults


def _lost_recall(truth: np.ndarray, before: np.ndarray, after: np.ndarray, classes: int) -> np.ndarray:
    """[classes] recall of `before` less that of `after`; 0 for a class without images."""
    lost = np.zeros(classes)
    for label in np.unique(truth):
        of = truth == label
        lost[label] = (before[of] == label).mean() - (after[of] == label).mean()
    return lost
