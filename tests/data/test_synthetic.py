"""The synthetic faces: determinism, contracts, and that every expression can be seen."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tkfnet_engine.data.synthetic import (
    DIFFICULTY,
    EXPRESSIONS,
    SyntheticFaces,
    contact_sheet,
    expression_parameters,
    render_face,
)

NEUTRAL = EXPRESSIONS.index("neutral")
# Rows and columns (fractions of the side) where an expression acts most.
UPPER, LOWER = (0.28, 0.52), (0.52, 0.86)
REGION = {"surprise": UPPER, "fear": UPPER, "disgust": LOWER, "happiness": LOWER, "sadness": LOWER, "anger": UPPER}


def _crop(image: np.ndarray, rows: tuple[float, float]) -> np.ndarray:
    n = len(image)
    return image[int(rows[0] * n) : int(rows[1] * n), int(0.22 * n) : int(0.78 * n)].astype(np.float32)


def test_expression_order_is_fixed():
    assert EXPRESSIONS == ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


@pytest.mark.parametrize("size", [48, 112, 224])
def test_image_contract(size):
    image = render_face(3, 2, 5, size=size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.std() > 10


def test_same_arguments_give_same_bytes():
    first = [render_face(i, i % 7, i, seed=4, size=96).tobytes() for i in range(12)]
    again = [render_face(i, i % 7, i, seed=4, size=96).tobytes() for i in reversed(range(12))]
    assert first == again[::-1]


def test_any_argument_changes_the_picture():
    base = render_face(1, 3, 1, size=64)
    for other in (
        render_face(2, 3, 1, size=64),
        render_face(1, 3, 2, size=64),
        render_face(1, 3, 1, seed=1, size=64),
        render_face(1, 4, 1, size=64),
    ):
        assert np.abs(base.astype(int) - other).mean() > 0.5


def test_sizes_show_the_same_scene():
    big = render_face(5, 0, 3, size=224).reshape(56, 4, 56, 4, 3).mean((1, 3))
    small = render_face(5, 0, 3, size=112).reshape(56, 2, 56, 2, 3).mean((1, 3))
    assert np.abs(big - small).mean() < 6


def test_random_pictures_are_finite_and_varied():
    with np.errstate(all="raise", under="ignore"):
        images = [render_face(i, i % 7, i, seed=9, size=64) for i in range(40)]
    assert all(image.std() > 3 for image in images)


@pytest.mark.parametrize("name", sorted(REGION))
def test_expression_differs_from_neutral_where_it_acts(name):
    label = EXPRESSIONS.index(name)
    inside, outside = [], []
    for person in range(6):
        face = render_face(person, label, 1, size=96, intensity=1.0)
        calm = render_face(person, NEUTRAL, 1, size=96, intensity=1.0)
        inside.append(np.abs(_crop(face, REGION[name]) - _crop(calm, REGION[name])).mean())
        # The photograph is the same, so the upper corners hold only what the camera changes.
        corner = np.abs(face[:12, :12].astype(np.float32) - calm[:12, :12]).mean()
        outside.append(corner)
    assert np.mean(inside) > 2.0
    assert np.mean(inside) > 4 * np.mean(outside)


def test_texture_only_keeps_geometry_and_changes_folds():
    for person in range(5):
        shown = [expression_parameters(person, e, 2, texture_only=True) for e in range(7)]
        vectors = np.stack([geometry.vector() for geometry, _ in shown])
        assert (vectors == vectors[0]).all()
        folds = np.stack([activation.values for _, activation in shown])
        for e in range(7):
            for f in range(e):
                assert np.abs(folds[e] - folds[f]).max() > 0.1
        free = np.stack([expression_parameters(person, e, 2)[0].vector() for e in range(7)])
        assert np.ptp(free, axis=0).max() > 0.03
    a, b = (render_face(1, e, 2, size=112, texture_only=True, intensity=1.0) for e in (5, 6))
    assert np.abs(a.astype(int) - b).mean() > 0.1


def test_left_out_expression_strength_is_within_the_difficulty_range():
    low, high = DIFFICULTY.intensity
    assert 0 < low < high <= 1


def test_dataset_contract():
    faces = SyntheticFaces(70, seed=2, split="val", size=64)
    assert len(faces) == 70
    assert faces.labels.dtype == faces.groups.dtype == np.int64
    assert np.bincount(faces.labels, minlength=7).tolist() == [10] * 7
    assert np.unique(faces.groups).size == 10
    assert (faces.labels == np.arange(70) % 7).all()
    assert faces.image(3).shape == (64, 64, 3)
    assert (faces.image(-1) == faces.image(69)).all()
    assert faces.source(3) == "synthetic:seed=2,split=val,index=3"
    assert "val" in faces.name


def test_splits_share_no_subject_and_no_picture():
    sets = [SyntheticFaces(21, seed=0, split=s, size=48) for s in ("train", "val", "test")]
    groups = [set(s.groups.tolist()) for s in sets]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert len({s.image(0).tobytes() for s in sets}) == 3


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: render_face(0, 7), "expression"),
        (lambda: render_face(-1, 0), "identity"),
        (lambda: render_face(0, 0, -2), "take"),
        (lambda: render_face(0, 0, seed=-1), "seed"),
        (lambda: render_face(0, 0, size=4), "size"),
        (lambda: render_face(0, 1.5), "expression"),
        (lambda: SyntheticFaces(0), "n"),
        (lambda: SyntheticFaces(7, split="dev"), "split"),
        (lambda: SyntheticFaces(7, size=64).image(7), "index"),
        (lambda: SyntheticFaces(7, size=64).source(9), "index"),
        (lambda: contact_sheet(0), "people"),
    ],
)
def test_bad_arguments_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "received" in str(error.value) and "expected" in str(error.value)


def test_contact_sheet_has_a_row_per_person_and_a_column_per_expression():
    sheet = contact_sheet(2, size=48)
    assert sheet.width == 7 * 48
    assert sheet.height > 2 * 48


def test_report_throughput():
    for size in (224, 112):
        faces = SyntheticFaces(21, size=size)
        start = time.process_time()
        for i in range(len(faces)):
            faces.image(i)
        print(f"\nsize {size}: {len(faces) / (time.process_time() - start):.0f} images/s")
