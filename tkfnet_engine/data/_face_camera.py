"""Light on the relief, things in front of the face, and the camera."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageFilter

from ._face_person import Person, Photo, linear
from ._face_raster import Raster


def light_face(c: Raster, p: Person, photo: Photo) -> np.ndarray:
    """Shade the albedo with the normals of the height field; linear RGB [3, size, size]."""
    h = c.height
    gx, gy = np.zeros_like(h), np.zeros_like(h)
    slope = c.flat * (c.size / 4 * photo.scale)
    np.subtract(h[:, 2:], h[:, :-2], out=gx[:, 1:-1])
    np.subtract(h[2:], h[:-2], out=gy[1:-1])
    gx *= slope
    gy *= slope
    norm = 1 / np.sqrt(1 + gx * gx + gy * gy)
    lx, ly, lz = photo.light
    key = (lz - lx * gx - ly * gy) * norm
    # Wrapped diffuse light: skin scatters, so the terminator is soft.
    np.maximum(key * 0.82 + 0.18, 0, out=key)
    fill = (1 + 0.18 * gy * norm) * (0.6 + 0.4 * norm)
    # Blinn's half vector between the light and the camera.
    half = 1 / math.sqrt(lx * lx + ly * ly + (lz + 1) ** 2)
    shine = np.maximum(((lz + 1) * half - (lx * half) * gx - (ly * half) * gy) * norm, 0)
    for _ in range(4):
        shine = shine * shine
    cavity = np.minimum(c.cavity, 1.3)
    out = c.albedo
    for ch, (sink, cool) in enumerate(((0.34, 0.96), (0.44, 1.0), (0.47, 1.05))):
        warm = photo.warmth[ch]
        out[ch] *= (photo.key * warm * key + photo.ambient * cool * fill) * (1 - sink * cavity)
    out += (0.10 * p.oil * photo.key) * shine * c.gloss * (1 - 0.5 * np.minimum(cavity, 1))
    return out


def occlude(c: Raster, p: Person, photo: Photo) -> None:
    """Put a hand, a bar or a strand of hair in front of the lit face."""
    o = photo.occluder
    if o is None or (o["kind"] == "strand" and p.hair_style == "bald"):
        return
    where = (slice(None), slice(None))
    u, v = c.hu, c.hv
    lit = photo.key * 0.75 + photo.ambient
    if o["kind"] == "bar":
        ca, sa = math.cos(o["angle"]), math.sin(o["angle"])
        d = np.abs(ca * (v - o["at"]) + sa * u) - o["width"]
        c.paint(where, linear(o["color"]) * lit, c.edge(-d, 0.004))
    elif o["kind"] == "hand":
        s = o["side"]
        for k in range(4):
            # Fingers reach in from one side, parallel to each other.
            tip, row = (o["across"] * 0.6 + 0.06 * abs(k - 1.3)), o["at"] + 0.125 * (k - 1.5)
            along = s * u - tip
            across = (v - row - o["angle"] * (s * u - tip) * 0.6) * (1 / 0.062)
            d = np.where(along > 0, np.abs(across), np.hypot(across, along * (1 / 0.062)))
            round_ = np.sqrt(np.maximum(1 - d * d, 0)) * 0.55 + 0.45
            c.paint(where, p.skin[:, None, None] * (lit * 0.9) * round_, c.edge((1 - d) * 0.062))
    else:
        for k in range(3):
            bend = o["side"] * (o["across"] - 0.1 + 0.03 * k) + o["angle"] * 0.3 * (v + 0.9) ** 2 * 0.5
            d = np.abs(u - bend) - (0.028 - 0.006 * k)
            mask = c.edge(-d, 0.012) * c.edge(o["at"] + 0.3 + 0.05 * k - v, 0.1)
            c.paint(where, (p.scarf if p.hair_style == "scarf" else p.hair) * lit, mask)


def photograph(c: Raster, linear_rgb: np.ndarray, photo: Photo) -> np.ndarray:
    """Expose, blur, add sensor noise and compression: uint8 [size, size, 3], C-contiguous."""
    size = c.size
    r = np.random.default_rng(list(photo.noise_seed))
    radius = photo.blur * size
    # Sums of two uniforms are close enough to normal and much cheaper.
    grain = r.random((size, size), dtype=np.float32)
    grain -= r.random((size, size), dtype=np.float32)
    grain *= 2.45 * 255 * photo.noise
    grain += 0.5  # rounds when the value is truncated to a byte
    out = np.empty((size, size, 3), np.uint8)
    for channel, plane in enumerate(linear_rgb):
        plane *= photo.exposure
        np.minimum(plane, 1.6, out=plane)
        np.maximum(plane, 0, out=plane)
        # A soft shoulder keeps highlights from clipping hard.
        plane /= 1 + 0.28 * plane
        np.sqrt(plane, out=plane)
        plane *= 255 * 1.2**0.5 * photo.contrast
        plane += 127.5 * (1 - photo.contrast)
        if radius > 0.3:
            plane = _blur(plane, radius)
        plane += grain
        if photo.noise > 0.008:
            coarse = r.random(((size + 1) // 2, (size + 1) // 2), dtype=np.float32)
            coarse -= 0.5
            coarse *= 1.7 * 255 * photo.noise
            plane += np.repeat(np.repeat(coarse, 2, 0), 2, 1)[:size, :size]
        np.minimum(plane, 255, out=plane)
        np.maximum(plane, 0, out=plane)
        out[:, :, channel] = plane
    if photo.jpeg:
        buffer = io.BytesIO()
        Image.fromarray(out).save(buffer, "JPEG", quality=photo.jpeg)
        out = np.ascontiguousarray(Image.open(buffer).convert("RGB"))
    return out


def _blur(plane: np.ndarray, radius: float) -> np.ndarray:
    """Two box blurs of one plane (0..255), float32."""
    packed = Image.fromarray(np.minimum(np.maximum(plane + 0.5, 0), 255).astype(np.uint8))
    box = ImageFilter.BoxBlur(radius * 0.9)
    return np.asarray(packed.filter(box).filter(box)).astype(np.float32)
