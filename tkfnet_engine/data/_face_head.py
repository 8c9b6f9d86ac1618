"""The still parts of the picture: background, body, hair, head, ears, nose, skin details."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ._face_actions import FaceGeometry
from ._face_person import Person, Photo, linear
from ._face_raster import Raster, clamp, smoothstep, value_noise

_ALL = (slice(None), slice(None))


@lru_cache(maxsize=4)
def person_noise(seed_words: tuple[int, ...], size: int) -> tuple[np.ndarray, ...]:
    """Hair streaks, skin blotches, pores and curls of one person, each [size, size].

    Cached because the pictures of one person usually come one after the other.
    """
    r = np.random.default_rng([*seed_words, 6])
    return tuple(value_noise(r, cells, size) for cells in ((6, 80), (9, 9), (80, 80), (22, 22)))


def head_radius2(c: Raster, p: Person, g: FaceGeometry) -> np.ndarray:
    """Squared radius of the head outline: below 1 inside, float32 [size, size]."""
    u, v = c.hu, c.hv
    low = np.maximum(v, 0)
    narrow = p.half_width * (1 - p.jaw_taper * (low * (1 / g.chin)) ** 2)
    x2 = (u / narrow) ** 2
    y2 = np.where(v < 0, (v * (1 / 1.02)) ** 2, (low * (1 / g.chin)) ** 2)
    k = p.jaw_square * smoothstep(low * 2)
    q = x2 + y2
    # Mixing in the fourth power squares the jaw without leaving the unit outline on the axes.
    return q * (1 - k) + k * np.sqrt(x2 * x2 + y2 * y2 + 1e-6)


def paint_scene(c: Raster, p: Person, g: FaceGeometry, photo: Photo, r: np.random.Generator) -> np.ndarray:
    """Paint everything but eyes, brows and mouth; return the head mask [size, size]."""
    size = c.size
    line = np.linspace(-0.7, 0.7, size, dtype=np.float32)
    ramp = 0.5 + 0.5 * (
        math.cos(photo.background_angle) * line[None, :] + math.sin(photo.background_angle) * line[:, None]
    )
    ramp = ramp + 0.12 * value_noise(r, (5, 5), size)
    b0, b1 = photo.background[:, :, None, None]
    c.albedo[:] = b0 + (b1 - b0) * clamp(ramp, 0, 1)
    streak, blotch, pores, curls = c.streak, _, c.pores, _ = person_noise(p.seed_words, size)
    _hair_behind(c, p, streak, curls)
    _body(c, p, g)
    q = head_radius2(c, p, g)
    root = np.sqrt(q)
    head = c.edge((1 - root) * (p.half_width * 0.9), 0.004)
    for s in (-1, 1):
        _ear(c, p, s)
    c.paint(_ALL, _skin(p, blotch), head)
    dome = np.sqrt(np.maximum(1 - q, 0) + 0.03) - np.float32(0.03**0.5)
    c.height += 0.52 * dome
    c.height += (0.0005 + 0.0008 * p.age) * pores * head
    c.gloss += head
    _relief(c, p, g)
    _skin_details(c, p, g, pores, head)
    return head


def _skin(p: Person, blotch: np.ndarray) -> np.ndarray:
    tint = np.array([0.02, -0.04, -0.035], np.float32)[:, None, None] * blotch
    return p.skin[:, None, None] * (1 + tint)


def _body(c: Raster, p: Person, g: FaceGeometry) -> None:
    where = (slice(int(c.size * 0.55), None), slice(None))
    u, v = c.hu[where], c.hv[where]
    width = 0.40 if p.female else 0.47
    neck = c.edge(width + 0.5 * np.maximum(v - 0.95, 0) ** 2 - np.abs(u), 0.01) * c.edge(v - 0.3, 0.05)
    # The chin shades the neck.
    drop = v - g.chin + 0.45 * u * u
    shade = clamp(0.42 + 2.2 * np.maximum(drop, 0), 0.42, 0.82)
    c.paint(where, p.skin[:, None, None] * shade, neck)
    shoulder = c.edge(v - (1.06 + 0.12 * np.abs(u)), 0.01)
    c.paint(where, p.cloth if p.hair_style != "scarf" else p.scarf, shoulder)


def _hair_shade(p: Person, streak: np.ndarray, color: np.ndarray) -> np.ndarray:
    return color[:, None, None] * clamp(1 + 0.2 * streak, 0.5, 1.6)


def _hair_behind(c: Raster, p: Person, streak: np.ndarray, curls: np.ndarray) -> None:
    style = p.hair_style
    if style == "bald":
        return
    u, v = c.hu, c.hv
    thick = p.hair_volume + {"short": 0.05, "long": 0.13, "bob": 0.13, "bun": 0.04, "curly": 0.2, "scarf": 0.13}[style]
    rx = p.half_width + thick
    top = ((v + 0.18) * (1 / (0.90 + thick * 0.8))) ** 2
    x = (u * (1 / rx)) ** 2
    reach = {"long": 2.0, "bob": 0.55, "scarf": 2.0, "curly": 0.35}.get(style, -0.05)
    below = np.maximum(v + 0.18, 0) * (1 / (reach + 0.45))
    cap = x + np.where(v < -0.18, top, below**4)
    inside = (1 - np.sqrt(cap)) * rx
    if style == "curly":
        inside = inside + 0.045 * np.minimum(np.abs(curls), 1.2) * (inside > -0.06)
    else:
        inside = inside + 0.010 * curls
    mask = c.edge(inside, 0.012)
    if style in ("short", "bun"):
        mask *= clamp((0.06 - v) * 6, 0, 1)
    color = p.scarf if style == "scarf" else p.hair
    shade = _hair_shade(p, streak * (0.3 if style == "scarf" else 1), color)
    shade = shade * clamp(0.6 + 1.6 * inside, 0.5, 0.92)
    c.paint(_ALL, shade, mask)
    if style == "bun":
        where, k = c.disc(0, -1.08, 0.3, 0.24)
        c.paint(where, p.hair * 0.9, clamp(k * 8, 0, 1))


def paint_hair_front(c: Raster, p: Person) -> None:
    """Hairline, fringe or scarf edge over the forehead; after the face, before the light."""
    style = p.hair_style
    where = c.window(0, -0.4, 0.9, 0.75)
    u, v = c.hu[where], c.hv[where]
    streak = c.streak[where]
    au = np.abs(u)
    side = np.maximum(au - p.temple, 0)
    if style == "bald":
        line = -0.84 + 1.2 * side * side - 0.9 * np.maximum(0.45 - au, 0)
        crown = c.edge(line - v, 0.12) * c.edge(1.03 - np.hypot(u * 1.3, v))
        c.tint(where, p.hair * 0.5 + 0.45, crown)
        return
    line = p.hairline + p.fringe + p.temple_drop * side * side
    if not p.fringe:
        line = line + 0.25 * np.abs(u - p.part)
    if style == "scarf":
        line = p.hairline + 0.04 + 1.55 * u * u + 7 * np.maximum(au - 0.5, 0) ** 2
        soft, wave = 0.004, 0.0
    elif style == "bun":
        soft, wave = 0.03, 0.008
    elif style == "curly":
        soft, wave = 0.02, 0.03
    else:
        soft, wave = 0.012, 0.012
    inside = line + wave * streak - v
    near = c.edge(1.0 - (u * (1 / (p.half_width + 0.1))) ** 2 - (np.minimum(v, 0) * 0.88) ** 2, 0.05)
    if style in ("short", "bun", "curly"):
        near = near * clamp((0.06 - v) * 4, 0, 1)  # sideburns thin out beside the ear
    mask = c.edge(inside, soft) * near
    color = p.scarf if style == "scarf" else p.hair
    shade = _hair_shade(p, streak * (0.25 if style == "scarf" else 1), color)
    shade = shade * clamp(0.84 + 0.3 * inside, 0.7, 1)
    # A soft shadow the hair throws on the skin.
    c.tint(where, np.array([0.72, 0.66, 0.62]), c.edge(inside + 0.03, 0.06) * near * 0.8)
    c.paint(where, shade, mask)
    c.gloss[where] *= 1 - 0.98 * mask
    c.flat[where] *= 1 - 0.97 * mask


def _ear(c: Raster, p: Person, s: int) -> None:
    if p.hair_style in ("long", "bob", "scarf", "curly"):
        return
    where, k = c.disc(s * (p.half_width + 0.005), -0.06, 0.12, 0.2)
    c.paint(where, p.skin * np.array([0.86, 0.72, 0.70]), clamp(k * 9, 0, 1))
    where, k = c.disc(s * (p.half_width + 0.02), -0.06, 0.06, 0.11)
    c.tint(where, np.array([0.7, 0.6, 0.58]), k)


def _relief(c: Raster, p: Person, g: FaceGeometry) -> None:
    """The head's larger forms: sockets, brow ridge, cheeks, nose, muzzle, chin."""
    ey = p.eye_y
    for s, side in ((-1, 0), (1, 1)):
        c.bump(s * p.eye_x, ey - 0.01, 0.24, 0.16, -0.035)
        c.bump(s * p.eye_x, ey + 0.0, 0.17, 0.13, 0.022)
        c.bump(s * 0.27, ey - p.brow_gap + 0.01, 0.30, 0.13, 0.02 if p.female else 0.03)
        c.bump(s * 0.40, 0.13 - 0.05 * g.cheek[side], 0.27, 0.24, 0.022 + 0.034 * g.cheek[side])
        c.bump(s * 0.50, 0.42, 0.25, 0.3, -0.02 * (1.2 - p.cheek) - 0.012 * p.age)
    tip = ey + p.nose_len
    lift = g.nose_raise
    c.bump(0, ey + 0.10, 0.15, 0.36, 0.05)
    c.bump(0, tip - 0.10 - lift * 0.5, 0.17, 0.26, 0.055)
    c.bump(0, tip - 0.035 - lift, 0.12 * p.nose_tip, 0.11, 0.05)
    for s in (-1, 1):
        c.bump(s * p.nose_w * 0.78 * g.nose_flare, tip - 0.015 - lift, 0.075, 0.07, 0.036)
        where, k = c.disc(s * p.nose_w * 0.45, tip + 0.02 - lift * 0.8, 0.048, 0.024)
        c.tint(where, np.array([0.30, 0.2, 0.18]), clamp(k * 1.7, 0, 1))
        c.crease(
            (s * p.nose_w * 1.08 * g.nose_flare, tip - 0.07 - lift),
            (s * p.nose_w * 0.95 * g.nose_flare, tip + 0.025 - lift),
            -s * 0.014,
            0.5,
            0.014,
        )
    where, k = c.disc(0, tip + 0.035 - lift, p.nose_w * 1.05, 0.05)
    c.tint(where, np.array([0.78, 0.70, 0.68]), k)
    c.bump(0, g.mouth_y + 0.0, 0.34, 0.26, 0.045)
    c.bump(0, g.chin - 0.16, 0.20, 0.16, 0.04)
    where, k = c.disc(0, tip + 0.085, 0.035, 0.08)
    c.height[where] -= 0.012 * k


