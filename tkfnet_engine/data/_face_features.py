"""The moving parts: eyes, brows and mouth."""

from __future__ import annotations

import numpy as np

from ._face_actions import FaceGeometry
from ._face_person import Person, Photo, linear
from ._face_raster import Raster, clamp

_SCLERA = linear([.93, .915, .90])
_LASH = linear([.13, .09, .08])
_TEETH = linear([.95, .93, .88])
_CAVITY = linear([.26, .08, .08])
_TONGUE = linear([.72, .34, .34])


def paint_eyes(c: Raster, p: Person, g: FaceGeometry, photo: Photo) -> None:
    """Eyeball, iris, lids and lashes of both eyes."""
    for s, side in ((-1, 0), (1, 1)):
        ex, w = p.eye_x, p.eye_w
        up, low = g.lid_up[side], g.lid_low[side]
        where = c.window(s * ex, p.eye_y - .02, w * 1.25, .17)
        x = (c.u[where] * s - ex) * (1 / w)
        y = c.v[where] - p.eye_y + (p.eye_tilt * w) * x
        k = np.maximum(1 - x * x, 0)
        # The upper lid peaks a little inwards, the lower one outwards.
        upper = -up * k * (1.04 - .12 * x) * (1.15 - .15 * k)
        lower = low * k * (1 + .18 * x)
        below_upper, above_lower = y - upper, lower - y
        opening = c.edge(np.minimum(below_upper, above_lower), .002) * (k > 0)
        # Shadow of the upper lid makes the ball round.
        dark = 1 - .45 * clamp(1 - below_upper * (1 / .045), 0, 1) - .18 * x * x
        c.paint(where, _SCLERA[:, None, None] * dark, opening)
        gu, gv = photo.gaze[0] * .05, photo.gaze[1] * .03 - .012
        du, dv = c.u[where] - s * ex - gu, y - gv
        rad = np.sqrt(du * du + dv * dv)
        iris = c.edge(p.iris_r - rad, .004) * opening
        ring = clamp(1.25 - .75 * (rad * (1 / p.iris_r)) ** 4, .3, 1.2) * (dark * .7 + .3)
        ring = ring * (1 + .35 * clamp(dv * (1 / p.iris_r), -1, 1))
        c.paint(where, p.iris[:, None, None] * ring, iris)
        c.paint(where, linear([.05, .04, .04]), c.edge(.028 - rad, .004) * opening)
        spot = np.hypot(du - .02 * (1 if photo.light[0] >= 0 else -1), dv + .022)
        c.paint(where, linear([1.15, 1.15, 1.15]), c.edge(.0125 - spot, .004) * opening)
        # Tear corner.
        c.paint(where, p.skin * np.array([1.0, .62, .6]), c.edge(-.86 - x, .08) * opening)
        # Inside the opening the ball, not the socket, sets the relief.
        c.gloss[where] *= 1 - opening
        thick = .0085 + .006 * p.makeup + (.002 if p.female else 0)
        span = clamp((1.12 - np.abs(x + .02)) * 6, 0, 1)
        lash = np.exp(-((below_upper + .003) * (1 / thick)) ** 2) * span
        c.paint(where, _LASH, lash * (.72 + .25 * p.makeup))
        rim = np.exp(-((above_lower + .004) * (1 / .007)) ** 2) * span
        c.tint(where, np.array([.62, .48, .46]), rim * (.55 + .35 * p.makeup))
        # Fold of the upper lid; it disappears when the brow presses on the lid.
        room = (p.eye_y - g.brow_mid_y[side]) / p.brow_gap
        gap = p.lid_fold * float(clamp(room, .3, 1.4)) + .014
        fold = np.exp(-((y - upper * .92 + gap) * (1 / .010)) ** 2)
        fold *= clamp((1.1 - np.abs(x)) * 3, 0, 1)
        c.cavity[where] += .6 * fold
        c.height[where] -= .006 * fold
        if p.makeup > .5:
            lid = clamp(-below_upper * 30, 0, 1) * clamp(1 + below_upper * (1 / .06), 0, 1) * span
            c.tint(where, np.array([.72, .58, .66]), lid * .6)


