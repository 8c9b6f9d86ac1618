"""Decoding, detection and inference at once: results in order, memory bounded by bytes, no thread left behind.

One thread takes frames from the source. A pool of workers, each one thread wide, takes whatever is there to do: faces
of many frames as one full batch first, else a frame to look for faces in, else the faces that are there. So a batch
never waits for frames that do not come, and no timer is needed.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..faces import Face
from .results import Frame

BYTES_IN_FLIGHT = 128 * 2**20
# What a frame costs besides its pixels and crops: so that frames without pixels are bounded as well.
OVERHEAD = 16 * 2**10
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Limits:
    """workers: threads of the pool. batch: most faces in one inference. inferences: how many run at once.
    bytes_in_flight: of frames and crops between the source and the consumer; one frame may be larger. frames: the
    same as a count, where results must not lag behind (a camera)."""

    workers: int
    batch: int
    inferences: int = 1
    bytes_in_flight: int = BYTES_IN_FLIGHT
    frames: int | None = None


class Job:
    """One frame on its way. probabilities: float32 [faces, classes] once it has arrived."""

    __slots__ = ("crops", "error", "faces", "frame", "number", "parts", "size", "todo")

    def __init__(self, number: int, frame: Frame | None, error: BaseException | None = None):
        self.number, self.frame, self.error = number, frame, error
        self.faces: list[Face] = []
        self.crops: np.ndarray | None = None
        self.parts: list[Any] = []
        self.size = 0
        self.todo: int | None = None  # faces that the network has not seen; None before they are found

    @property
    def probabilities(self) -> np.ndarray:
        return np.stack(self.parts) if self.parts else np.empty((0, 0), np.float32)

    @property
    def done(self) -> bool:
        return self.error is not None or self.todo == 0


class Stages:
    """Runs frames through `find` (Frame -> faces, uint8 crops [faces, S, S, 3]) and `infer` (crops [N, S, S, 3] ->
    probabilities [N, classes]), both called from several threads. For one run; `in_flight` and `peak` are bytes."""

    def __init__(
        self,
        find: Callable[[Frame], tuple[list[Face], np.ndarray]],
        infer: Callable[[np.ndarray], np.ndarray],
        limits: Limits,
        keep_images: bool = True,
        keep_crops: bool = False,
    ):
        self._find, self._infer, self._limits = find, infer, limits
        self._keep_images, self._keep_crops = keep_images, keep_crops
        self._changed = threading.Condition()
        self._order: deque[Job] = deque()  # admitted, not yet given to the consumer
        self._unseen: deque[Job] = deque()
        self._waiting: deque[tuple[Job, int]] = deque()  # faces that the network has not seen
        self._count = self._inferring = self._idle = 0
        self._ended = self._stopped = False
        self._failed_at = sys.maxsize
        self.in_flight = self.peak = 0
        self._threads: list[threading.Thread] = []

    def run(self, frames: Iterable[Frame]) -> Iterator[Job]:
        """Yields each frame's job in order. What a stage or `frames` raises is raised here, after the frames before
        it; then, and when the generator is closed, every thread has ended once this returns."""
        targets = [partial(self._feed, frames), *[self._work] * self._limits.workers]
        # Daemons, stopped at exit: a generator that is never closed must not keep the interpreter from ending.
        self._threads = [threading.Thread(target=target, name="tkfnet-pipeline", daemon=True) for target in targets]
        _running.add(self)
        try:
            with _single_threaded_opencv():
                for thread in self._threads:
                    thread.start()
                while (job := self._next_done()) is not None:
                    yield job
                    self._recount(job, 0)
                    del job
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends every thread: each after what it is doing now. The item that is being read is waited for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
        for queue in (self._order, self._unseen, self._waiting):
            queue.clear()
        _running.discard(self)

    # --- the consumer's thread

    def _next_done(self) -> Job | None:
        with self._changed:
            while not (self._order and self._order[0].done):
                if self._stopped or (self._ended and not self._order):
                    return None
                self._changed.wait()
            job = self._order.popleft()
        if job.error is not None:
            raise job.error
        return job

    def _recount(self, job: Job, size: int) -> None:
        with self._changed:
            self.in_flight += size - job.size
            self.peak = max(self.peak, self.in_flight)
            job.size = size
            self._changed.notify_all()

    # --- the source's thread

    def _feed(self, frames: Iterable[Frame]) -> None:
        failure: BaseException | None = None
        try:
            iterator = iter(frames)
            try:
                for frame in iterator:
                    if not self._admit(frame):
                        break
                    del frame
            finally:
                # Here and not by the consumer: a generator cannot be closed while another thread is in it.
                if (close := getattr(iterator, "close", None)) is not None:
                    close()
        except BaseException as error:  # whatever it is, the caller's thread is where it belongs
            failure = error
        with self._changed:
            if failure is not None:
                self._order.append(Job(self._count, None, failure))
            self._ended = True
            self._changed.notify_all()

    def _admit(self, frame: Frame) -> bool:
        """Waits until there is room for the frame; False if it is no longer wanted."""
        size, limits = frame.image.nbytes + OVERHEAD, self._limits
        with self._changed:
            while self.in_flight and not self._over and (
                self.in_flight + size > limits.bytes_in_flight or len(self._order) >= (limits.frames or sys.maxsize)
            ):  # fmt: skip
                self._changed.wait()
            if self._over:
                return False
            job = Job(self._count, frame)
            self._count += 1
            self._order.append(job)
            self._unseen.append(job)
            self._recount(job, size)
            return True

    @property
    def _over(self) -> bool:
        return self._stopped or self._failed_at < sys.maxsize

    # --- the workers

    def _work(self) -> None:
        while (task := self._take()) is not None:
            task()
            del task

    def _take(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._stopped:
                if (task := self._choose()) is not None:
                    return task
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
        return None

    def _choose(self) -> Callable[[], None] | None:
        limits, free = self._limits, self._limits.inferences - self._inferring
        faces = len(self._waiting) if free else 0
        # A camera's faces are not kept for company.
        if faces >= (limits.batch if limits.frames is None else 1):
            return self._batch(limits.batch)
        if self.in_flight > limits.bytes_in_flight and (faces or self._inferring):
            # Crops of many faces: no more of them before these are seen.
            return self._batch(limits.batch) if faces else None
        while self._unseen:
            job = self._unseen.popleft()
            if job.number < self._failed_at:
                return partial(self._detect, job)
        if faces:
            # Nothing else to do: whoever is idle takes a share.
            return self._batch(min(limits.batch, -(-faces // min(free, 1 + self._idle))))
        return None

    def _batch(self, count: int) -> Callable[[], None]:
        self._inferring += 1
        return partial(self._predict, [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))])

    def _detect(self, job: Job) -> None:
        assert job.frame is not None
        try:
            faces, crops = self._find(job.frame)
        except BaseException as error:
            return self._fail(job, error)
        with self._changed:
            job.faces, job.todo = faces, len(faces)
            job.crops = crops if len(faces) or self._keep_crops else None
            job.parts = [None] * len(faces)
            if not self._keep_images:
                job.frame = replace(job.frame, image=_NO_PIXELS)
            self._waiting.extend((job, i) for i in range(len(faces)))
            self._recount(job, job.frame.image.nbytes + crops.nbytes + OVERHEAD)

    def _predict(self, entries: list[tuple[Job, int]]) -> None:
        try:
            probabilities = self._infer(np.stack([job.crops[i] for job, i in entries]))  # type: ignore[index]
        except BaseException as error:
            with self._changed:
                self._inferring -= 1
            return self._fail(min((job for job, _ in entries), key=lambda job: job.number), error)
        with self._changed:
            self._inferring -= 1
            for (job, i), row in zip(entries, probabilities, strict=True):
                job.parts[i] = row
                job.todo -= 1  # type: ignore[operator]
                if not job.todo and not self._keep_crops:
                    self._recount(job, job.size - job.crops.nbytes)  # type: ignore[union-attr]
                    job.crops = None
            self._changed.notify_all()

    def _fail(self, job: Job, error: BaseException) -> None:
        with self._changed:
            job.error = error
            self._failed_at = min(self._failed_at, job.number)
            self._changed.notify_all()


_running: weakref.WeakSet[Stages] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for stages in list(_running):
        stages.stop()


_opencv_lock, _opencv_users, _opencv_threads = threading.Lock(), 0, 0


@contextmanager
def _single_threaded_opencv() -> Iterator[None]:
    """OpenCV's own threads rest while ours run: they would share the same cores. For the process; put back after."""
    global _opencv_users, _opencv_threads
    cv2 = sys.modules.get("cv2")
    if cv2 is None:
        yield
        return
    with _opencv_lock:
        if not _opencv_users:
            _opencv_threads = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _opencv_users += 1
    try:
        yield
    finally:
        with _opencv_lock:
            _opencv_users -= 1
            if not _opencv_users:
                cv2.setNumThreads(_opencv_threads)
