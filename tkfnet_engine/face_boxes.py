"""Faces that someone else has found: boxes and landmarks in a JSON file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .atomic import open_regular
from .errors import DataError, FileError, ImageError
from .face import Face, reading_order
from .preprocess import check_crop
from .strict_json import StrictJsonError, parse

# A box of more is no part of any picture that is read.
_MAX_COORDINATE = 1e6
_MAX_BYTES = 256 * 2**20
_FORM = '{"photo.jpg": [[x, y, w, h], ..], "clip.mp4": {"0": [..], "25": [..]}}'


class BoxesFromFile:
    """Faces found by someone else, in a JSON file:

        {"photo.jpg": [[x, y, w, h], ..], "clip.mp4": {"0": [..], "25": [..]}}

    By source, as its full name is given or by its base name; of a video by frame number from 0, or one list that holds
    for every frame. A face may be {"box": [x, y, w, h], "landmarks": [[x, y], .. five], "score": number}, the last two
    optional. A source or frame that is not listed has no faces. Boxes are cut as they are: `crop` is "given".
    """

    name, crop = "boxes", "given"

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fsdecode(path)
        try:
            with open_regular(path) as file:
                text = file.read(_MAX_BYTES + 1)
            if len(text) > _MAX_BYTES:
                raise FileError(f"more than {_MAX_BYTES:,} bytes, the most that is read")
            content = parse(text)
        except (OSError, ValueError, StrictJsonError) as error:
            raise DataError(f"--boxes: {self.path}: {_reason(error)}; expected a JSON file of {_FORM}") from None
        if not isinstance(content, dict):
            raise self._refused("the whole", content, _FORM)
        self._faces = {source: self._frames(f'"{source}"', value) for source, value in content.items()}
        self._matched: set[str] = set()

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        height, width = check_crop(image).shape[:2]
        key = next((name for name in (source, os.path.basename(source)) if name in self._faces), None)
        if key is None:
            return []
        self._matched.add(key)
        frames = self._faces[key]
        faces = frames if isinstance(frames, list) else frames.get(frame, [])
        for number, face in enumerate(faces):
            x, y, w, h = face.box
            if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                raise ImageError(
                    f'{self.path}: "{key}", face {number} (counted from 0): box {list(face.box)} lies outside the '
                    f"{width} x {height} pixels of the upright picture; its boxes are of another picture or size"
                )
        return reading_order(faces)

    def warning(self) -> str | None:
        """Which sources of the file were never asked for: a misspelt name would otherwise be no faces at all."""
        missing = [name for name in self._faces if name not in self._matched]
        if not missing:
            return None
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        return f"--boxes: {self.path}: no source is named {names}; give names as on the command line, or base names"

    def _frames(self, key: str, value: Any) -> list[Face] | dict[int, list[Face]]:
        if isinstance(value, list):
            return self._list(key, value)
        if not isinstance(value, dict):
            raise self._refused(key, value, 'a list of faces, or of a video an object such as {"0": [..], "25": [..]}')
        for number in value:
            if not (number.isdecimal() and str(int(number[:19])) == number):
                raise self._refused(key, number, "frame numbers from 0 as its keys, such as 0, 25")
        return {int(number): self._list(f'{key}, frame "{number}"', faces) for number, faces in value.items()}

    def _list(self, key: str, value: Any) -> list[Face]:
        if not isinstance(value, list):
            raise self._refused(key, value, "a list of faces")
        return [self._face(f"{key}, face {i} (counted from 0)", one) for i, one in enumerate(value)]

    def _face(self, key: str, value: Any) -> Face:
        if isinstance(value, list):
            value = {"box": value}
        if not isinstance(value, dict) or "box" not in value or set(value) - {"box", "landmarks", "score"}:
            raise self._refused(key, value, '[x, y, w, h] or an object with "box", perhaps "landmarks" and "score"')
        box, landmarks, score = value["box"], value.get("landmarks"), value.get("score")
        if not _are_numbers(box, 4) or min(box[2:]) <= 0:
            raise self._refused(f"{key}: box", box, "four numbers x, y, w, h in pixels, w and h above 0")
        if landmarks is not None:
            if not isinstance(landmarks, list) or len(landmarks) != 5 or not all(_are_numbers(p, 2) for p in landmarks):
                raise self._refused(f"{key}: landmarks", landmarks, "five points [x, y] in pixels")
            if not _in_order(landmarks):
                raise self._refused(
                    f"{key}: landmarks", landmarks, "eyes, nose, corners of the mouth, each pair from left to right"
                )
        if score is not None and not _are_numbers([score], 1):
            raise self._refused(f"{key}: score", score, "a number")
        points = None if landmarks is None else tuple((float(x), float(y)) for x, y in landmarks)
        return Face(tuple(float(v) for v in box), points, None if score is None else float(score))

    def _refused(self, key: str, value: Any, expected: str) -> DataError:
        found = repr(value)
        return DataError(
            f"--boxes: {self.path}: {key}: got {found[:80]}{'..' * (len(found) > 80)}, expected {expected}"
        )


def _are_numbers(values: Any, count: int) -> bool:
    """Finite and within reason; `true` is no number."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(v) in (int, float) and abs(v) <= _MAX_COORDINATE for v in values)
    )


def _in_order(landmarks: list[list[float]]) -> bool:
    """Whether the mouth is below the eyes when the eyes are read from left to right, however the head is turned."""
    left, right, _, mouth_left, mouth_right = np.array(landmarks, np.float64)
    (ax, ay), (bx, by) = right - left, (mouth_left + mouth_right - left - right) / 2
    return ax * by - ay * bx > 0


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, StrictJsonError):
        return error.found
    return str(getattr(error, "strerror", None) or error)
