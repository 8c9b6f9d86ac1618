"""Annotated frames as one video file, encoded by OpenCV's FFmpeg."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import BackendError, FileError, UsageError
from .annotating import Annotated
from .drawing import draw
from .results import Frame, FrameResult

# What the wheels of OpenCV encode without libraries of the system, by the end of the name, in containers that tell how
# many frames they hold (Matroska only estimates that).
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}
DEFAULT_FPS = 25.0
_SMALLEST_SIDE = 16
# It stops while the disk still takes the end of a video, and whatever else the machine writes.
_FREE_BYTES, _LOOK_EVERY = 16 * 2**20, 100


class AnnotatedVideo(Annotated):
    """One video file of all frames; none if there were none. Needs OpenCV.

    fps: frames a second, of the source divided by `--every`. size: (width, height), by default the first frame's.
    Frames of another size are scaled to fit, with black beside them. Odd sides lose a pixel: codecs want even ones.
    `UsageError` for a name that OpenCV cannot write, or the source's; `FileError` where the file cannot be written or
    is found incomplete, `BackendError` without OpenCV or its FFmpeg.
    """

    def __init__(self, path: str | os.PathLike, fps: float = DEFAULT_FPS, size: tuple[int, int] | None = None):
        super().__init__()
        self.path = os.fsdecode(path)
        suffix = PurePath(self.path).suffix.lower()
        if suffix not in CODECS:
            raise UsageError(
                f"{self.path}: got a name that ends in {suffix or 'nothing'}, expected a video named "
                f"*{', *'.join(CODECS)}, or a folder, which is named without an end or is there already"
            )
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0.01 <= fps <= 1000:
            raise UsageError(f"fps: got {fps!r}, expected 0.01 to 1000 frames a second; annotate to a folder instead")
        folder, name = os.path.split(self.path)
        self._folder = folder or os.curdir
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise FileError(f"{self.path}: a folder, FIFO or device; expected a file to replace; choose another path")
        if not os.path.isdir(self._folder) or not os.access(self._folder, os.W_OK):
            raise FileError(f"{self.path}: expected {self._folder} to be a folder that you may write to; make it")
        # Hidden, beside the target, and with its end: OpenCV chooses the container by that.
        self._temporary = os.path.join(self._folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.tmp{suffix}")
        self._codec = CODECS[suffix]
        # MPEG-4 counts time in at most 65535 parts of a second.
        self._fps = round(float(fps), 3 if fps < 65 else 1)
        self._size = None if size is None else _even(*size)
        self._cv2 = _opencv()
        self._writer: Any = None
        self._sources: set[str] = set()

    def _check(self, frame: Frame) -> None:
        if frame.source not in self._sources:
            self._sources.add(frame.source)
            if _same_file(frame.source, self.path):
                raise UsageError(f"{self.path}: got the source itself, expected another file to write; choose one")

    def _encode(self, result: FrameResult) -> None:
        image = draw(result.frame.image, result.faces)
        if not self.frames % _LOOK_EVERY and shutil.disk_usage(self._folder).free < _FREE_BYTES:
            raise FileError(
                f"{self.path}: not written: {self._folder} has less than {_FREE_BYTES >> 20} MiB free after "
                f"{self.frames} frames; free space, or choose another path"
            )
        if self._writer is None:
            self._size = self._size or _even(image.shape[1], image.shape[0])
            self._writer = self._opened(*self._size)
        self._writer.write(self._cv2.cvtColor(_fitted(image, *self._size), self._cv2.COLOR_RGB2BGR))

    def _opened(self, width: int, height: int) -> Any:
        cv2, fourcc = self._cv2, self._cv2.VideoWriter_fourcc(*self._codec)
        writer = cv2.VideoWriter(self._temporary, cv2.CAP_FFMPEG, fourcc, self._fps, (width, height))
        if not writer.isOpened():
            raise BackendError(
                f"{self.path}: OpenCV {cv2.__version__} cannot write {self._codec} of {width} x {height} pixels at "
                f"{self._fps:g} frames a second; expected a build with FFmpeg: pip install 'tkfnet-engine[faces]', "
                "or annotate to a folder"
            )
        return writer

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._release()
        self._verify()
        try:
            # Its bytes before its name: a power cut leaves the old file or the new one.
            with open(self._temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise FileError(f"{self.path}: cannot write it: {error.strerror}; choose another path") from error

    def _verify(self) -> None:
        """Opens the file again: OpenCV reports no error in writing, not even a full disk."""
        cv2 = self._cv2
        capture = cv2.VideoCapture(self._temporary, cv2.CAP_FFMPEG)
        count = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        if count == self.frames:
            capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
            count -= not capture.read()[0]
        capture.release()
        if count != self.frames:
            raise FileError(
                f"{self.path}: not written: of its {self.frames} frames {max(count, 0)} came back; the disk may be "
                f"full or files limited in size: expected {self._folder} to take it; free space, or choose another path"
            )

    def _discard(self) -> None:
        self._release()
        with suppress(OSError):
            os.unlink(self._temporary)

    def _release(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.release()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"writing a video needs OpenCV, which is not installed ({error}); pip install 'tkfnet-engine[faces]', or "
            "annotate to a folder"
        ) from None
    return cv2


def _even(width: int, height: int) -> tuple[int, int]:
    if min(width, height) < _SMALLEST_SIDE:
        raise UsageError(
            f"video: got {width} x {height} pixels, expected sides from {_SMALLEST_SIDE}; annotate to a folder instead"
        )
    return width & ~1, height & ~1


def _fitted(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3]; of another shape: whole, in the middle, black beside it."""
    h, w = image.shape[:2]
    if (w & ~1, h & ~1) == (width, height):
        return np.ascontiguousarray(image[:height, :width])
    scale = min(width / w, height / h)
    inner = min(max(1, math.floor(w * scale + 0.5)), width), min(max(1, math.floor(h * scale + 0.5)), height)
    x, y = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[y : y + inner[1], x : x + inner[0]] = np.asarray(Image.fromarray(image).resize(inner))
    return canvas


def _same_file(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except (OSError, ValueError):  # one is not there, or the source is no path
        return False
