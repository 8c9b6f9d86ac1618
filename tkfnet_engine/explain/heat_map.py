"""An explanation as a picture: the crop, and each map laid over it, with its scale."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image

from ..atomic import write_atomically
from ..errors import UsageError
from ..pipeline.drawing import BLACK, put_text, text_size
from ..preprocess import check_crop
from .activations import Explanation

# Matplotlib's viridis (CC0) at ten even steps: even to the eye, and in order to readers who do not see all colours.
_VIRIDIS = (
    "440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725",
)  # fmt: skip
_STOPS = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in _VIRIDIS], np.float32)
TILE = 224
_TEXT, _SMALL, _GAP, _BAR = 14, 12, 12, 10
# How much of a heat map's colour is the map's, the rest is the face.
_STRENGTH = 0.6
_PAPER = (255, 255, 255)
_GREY = (90, 90, 90)


def heat_map(crop: np.ndarray, explanation: Explanation, label: str = "") -> np.ndarray:
    """uint8 RGB [H, W, 3] and its explanation -> uint8 RGB: the crop, DCIF's filter and TAFE's texture side by side.

    label: what is written over the crop, such as "happiness 97%". Each map has a scale of its own, from its least value
    to its greatest, which are written beside it. What the explanation lacks is left out; `UsageError` if it lacks both.
    """
    picture = Image.fromarray(check_crop(crop)).resize((TILE, TILE), Image.Resampling.BICUBIC)
    maps = [
        (title, values)
        for title, values in (
            ("DCIF: spatial filter  m", explanation.filter),
            ("TAFE: gated texture", explanation.texture),
        )
        if values is not None
    ]
    if not maps:
        raise UsageError("heat_map: got an explanation without maps, expected a filter, a texture or both")
    _, text_height = text_size("m", _TEXT)
    _, small_height = text_size("m", _SMALL)
    tile_top = _GAP + text_height + 4
    height = tile_top + TILE + 6 + _BAR + 3 + small_height + _GAP
    canvas = np.full((height, _GAP + (1 + len(maps)) * (TILE + _GAP), 3), _PAPER, np.uint8)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None] / 255
    tiles = [(label or "face", np.asarray(picture), None)]
    tiles += [(title, _overlay(grey, _scaled(values)), values) for title, values in maps]
    for number, (title, pixels, values) in enumerate(tiles):
        x = _GAP + number * (TILE + _GAP)
        put_text(canvas, x, _GAP, _fitting(title), _TEXT, BLACK)
        canvas[tile_top : tile_top + TILE, x : x + TILE] = pixels
        if values is not None:
            _scale(canvas, x, tile_top + TILE + 6, values)
    return canvas


def write_heat_map(path: str | os.PathLike, crop: np.ndarray, explanation: Explanation, label: str = "") -> None:
    """`heat_map` as a PNG file, whole or not at all. `FileError` where it cannot be written."""
    data = io.BytesIO()
    Image.fromarray(heat_map(crop, explanation, label)).save(data, "PNG")
    write_atomically(path, data.getvalue())


def colours(values: np.ndarray) -> np.ndarray:
    """float [...] from 0 to 1 -> uint8 RGB [..., 3]."""
    return _coloured(values).round().astype(np.uint8)


def _coloured(values: np.ndarray) -> np.ndarray:
    position = np.clip(np.asarray(values, np.float32), 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(position.astype(np.intp), len(_STOPS) - 2)
    share = (position - below)[..., None]
    return _STOPS[below] * (1 - share) + _STOPS[below + 1] * share


def _scaled(values: np.ndarray) -> np.ndarray:
    """[side, side] -> [TILE, TILE] from 0 (the least value) to 1 (the greatest); a flat map is 0.5 all over."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.full((TILE, TILE), 0.5, np.float32)
    unit = (values.astype(np.float32) - low) / (high - low)
    # Between the centres of the cells a straight line: the cells stay where the network has them.
    return np.asarray(Image.fromarray(unit).resize((TILE, TILE), Image.Resampling.BILINEAR)).clip(0, 1)


def _overlay(grey: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The face in grey [TILE, TILE, 1], 0 to 1, tinted by the map [TILE, TILE]."""
    mixed = _STRENGTH * _coloured(values) + (1 - _STRENGTH) * 255 * grey
    return mixed.round().clip(0, 255).astype(np.uint8)


def _scale(canvas: np.ndarray, x: int, y: int, values: np.ndarray) -> None:
    canvas[y : y + _BAR, x : x + TILE] = colours(np.linspace(0, 1, TILE))
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    middle = f"{values.shape[1]} x {values.shape[0]}, mean {values.mean():.3g}"
    y += _BAR + 3
    put_text(canvas, x, y, low, _SMALL, _GREY)
    put_text(canvas, x + (TILE - text_size(middle, _SMALL)[0]) // 2, y, middle, _SMALL, _GREY)
    put_text(canvas, x + TILE - text_size(high, _SMALL)[0], y, high, _SMALL, _GREY)


def _fitting(text: str) -> str:
    while text_size(text, _TEXT)[0] > TILE:
        text = text.removesuffix("..")[:-1] + ".."
    return text