def _skin_details(c: Raster, p: Person, g: FaceGeometry, pores: np.ndarray, head: np.ndarray) -> None:
    blush = np.array([1.05, 0.82, 0.80])
    for s in (-1, 1):
        where, k = c.disc(s * 0.40, 0.15, 0.28, 0.22)
        c.tint(where, blush, k * (0.55 + 0.5 * p.makeup))
    where, k = c.disc(0, p.eye_y + p.nose_len - 0.03, 0.17, 0.14)
    c.tint(where, blush, k * 0.6)
    if p.freckles:
        where, k = c.disc(0, 0.08, 0.62, 0.34)
        spots = clamp(pores[where] - 0.9, 0, 1) * k * (0.8 * p.freckles)
        c.tint(where, np.array([0.62, 0.48, 0.40]), clamp(spots * 2, 0, 1))
    for mu, mv, mr in p.moles:
        where, k = c.disc(mu, mv, mr, mr)
        c.tint(where, np.array([0.35, 0.26, 0.24]), clamp(k * 2, 0, 1))
    amount = max(p.stubble * 0.45, p.beard)
    if amount:
        where = (slice(int(c.size * 0.45), None), slice(None))
        u, v = c.u[where], c.v[where]
        reach = v - 0.30 - 0.9 * np.maximum(0.52 - np.abs(u), 0) ** 1.5
        jaw = c.edge(reach + 0.01 * pores[where], 0.16)
        upper = (
            c.edge(v - (p.eye_y + p.nose_len + 0.06), 0.03)
            * c.edge(g.mouth_y - v, 0.02)
            * c.edge(0.34 - np.abs(u), 0.05)
        )
        mask = np.maximum(jaw, upper * 0.9) * head[where] * amount
        grain = clamp(0.78 + 0.12 * pores[where], 0.5, 1)
        c.paint(where, p.hair * 1.05, mask * grain * 0.85)
        c.gloss[where] *= 1 - 0.7 * mask


