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


def paint_scene(c: Raster, p: Person, g: FaceGeometry, photo: Photo, r: np.random.Generator
                ) -> np.ndarray:
    """Paint everything but eyes, brows and mouth; return the head mask [size, size]."""
    size = c.size
    line = np.linspace(-.7, .7, size, dtype=np.float32)
    ramp = .5 + .5 * (math.cos(photo.background_angle) * line[None, :]
                      + math.sin(photo.background_angle) * line[:, None])
    ramp = ramp + .12 * value_noise(r, (5, 5), size)
    b0, b1 = photo.background[:, :, None, None]
    c.albedo[:] = b0 + (b1 - b0) * clamp(ramp, 0, 1)
    streak, blotch, pores, curls = c.streak, _, c.pores, _ = person_noise(p.seed_words, size)
    _hair_behind(c, p, streak, curls)
    _body(c, p, g)
    q = head_radius2(c, p, g)
    root = np.sqrt(q)
    head = c.edge((1 - root) * (p.half_width * .9), .004)
    for s in (-1, 1):
        _ear(c, p, s)
    c.paint(_ALL, _skin(p, blotch), head)
    dome = np.sqrt(np.maximum(1 - q, 0) + .03) - np.float32(.03 ** .5)
    c.height += .52 * dome
    c.height += (.0005 + .0008 * p.age) * pores * head
    c.gloss += head
    _relief(c, p, g)
    _skin_details(c, p, g, pores, head)
    return head


def _skin(p: Person, blotch: np.ndarray) -> np.ndarray:
    tint = np.array([.02, -.04, -.035], np.float32)[:, None, None] * blotch
    return p.skin[:, None, None] * (1 + tint)


def _body(c: Raster, p: Person, g: FaceGeometry) -> None:
    where = (slice(int(c.size * .55), None), slice(None))
    u, v = c.hu[where], c.hv[where]
    width = .40 if p.female else .47
    neck = c.edge(width + .5 * np.maximum(v - .95, 0) ** 2 - np.abs(u), .01) * c.edge(v - .3, .05)
    # The chin shades the neck.
    drop = v - g.chin + .45 * u * u
    shade = clamp(.42 + 2.2 * np.maximum(drop, 0), .42, .82)
    c.paint(where, p.skin[:, None, None] * shade, neck)
    shoulder = c.edge(v - (1.06 + .12 * np.abs(u)), .01)
    c.paint(where, p.cloth if p.hair_style != "scarf" else p.scarf, shoulder)


def _hair_shade(p: Person, streak: np.ndarray, color: np.ndarray) -> np.ndarray:
    return color[:, None, None] * clamp(1 + .2 * streak, .5, 1.6)


def _hair_behind(c: Raster, p: Person, streak: np.ndarray, curls: np.ndarray) -> None:
    style = p.hair_style
    if style == "bald":
        return
    u, v = c.hu, c.hv
    thick = p.hair_volume + {"short": .05, "long": .13, "bob": .13, "bun": .04, "curly": .2,
                             "scarf": .13}[style]
    rx = p.half_width + thick
    top = ((v + .18) * (1 / (.90 + thick * .8))) ** 2
    x = (u * (1 / rx)) ** 2
    reach = {"long": 2.0, "bob": .55, "scarf": 2.0, "curly": .35}.get(style, -.05)
    below = np.maximum(v + .18, 0) * (1 / (reach + .45))
    cap = x + np.where(v < -.18, top, below ** 4)
    inside = (1 - np.sqrt(cap)) * rx
    if style == "curly":
        inside = inside + .045 * np.minimum(np.abs(curls), 1.2) * (inside > -.06)
    else:
        inside = inside + .010 * curls
    mask = c.edge(inside, .012)
    if style in ("short", "bun"):
        mask *= clamp((.06 - v) * 6, 0, 1)
    color = p.scarf if style == "scarf" else p.hair
    shade = _hair_shade(p, streak * (.3 if style == "scarf" else 1), color)
    shade = shade * clamp(.6 + 1.6 * inside, .5, .92)
    c.paint(_ALL, shade, mask)
    if style == "bun":
        where, k = c.disc(0, -1.08, .3, .24)
        c.paint(where, p.hair * .9, clamp(k * 8, 0, 1))


