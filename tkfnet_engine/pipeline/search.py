"""What is looked for in the frames of a video: all faces now and then, and between only faces as those were.

The first frame of every `seconds` is searched for faces of all sizes. Those up to the next are searched for what it had
(`find_again`), and for all where some of that is missing. So a face may be seen `seconds` late, and a frame's answer
depends on that frame and one before it, never on which thread came first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from ..face import Detector, Face
from .results import Frame

# In it a face hardly changes its size, but for a cut, which loses it.
SEARCH_S = 0.2


class _Full:
    """What a search for all found, once it is done. None: it failed, as its frame will say."""

    def __init__(self) -> None:
        self._done, self._faces = threading.Event(), None

    def put(self, faces: list[Face] | None) -> None:
        self._faces = faces
        self._done.set()

    def get(self) -> list[Face] | None:
        self._done.wait()
        return self._faces


class Search:
    """For one run over `planned` frames; `find` is called for each of them, in order or by threads that take them in
    order. A detector without `find_again` searches every frame for all, as it does pictures."""

    def __init__(self, detector: Detector, seconds: float = SEARCH_S):
        self._detector, self._seconds = detector, seconds if hasattr(detector, "find_again") else 0
        self._plan: dict[int, tuple[_Full, bool]] = {}

    def planned(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """`frames`, as they come."""
        source, start, full = None, 0.0, _Full()
        for frame in frames:
            if self._seconds and frame.seconds is not None:
                # Times are sums of fractions: a little less is as long.
                near = source == frame.source and 0 <= frame.seconds - start < self._seconds - 1e-6
                if not near:
                    source, start, full = frame.source, frame.seconds, _Full()
                self._plan[id(frame)] = full, not near
            yield frame

    def find(self, frame: Frame) -> list[Face]:
        full, first = self._plan.pop(id(frame), (None, True))
        if full is None:
            return self._all(frame)
        if first:
            faces = None
            try:
                faces = self._all(frame)
            finally:
                full.put(faces)
            return faces
        seen = full.get()
        again = None if seen is None else self._detector.find_again(frame.image, seen)  # type: ignore[attr-defined]
        return self._all(frame) if again is None else again

    def _all(self, frame: Frame) -> list[Face]:
        return list(self._detector.find_faces(frame.image, frame.source, frame.number))
