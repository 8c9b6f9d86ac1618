"""From pictures and videos to expressions: `Pipeline(engine, detector="haar")(image) -> [FaceResult]`.

Finds the faces, cuts them out as the network was trained, and runs faces of many frames in one batch while the next
frames are decoded and searched. The `predict` command is this class with arguments.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..bundle import read_facts
from ..engine import Engine
from ..errors import UsageError
from ..face_crops import MARGIN, check_crop_fits, crop_of, cut_face
from ..faces import Detector, Face, open_detector
from ..hardware import usable_cores
from ..preprocess import check_crop, decode_image
from .results import FaceResult, Frame, FrameResult, to_pandas
from .search import SEARCH_S, Search
from .sources import Sources, frames, printable
from .stages import BYTES_IN_FLIGHT, Job, Limits, Stages
from .tracks import SMOOTH_S, Tracker

__all__ = ["SEARCH_S", "SMOOTH_S", "FaceResult", "Frame", "FrameResult", "Pipeline", "Sources", "frames", "to_pandas"]

# Faces in one inference, at most. On a CPU more gain nothing, and each holds activations; a GPU wants them.
BATCH = {"cpu": 8, "cuda": 64}
# Runs several inferences side by side, each on one core and smaller. Its own threads spin while they wait for each
# other, and would take the cores from decoding and detection: 100 frames with 200 faces took 11.0 s of processor time
# this way and 14.1 s with one inference on both of two cores.
SIDE_BY_SIDE, SMALLER_BATCH = "onnxruntime", 4
Picture = np.ndarray | str | os.PathLike | bytes


class Pipeline:
    """An engine with a detector before it. Safe to call from many threads; `close` (or `with`) frees the engine if it
    was opened here.

    engine: an `Engine`, which stays the caller's, or the path of an engine file. detector: "haar", "yunet:FILE",
    "boxes:FILE", "none" where pictures are face crops already, or an object with `faces.Detector`'s method. margin:
    around a box, as `face_crops.cut_face` has it. smooth: seconds over which the probabilities of one person are
    averaged in a video. track: number the people in a video; smoothing does so too. every: of a video, one frame in so
    many. search_every: seconds of a video between two searches for faces of all sizes (`search.py`); 0: every frame.
    threads: of the CPU, default every core this process may use. trusted: as for `Engine.load`.
    bytes_in_flight: of decoded frames and crops at once. warn: takes a line where faces are cut otherwise than the
    engine's training did; default `warnings.warn`.

    `UsageError` for a bad argument, `BackendError` where OpenCV is missing, and what `Engine.load` raises.
    """

    def __init__(
        self,
        engine: Engine | str | os.PathLike,
        detector: Detector | str = "haar",
        *,
        margin: float = MARGIN,
        smooth: float | None = None,
        track: bool = False,
        every: int = 1,
        search_every: float = SEARCH_S,
        threads: int | None = None,
        trusted: bool = False,
        bytes_in_flight: int = BYTES_IN_FLIGHT,
        warn: Callable[[str], None] | None = None,
    ):
        _check_number("smooth", smooth, "seconds above 0, or None", 1e-9, 3600, optional=True)
        _check_number("margin", margin, "a part of the box's side from 0 to 2", 0, 2)
        _check_number("threads", threads, "a whole number from 1, or None for every core", 1, 1024, int, optional=True)
        _check_number("every", every, "a whole number from 1: 1 is every frame", 1, sys.maxsize, int)
        _check_number("search_every", search_every, "seconds from 0: 0 searches every frame for all", 0, 3600)
        _check_number("bytes_in_flight", bytes_in_flight, "a number of bytes from 1", 1, sys.maxsize, int)
        self.detector = open_detector(detector) if isinstance(detector, str) else detector
        self._margin, self._smooth, self._track, self._every = float(margin), smooth, track, every
        self._search_every = search_every
        self._warn = warn or (lambda text: warnings.warn(text, stacklevel=2))
        self._warned: set[str] = set()
        workers = threads or usable_cores()
        inferences, self._own = 1, not isinstance(engine, Engine)
        if isinstance(engine, Engine):
            self.engine = engine
        elif read_facts(engine).get("backend") == SIDE_BY_SIDE:
            self.engine, inferences = Engine.load(engine, threads=1, trusted=trusted), workers
        else:
            self.engine = Engine.load(engine, threads=threads, trusted=trusted)
        info = self.engine.info
        self._trained = info["preprocessing"]["crop"]
        batch = SMALLER_BATCH if inferences > 1 else BATCH[self.engine.device]
        self._limits = Limits(workers, min(batch, info["max_batch"]), inferences, bytes_in_flight)

    def __call__(self, images: Picture | Frame | Iterable[Picture | Frame]) -> list[FaceResult]:
        """The faces of one picture, or of several in order: uint8 RGB [H, W, 3], a path, a file's bytes, or `Frame`s.

        No face gives an empty list. `FaceResult.frame` counts the pictures where they are arrays. Raises `ImageError`
        for what is no picture; a video goes to `video`.
        """
        one = isinstance(images, (str, os.PathLike, bytes, Frame)) or getattr(images, "ndim", 4) != 4
        if one or not isinstance(images, Iterable):
            return list(self._result(self._alone(_frame(images, 0)), None).faces)
        pictures = (_frame(image, number) for number, image in enumerate(images))  # type: ignore[arg-type]
        return [face for result in self.frames(pictures, keep_images=False) for face in result.faces]

    def frames(
        self, frames: Iterable[Frame], keep_images: bool = True, keep_crops: bool = False
    ) -> Iterator[FrameResult]:
        """Each frame's faces, in order, while later frames are on their way. An error in a frame is raised after the
        results before it. Closing the iterator stops the work.

        frames: `sources.Sources`, or any iterable; it is iterated in another thread. keep_images: False frees the
        pixels as soon as the faces are cut out. keep_crops: hands on what the network saw.
        """
        limits = self._limits
        if getattr(frames, "live", False):
            # No more than are being worked on: what a camera shows now matters.
            limits = replace(limits, frames=limits.workers + 1)
        search = Search(self.detector, self._search_every)
        find = partial(self._found, search)
        jobs = Stages(find, self._probabilities, limits, keep_images, keep_crops).run(search.planned(frames))
        tracker, source = None, None
        try:
            for job in jobs:
                if job.frame.source != source:
                    source, tracker = job.frame.source, Tracker(self._smooth)
                yield self._result(job, tracker if self._track or self._smooth else None)
                del job
        finally:
            jobs.close()

    def video(self, path: str | os.PathLike, every: int | None = None) -> Iterator[FrameResult]:
        """The frames of a video, or of a camera by its number ("0"), with their faces. `ImageError` for what is
        neither; a video that ends early gives what there is, and a warning."""
        return self.frames(Sources([path], self._every if every is None else every, self._warn))

    def close(self) -> None:
        if self._own:
            self.engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, search: Search, frame: Frame) -> tuple[list[Face], np.ndarray]:
        size, cut = self.engine.input_size, self.detector.crop
        faces = search.find(frame)
        crops = [cut_face(frame.image, face, size, crop_of(face, cut), self._margin) for face in faces]
        return faces, np.stack(crops) if crops else np.empty((0, size, size, 3), np.uint8)

    def _probabilities(self, crops: np.ndarray) -> np.ndarray:
        return self.engine.predict(crops).probabilities

    def _alone(self, frame: Frame) -> Job:
        """One picture, in the caller's thread: detectors prepare themselves for each thread anew."""
        job = Job(0, frame)
        job.faces, crops = self._found(Search(self.detector), frame)
        count = min(len(crops), self._limits.inferences)
        if count <= 1:
            job.parts = list(self._probabilities(crops))
        else:
            with ThreadPoolExecutor(count) as pool:
                parts = pool.map(self._probabilities, np.array_split(crops, count))
                job.parts = [row for part in parts for row in part]
        return job

    def _result(self, job: Job, tracker: Tracker | None) -> FrameResult:
        frame, probabilities = job.frame, job.probabilities
        assert frame is not None
        tracks: Sequence[int | None] = [None] * len(job.faces)
        # Pictures show different people, wherever they stand.
        if tracker is not None and frame.seconds is not None:
            tracks, probabilities = tracker.update(frame.seconds, [face.box for face in job.faces], probabilities)
        labels = self.engine.labels
        results = []
        for number, (face, track, row) in enumerate(zip(job.faces, tracks, probabilities)):
            crop = crop_of(face, self.detector.crop)
            self._check(crop)
            by_label = {label: float(p) for label, p in zip(labels, row)}
            results.append(
                FaceResult(
                    frame.source, frame.number, frame.seconds, number, track, face.box, face.landmarks, face.score,
                    crop, labels[int(row.argmax())], by_label,
                )
            )  # fmt: skip
        return FrameResult(frame, tuple(results), job.crops)

    def _check(self, crop: str) -> None:
        """Warns, once for each way of cutting."""
        if crop not in self._warned:
            self._warned.add(crop)
            if (warning := check_crop_fits(self._trained, crop)) is not None:
                self._warn(warning)


def _check_number(
    name: str, value: Any, expected: str, low: float, high: float, kind: type = float, optional: bool = False
) -> None:
    fits = isinstance(value, (kind, int)) and not isinstance(value, bool) and low <= value <= high
    if not (fits or (optional and value is None)):
        raise UsageError(f"{name}: got {value!r}, expected {expected}")


def _frame(image: Any, number: int) -> Frame:
    if isinstance(image, Frame):
        return image
    if not isinstance(image, (str, os.PathLike, bytes)):
        return Frame("", number, None, check_crop(image))
    name = printable(image) if isinstance(image, (str, os.PathLike)) else "<bytes>"
    return Frame(name, number if name == "<bytes>" else 0, None, decode_image(image))
