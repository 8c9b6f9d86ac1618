"""Who is who from frame to frame, and probabilities that do not flicker: by overlap, and by an average over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]

# Two boxes of one person in neighbouring frames overlap more than this; two of neighbours in a row of people do not.
MIN_OVERLAP = 0.3
# How long a face may be missed (turned away, hidden) and still be the same person.
MAX_GAP_S = 0.5
# The same in frames that were looked at, for a slow camera or --every.
MAX_GAP_FRAMES = 2
SMOOTH_S = 0.5


def overlaps(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """Intersection over union of boxes X, Y, W, H: float64 [len(first), len(second)]; 0 where both are empty."""
    a = np.asarray(first, np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, np.float64).reshape(1, -1, 4)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass
class _Track:
    number: int
    box: Box
    seconds: float
    frame: int
    probabilities: np.ndarray | None = None


class Tracker:
    """Numbers the faces of one video, and averages their probabilities. `update` takes its frames in order."""

    def __init__(self, smooth: float | None = None):
        """smooth: seconds after which an expression that has ended weighs 1/e; None leaves probabilities alone."""
        self._smooth = smooth
        self._tracks: list[_Track] = []
        self._count = self._frame = 0

    def update(self, seconds: float, boxes: Sequence[Box], probabilities: np.ndarray) -> tuple[list[int], np.ndarray]:
        """boxes and probabilities [N, classes] of one frame -> the number of each face's track, and probabilities."""
        self._frame += 1
        self._tracks = [t for t in self._tracks if self._lives(t, seconds)]
        numbers, smoothed = [], np.array(probabilities)
        matched = self._match(boxes)
        for i, box in enumerate(boxes):
            track = matched.get(i)
            if track is None:
                track = _Track(self._count, box, seconds, self._frame)
                self._tracks.append(track)
                self._count += 1
            elif self._smooth:
                kept = math.exp(-max(seconds - track.seconds, 0) / self._smooth)
                smoothed[i] = kept * track.probabilities + (1 - kept) * smoothed[i]
            track.box, track.seconds, track.frame, track.probabilities = box, seconds, self._frame, smoothed[i]
            numbers.append(track.number)
        return numbers, smoothed

    def _lives(self, track: _Track, seconds: float) -> bool:
        return seconds - track.seconds <= MAX_GAP_S or self._frame - track.frame <= MAX_GAP_FRAMES

    def _match(self, boxes: Sequence[Box]) -> dict[int, _Track]:
        """The track of each box that has one: the pairs that overlap most first."""
        values = overlaps(boxes, [t.box for t in self._tracks])
        found: dict[int, _Track] = {}
        taken: set[int] = set()
        for flat in np.argsort(-values, axis=None, kind="stable"):
            i, j = divmod(int(flat), len(self._tracks))
            if values[i, j] < MIN_OVERLAP:
                break
            if i not in found and j not in taken:
                found[i] = self._tracks[j]
                taken.add(j)
        return found
