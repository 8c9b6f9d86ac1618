"""What comes out: frames, and the faces in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..faces import Point


@dataclass(frozen=True)
class Frame:
    """One picture, or one frame of a video. source: path or name as the user gave it, printable. number: counted from
    0 in its video, 0 for a picture. seconds: since the start of the video, None for a picture. image: uint8 RGB
    [H, W, 3], upright."""

    source: str
    number: int
    seconds: float | None
    image: np.ndarray


@dataclass(frozen=True)
class FaceResult:
    """One face in one frame. face: its place in reading order, from 0. track: the same number for the same person
    through a video, None where nothing is tracked. box, landmarks, score: as `faces.Face` has them. crop: how it was
    cut out (`face_crops.CROPS`). probabilities: by label, in the engine's order; smoothed where that was asked for."""

    source: str
    frame: int
    seconds: float | None
    face: int
    track: int | None
    box: tuple[float, float, float, float]
    landmarks: tuple[Point, ...] | None
    score: float | None
    crop: str
    label: str
    probabilities: Mapping[str, float]

    def row(self) -> dict[str, Any]:
        """As JSON types; coordinates rounded to a tenth of a pixel, seconds to a millisecond, probabilities whole."""
        return {
            "source": self.source,
            "frame": self.frame,
            "seconds": None if self.seconds is None else round(float(self.seconds), 3),
            "face": self.face,
            "track": self.track,
            "box": _tenths(self.box),
            "landmarks": None if self.landmarks is None else [_tenths(point) for point in self.landmarks],
            "score": None if self.score is None else float(self.score),
            "crop": self.crop,
            "label": self.label,
            "probabilities": {label: float(p) for label, p in self.probabilities.items()},
        }

    def flat(self) -> dict[str, Any]:
        """`row` as one line of a table: the box in four columns, each probability in one; without the landmarks."""
        row = self.row()
        box = dict(zip("xywh", row.pop("box")))
        probabilities = {f"p_{label}": p for label, p in row.pop("probabilities").items()}
        del row["landmarks"]
        merged = {**row, **box, **probabilities}
        return {column: merged[column] for column in columns(list(self.probabilities))}


def columns(labels: Sequence[str]) -> list[str]:
    """The names of `FaceResult.flat`'s columns. A label is prefixed: one may be called "score"."""
    parts = ["source", "frame", "seconds", "face", "track", *"xywh", "score", "crop", "label"]
    return [*parts, *(f"p_{label}" for label in labels)]


def _tenths(values: Iterable[float]) -> list[float]:
    return [round(float(value), 1) for value in values]


@dataclass(frozen=True)
class FrameResult:
    """A frame and its faces in reading order, perhaps none. The frame's image is empty, [0, 0, 3], where its pixels
    were not asked for. crops: what the network saw, uint8 [faces, S, S, 3], where that was asked for."""

    frame: Frame
    faces: tuple[FaceResult, ...]
    crops: np.ndarray | None = None


def to_pandas(results: Iterable[FaceResult]) -> Any:
    """A `pandas.DataFrame`: one row a face, a column for each part of the box and each label's probability.

    `UsageError` where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UsageError("to_pandas: pandas is not installed; pip install pandas, or use FaceResult.row()") from None
    rows = [result.flat() for result in results]
    return pandas.DataFrame(rows, columns=None if rows else columns(()))
