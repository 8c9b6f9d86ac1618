"""Expressions as FACS action units, and the face geometry those units produce."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ._face_difficulty import Difficulty
from ._face_person import Person

EXPRESSIONS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")

UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 17, 20, 23, 24, 25, 26, 43)
_INDEX = {unit: i for i, unit in enumerate(UNITS)}

# (action units always present, [(probability, units added)]); 43 is the drooping upper lid.
_PROTOTYPES: tuple[tuple[dict[int, float], list[tuple[float, dict[int, float]]]], ...] = (
    ({1: 1.0, 2: 1.0, 5: 0.85, 25: 0.6, 26: 0.9}, []),
    ({1: 1.0, 2: 0.55, 4: 0.65, 5: 0.95, 7: 0.25, 20: 0.95, 25: 0.5}, [(0.5, {26: 0.35, 25: 0.2})]),
    ({4: 0.45, 7: 0.5, 9: 1.0, 10: 0.85, 6: 0.2, 17: 0.3}, [(0.5, {15: 0.5}), (0.3, {25: 0.35})]),
    ({6: 0.9, 12: 1.0, 7: 0.1}, [(0.65, {25: 0.75, 26: 0.12})]),
    ({1: 0.95, 4: 0.6, 15: 0.95, 17: 0.5, 43: 0.55}, []),
    ({4: 1.0, 5: 0.35, 7: 0.75, 23: 0.6, 24: 0.8}, []),
    ({}, []),
)
# Anger shows either pressed lips or, with this probability, a square open mouth.
_ANGER_OPEN = (0.3, {24: 0.0, 10: 0.35, 25: 0.75, 23: 0.5})


class Activation:
    """Strength of each action unit on the viewer's left (side 0) and right (side 1)."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values  # float64 [len(UNITS), 2]
        # Plain floats: looked up a few hundred times per picture.
        self._sides = dict(zip(UNITS, values.tolist(), strict=True))

    def __call__(self, unit: int, side: int | None = None) -> float:
        pair = self._sides[unit]
        return 0.5 * (pair[0] + pair[1]) if side is None else pair[side]


def _prototype(expression: int, r: np.random.Generator) -> np.ndarray:
    base, options = _PROTOTYPES[expression]
    units = dict(base)
    for probability, added in options:
        if r.random() < probability:
            for unit, value in added.items():
                units[unit] = units.get(unit, 0.0) + value
    if expression == 5 and r.random() < _ANGER_OPEN[0]:
        units.update(_ANGER_OPEN[1])
    out = np.zeros(len(UNITS))
    for unit, value in units.items():
        out[_INDEX[unit]] = value
    return out


def draw_activation(
    seed: int, identity: int, take: int, expression: int, person: Person, d: Difficulty, intensity: float | None = None
) -> tuple[Activation, Activation]:
    """Return (activation, the same photograph's activation without any expression).

    The second is drawn before the expression is looked at, so it is one distribution for all
    classes; `intensity` overrides the drawn strength.
    """
    r = np.random.default_rng([seed, identity, take, 3])
    rest = np.abs(r.normal(0, d.leakage, len(UNITS)))
    for unit, value in person.resting.items():
        rest[_INDEX[unit]] += value
    rest[_INDEX[26]] *= 0.5
    sides = 1 + r.normal(0, d.asymmetry, (len(UNITS), 1)) * np.array([[-1, 1]])
    neutral = np.clip(rest[:, None] * sides, 0, 1.2)
    low, high = d.intensity
    strength = low + (high - low) * r.beta(*d.intensity_beta)
    if intensity is not None:
        strength = intensity
    jitter = np.clip(1 + r.normal(0, d.unit_jitter, len(UNITS)), 0.3, 1.6)
    blend = r.random() < d.blend_probability and intensity is None
    blend_strength, other = r.uniform(*d.blend_strength), int(r.integers(1, 7))
    # A further stream, because the number of draws below depends on the expression.
    r = np.random.default_rng([seed, identity, take, 4, expression])
    units = _prototype(expression, r) * strength
    if blend:
        units = units * 0.9 + _prototype((expression + other) % 7, r) * blend_strength * strength
    total = rest * (1 - 0.6 * min(1.0, strength) * (expression != 6)) + units * jitter
    return Activation(np.clip(total[:, None] * sides, 0, 1.25)), Activation(neutral)


