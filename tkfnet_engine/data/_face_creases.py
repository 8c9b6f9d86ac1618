"""Skin folds: the person's static wrinkles plus those the action units press into the skin."""

from __future__ import annotations

import numpy as np

from ._face_actions import Activation, FaceGeometry
from ._face_person import Person
from ._face_raster import Raster


def draw_creases(c: Raster, p: Person, g: FaceGeometry, a: Activation) -> None:
    """Press every fold into the height and cavity fields of the raster."""
    r = np.random.default_rng([*p.seed_words, 5])  # the pattern of folds belongs to the person
    jit = r.normal(0, 1, 64).tolist()
    w = p.wrinkle
    young = .75 + .35 * p.age  # the same pull folds older skin deeper
    brow = (min(g.brow_in_y) + min(g.brow_mid_y)) / 2
    top = p.hairline + .06
    lines = 3 + int(p.age > .45)
    for k in range(lines):
        f = (k + .8) / (lines + .5)
        v = brow - .05 + (top - brow) * f * .85 + .008 * jit[k]
        centre, outer = a(1), min(a(2, 0), a(2, 1))
        full = w["forehead"] * (.7 + .2 * jit[k + 4]) + 1.05 * young * outer * (1.1 - .3 * f)
        c.crease((-.36 + .02 * jit[k + 8], v + .012), (.36 + .02 * jit[k + 12], v + .012),
                 -.03 - .01 * jit[k + 16], full, .013)
        short = young * max(0, centre - .6 * outer) * (1.0 - .25 * f)
        c.crease((-.17, v + .02), (.17, v + .02), -.045, short, .013)
    for s, side in ((-1, 0), (1, 1)):
        _side_creases(c, p, g, a, s, side, young, jit)
    # Procerus: folds across the nose root.
    nose = .5 * w["bunny"] + young * max(0, 1.0 * a(9))
    for k, v in enumerate((p.eye_y - .035, p.eye_y + .02, p.eye_y + .07)):
        c.crease((-.075, v + .01), (.075, v + .01), -.012, nose * (.95 - .2 * k), .012)
    # Chin: fold under the lower lip and dimples of the mentalis.
    low = g.mouth_y + g.open_low + g.lip_low + .05
    c.crease((-.13, low), (.13, low), -.022, .25 + .5 * w["chin"] + .7 * a(17), .022)
    dimple = .35 * w["chin"] + young * a(17)
    if dimple > .1:
        cv = (low + g.chin) / 2 + .02
        for k in range(9):
            du, dv = .05 * jit[40 + k], .035 * jit[50 + k]
            where, bump = c.disc(du, cv + dv, .03, .026)
            c.height[where] -= .008 * dimple * bump
            c.cavity[where] += .45 * dimple * bump
    # Tight lips: fine vertical lines around the red of the lips.
    tight = .8 * max(a(23), a(24)) + .3 * w["chin"] * p.age
    for k in range(6):
        u = (-.5 + k / 5) * 1.3 * p.mouth_w
        v = g.mouth_y - g.lip_up - .012
        c.crease((u, v), (u * 1.06, v - .055), 0, tight * (.5 + .1 * jit[20 + k]), .009)
        v = g.mouth_y + g.open_low + g.lip_low + .012
        c.crease((u, v), (u * 1.06, v + .04), 0, tight * .4, .009)
    c.press_creases()


def _side_creases(c: Raster, p: Person, g: FaceGeometry, a: Activation, s: int, side: int,
                  young: float, jit: list[float]) -> None:
    w = p.wrinkle
    bi, bx = g.brow_in_y[side], g.brow_in_x[side]
    # Glabella: the vertical "11".
    frown = .75 * w["glabella"] + 1.1 * young * a(4, side)
    u = s * (bx * .52 + .004 * jit[24 + side])
    c.crease((u * 1.25, bi + .055), (u, bi - .085 - .02 * jit[26]), s * .012, frown, .014)
    if jit[28] > -.2:
        c.crease((u * .45, bi + .03), (u * .35, bi - .06), 0, frown * .6, .011)
    # Corrugator end: a soft bulge over the inner brow.
    c.bump(s * (bx + .03), bi - .01, .09, .06, .012 * a(4, side))
    # Crow's feet.
    ou, ov = s * (p.eye_x + p.eye_w + .025), p.eye_y
    crow = .7 * w["crow"] + 1.05 * young * a(6, side) + .2 * a(12, side)
    for k, angle in enumerate((-.62, -.15, .32, .72)):
        length = .13 + .015 * jit[30 + k] - .02 * (k == 3)
        c.crease((ou, ov + .02 + .03 * (k - 1.2)),
                 (ou + s * length * np.cos(angle), ov + .02 + .03 * (k - 1.2)
                  + length * np.sin(angle)), s * .012, crow * (.95, 1, .9, .6)[k], .011)
    # Under the eye: lower-lid fold and the bag below it.
    eu = s * p.eye_x
    lv = p.eye_y + g.lid_low[side]
    under = .6 * w["undereye"] + .75 * a(6, side) + .4 * a(7, side) + .2 * a(9, side)
    c.crease((eu - s * p.eye_w * .95, lv + .02), (eu + s * p.eye_w * .95, lv + .012),
             s * .035, under * .8, .012)
    c.crease((eu - s * p.eye_w * 1.0, lv + .045), (eu + s * p.eye_w * .75, lv + .06),
             s * .04, .2 + .9 * w["undereye"] + .5 * young * a(6, side), .019)
    # Bunny lines down the side of the nose.
    bunny = .5 * w["bunny"] + 1.05 * young * a(9, side) + .12 * a(12, side)
    for k in range(3):
        v = p.eye_y + .075 + .042 * k
        c.crease((s * .035, v), (s * (.115 + .012 * k), v + .055 + .012 * k), -s * .008,
                 bunny * (1 - .15 * k), .012)
    # Nasolabial fold: deep near the nose for 9 and 10, long and bowed for 12.
    nv = p.eye_y + p.nose_len - .05 - g.nose_raise
    cx, cy = g.corner_x[side], g.mouth_y + g.corner_y[side]
    smile, sneer = a(12, side), max(a(9, side), .8 * a(10, side))
    fold = .25 + .75 * w["nasolabial"] + .9 * young * smile + .7 * young * sneer
    c.crease((s * (p.nose_w + .025), nv), (s * (cx + .075), cy + .05 + .03 * smile),
             -s * (.02 + .04 * smile + .03 * sneer), fold, .02, step=-s * .9)
    c.crease((s * (p.nose_w + .02), nv - .02), (s * (p.nose_w + .10), nv + .12),
             -s * .025, .9 * young * sneer, .017, step=-s * .8)
    # Mouth corners.
    droop = .7 * w["marionette"] + 1.0 * young * a(15, side) + .25 * a(17, side)
    c.crease((s * (cx + .008), cy - .005), (s * (cx + .045), cy + .17), -s * .012, droop, .016)
    c.crease((s * (cx - .01), cy + .005), (s * (cx + .045), cy + .035 - .05 * smile), 0,
             .3 + .5 * a(15, side) + .3 * smile, .014)
    # Risorius: stretch lines across the cheek beside the mouth.
    pull = .4 * w["stretch"] + 1.0 * young * a(20, side) + .3 * smile * p.age
    for k in range(3):
        u = s * (cx + .075 + .055 * k)
        c.crease((u, cy - .10 + .02 * k), (u - s * .01, cy + .13), -s * .03, pull * (1 - .22 * k),
                 .013)
