"""Who is photographed (Person) and under which conditions (Photo)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._face_difficulty import Difficulty

# sRGB anchors from very light to very dark skin.
_SKIN = (
    np.array(
        [
            [246, 214, 196],
            [236, 194, 168],
            [222, 172, 138],
            [198, 143, 106],
            [166, 112, 78],
            [124, 80, 56],
            [88, 56, 42],
        ],
        np.float32,
    )
    / 255.0
)
_HAIR = (
    np.array([[30, 24, 24], [52, 36, 28], [88, 58, 38], [132, 88, 52], [192, 150, 92], [150, 74, 40]], np.float32)
    / 255.0
)
_HAIR_SHARE = (0.22, 0.24, 0.22, 0.14, 0.11, 0.07)
_IRIS = (
    np.array([[70, 44, 28], [96, 62, 36], [112, 96, 56], [84, 112, 84], [84, 120, 150], [110, 126, 136]], np.float32)
    / 255.0
)
_FABRIC = (
    np.array(
        [
            [60, 76, 110],
            [140, 60, 66],
            [230, 226, 218],
            [50, 52, 58],
            [86, 120, 104],
            [196, 168, 120],
            [120, 96, 140],
            [176, 196, 214],
        ],
        np.float32,
    )
    / 255.0
)

HAIR_STYLES = ("short", "long", "bob", "bald", "bun", "curly", "scarf")


def linear(srgb: np.ndarray) -> np.ndarray:
    """Approximate sRGB -> linear light; squaring pairs with the square root at the end."""
    return (np.asarray(srgb, np.float32) ** 2).astype(np.float32)


@dataclass(frozen=True)
class Person:
    """Everything that stays the same in all photographs of one subject (face units, linear RGB)."""

    seed_words: tuple[int, ...]
    female: bool
    age: float  # 0 young .. 1 old
    skin: np.ndarray
    hair: np.ndarray
    lip: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray
    scarf: np.ndarray
    hair_style: str
    hair_volume: float
    hairline: float
    fringe: float
    part: float
    temple: float
    temple_drop: float
    half_width: float
    chin: float
    jaw_taper: float
    jaw_square: float
    eye_x: float
    eye_y: float
    eye_w: float
    eye_up: float
    eye_low: float
    eye_tilt: float
    lid_fold: float
    iris_r: float
    brow_gap: float
    brow_arch: float
    brow_tilt: float
    brow_thick: float
    brow_dark: float
    brow_in: float
    nose_len: float
    nose_w: float
    nose_tip: float
    mouth_y: float
    mouth_w: float
    lip_up: float
    lip_low: float
    cheek: float
    wrinkle: dict[str, float]
    resting: dict[int, float]
    freckles: float
    moles: tuple[tuple[float, float, float], ...]
    beard: float
    stubble: float
    makeup: float
    glasses: float  # 0 none, else rim radius factor
    glasses_color: np.ndarray
    glasses_square: float
    oil: float


def draw_person(seed: int, identity: int) -> Person:
    """Draw one subject from its own stream."""
    r = np.random.default_rng([seed, identity, 0])
    uni, nrm = r.uniform, r.normal
    female = bool(r.random() < 0.5)
    age = float(r.beta(1.3, 2.0))
    tone = uni(0, len(_SKIN) - 1.001)
    k, f = int(tone), tone % 1
    skin_srgb = _SKIN[k] * (1 - f) + _SKIN[k + 1] * f
    skin_srgb = np.clip(skin_srgb * (1 + nrm(0, 0.025, 3)), 0.05, 0.97)
    dark = tone > 3.2
    hair = _HAIR[int(r.integers(0, 2)) if dark else int(r.choice(6, p=_HAIR_SHARE))] * uni(0.8, 1.15)
    grey = np.clip((age - 0.6) * 3 * uni(0, 1.3), 0, 1)
    hair = hair * (1 - grey) + np.array([0.72, 0.71, 0.70]) * grey
    makeup = float(female and r.random() < 0.45) * uni(0.4, 1.0)
    lip_tint = np.array([1.0, 0.66, 0.64]) * (1 - makeup) + np.array([0.95, 0.42, 0.46]) * makeup
    lip = skin_srgb * lip_tint * uni(0.88, 1.0)
    if female:
        style = r.choice(["long", "bob", "bun", "curly", "short", "scarf"], p=[0.32, 0.2, 0.16, 0.14, 0.08, 0.10])
    else:
        style = r.choice(["short", "bald", "curly", "long", "bun"], p=[0.62, 0.15, 0.13, 0.06, 0.04])
    masc = 0.0 if female else 1.0
    wrinkle = {
        name: float(np.clip(age * uni(0.1, 0.75) + nrm(0, 0.06), 0, 0.6))
        for name in ("forehead", "glabella", "crow", "undereye", "bunny", "nasolabial", "marionette", "chin", "stretch")
    }
    resting = {au: float(max(0, nrm(-0.04, 0.11))) for au in (1, 2, 4, 7, 12, 15, 17, 24, 43)}
    moles = tuple(
        (float(uni(-0.55, 0.55)), float(uni(-0.55, 0.75)), float(uni(0.010, 0.02)))
        for _ in range(int(r.integers(0, 4)))
    )
    beard = 0.0 if female or r.random() > 0.28 else float(uni(0.5, 1))
    return Person(
        seed_words=(seed, identity),
        female=female,
        age=age,
        skin=linear(skin_srgb),
        hair=linear(np.clip(hair, 0.06, 0.95)),
        lip=linear(lip),
        iris=linear(_IRIS[int(r.integers(0, 2 if dark else 6))] * uni(0.85, 1.15)),
        cloth=linear(_FABRIC[int(r.integers(0, 8))]),
        scarf=linear(_FABRIC[int(r.integers(0, 8))]),
        hair_style=str(style),
        hair_volume=uni(0, 0.07),
        hairline=uni(-0.80, -0.70) + (0 if female else nrm(-0.02, 0.03)),
        fringe=float(style in ("long", "bob", "short") and r.random() < 0.25) * uni(0.08, 0.2),
        part=uni(-0.35, 0.35),
        temple=uni(0.36, 0.46) + 0.06 * masc,
        temple_drop=uni(4, 14),
        half_width=uni(0.63, 0.71) + 0.025 * masc,
        chin=uni(0.84, 0.93) + 0.02 * masc,
        jaw_taper=uni(0.26, 0.42) - 0.08 * masc,
        jaw_square=uni(0.15, 0.45) + 0.2 * masc,
        eye_x=uni(0.285, 0.325),
        eye_y=uni(-0.21, -0.17),
        eye_w=uni(0.145, 0.17),
        eye_up=uni(0.068, 0.086) - 0.006 * masc,
        eye_low=uni(0.036, 0.048),
        eye_tilt=nrm(0.0, 0.05) - 0.02,
        lid_fold=uni(0.012, 0.05),
        iris_r=uni(0.067, 0.077),
        brow_gap=uni(0.175, 0.215) - 0.02 * masc,
        brow_arch=uni(0.01, 0.05) - 0.012 * masc,
        brow_tilt=nrm(0, 0.014),
        brow_thick=uni(0.022, 0.034) + 0.01 * masc,
        brow_dark=uni(0.55, 0.95),
        brow_in=uni(0.105, 0.14),
        nose_len=uni(0.37, 0.45),
        nose_w=uni(0.10, 0.145),
        nose_tip=uni(0.8, 1.2),
        mouth_y=uni(0.45, 0.50),
        mouth_w=uni(0.215, 0.265),
        lip_up=uni(0.028, 0.05) + (0.006 if female else 0),
        lip_low=uni(0.042, 0.068) + (0.006 if female else 0),
        cheek=uni(0.5, 1.1),
        wrinkle=wrinkle,
        resting=resting,
        freckles=float(r.random() < 0.2) * uni(0.3, 1),
        moles=moles,
        beard=beard,
        stubble=0.0 if female or r.random() < 0.4 else float(uni(0.15, 0.7)),
        makeup=makeup,
        glasses=float(r.random() < 0.13) * uni(0.9, 1.15),
        glasses_color=linear(_FABRIC[int(r.choice([1, 3, 3, 5]))]),
        glasses_square=uni(0, 1),
        oil=uni(0.3, 1.0),
    )


@dataclass(frozen=True)
class Photo:
    """Pose, light and camera of one photograph; drawn without the expression."""

    roll: float
    yaw: float
    pitch: float
    scale: float
    shift: tuple[float, float]
    light: tuple[float, float, float]
    key: float
    ambient: float
    warmth: tuple[float, float, float]
    exposure: float
    contrast: float
    blur: float
    noise: float
    jpeg: int  # 0 none, else quality
    background: np.ndarray  # [2, 3] two colours blended across the picture
    background_angle: float
    gaze: tuple[float, float]
    occluder: dict[str, Any] | None
    noise_seed: tuple[int, ...]


def draw_photo(seed: int, identity: int, take: int, d: Difficulty) -> Photo:
    """Draw the conditions of one photograph from its own stream."""
    r = np.random.default_rng([seed, identity, take, 1])
    uni, nrm = r.uniform, r.normal
    poor = bool(r.random() < d.poor_camera_probability)
    azimuth, elevation = uni(-1.1, 1.1), uni(-0.15, 0.85)
    light = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation) + 0.25]
    )
    light /= np.linalg.norm(light)
    temperature = nrm(0, 0.05)
    # Mostly greyish backgrounds, now and then a coloured wall.
    back = uni(0.15, 0.85) + nrm(0, uni(0.01, 0.09), (1, 3)) + nrm(0, 0.08, (2, 1))
    occluder = None
    if r.random() < d.occlusion_probability:
        occluder = {
            "kind": str(r.choice(["hand", "bar", "strand"])),
            "side": float(r.choice([-1, 1])),
            "at": float(uni(-0.45, 0.75)),
            "across": float(uni(0.15, 0.55)),
            "angle": float(uni(-0.5, 0.5)),
            "color": r.random(3) * 0.25 + uni(0.1, 0.6),
            "width": float(uni(0.07, 0.16)),
        }
    return Photo(
        roll=float(np.clip(nrm(0, d.roll * 0.4), -d.roll, d.roll)),
        yaw=float(np.clip(nrm(0, d.yaw * 0.5), -d.yaw, d.yaw)),
        pitch=float(np.clip(nrm(0, d.pitch * 0.5), -d.pitch, d.pitch)),
        scale=float(uni(1.16, 1.34)),
        shift=(float(nrm(0, 0.03)), float(nrm(-0.03, 0.03))),
        light=tuple(float(x) for x in light),
        key=float(uni(0.55, 1.0)),
        ambient=float(uni(0.28, 0.55)),
        warmth=(1 + temperature, 1.0, 1 - temperature),
        exposure=float(uni(*d.exposure[poor])),
        contrast=float(uni(0.9, 1.12)),
        blur=float(uni(*d.blur[poor])),
        noise=float(uni(*d.noise[poor])),
        jpeg=int(uni(22, 60)) if r.random() < (0.5 if poor else 0.1) else 0,
        background=linear(np.clip(back, 0.05, 0.95)),
        background_angle=float(uni(0, 6.28)),
        gaze=(float(np.clip(nrm(0, 0.25), -0.5, 0.5)), float(np.clip(nrm(0, 0.15), -0.3, 0.3))),
        occluder=occluder,
        noise_seed=(seed, identity, take, 2),
    )