def paint_glasses(c: Raster, p: Person) -> None:
    """Thin rims, bridge and temples."""
    if not p.glasses:
        return
    rad_u, rad_v = 0.205 * p.glasses, (0.15 + 0.03 * (1 - p.glasses_square)) * p.glasses
    for s in (-1, 1):
        where = c.window(s * p.eye_x, p.eye_y + 0.015, rad_u + 0.03, rad_v + 0.03)
        x = ((c.u[where] - s * p.eye_x) * (1 / rad_u)) ** 2
        y = ((c.v[where] - p.eye_y - 0.015) * (1 / rad_v)) ** 2
        power = np.sqrt(x * x + y * y + 1e-6)
        q = np.sqrt((x + y) * (1 - p.glasses_square) + power * p.glasses_square)
        ring = c.edge(0.013 - np.abs(q - 1) * rad_v)
        c.paint(where, linear([0.95, 0.97, 1]), c.edge(1 - q) * 0.05)
        c.paint(where, p.glasses_color, ring)
        where, t, d = c.arc(
            (s * (p.eye_x + rad_u), p.eye_y - 0.01), (s * (p.half_width + 0.02), p.eye_y - 0.03), 0, 0.02
        )
        c.paint(where, p.glasses_color, c.edge(0.012 - np.abs(d)) * ((t > 0) & (t < 1)))
    inner = p.eye_x - rad_u
    where, t, d = c.arc((-inner, p.eye_y - 0.01), (inner, p.eye_y - 0.01), -0.02, 0.02)
    c.paint(where, p.glasses_color, c.edge(0.011 - np.abs(d)) * ((t > 0) & (t < 1)))
