"""The moving parts: eyes, brows and mouth."""

from __future__ import annotations

import numpy as np

from ._face_actions import FaceGeometry
from ._face_person import Person, Photo, linear
from ._face_raster import Raster, clamp

_SCLERA = linear([0.93, 0.915, 0.90])
_LASH = linear([0.13, 0.09, 0.08])
_TEETH = linear([0.95, 0.93, 0.88])
_CAVITY = linear([0.26, 0.08, 0.08])
_TONGUE = linear([0.72, 0.34, 0.34])


def paint_eyes(c: Raster, p: Person, g: FaceGeometry, photo: Photo) -> None:
    """Eyeball, iris, lids and lashes of both eyes."""
    for s, side in ((-1, 0), (1, 1)):
        ex, w = p.eye_x, p.eye_w
        up, low = g.lid_up[side], g.lid_low[side]
        where = c.window(s * ex, p.eye_y - 0.02, w * 1.25, 0.17)
        x = (c.u[where] * s - ex) * (1 / w)
        y = c.v[where] - p.eye_y + (p.eye_tilt * w) * x
        k = np.maximum(1 - x * x, 0)
        # The upper lid peaks a little inwards, the lower one outwards.
        upper = -up * k * (1.04 - 0.12 * x) * (1.15 - 0.15 * k)
        lower = low * k * (1 + 0.18 * x)
        below_upper, above_lower = y - upper, lower - y
        opening = c.edge(np.minimum(below_upper, above_lower), 0.002) * (k > 0)
        # Shadow of the upper lid makes the ball round.
        dark = 1 - 0.45 * clamp(1 - below_upper * (1 / 0.045), 0, 1) - 0.18 * x * x
        c.paint(where, _SCLERA[:, None, None] * dark, opening)
        gu, gv = photo.gaze[0] * 0.05, photo.gaze[1] * 0.03 - 0.012
        du, dv = c.u[where] - s * ex - gu, y - gv
        rad = np.sqrt(du * du + dv * dv)
        iris = c.edge(p.iris_r - rad, 0.004) * opening
        ring = clamp(1.25 - 0.75 * (rad * (1 / p.iris_r)) ** 4, 0.3, 1.2) * (dark * 0.7 + 0.3)
        ring = ring * (1 + 0.35 * clamp(dv * (1 / p.iris_r), -1, 1))
        c.paint(where, p.iris[:, None, None] * ring, iris)
        c.paint(where, linear([0.05, 0.04, 0.04]), c.edge(0.028 - rad, 0.004) * opening)
        spot = np.hypot(du - 0.02 * (1 if photo.light[0] >= 0 else -1), dv + 0.022)
        c.paint(where, linear([1.15, 1.15, 1.15]), c.edge(0.0125 - spot, 0.004) * opening)
        # Tear corner.
        c.paint(where, p.skin * np.array([1.0, 0.62, 0.6]), c.edge(-0.86 - x, 0.08) * opening)
        # Inside the opening the ball, not the socket, sets the relief.
        c.gloss[where] *= 1 - opening
        thick = 0.0085 + 0.006 * p.makeup + (0.002 if p.female else 0)
        span = clamp((1.12 - np.abs(x + 0.02)) * 6, 0, 1)
        lash = np.exp(-(((below_upper + 0.003) * (1 / thick)) ** 2)) * span
        c.paint(where, _LASH, lash * (0.72 + 0.25 * p.makeup))
        rim = np.exp(-(((above_lower + 0.004) * (1 / 0.007)) ** 2)) * span
        c.tint(where, np.array([0.62, 0.48, 0.46]), rim * (0.55 + 0.35 * p.makeup))
        # Fold of the upper lid; it disappears when the brow presses on the lid.
        room = (p.eye_y - g.brow_mid_y[side]) / p.brow_gap
        gap = p.lid_fold * float(clamp(room, 0.3, 1.4)) + 0.014
        fold = np.exp(-(((y - upper * 0.92 + gap) * (1 / 0.010)) ** 2))
        fold *= clamp((1.1 - np.abs(x)) * 3, 0, 1)
        c.cavity[where] += 0.6 * fold
        c.height[where] -= 0.006 * fold
        if p.makeup > 0.5:
            lid = clamp(-below_upper * 30, 0, 1) * clamp(1 + below_upper * (1 / 0.06), 0, 1) * span
            c.tint(where, np.array([0.72, 0.58, 0.66]), lid * 0.6)