def paint_brows(c: Raster, p: Person, g: FaceGeometry) -> None:
    """Two tapering brows with hair texture."""
    color = p.hair * .8 if p.hair_style != "bald" else p.hair * .7
    color = np.minimum(color, p.skin * .55)
    for s, side in ((-1, 0), (1, 1)):
        xi, xo = g.brow_in_x[side], p.eye_x + p.eye_w + .03
        yi, ym, yo = g.brow_in_y[side], g.brow_mid_y[side], g.brow_out_y[side]
        lo, hi = min(yi, ym, yo), max(yi, ym, yo)
        where = c.window(s * (xi + xo) / 2, (lo + hi) / 2, (xo - xi) / 2 + .03, (hi - lo) / 2 + .09)
        t = (c.u[where] * s - xi) * (1 / (xo - xi))
        a, b = 1 - t, t
        # Lagrange form through inner end, three fifths and outer end.
        centre = (yi * (b - .6) * (b - 1) * (1 / .6) + ym * b * a * (1 / .24)
                  + yo * b * (b - .6) * (1 / .4))
        thick = p.brow_thick * clamp(1.05 - .75 * np.maximum(t, 0) ** 2, .15, 1)
        d = np.abs(c.v[where] - centre) - thick * (1 + .12 * c.pores[where])
        ends = clamp((t + .04) * 9, 0, 1) * clamp((1.03 - t) * 9, 0, 1)
        mask = c.edge(-d, .016) * ends
        c.paint(where, color, mask * clamp(p.brow_dark + .14 * c.pores[where], .3, .97))
        c.gloss[where] *= 1 - mask
        c.height[where] += .006 * mask


def paint_mouth(c: Raster, p: Person, g: FaceGeometry) -> None:
    """Lips with their relief, teeth, tongue and the line between the lips."""
    reach = max(g.corner_x) + .06
    where = c.window(0, g.mouth_y + g.open_low / 2, reach, .16 + g.open_low / 2 + g.lip_low)
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
    bow = 1 - .22 * np.exp(-(x * (1 / .16)) ** 2) + .06 * np.exp(-((x - .28) * (1 / .15)) ** 2)
    body = np.sqrt(k) * .35 + flat * .65
    out_up = in_up - g.lip_up * body * bow
    out_low = in_low + g.lip_low * body
    inside = k > 0
    lips = c.edge(np.minimum(v - out_up, out_low - v), .009) * inside
    is_low = c.edge(v - (in_up + in_low) * .5, .004)
    # The upper lip faces down and is darker.
    shade = .80 + .24 * is_low
    c.paint(where, p.lip[:, None, None] * shade, lips * .92)
    inner = c.edge(np.minimum(v - in_up, in_low - v), .002) * inside
    t_up = clamp((v - out_up) / np.maximum(in_up - out_up, 1e-3), 0, 1)
    t_low = clamp((v - in_low) / np.maximum(out_low - in_low, 1e-3), 0, 1)
    swell = 4 * t_up * (1 - t_up) * g.lip_up + 5.2 * t_low * (1 - t_low) * g.lip_low
    swell *= np.sqrt(k)
    c.height[where] += .45 * swell * (1 - inner)
    gap = g.open_up + g.open_low
    if gap > .006:
        depth = v - in_up
        c.paint(where, _CAVITY, inner)
        tongue = c.edge(v - (in_low - .42 * g.open_low * k), .03) * inner
        c.paint(where, _TONGUE, tongue * (.75 * float(clamp(gap * 8 - .3, 0, 1))))
        tall = min(.062, .03 + .5 * gap) * (.4 + .6 * g.teeth)
        teeth = c.edge(tall * np.sqrt(np.maximum(1 - .75 * x2, 0)) - depth, .006) * inner
        gaps = 1 - .10 * np.exp(-(((u * (1 / .052)) % 1 - .5) * (1 / .09)) ** 2)
        tooth = gaps * clamp(1.02 - .55 * x2, .25, 1) * clamp(.62 + depth * 18, .5, 1)
        c.paint(where, _TEETH[:, None, None] * tooth, teeth * min(1.0, g.teeth * 1.4 + .25))
        c.height[where] -= .012 * inner
        c.gloss[where] *= 1 - .6 * inner
    seam = np.exp(-((v - line) * (1 / .0085)) ** 2) * clamp((1.04 - x) * 12, 0, 1)
    seam *= float(clamp(1 - gap * 30, 0, 1))
    c.paint(where, p.lip * .16, seam * .8)
    # Corners stay dark whether the mouth is open or not.
    corner = np.exp(-((x - .99) * (1 / .07)) ** 2 - ((v - line) * (1 / .016)) ** 2)
    c.cavity[where] += .8 * corner
    under = np.exp(-((v - out_low - .018) * (1 / .02)) ** 2) * flat
    c.tint(where, np.array([.80, .74, .72]), under * .55)
