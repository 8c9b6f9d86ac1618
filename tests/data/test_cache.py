"""The decoded set in memory: every image in its place, with and without workers, and never too much."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.data import cache, open_data
from tkfnet_engine.data.cache import load_all, resize_all
from tkfnet_engine.data.faceset import FaceSet
from tkfnet_engine.errors import DataError
from tkfnet_engine.preprocess import resize_crop


class _Faces:
    """Image i, of another size than its neighbours."""

    name = "fake"

    def __init__(self, count: int):
        self.count, self.asked = count, []

    def __len__(self) -> int:
        return self.count

    def image(self, i: int) -> np.ndarray:
        self.asked.append(i)
        return np.random.default_rng(i).integers(0, 256, (20 + i % 7, 30 - i % 5, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path):
    paths = []
    for i in range(5):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(paths[-1])
    return FaceSet("files", paths, [0, 1, 2, 3, 4], layout="test")


@pytest.mark.parametrize("count", [1, cache.CHUNK, cache.CHUNK + 1, 71])
def test_every_image_once_and_in_its_place(count):
    faces = _Faces(count)
    images = load_all(faces, 16, workers=1)
    assert images.shape == (count, 16, 16, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert faces.asked == list(range(count))
    for i in range(count):
        np.testing.assert_array_equal(images[i], resize_crop(_Faces(count).image(i), 16))


def test_an_empty_set():
    assert load_all(_Faces(0), 16).shape == (0, 16, 16, 3)


def test_workers_give_the_same_images(files, monkeypatch):
    expected = load_all(files, 12, workers=1)
    monkeypatch.setattr(cache, "WORTH_WORKERS", 1)
    monkeypatch.setattr(cache, "CHUNK", 2)
    assert np.array_equal(load_all(files, 12, workers=2), expected)


def test_a_small_set_starts_no_workers(monkeypatch):
    monkeypatch.setattr(cache, "ProcessPoolExecutor", None)
    assert len(load_all(_Faces(3), 8, workers=4)) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_file_is_named(files, monkeypatch, workers):
    monkeypatch.setattr(cache, "WORTH_WORKERS", 1)
    with open(files.source(3), "wb") as file:
        file.write(b"not an image")
    with pytest.raises(DataError, match=r"files, image 3: .*3\.png"):
        load_all(files, 12, workers=workers)


def test_too_much_is_refused_before_anything_is_read():
    faces = _Faces(10**9)
    with pytest.raises(DataError, match=r"fake: 1000000000 images at 224x224 need \d+ MiB, expected at most half"):
        load_all(faces, 224)
    assert not faces.asked


def test_synthetic_faces_are_drawn_then_shrunk():
    faces = open_data("synthetic:n=7,seed=4", "train")
    images = load_all(faces, 48, workers=1)
    np.testing.assert_array_equal(images[2], resize_crop(faces.image(2), 48))


def test_resize_all():
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    assert resize_all(images, 40) is images
    for size in (16, 64):
        got = resize_all(images, size)
        assert got.shape == (4, size, size, 3) and got.dtype == np.uint8
        for i in range(4):
            np.testing.assert_array_equal(got[i], resize_crop(images[i], size))
    assert resize_all(images[:0], 16).shape == (0, 16, 16, 3)