@dataclass(frozen=True)
class FaceGeometry:
    """Positions of the moving features in face units; pairs are (viewer's left, right)."""

    brow_in_x: tuple[float, float]
    brow_in_y: tuple[float, float]
    brow_mid_y: tuple[float, float]
    brow_out_y: tuple[float, float]
    lid_up: tuple[float, float]
    lid_low: tuple[float, float]
    corner_x: tuple[float, float]
    corner_y: tuple[float, float]
    cheek: tuple[float, float]
    mouth_y: float
    open_up: float
    open_low: float
    lip_up: float
    lip_low: float
    square: float
    teeth: float
    chin: float
    nose_flare: float
    nose_raise: float

    def vector(self) -> np.ndarray:
        """All values as float64 [28], for comparison."""
        return np.concatenate([np.atleast_1d(getattr(self, f.name)) for f in fields(self)])


def face_geometry(p: Person, a: Activation) -> FaceGeometry:
    """Move the person's resting features by the action units."""

    def both(value):
        return (value(0), value(1))

    brow = p.eye_y - p.brow_gap
    jaw, part, press = a(26), a(25), a(24)
    stretch = a(20)
    return FaceGeometry(
        brow_in_x=both(lambda s: p.brow_in - 0.04 * a(4, s) - 0.015 * a(9, s) + 0.008 * a(2, s)),
        brow_in_y=both(
            lambda s: (
                brow - p.brow_tilt - 0.10 * a(1, s) + 0.105 * a(4, s) * (1 - 0.55 * min(1, a(1, s))) + 0.035 * a(9, s)
            )
        ),
        brow_mid_y=both(
            lambda s: (
                brow
                - p.brow_arch
                - 0.05 * a(1, s)
                - 0.075 * a(2, s)
                + 0.075 * a(4, s) * (1 - 0.4 * min(1, a(1, s)))
                + 0.025 * a(9, s)
            )
        ),
        brow_out_y=both(
            lambda s: (
                brow + 0.035 + p.brow_tilt - 0.075 * a(2, s) + 0.03 * a(4, s) + 0.02 * a(1, s) * (1 - min(1, a(2, s)))
            )
        ),
        lid_up=both(
            lambda s: max(
                0.012,
                p.eye_up
                * (
                    1
                    + 0.62 * a(5, s)
                    - 0.28 * a(7, s)
                    - 0.18 * a(6, s)
                    - 0.42 * a(43, s)
                    - 0.25 * a(9, s)
                    - 0.12 * a(4, s)
                ),
            )
        ),
        lid_low=both(
            lambda s: max(0.004, p.eye_low * (1 - 0.55 * a(6, s) - 0.5 * a(7, s) - 0.35 * a(9, s) + 0.15 * a(5, s)))
        ),
        corner_x=both(
            lambda s: p.mouth_w * (1 + 0.30 * a(12, s) + 0.27 * stretch - 0.12 * a(23) - 0.22 * jaw + 0.03 * a(15, s))
        ),
        corner_y=both(lambda s: -0.115 * a(12, s) + 0.068 * a(15, s) + 0.03 * stretch + 0.02 * a(10, s) + 0.035 * jaw),
        cheek=both(lambda s: p.cheek * 0.5 + 0.9 * a(6, s) + 0.4 * a(12, s) + 0.3 * a(9, s)),
        mouth_y=p.mouth_y - 0.035 * a(10) - 0.02 * a(9) - 0.03 * a(17) + 0.01 * a(12) + 0.03 * jaw,
        open_up=(0.018 * part + 0.04 * jaw + 0.03 * part * a(10)) * (1 - 0.8 * min(1, press)),
        open_low=(0.055 * part + 0.15 * jaw) * (1 - 0.8 * min(1, press)),
        lip_up=p.lip_up * max(0.2, 1 - 0.6 * press - 0.25 * a(23) - 0.25 * a(12) - 0.2 * stretch + 0.15 * a(10)),
        lip_low=p.lip_low * max(0.25, 1 - 0.6 * press - 0.25 * a(23) - 0.15 * a(12) - 0.15 * stretch + 0.12 * a(17)),
        square=float(np.clip(0.2 + 0.9 * stretch + 0.9 * a(23) * part + 0.5 * a(10) - 0.3 * jaw, 0, 1)),
        teeth=float(np.clip(0.35 + 0.8 * a(12) + 0.5 * stretch + 0.6 * a(10) - 0.3 * jaw, 0, 1)),
        chin=p.chin + 0.10 * jaw + 0.02 * part - 0.015 * a(17),
        nose_flare=1 + 0.12 * a(9) + 0.10 * a(12) + 0.06 * a(10) + 0.08 * a(5) * a(4),
        nose_raise=0.035 * a(9) + 0.015 * a(10),
    )
