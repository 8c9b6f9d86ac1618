"""Rendered pictures and videos of people, with the truth about where their faces are.

Coordinates are continuous: pixel i covers i to i + 1. Equal arguments give equal pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np

from tkfnet_engine.data import synthetic
from tkfnet_engine.data._face_difficulty import DIFFICULTY
from tkfnet_engine.data._face_person import Photo, draw_person, draw_photo
from tkfnet_engine.data._face_raster import _BULGE_U, _BULGE_V
from tkfnet_engine.data.synthetic import EXPRESSIONS, expression_parameters, render_face
from tkfnet_engine.preprocess import resize_crop

Box = tuple[float, float, float, float]
# Rendered once at this side, then shrunk: small faces have the detail of a photograph's.
_DETAIL = 256
# Training crops end at the hair and the chin; portraits show this much more, so that the crop is this part of them.
ZOOM = 0.62
_MOODS = ("neutral", "happiness", "surprise")
_MOOD_SECONDS = 2.0


@dataclass(frozen=True)
class Portrait:
    """image: uint8 [S, S, 3], head and shoulders; its middle, `ZOOM` of the side, is framed as the training crops are.
    box: the face from above the brows to the chin. landmarks: float64 [5, 2], eyes, tip of the nose, corners of the
    mouth. Both as fractions of the side."""

    image: np.ndarray
    box: Box
    landmarks: np.ndarray


@dataclass(frozen=True)
class Group:
    """A group picture, uint8 [H, W, 3], and its people in reading order: in which square (x, y, side) each portrait
    stands."""

    image: np.ndarray
    squares: list[tuple[int, int, int]]
    portraits: list[Portrait]

    @property
    def boxes(self) -> list[Box]:
        return [placed(one.box, square) for square, one in zip(self.squares, self.portraits)]

    @property
    def crops(self) -> list[Box]:
        """Where the training crop of each face would be."""
        inner = ((1 - ZOOM) / 2, (1 - ZOOM) / 2, ZOOM, ZOOM)
        return [placed(inner, square) for square in self.squares]

    @property
    def landmarks(self) -> list[np.ndarray]:
        """float64 [5, 2] of each face, in pixels."""
        return [one.landmarks * square[2] + square[:2] for square, one in zip(self.squares, self.portraits)]


def group_picture(count: int, seed: int = 0, size: tuple[int, int] = (1280, 960)) -> tuple[np.ndarray, list[Box]]:
    """1 to 40 people in rows, of varying size and place, not overlapping: (uint8 [H, W, 3], faces in reading order)."""
    one = group(count, seed, size)
    return one.image, one.boxes


def group(count: int, seed: int = 0, size: tuple[int, int] = (1280, 960)) -> Group:
    """`group_picture` with all that is known of it."""
    assert 1 <= count <= 40, count
    r = np.random.default_rng([seed, count, 77])
    width, height = size
    columns = math.ceil(math.sqrt(count * width / height))
    rows = math.ceil(count / columns)
    cell_w, cell_h = width / columns, height / rows
    largest = min(cell_w, cell_h, 0.6 * height)
    image, squares, portraits = _background(size, seed), [], []
    for row in range(rows):
        in_row = min(columns, count - row * columns)
        # Where the row as a whole stands in its strip, so that neighbours differ by little.
        level = r.uniform(0.2, 0.8)
        for column in sorted(r.choice(columns, in_row, replace=False)):
            side = int(largest * r.uniform(0.75, 0.97))
            room = cell_h - side
            drop = float(np.clip(level * room + r.uniform(-0.12, 0.12) * side, 0, room))
            x, y = int(column * cell_w + r.uniform(0, 1) * (cell_w - side)), int(row * cell_h + drop)
            one = portrait(len(portraits), int(r.integers(0, len(EXPRESSIONS))), seed)
            _paste(image, _patch(one.image, side), x, y)
            squares.append((x, y, side))
            portraits.append(one)
    return Group(image, squares, portraits)


def placed(box: Box, square: tuple[int, int, int]) -> Box:
    """A box in fractions of a picture's side, where that picture stands at `square` = (x, y, side)."""
    x, y, side = square
    return x + box[0] * side, y + box[1] * side, box[2] * side, box[3] * side


def portrait(identity: int, expression: int = 6, seed: int = 0, take: int | None = None) -> Portrait:
    """One person, well photographed: nothing before the face, head upright, by default the first take that is."""
    if take is None:
        take = next(i for i in range(1000) if _is_good(draw_photo(seed, identity, i, DIFFICULTY)))

    def from_afar(*args: object) -> Photo:
        photo = draw_photo(*args)
        return replace(photo, scale=photo.scale * ZOOM, shift=(photo.shift[0] * ZOOM, photo.shift[1] * ZOOM))

    with mock.patch.object(synthetic, "draw_photo", from_afar):
        image = render_face(identity, expression, take, seed=seed, size=_DETAIL)
    (x, y, w, h), landmarks = truth(identity, expression, take, seed)
    edge = (1 - ZOOM) / 2
    return Portrait(image, (edge + ZOOM * x, edge + ZOOM * y, ZOOM * w, ZOOM * h), edge + ZOOM * landmarks)