def paint_hair_front(c: Raster, p: Person) -> None:
    """Hairline, fringe or scarf edge over the forehead; after the face, before the light."""
    style = p.hair_style
    where = c.window(0, -.4, .9, .75)
    u, v = c.hu[where], c.hv[where]
    streak = c.streak[where]
    au = np.abs(u)
    side = np.maximum(au - p.temple, 0)
    if style == "bald":
        line = -.84 + 1.2 * side * side - .9 * np.maximum(.45 - au, 0)
        crown = c.edge(line - v, .12) * c.edge(1.03 - np.hypot(u * 1.3, v))
        c.tint(where, p.hair * .5 + .45, crown)
        return
    line = p.hairline + p.fringe + p.temple_drop * side * side
    if not p.fringe:
        line = line + .25 * np.abs(u - p.part)
    if style == "scarf":
        line = p.hairline + .04 + 1.55 * u * u + 7 * np.maximum(au - .5, 0) ** 2
        soft, wave = .004, 0.0
    elif style == "bun":
        soft, wave = .03, .008
    elif style == "curly":
        soft, wave = .02, .03
    else:
        soft, wave = .012, .012
    inside = line + wave * streak - v
    near = c.edge(1.0 - (u * (1 / (p.half_width + .1))) ** 2 - (np.minimum(v, 0) * .88) ** 2, .05)
    if style in ("short", "bun", "curly"):
        near = near * clamp((.06 - v) * 4, 0, 1)  # sideburns thin out beside the ear
    mask = c.edge(inside, soft) * near
    color = p.scarf if style == "scarf" else p.hair
    shade = _hair_shade(p, streak * (.25 if style == "scarf" else 1), color)
    shade = shade * clamp(.84 + .3 * inside, .7, 1)
    # A soft shadow the hair throws on the skin.
    c.tint(where, np.array([.72, .66, .62]), c.edge(inside + .03, .06) * near * .8)
    c.paint(where, shade, mask)
    c.gloss[where] *= 1 - .98 * mask
    c.flat[where] *= 1 - .97 * mask


def _ear(c: Raster, p: Person, s: int) -> None:
    if p.hair_style in ("long", "bob", "scarf", "curly"):
        return
    where, k = c.disc(s * (p.half_width + .005), -.06, .12, .2)
    c.paint(where, p.skin * np.array([.86, .72, .70]), clamp(k * 9, 0, 1))
    where, k = c.disc(s * (p.half_width + .02), -.06, .06, .11)
    c.tint(where, np.array([.7, .6, .58]), k)


def _relief(c: Raster, p: Person, g: FaceGeometry) -> None:
    """The head's larger forms: sockets, brow ridge, cheeks, nose, muzzle, chin."""
    ey = p.eye_y
    for s, side in ((-1, 0), (1, 1)):
        c.bump(s * p.eye_x, ey - .01, .24, .16, -.035)
        c.bump(s * p.eye_x, ey + .0, .17, .13, .022)
        c.bump(s * .27, ey - p.brow_gap + .01, .30, .13, .02 if p.female else .03)
        c.bump(s * .40, .13 - .05 * g.cheek[side], .27, .24, .022 + .034 * g.cheek[side])
        c.bump(s * .50, .42, .25, .3, -.02 * (1.2 - p.cheek) - .012 * p.age)
    tip = ey + p.nose_len
    lift = g.nose_raise
    c.bump(0, ey + .10, .15, .36, .05)
    c.bump(0, tip - .10 - lift * .5, .17, .26, .055)
    c.bump(0, tip - .035 - lift, .12 * p.nose_tip, .11, .05)
    for s in (-1, 1):
        c.bump(s * p.nose_w * .78 * g.nose_flare, tip - .015 - lift, .075, .07, .036)
        where, k = c.disc(s * p.nose_w * .45, tip + .02 - lift * .8, .048, .024)
        c.tint(where, np.array([.30, .2, .18]), clamp(k * 1.7, 0, 1))
        c.crease((s * p.nose_w * 1.08 * g.nose_flare, tip - .07 - lift),
                 (s * p.nose_w * .95 * g.nose_flare, tip + .025 - lift), -s * .014, .5, .014)
    where, k = c.disc(0, tip + .035 - lift, p.nose_w * 1.05, .05)
    c.tint(where, np.array([.78, .70, .68]), k)
    c.bump(0, g.mouth_y + .0, .34, .26, .045)
    c.bump(0, g.chin - .16, .20, .16, .04)
    where, k = c.disc(0, tip + .085, .035, .08)
    c.height[where] -= .012 * k


