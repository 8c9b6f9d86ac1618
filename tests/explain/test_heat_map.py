"""The picture of an explanation: where the map is strong the colour says so, and the scale tells the numbers."""

from __future__ import annotations

import importlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import FileError, ImageError, UsageError
from tkfnet_engine.explain import Explanation, heat_map, write_heat_map
from tkfnet_engine.explain.heat_map import TILE, colours
from tkfnet_engine.pipeline.drawing import luminance

CROP = np.full((100, 100, 3), 128, np.uint8)
GAP = 12


def peak(row, column, side=7) -> np.ndarray:
    values = np.full((side, side), 0.25, np.float32)
    values[row, column] = 0.75
    return values


@pytest.fixture
def texts(monkeypatch):
    module = importlib.import_module("tkfnet_engine.explain.heat_map")
    put, found = module.put_text, []

    def noted(canvas, x, y, text, size, colour):
        found.append(text)
        put(canvas, x, y, text, size, colour)

    monkeypatch.setattr(module, "put_text", noted)
    return found


def tile(picture, number) -> np.ndarray:
    """The map `number` of a picture (0 is the crop)."""
    x = GAP + number * (TILE + GAP)
    rows = np.nonzero((picture[:, GAP] != 255).any(1))[0]
    return picture[rows[-1] + 1 - TILE : rows[-1] + 1, x : x + TILE]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 3), (6, 2), (1, 6)])
def test_the_strongest_place_is_the_brightest(row, column):
    picture = heat_map(CROP, Explanation(peak(row, column), peak(column, row)))
    assert picture.dtype == np.uint8 and picture.shape[1] == GAP + 3 * (TILE + GAP)
    assert (tile(picture, 0) == 128).all()
    for number, (r, c) in ((1, (row, column)), (2, (column, row))):
        brightness = tile(picture, number).astype(int).sum(2)
        y, x = np.unravel_index(brightness.argmax(), brightness.shape)
        assert (y * 7 // TILE, x * 7 // TILE) == (r, c)
        far = brightness[((r + 3) % 7) * 32 + 16, ((c + 3) % 7) * 32 + 16]
        assert brightness[r * 32 + 16, c * 32 + 16] - far > 150


def test_the_scale_tells_the_numbers(texts):
    heat_map(CROP, Explanation(peak(0, 0), 10 * peak(1, 1)), "anger 88%")
    assert texts == [
        "anger 88%",
        *("DCIF: spatial filter  m", "0.25", "7 x 7, mean 0.26", "0.75"),
        *("TAFE: gated texture", "2.5", "7 x 7, mean 2.6", "7.5"),
    ]


@pytest.mark.parametrize("which", ["filter", "texture"])
def test_what_is_missing_is_left_out(which, texts):
    maps = {"filter": None, "texture": None, which: peak(2, 2)}
    picture = heat_map(CROP, Explanation(**maps))
    assert picture.shape[1] == GAP + 2 * (TILE + GAP)
    assert any(("DCIF" in text) == (which == "filter") for text in texts[1:2]) and len(texts) == 5
    with pytest.raises(UsageError, match="without maps"):
        heat_map(CROP, Explanation(None, None))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 7), (14, 14)])
def test_flat_maps_and_other_sides(shape):
    picture = heat_map(CROP, Explanation(np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32)))
    assert len(np.unique(tile(picture, 1).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("shape", [(32, 32, 3), (224, 224, 3), (300, 200, 3), (1, 1, 3)])
def test_crops_of_any_size(shape):
    crop = np.zeros(shape, np.uint8)
    crop[..., 0] = 250
    picture = heat_map(crop, Explanation(peak(0, 0), None))
    assert (tile(picture, 0) == (250, 0, 0)).all()
    with pytest.raises(ImageError):
        heat_map(crop[..., 0], Explanation(peak(0, 0), None))


def test_the_face_can_be_seen_through_the_map():
    crop = CROP.copy()
    crop[:, :50] = 20
    shown = tile(heat_map(crop, Explanation(np.full((7, 7), 0.5, np.float32), None)), 1).astype(int)
    assert shown[:, 150:].mean() - shown[:, :90].mean() > 30


def test_colours_get_lighter_from_end_to_end():
    shades = colours(np.linspace(0, 1, 64))
    light = [luminance(tuple(map(int, shade))) for shade in shades]
    assert all(a < b for a, b in itertools.pairwise(light))
    assert tuple(shades[0]) == (68, 1, 84) and tuple(shades[-1]) == (253, 231, 37)
    assert (colours(np.array([-1.0, 2.0])) == shades[[0, -1]]).all()


def test_long_labels_are_cut(texts):
    picture = heat_map(CROP, Explanation(peak(0, 0), None), "x" * 200)
    assert texts[0].endswith("..") and 5 < len(texts[0]) < 60
    assert picture.shape[1] == GAP + 2 * (TILE + GAP)


def test_it_is_written_as_png(tmp_path):
    explanation = Explanation(peak(1, 2), peak(3, 4))
    write_heat_map(tmp_path / "x.png", CROP, explanation, "fear")
    with Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())) as image:
        assert image.format == "PNG"
        assert (np.asarray(image) == heat_map(CROP, explanation, "fear")).all()
    with pytest.raises(FileError):
        write_heat_map(tmp_path / "nowhere" / "x.png", CROP, explanation)
