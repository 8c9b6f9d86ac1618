"""What a detector finds, what a detector is, and the order in which faces are read.

Coordinates are continuous, in pixels of the upright image: pixel i covers i to i + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Point = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """box: X, Y, W, H in pixels of the upright image; it may reach over its edges. landmarks: both eyes, the tip of the
    nose, both corners of the mouth, each pair from left to right in the image; None where the detector gives none.
    score: the detector's own, None where it has none."""

    box: tuple[float, float, float, float]
    landmarks: tuple[Point, Point, Point, Point, Point] | None = None
    score: float | None = None


class Detector(Protocol):
    """name: as `--detector` names it. crop: how its faces are cut out (`face_crops.CROPS`) where they have no
    landmarks. May be called from many threads at once."""

    name: str
    crop: str

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        """uint8 RGB [H, W, 3] -> faces in reading order, perhaps none. source, frame: what the picture is of, for
        detectors that look that up."""


def reading_order(faces: Sequence[Face]) -> list[Face]:
    """Rows from top to bottom, each from left to right, whatever order they come in.

    A face stands in the row above it while its middle is less than half a face below the row's.
    """
    rows: list[list[Face]] = []
    for face in sorted(faces, key=lambda f: (_middle(f), f.box)):
        if rows and _middle(face) - _mean([_middle(f) for f in rows[-1]]) < 0.5 * _mean([f.box[3] for f in rows[-1]]):
            rows[-1].append(face)
        else:
            rows.append([face])
    return [face for row in rows for face in sorted(row, key=lambda f: (f.box[0] + f.box[2] / 2, f.box))]


def _middle(face: Face) -> float:
    return face.box[1] + face.box[3] / 2


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
