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
    young = 0.75 + 0.35 * p.age  # the same pull folds older skin deeper
    brow = (min(g.brow_in_y) + min(g.brow_mid_y)) / 2
    top = p.hairline + 0.06
    lines = 3 + int(p.age > 0.45)
    for k in range(lines):
        f = (k + 0.8) / (lines + 0.5)
        v = brow - 0.05 + (top - brow) * f * 0.85 + 0.008 * jit[k]
        centre, outer = a(1), min(a(2, 0), a(2, 1))
        full = w["forehead"] * (0.7 + 0.2 * jit[k + 4]) + 1.05 * young * outer * (1.1 - 0.3 * f)
        c.crease(
            (-0.36 + 0.02 * jit[k + 8], v + 0.012),
            (0.36 + 0.02 * jit[k + 12], v + 0.012),
            -0.03 - 0.01 * jit[k + 16],
            full,
            0.013,
        )
        short = young * max(0, centre - 0.6 * outer) * (1.0 - 0.25 * f)
        c.crease((-0.17, v + 0.02), (0.17, v + 0.02), -0.045, short, 0.013)
    for s, side in ((-1, 0), (1, 1)):
        _side_creases(c, p, g, a, s, side, young, jit)
    # Procerus: folds across the nose root.
    nose = 0.5 * w["bunny"] + young * max(0, 1.0 * a(9))
    for k, v in enumerate((p.eye_y - 0.035, p.eye_y + 0.02, p.eye_y + 0.07)):
        c.crease((-0.075, v + 0.01), (0.075, v + 0.01), -0.012, nose * (0.95 - 0.2 * k), 0.012)
    # Chin: fold under the lower lip and dimples of the mentalis.
    low = g.mouth_y + g.open_low + g.lip_low + 0.05
    c.crease((-0.13, low), (0.13, low), -0.022, 0.25 + 0.5 * w["chin"] + 0.7 * a(17), 0.022)
    dimple = 0.35 * w["chin"] + young * a(17)
    if dimple > 0.1:
        cv = (low + g.chin) / 2 + 0.02
        for k in range(9):
            du, dv = 0.05 * jit[40 + k], 0.035 * jit[50 + k]
            where, bump = c.disc(du, cv + dv, 0.03, 0.026)
            c.height[where] -= 0.008 * dimple * bump
            c.cavity[where] += 0.45 * dimple * bump
    # Tight lips: fine vertical lines around the red of the lips.
    tight = 0.8 * max(a(23), a(24)) + 0.3 * w["chin"] * p.age
    for k in range(6):
        u = (-0.5 + k / 5) * 1.3 * p.mouth_w
        v = g.mouth_y - g.lip_up - 0.012
        c.crease((u, v), (u * 1.06, v - 0.055), 0, tight * (0.5 + 0.1 * jit[20 + k]), 0.009)
        v = g.mouth_y + g.open_low + g.lip_low + 0.012
        c.crease((u, v), (u * 1.06, v + 0.04), 0, tight * 0.4, 0.009)
    c.press_creases()