def _skin_details(c: Raster, p: Person, g: FaceGeometry,
                  pores: np.ndarray, head: np.ndarray) -> None:
    blush = np.array([1.05, .82, .80])
    for s in (-1, 1):
        where, k = c.disc(s * .40, .15, .28, .22)
        c.tint(where, blush, k * (.55 + .5 * p.makeup))
    where, k = c.disc(0, p.eye_y + p.nose_len - .03, .17, .14)
    c.tint(where, blush, k * .6)
    if p.freckles:
        where, k = c.disc(0, .08, .62, .34)
        spots = clamp(pores[where] - .9, 0, 1) * k * (.8 * p.freckles)
        c.tint(where, np.array([.62, .48, .40]), clamp(spots * 2, 0, 1))
    for mu, mv, mr in p.moles:
        where, k = c.disc(mu, mv, mr, mr)
        c.tint(where, np.array([.35, .26, .24]), clamp(k * 2, 0, 1))
    amount = max(p.stubble * .45, p.beard)
    if amount:
        where = (slice(int(c.size * .45), None), slice(None))
        u, v = c.u[where], c.v[where]
        reach = v - .30 - .9 * np.maximum(.52 - np.abs(u), 0) ** 1.5
        jaw = c.edge(reach + .01 * pores[where], .16)
        upper = (c.edge(v - (p.eye_y + p.nose_len + .06), .03) * c.edge(g.mouth_y - v, .02)
                 * c.edge(.34 - np.abs(u), .05))
        mask = np.maximum(jaw, upper * .9) * head[where] * amount
        grain = clamp(.78 + .12 * pores[where], .5, 1)
        c.paint(where, p.hair * 1.05, mask * grain * .85)
        c.gloss[where] *= 1 - .7 * mask


def paint_glasses(c: Raster, p: Person) -> None:
    """Thin rims, bridge and temples."""
    if not p.glasses:
        return
    rad_u, rad_v = .205 * p.glasses, (.15 + .03 * (1 - p.glasses_square)) * p.glasses
    for s in (-1, 1):
        where = c.window(s * p.eye_x, p.eye_y + .015, rad_u + .03, rad_v + .03)
        x = ((c.u[where] - s * p.eye_x) * (1 / rad_u)) ** 2
        y = ((c.v[where] - p.eye_y - .015) * (1 / rad_v)) ** 2
        power = np.sqrt(x * x + y * y + 1e-6)
        q = np.sqrt((x + y) * (1 - p.glasses_square) + power * p.glasses_square)
        ring = c.edge(.013 - np.abs(q - 1) * rad_v)
        c.paint(where, linear([.95, .97, 1]), c.edge(1 - q) * .05)
        c.paint(where, p.glasses_color, ring)
        where, t, d = c.arc((s * (p.eye_x + rad_u), p.eye_y - .01),
                            (s * (p.half_width + .02), p.eye_y - .03), 0, .02)
        c.paint(where, p.glasses_color, c.edge(.012 - np.abs(d)) * ((t > 0) & (t < 1)))
    inner = p.eye_x - rad_u
    where, t, d = c.arc((-inner, p.eye_y - .01), (inner, p.eye_y - .01), -.02, .02)
    c.paint(where, p.glasses_color, c.edge(.011 - np.abs(d)) * ((t > 0) & (t < 1)))