def paint_brows(c: Raster, p: Person, g: FaceGeometry) -> None:
    """Two tapering brows with hair texture."""
    color = p.hair * 0.8 if p.hair_style != "bald" else p.hair * 0.7
    color = np.minimum(color, p.skin * 0.55)
    for s, side in ((-1, 0), (1, 1)):
        xi, xo = g.brow_in_x[side], p.eye_x + p.eye_w + 0.03
        yi, ym, yo = g.brow_in_y[side], g.brow_mid_y[side], g.brow_out_y[side]
        lo, hi = min(yi, ym, yo), max(yi, ym, yo)
        where = c.window(s * (xi + xo) / 2, (lo + hi) / 2, (xo - xi) / 2 + 0.03, (hi - lo) / 2 + 0.09)
        t = (c.u[where] * s - xi) * (1 / (xo - xi))
        a, b = 1 - t, t
        # Lagrange form through inner end, three fifths and outer end.
        centre = yi * (b - 0.6) * (b - 1) * (1 / 0.6) + ym * b * a * (1 / 0.24) + yo * b * (b - 0.6) * (1 / 0.4)
        thick = p.brow_thick * clamp(1.05 - 0.75 * np.maximum(t, 0) ** 2, 0.15, 1)
        d = np.abs(c.v[where] - centre) - thick * (1 + 0.12 * c.pores[where])
        ends = clamp((t + 0.04) * 9, 0, 1) * clamp((1.03 - t) * 9, 0, 1)
        mask = c.edge(-d, 0.016) * ends
        c.paint(where, color, mask * clamp(p.brow_dark + 0.14 * c.pores[where], 0.3, 0.97))
        c.gloss[where] *= 1 - mask
        c.height[where] += 0.006 * mask


def paint_mouth(c: Raster, p: Person, g: FaceGeometry) -> None:
    """Lips with their relief, teeth, tongue and the line between the lips."""
    reach = max(g.corner_x) + 0.06
    where = c.window(0, g.mouth_y + g.open_low / 2, reach, 0.16 + g.open_low / 2 + g.lip_low)
    u, v = c.u[where], c.v[where]
    right = u > 0
    wide = np.array([1 / g.corner_x[0], 1 / g.corner_x[1]], np.float32)[right.astype(np.intp)]
    x = np.abs(u) * wide
    x2 = x * x
    k = np.maximum(1 - x2, 0)
    flat = k * (2 - k)
    k_open = k + (flat - k) * g.square
    line = g.mouth_y + np.array(g.corner_y, np.float32)[right.astype(np.intp)] * x2
    in_up, in_low = line - g.open_up * k_open, line + g.open_low * k_open
    bow = 1 - 0.22 * np.exp(-((x * (1 / 0.16)) ** 2)) + 0.06 * np.exp(-(((x - 0.28) * (1 / 0.15)) ** 2))
    body = np.sqrt(k) * 0.35 + flat * 0.65
    out_up = in_up - g.lip_up * body * bow
    out_low = in_low + g.lip_low * body
    inside = k > 0
    lips = c.edge(np.minimum(v - out_up, out_low - v), 0.009) * inside
    is_low = c.edge(v - (in_up + in_low) * 0.5, 0.004)
    # The upper lip faces down and is darker.
    shade = 0.80 + 0.24 * is_low
    c.paint(where, p.lip[:, None, None] * shade, lips * 0.92)
    inner = c.edge(np.minimum(v - in_up, in_low - v), 0.002) * inside
    t_up = clamp((v - out_up) / np.maximum(in_up - out_up, 1e-3), 0, 1)
    t_low = clamp((v - in_low) / np.maximum(out_low - in_low, 1e-3), 0, 1)
    swell = 4 * t_up * (1 - t_up) * g.lip_up + 5.2 * t_low * (1 - t_low) * g.lip_low
    swell *= np.sqrt(k)
    c.height[where] += 0.45 * swell * (1 - inner)
    gap = g.open_up + g.open_low
    if gap > 0.006:
        depth = v - in_up
        c.paint(where, _CAVITY, inner)
        tongue = c.edge(v - (in_low - 0.42 * g.open_low * k), 0.03) * inner
        c.paint(where, _TONGUE, tongue * (0.75 * float(clamp(gap * 8 - 0.3, 0, 1))))
        tall = min(0.062, 0.03 + 0.5 * gap) * (0.4 + 0.6 * g.teeth)
        teeth = c.edge(tall * np.sqrt(np.maximum(1 - 0.75 * x2, 0)) - depth, 0.006) * inner
        gaps = 1 - 0.10 * np.exp(-((((u * (1 / 0.052)) % 1 - 0.5) * (1 / 0.09)) ** 2))
        tooth = gaps * clamp(1.02 - 0.55 * x2, 0.25, 1) * clamp(0.62 + depth * 18, 0.5, 1)
        c.paint(where, _TEETH[:, None, None] * tooth, teeth * min(1.0, g.teeth * 1.4 + 0.25))
        c.height[where] -= 0.012 * inner
        c.gloss[where] *= 1 - 0.6 * inner
    seam = np.exp(-(((v - line) * (1 / 0.0085)) ** 2)) * clamp((1.04 - x) * 12, 0, 1)
    seam *= float(clamp(1 - gap * 30, 0, 1))
    c.paint(where, p.lip * 0.16, seam * 0.8)
    # Corners stay dark whether the mouth is open or not.
    corner = np.exp(-(((x - 0.99) * (1 / 0.07)) ** 2) - ((v - line) * (1 / 0.016)) ** 2)
    c.cavity[where] += 0.8 * corner
    under = np.exp(-(((v - out_low - 0.018) * (1 / 0.02)) ** 2)) * flat
    c.tint(where, np.array([0.80, 0.74, 0.72]), under * 0.55)