def _side_creases(
    c: Raster, p: Person, g: FaceGeometry, a: Activation, s: int, side: int, young: float, jit: list[float]
) -> None:
    w = p.wrinkle
    bi, bx = g.brow_in_y[side], g.brow_in_x[side]
    # Glabella: the vertical "11".
    frown = 0.75 * w["glabella"] + 1.1 * young * a(4, side)
    u = s * (bx * 0.52 + 0.004 * jit[24 + side])
    c.crease((u * 1.25, bi + 0.055), (u, bi - 0.085 - 0.02 * jit[26]), s * 0.012, frown, 0.014)
    if jit[28] > -0.2:
        c.crease((u * 0.45, bi + 0.03), (u * 0.35, bi - 0.06), 0, frown * 0.6, 0.011)
    # Corrugator end: a soft bulge over the inner brow.
    c.bump(s * (bx + 0.03), bi - 0.01, 0.09, 0.06, 0.012 * a(4, side))
    # Crow's feet.
    ou, ov = s * (p.eye_x + p.eye_w + 0.025), p.eye_y
    crow = 0.7 * w["crow"] + 1.05 * young * a(6, side) + 0.2 * a(12, side)
    for k, angle in enumerate((-0.62, -0.15, 0.32, 0.72)):
        length = 0.13 + 0.015 * jit[30 + k] - 0.02 * (k == 3)
        c.crease(
            (ou, ov + 0.02 + 0.03 * (k - 1.2)),
            (ou + s * length * np.cos(angle), ov + 0.02 + 0.03 * (k - 1.2) + length * np.sin(angle)),
            s * 0.012,
            crow * (0.95, 1, 0.9, 0.6)[k],
            0.011,
        )
    # Under the eye: lower-lid fold and the bag below it.
    eu = s * p.eye_x
    lv = p.eye_y + g.lid_low[side]
    under = 0.6 * w["undereye"] + 0.75 * a(6, side) + 0.4 * a(7, side) + 0.2 * a(9, side)
    c.crease((eu - s * p.eye_w * 0.95, lv + 0.02), (eu + s * p.eye_w * 0.95, lv + 0.012), s * 0.035, under * 0.8, 0.012)
    c.crease(
        (eu - s * p.eye_w * 1.0, lv + 0.045),
        (eu + s * p.eye_w * 0.75, lv + 0.06),
        s * 0.04,
        0.2 + 0.9 * w["undereye"] + 0.5 * young * a(6, side),
        0.019,
    )
    # Bunny lines down the side of the nose.
    bunny = 0.5 * w["bunny"] + 1.05 * young * a(9, side) + 0.12 * a(12, side)
    for k in range(3):
        v = p.eye_y + 0.075 + 0.042 * k
        c.crease(
            (s * 0.035, v), (s * (0.115 + 0.012 * k), v + 0.055 + 0.012 * k), -s * 0.008, bunny * (1 - 0.15 * k), 0.012
        )
    # Nasolabial fold: deep near the nose for 9 and 10, long and bowed for 12.
    nv = p.eye_y + p.nose_len - 0.05 - g.nose_raise
    cx, cy = g.corner_x[side], g.mouth_y + g.corner_y[side]
    smile, sneer = a(12, side), max(a(9, side), 0.8 * a(10, side))
    fold = 0.25 + 0.75 * w["nasolabial"] + 0.9 * young * smile + 0.7 * young * sneer
    c.crease(
        (s * (p.nose_w + 0.025), nv),
        (s * (cx + 0.075), cy + 0.05 + 0.03 * smile),
        -s * (0.02 + 0.04 * smile + 0.03 * sneer),
        fold,
        0.02,
        step=-s * 0.9,
    )
    c.crease(
        (s * (p.nose_w + 0.02), nv - 0.02),
        (s * (p.nose_w + 0.10), nv + 0.12),
        -s * 0.025,
        0.9 * young * sneer,
        0.017,
        step=-s * 0.8,
    )
    # Mouth corners.
    droop = 0.7 * w["marionette"] + 1.0 * young * a(15, side) + 0.25 * a(17, side)
    c.crease((s * (cx + 0.008), cy - 0.005), (s * (cx + 0.045), cy + 0.17), -s * 0.012, droop, 0.016)
    c.crease(
        (s * (cx - 0.01), cy + 0.005),
        (s * (cx + 0.045), cy + 0.035 - 0.05 * smile),
        0,
        0.3 + 0.5 * a(15, side) + 0.3 * smile,
        0.014,
    )
    # Risorius: stretch lines across the cheek beside the mouth.
    pull = 0.4 * w["stretch"] + 1.0 * young * a(20, side) + 0.3 * smile * p.age
    for k in range(3):
        u = s * (cx + 0.075 + 0.055 * k)
        c.crease((u, cy - 0.10 + 0.02 * k), (u - s * 0.01, cy + 0.13), -s * 0.03, pull * (1 - 0.22 * k), 0.013)
