"""Synthetic aligned face crops with seven expressions, drawn after the Facial Action Coding System.

A face is a person (identity stream), a photograph (take stream) and a set of action units
(expression stream). The action units move brows, lids, lips and jaw, and press the skin folds
that go with them into a height field, which is then lit and photographed.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ..errors import DataError
from ._face_actions import EXPRESSIONS, Activation, FaceGeometry, draw_activation, face_geometry
from ._face_camera import light_face, occlude, photograph
from ._face_creases import draw_creases
from ._face_difficulty import DIFFICULTY, Difficulty
from ._face_features import paint_brows, paint_eyes, paint_mouth
from ._face_head import paint_glasses, paint_hair_front, paint_scene
from ._face_person import Person, draw_person, draw_photo
from ._face_raster import Raster
from .faceset import SPLITS

__all__ = [
    "DIFFICULTY",
    "EXPRESSIONS",
    "Difficulty",
    "SyntheticFaces",
    "contact_sheet",
    "expression_parameters",
    "render_face",
]

# Subjects of a split are numbered from split_code << _SPLIT_SHIFT, so splits never share one.
_SPLIT_SHIFT = 40
_MIN_SIZE = 32


def _check_int(name: str, value: object, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DataError(f"{name}: received {value!r} ({type(value).__name__}), expected an integer; pass int({name}).")
    if value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"{name}: received {value}, expected an integer {limit}; choose a value in that range.")
    return int(value)


@lru_cache(maxsize=64)
def _person(seed: int, identity: int) -> Person:
    return draw_person(seed, identity)


def expression_parameters(
    identity: int,
    expression: int,
    take: int = 0,
    *,
    seed: int = 0,
    texture_only: bool = False,
    intensity: float | None = None,
) -> tuple[FaceGeometry, Activation]:
    """Return (feature geometry, action units that fold the skin) of one picture.

    With texture_only the geometry is that of the unexpressive face of the same photograph,
    hence equal for all expressions. `intensity` overrides the drawn strength (1 = full).
    """
    identity = _check_int("identity", identity, 0)
    expression = _check_int("expression", expression, 0, len(EXPRESSIONS) - 1)
    take = _check_int("take", take, 0)
    seed = _check_int("seed", seed, 0)
    person = _person(seed, identity)
    shown, rest = draw_activation(seed, identity, take, expression, person, DIFFICULTY, intensity)
    return face_geometry(person, rest if texture_only else shown), shown


def render_face(
    identity: int,
    expression: int,
    take: int = 0,
    *,
    seed: int = 0,
    size: int = 224,
    texture_only: bool = False,
    intensity: float | None = None,
) -> np.ndarray:
    """Render one aligned face crop.

    identity: non-negative subject number; fixes everything that belongs to the person.
    expression: index into EXPRESSIONS. take: non-negative number of the photograph; fixes pose,
    light, expression strength, background and camera. texture_only: only the skin folds follow
    the expression. intensity: overrides the drawn expression strength (1 = full).

    Returns uint8 [size, size, 3], RGB, C-contiguous; equal arguments give equal bytes.
    Raises DataError (a ValueError) for arguments out of range.
    """
    size = _check_int("size", size, _MIN_SIZE, 4096)
    geometry, folds = expression_parameters(
        identity, expression, take, seed=seed, texture_only=texture_only, intensity=intensity
    )
    person = _person(int(seed), int(identity))
    photo = draw_photo(int(seed), int(identity), int(take), DIFFICULTY)
    canvas = Raster(size, photo)
    paint_scene(canvas, person, geometry, photo, np.random.default_rng([int(seed), int(identity), int(take), 9]))
    draw_creases(canvas, person, geometry, folds)
    paint_mouth(canvas, person, geometry)
    paint_eyes(canvas, person, geometry, photo)
    paint_brows(canvas, person, geometry)
    paint_hair_front(canvas, person)
    paint_glasses(canvas, person)
    lit = light_face(canvas, person, photo)
    occlude(canvas, person, photo)
    return photograph(canvas, lit, photo)


class SyntheticFaces:
    """A balanced set of synthetic faces; sample i shows subject i // 7 with expression i % 7.

    labels: int64 [n], indices into EXPRESSIONS. groups: int64 [n], subject numbers, disjoint
    between the splits of one seed. Raises DataError (a ValueError) for bad arguments.
    """

    def __init__(
        self, n: int = 3500, seed: int = 0, split: str = "train", size: int = 224, texture_only: bool = False
    ) -> None:
        self._n = _check_int("n", n, 1)
        self.seed = _check_int("seed", seed, 0)
        self.size = _check_int("size", size, _MIN_SIZE, 4096)
        if split not in SPLITS:
            raise DataError(f"split: received {split!r}, expected one of {', '.join(SPLITS)}; pass one of these names.")
        self.split = split
        self.texture_only = bool(texture_only)
        index = np.arange(self._n, dtype=np.int64)
        classes = len(EXPRESSIONS)
        self.labels = index % classes
        self.groups = index // classes + (np.int64(SPLITS.index(split)) << _SPLIT_SHIFT)
        kind = "synthetic-texture" if texture_only else "synthetic"
        self.name = f"{kind}-{split}-n{self._n}-seed{self.seed}"

    def __len__(self) -> int:
        return self._n

    def _index(self, i: int) -> int:
        if isinstance(i, (int, np.integer)) and -self._n <= i < 0:
            i = int(i) + self._n
        return _check_int("index", i, 0, self._n - 1)

    def image(self, i: int) -> np.ndarray:
        """Sample i as uint8 [size, size, 3], RGB."""
        i = self._index(i)
        return render_face(
            int(self.groups[i]),
            int(self.labels[i]),
            take=i,
            seed=self.seed,
            size=self.size,
            texture_only=self.texture_only,
        )

    def source(self, i: int) -> str:
        """Where sample i comes from, in words that identify it."""
        return f"synthetic:seed={self.seed},split={self.split},index={self._index(i)}"


def contact_sheet(
    people: int = 8, seed: int = 0, size: int = 128, *, intensity: float | None = None, texture_only: bool = False
) -> Image.Image:
    """One row per person, one column per expression, with column titles; an RGB image."""
    people = _check_int("people", people, 1)
    size = _check_int("size", size, _MIN_SIZE, 4096)
    header = 18
    sheet = Image.new("RGB", (size * len(EXPRESSIONS), size * people + header), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(EXPRESSIONS):
        pen.text((column * size + 6, 3), title, fill="black")
        for row in range(people):
            face = render_face(
                row, column, take=column, seed=seed, size=size, intensity=intensity, texture_only=texture_only
            )
            sheet.paste(Image.fromarray(face), (column * size, header + row * size))
    return sheet
