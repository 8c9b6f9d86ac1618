"""The record of a training: confusion matrix as PNG and JSON."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np

from ..atomic import write_atomically
from ..metrics import Scores


def confusion_png(scores: Scores, labels: tuple[str, ...], title: str) -> bytes:
    """The confusion matrix as a PNG: share of each true class in colour, counts as text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(scores.confusion)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            count,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share[row, column] > 0.5 else "black",
        )
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def write_report(
    path: str | os.PathLike, scores: Scores, labels: tuple[str, ...], training: dict[str, Any]
) -> list[str]:
    """Writes `<path stem>.confusion.png` and `<path stem>.report.json`; returns their paths."""
    stem = os.path.splitext(path)[0]
    title = f"{scores.accuracy:.1%} of {sum(map(sum, scores.confusion))} test images"
    png, report = f"{stem}.confusion.png", f"{stem}.report.json"
    write_atomically(png, confusion_png(scores, labels, title))
    facts = {"labels": list(labels), "test": scores.to_dict(), "training": training}
    write_atomically(report, (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())
    return [png, report]