def truth(identity: int, expression: int, take: int, seed: int = 0) -> tuple[Box, np.ndarray]:
    """`Portrait.box` and `Portrait.landmarks` of `render_face` with the same arguments."""
    person, photo = draw_person(seed, identity), draw_photo(seed, identity, take, DIFFICULTY)
    face, _ = expression_parameters(identity, expression, take, seed=seed)
    tip = person.eye_y + person.nose_len - 0.035 - face.nose_raise
    left, right = ((s * face.corner_x[i], face.mouth_y + face.corner_y[i]) for i, s in enumerate((-1, 1)))
    features = [(-person.eye_x, person.eye_y), (person.eye_x, person.eye_y), (0.0, tip), left, right]
    landmarks = np.array([_on_picture(u, v, photo) for u, v in features])
    top, width = -0.62, 2 * person.half_width
    x, y = _on_picture(0, (top + face.chin) / 2, photo)
    w, h = width * photo.scale / 2, (face.chin - top) * photo.scale / 2
    return (x - w / 2, y - h / 2, w, h), landmarks


def moving_scene(
    seconds: float, fps: float = 25, size: tuple[int, int] = (1280, 720), people: int = 2, seed: int = 0
) -> Iterator[np.ndarray]:
    """Frames uint8 [H, W, 3] of people who move smoothly, each in an upright lane of its own, and change their face."""
    return (frame for frame, _ in moving_faces(seconds, fps, size, people, seed))


def moving_faces(
    seconds: float, fps: float = 25, size: tuple[int, int] = (1280, 720), people: int = 2, seed: int = 0
) -> Iterator[tuple[np.ndarray, list[Box]]]:
    """`moving_scene` with each frame's true boxes, person by person from left to right."""
    width, height = size
    lane = width / people
    side = int(min(0.85 * lane, 0.75 * height))
    back = _background(size, seed)
    casts = [[portrait(i, EXPRESSIONS.index(mood), seed) for mood in _MOODS] for i in range(people)]
    patches = [[_patch(one.image, side) for one in cast] for cast in casts]
    for number in range(round(seconds * fps)):
        t, frame, boxes = number / fps, back.copy(), []
        for i, (cast, cast_patches) in enumerate(zip(casts, patches)):
            x = int(i * lane + (lane - side) * (0.5 + 0.5 * math.sin(0.9 * t + 1.7 * i)))
            y = int((height - side) * (0.5 + 0.4 * math.sin(0.6 * t + 2.3 * i + 1)))
            mood = int(t / _MOOD_SECONDS + i) % len(_MOODS)
            _paste(frame, cast_patches[mood], x, y)
            boxes.append(placed(cast[mood].box, (x, y, side)))
        yield frame, boxes


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float = 25, size: tuple[int, int] = (1280, 720)
) -> None:
    """An MPEG-4 file (.mp4) of uint8 RGB frames [H, W, 3], `size` = (W, H)."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
    assert writer.isOpened(), f"OpenCV cannot write {path}"
    try:
        for frame in frames:
            assert frame.shape == (size[1], size[0], 3), frame.shape
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def _is_good(photo: Photo) -> bool:
    upright = abs(photo.roll) < 0.1 and abs(photo.yaw) < 0.06
    sharp = photo.blur < 0.004 and photo.noise < 0.02 and not photo.jpeg
    return photo.occluder is None and upright and sharp and 0.85 < photo.exposure < 1.2


def _on_picture(u: float, v: float, photo: Photo) -> tuple[float, float]:
    """Feature coordinates -> fractions of the picture's side; the inverse of what `Raster` does."""
    head_u, head_v = u, v
    for _ in range(10):
        bulge = max(0.0, 1 - (head_u / _BULGE_U) ** 2 - (head_v / _BULGE_V) ** 2)
        head_u, head_v = u + photo.yaw * bulge, v + photo.pitch * bulge
    c, s = math.cos(photo.roll), math.sin(photo.roll)
    x = (c * head_u - s * head_v) * photo.scale + photo.shift[0]
    y = (s * head_u + c * head_v) * photo.scale + photo.shift[1]
    return (x + 1) / 2, (y + 1) / 2


def _background(size: tuple[int, int], seed: int) -> np.ndarray:
    """A wall: two greyish colours blended across, soft blotches, a little grain."""
    from PIL import Image

    width, height = size
    r = np.random.default_rng([seed, 78])
    one, two = (r.uniform(90, 170) + r.normal(0, 12, 3) for _ in range(2))
    blotches = Image.fromarray(r.normal(0, 5, (7, 9)).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    wall = one + (two - one) * ramp + np.asarray(blotches)[:, :, None]
    grain = r.normal(0, 1.5, (height, width, 1))
    return np.clip(wall + grain, 0, 255).astype(np.uint8)


def _patch(image: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels times opacity, what of the background stays), uint16 of 256ths, soft at the edges; for `_paste`."""
    t = (np.arange(side) + 0.5) / side
    fade = np.clip(np.minimum(t, 1 - t) / 0.1, 0, 1)
    fade = fade * fade * (3 - 2 * fade)
    opacity = np.round(256 * fade[:, None] * fade[None, :]).astype(np.uint16)[:, :, None]
    return resize_crop(image, side).astype(np.uint16) * opacity, 256 - opacity


def _paste(frame: np.ndarray, patch: tuple[np.ndarray, np.ndarray], x: int, y: int) -> None:
    pixels, rest = patch
    part = frame[y : y + len(pixels), x : x + len(pixels)]
    part[:] = (pixels + part * rest) >> 8
