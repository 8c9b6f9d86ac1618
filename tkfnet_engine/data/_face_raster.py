"""Pixel grid in a face-centred frame, with the few primitives every feature is drawn from."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from ._face_person import Photo

# The ellipse over which yaw and pitch slide the features across the head.
_BULGE_U, _BULGE_V = 0.78, 1.08


def clamp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """np.clip without its call overhead, which dominates on small windows."""
    return np.minimum(np.maximum(x, low), high)


def smoothstep(x: np.ndarray) -> np.ndarray:
    """Clamp to 0..1 with a soft start and end."""
    x = clamp(x, 0, 1)
    return x * x * (3 - 2 * x)


def value_noise(r: np.random.Generator, cells: tuple[int, int], size: int) -> np.ndarray:
    """Smooth noise, float32 [size, size] of about unit variance; the scene, not the pixels,
    fixes the cells, so every size shows the same pattern."""
    grid = Image.fromarray(r.standard_normal(cells, dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


class Raster:
    """Albedo [3, size, size], height and cavity [size, size], all float32.

    hu, hv: head coordinates (right, down); u, v: feature coordinates, which yaw and pitch slide
    over the head. The face is about 0.7 wide to each side and 0.9 from its centre to the chin.
    """

    def __init__(self, size: int, photo: Photo) -> None:
        self.size = size
        self._c, self._s = math.cos(photo.roll), math.sin(photo.roll)
        self._scale, self._shift = photo.scale, photo.shift
        self._yaw, self._pitch = photo.yaw, photo.pitch
        line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        dx = ((line - photo.shift[0]) / photo.scale)[None, :]
        dy = ((line - photo.shift[1]) / photo.scale)[:, None]
        self.hu = self._c * dx + self._s * dy
        self.hv = self._c * dy - self._s * dx
        bulge = 1 - (self.hu * (1 / _BULGE_U)) ** 2 - (self.hv * (1 / _BULGE_V)) ** 2
        np.maximum(bulge, 0, out=bulge)
        self.u = self.hu - photo.yaw * bulge
        self.v = self.hv - photo.pitch * bulge
        self.pixel = 2 / size / photo.scale  # face units per pixel
        self.height = np.zeros((size, size), np.float32)
        self.cavity = np.zeros((size, size), np.float32)
        self.gloss = np.zeros((size, size), np.float32)
        self.flat = np.ones((size, size), np.float32)  # gain on the relief's slope
        # Noise of the person, set when the scene is painted.
        self.streak: np.ndarray
        self.pores: np.ndarray
        self._folds: list[tuple[tuple[slice, slice], tuple[float, ...]]] = []
        self.albedo = np.empty((3, size, size), np.float32)

    def window(self, cu: float, cv: float, ru: float, rv: float) -> tuple[slice, slice]:
        """Slices that hold the feature-frame box centre +- half extents (may be empty)."""
        hu, hv = cu, cv
        for _ in range(3):
            bulge = max(0.0, 1 - (hu / _BULGE_U) ** 2 - (hv / _BULGE_V) ** 2)
            hu, hv = cu + self._yaw * bulge, cv + self._pitch * bulge
        ru, rv = ru * 1.2 + 0.01, rv * 1.2 + 0.01
        x = (self._c * hu - self._s * hv) * self._scale + self._shift[0]
        y = (self._s * hu + self._c * hv) * self._scale + self._shift[1]
        rx = (abs(self._c) * ru + abs(self._s) * rv) * self._scale
        ry = (abs(self._s) * ru + abs(self._c) * rv) * self._scale
        half = self.size / 2

        def span(c: float, e: float) -> slice:
            lo = int((c - e + 1) * half)
            hi = int((c + e + 1) * half) + 2
            return slice(min(max(lo, 0), self.size), min(max(hi, 0), self.size))

        return span(y, ry), span(x, rx)

    def edge(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """Anti-aliased coverage of distance > 0; soft widens the ramp (face units)."""
        return clamp(distance * (1 / (self.pixel + soft)) + 0.5, 0, 1)

    def paint(self, where: tuple[slice, slice], color: np.ndarray, mask: np.ndarray) -> None:
        """Blend one linear RGB colour ([3] or [3, h, w]) over the albedo."""
        color = np.asarray(color, np.float32)
        if color.ndim == 1:
            color = color[:, None, None]
        part = self.albedo[(slice(None), *where)]
        if mask.size < 8192:
            part += (color - part) * mask
            return
        for plane, value in zip(part, color, strict=True):  # one plane at a time stays in cache
            change = value - plane
            change *= mask
            plane += change

    def tint(self, where: tuple[slice, slice], factor: np.ndarray, mask: np.ndarray) -> None:
        """Multiply the albedo by a per-channel factor where the mask is 1."""
        less = (np.asarray(factor, np.float32) - 1)[:, None, None]
        self.albedo[(slice(None), *where)] *= 1 + less * mask

    def disc(self, cu: float, cv: float, ru: float, rv: float) -> tuple[tuple[slice, slice], np.ndarray]:
        """A smooth compact bump: 1 at the centre, 0 with zero slope on the ellipse."""
        where = self.window(cu, cv, ru, rv)
        k = 1 - ((self.u[where] - cu) * (1 / ru)) ** 2 - ((self.v[where] - cv) * (1 / rv)) ** 2
        np.maximum(k, 0, out=k)
        return where, k * k

    def bump(self, cu: float, cv: float, ru: float, rv: float, amount: float) -> None:
        """Raise (or sink) the height field by a smooth bump."""
        where, k = self.disc(cu, cv, ru, rv)
        self.height[where] += amount * k

    def arc(
        self, p0: tuple[float, float], p1: tuple[float, float], bow: float, reach: float
    ) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Parabolic arc: window, t along it (0..1) and signed distance d across it.

        A positive bow bends it to the side of positive d, which is the right-hand side when
        walking from p0 to p1 with v pointing down.
        """
        du, dv = p1[0] - p0[0], p1[1] - p0[1]
        length = math.hypot(du, dv)
        eu, ev = du / length, dv / length
        extra = abs(bow) + reach
        where = self.window((p0[0] + p1[0]) / 2, (p0[1] + p1[1]) / 2, abs(du) / 2 + extra, abs(dv) / 2 + extra)
        u, v = self.u[where] - p0[0], self.v[where] - p0[1]
        t = u * (eu / length) + v * (ev / length)
        d = v * eu - u * ev - (4 * bow) * t * (1 - t)
        return where, t, d

    def crease(
        self,
        p0: tuple[float, float],
        p1: tuple[float, float],
        bow: float,
        strength: float,
        width: float = 0.014,
        step: float = 0.0,
    ) -> None:
        """Note a skin fold along an arc; press_creases() carries all of them out together.

        step > 0 makes the side of positive d stand higher, as the cheek over a nasolabial fold.
        """
        if strength < 0.08:
            return
        width = max(width, 0.8 * self.pixel)
        du, dv = p1[0] - p0[0], p1[1] - p0[1]
        length = math.hypot(du, dv)
        extra = abs(bow) + 3.2 * width
        where = self.window((p0[0] + p1[0]) / 2, (p0[1] + p1[1]) / 2, abs(du) / 2 + extra, abs(dv) / 2 + extra)
        # t = u * ta + v * tb + tc runs along the arc, q likewise across it in widths.
        ta, tb = du / length**2, dv / length**2
        qa, qb = -dv / length / width, du / length / width
        constants = (
            ta,
            tb,
            -p0[0] * ta - p0[1] * tb,
            qa,
            qb,
            -p0[0] * qa - p0[1] * qb,
            -4 * bow / width,
            strength,
            step * 0.005,
            width / 0.014,
        )
        self._folds.append((where, constants))

    def press_creases(self) -> None:
        """Press the noted folds: narrow grooves with soft shoulders, fading at both ends.

        Folds are small and many, so they are evaluated in a few long vectors; one by one, the
        cost of calling numpy would dominate.
        """
        batch: list[tuple[tuple[slice, slice], tuple[float, ...]]] = []
        pixels = 0
        for fold in self._folds:
            (rows, cols), _ = fold
            batch.append(fold)
            pixels += (rows.stop - rows.start) * (cols.stop - cols.start)
            if pixels > 24_000:
                self._press(batch)
                batch, pixels = [], 0
        if batch:
            self._press(batch)
        self._folds.clear()

    def _press(self, folds: list[tuple[tuple[slice, slice], tuple[float, ...]]]) -> None:
        shapes = [(r.stop - r.start, c.stop - c.start) for (r, c), _ in folds]
        counts = [h * w for h, w in shapes]
        ends = np.cumsum(counts).tolist()
        u, v = np.empty(ends[-1], np.float32), np.empty(ends[-1], np.float32)
        for (where, _), shape, count, end in zip(folds, shapes, counts, ends, strict=True):
            u[end - count : end].reshape(shape)[:] = self.u[where]
            v[end - count : end].reshape(shape)[:] = self.v[where]
        table = np.array([constants for _, constants in folds], np.float32).T
        ta, tb, tc, qa, qb, qc, bow, strength, step, scale = np.repeat(table, counts, axis=1)
        t = u * ta
        t += v * tb
        t += tc
        t *= 1 - t
        q = u * qa
        q += v * qb
        q += qc
        q += bow * t
        t *= 5 * strength
        taper = np.minimum(np.maximum(t, 0, out=t), strength, out=t)
        q2 = q * q
        # Compact stand-ins for exp(-q2) and a wider bell: no edge where the window ends.
        groove = np.maximum(1 - 0.25 * q2, 0)
        groove *= groove
        groove *= groove
        groove *= taper
        shoulder = np.maximum(1 - 0.1 * q2, 0)
        shoulder *= shoulder
        shoulder *= taper
        shoulder *= 0.0035 + step * clamp(q, -2, 2)
        relief = (shoulder - 0.0085 * groove) * scale
        for (where, _), shape, count, end in zip(folds, shapes, counts, ends, strict=True):
            self.height[where] += relief[end - count : end].reshape(shape)
            self.cavity[where] += groove[end - count : end].reshape(shape)
