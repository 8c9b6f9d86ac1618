"""Frames of a video or a camera, through OpenCV."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import BackendError, ImageError
from ..faces import opencv
from .results import Frame

Report = Callable[[str], None]

_NEEDS = "{}: videos and cameras need"
FPS = 25.0  # of a video or camera that does not tell
# Containers without an index only estimate how many frames they hold.
_FEWER_FRAMES, _FEWER = 2, 0.02


def opened_video(path: str, name: str, certain: bool = True) -> Any:
    """An opened `cv2.VideoCapture` of a file, or None where OpenCV opens none. certain: whether a missing OpenCV is
    an error; else the file may well be something else."""
    try:
        cv2 = opencv(_NEEDS.format(name))
    except BackendError:
        if certain:
            raise
        return None
    # Whole: a relative name with a colon would be an address. A "%" would be a pattern of names to OpenCV's reader of
    # picture sequences, so FFmpeg alone is asked.
    whole = os.path.abspath(path)
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise ImageError(f"{name}: OpenCV opens no video whose name is not UTF-8; rename it") from None
    capture = cv2.VideoCapture(whole, cv2.CAP_FFMPEG)
    return capture if capture.isOpened() else None


def video_frames(
    capture: Any, name: str, every: int, fps: dict[str, float], count: Callable[[int], None], report: Report
) -> Iterator[Frame]:
    """One frame in `every`, RGB and upright; releases `capture`. count: takes how many frames are expected, and in
    the end how many there were. report: takes a line where the video ends before it should."""
    import cv2

    try:
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        expected, rate = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))), _rate(capture)
        fps[name] = rate / every
        count(-(-expected // every))
        number, seconds, pixels = 0, 0.0, None
        while capture.grab():
            # Some containers have no times, or times that step back: then the rate says.
            told = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            seconds = told if number and math.isfinite(told) and told > seconds else number / rate
            if number % every == 0:
                fine, pixels = capture.retrieve(pixels)
                if not fine:
                    break
                yield Frame(name, number, seconds, _rgb(cv2, pixels))
            number += 1
    finally:
        capture.release()
    count(-(-number // every))
    if not number:
        raise ImageError(f"{name}: opens as a video, but no frame can be read; copy it again, or convert it")
    if number < expected - max(_FEWER_FRAMES, _FEWER * expected):
        report(f"{name}: ends early, after {number} of {expected} frames; these are used; copy it again")


def camera_frames(index: int, name: str, every: int, fps: dict[str, float]) -> Iterator[Frame]:
    """One frame in `every`, RGB, until the consumer stops or the camera does. seconds: by the clock, from the first."""
    cv2 = opencv(_NEEDS.format(name))
    capture = cv2.VideoCapture(index)
    try:
        if not capture.isOpened():
            raise ImageError(f"{name}: cannot be opened; expected the number of a camera that nobody else uses")
        fps[name] = _rate(capture) / every
        number, start, pixels = 0, time.monotonic(), None
        while capture.grab():
            if number % every == 0:
                fine, pixels = capture.retrieve(pixels)
                if not fine:
                    break
                yield Frame(name, number, time.monotonic() - start, _rgb(cv2, pixels))
            number += 1
    finally:
        capture.release()
    if not number:
        raise ImageError(f"{name}: gives no picture; is another program using it?")


def _rate(capture: Any) -> float:
    import cv2

    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0 < rate <= 1000 else FPS


def _rgb(cv2: Any, pixels: np.ndarray) -> np.ndarray:
    # A new array each time: `pixels` is decoded into again.
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
