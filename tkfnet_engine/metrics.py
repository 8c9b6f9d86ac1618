"""How well labels are predicted: accuracy, mean-class accuracy, macro F1, confusion. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UsageError


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]; row = true label, column = predicted label. labels, predicted: int [N]."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


@dataclass(frozen=True)
class Scores:
    """Classification scores; all in 0..1, `confusion` as counts (row true, column predicted)."""

    accuracy: float
    mean_class_accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]

    @classmethod
    def from_confusion(cls, matrix: np.ndarray) -> Scores:
        """Classes without a sample take no part in the two means. `UsageError` if there is no sample at all."""
        total = int(matrix.sum())
        if total == 0:
            raise UsageError("no image to score: got an empty set, expected at least one labelled image")
        hits, actual, claimed = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        present = actual > 0
        recall = hits[present] / actual[present]
        f1 = 2 * hits[present] / (actual + claimed)[present]
        return cls(
            accuracy=float(hits.sum() / total),
            mean_class_accuracy=float(recall.mean()),
            macro_f1=float(f1.mean()),
            confusion=tuple(tuple(int(v) for v in row) for row in matrix),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "mean_class_accuracy": self.mean_class_accuracy,
            "macro_f1": self.macro_f1,
            "confusion": [list(row) for row in self.confusion],
        }

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.2%}, mean-class accuracy {self.mean_class_accuracy:.2%}, "
            f"macro F1 {self.macro_f1:.3f}"
        )
