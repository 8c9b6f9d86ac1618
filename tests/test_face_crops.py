"""Crops are framed as the network's were, upright where landmarks say how, black outside, and averaged when shrunk."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import ImageError, UsageError
from tkfnet_engine.face_crops import CROPS, MARGIN, TEMPLATE, check_crop_fits, crop_of, cut_face
from tkfnet_engine.faces import Face
from tkfnet_engine.preprocess import crop_box, resize_crop

from . import scenes

RNG = np.random.default_rng(5)
POINTS = np.array(TEMPLATE)


def picture(width: int, height: int) -> np.ndarray:
    """Smooth enough to be interpolated, and with nothing that repeats."""
    small = RNG.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def face(box, landmarks=None) -> Face:
    return Face(tuple(map(float, box)), landmarks and tuple(tuple(map(float, p)) for p in landmarks))


def on_square(x: float, y: float, side: float, degrees: float = 0.0) -> list:
    """The template's points where the crop is a square at (x, y), turned clockwise about its middle."""
    turn = np.exp(1j * np.radians(degrees))
    z = x + y * 1j + side * (0.5 + 0.5j + (POINTS @ [1, 1j] - 0.5 - 0.5j) * turn)
    return np.stack([z.real, z.imag], 1).tolist()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("box", [(10, 20, 64, 64), (0, 0, 160, 120), (3, 5, 1, 1), (40, 10, 30, 90)], ids=str)
@pytest.mark.parametrize("size", [32, 64, 224])
def test_given_is_the_box_itself(box, size):
    image = picture(160, 120)
    got = cut_face(image, face(box), size, "given")
    np.testing.assert_array_equal(got, resize_crop(crop_box(image, box), size))
    assert got.dtype == np.uint8 and got.flags.c_contiguous


def test_a_crop_is_a_copy():
    image = picture(64, 64)
    for crop in ("given", "margin"):
        got = cut_face(image, face((0, 0, 64, 64)), 64, crop)
        np.testing.assert_array_equal(got, image)
        assert not np.shares_memory(got, image)


def test_margin_is_a_square_around_the_middle():
    image = picture(300, 200)
    # 40 x 20 with half a side more on each side: 80 x 80 around (120, 90).
    got = cut_face(image, face((100, 80, 40, 20)), 80, "margin", margin=0.5)
    np.testing.assert_array_equal(got, image[50:130, 80:160])
    np.testing.assert_array_equal(
        cut_face(image, face((100, 80, 40, 20)), 40, "margin", margin=0), image[70:110, 100:140]
    )
    side = round(60 * (1 + 2 * MARGIN))
    left, top = round(130 - side / 2), round(100 - side / 2)
    want = resize_crop(image[top : top + side, left : left + side], 48)
    np.testing.assert_array_equal(cut_face(image, face((100, 70, 60, 60)), 48), want)


@pytest.mark.parametrize("size", [16, 100, 150])
def test_outside_the_picture_is_black(size):
    image = np.full((100, 100, 3), 200, np.uint8)
    for crop, box in (("given", (-50, -50, 100, 100)), ("margin", (-25, -25, 50, 50))):
        got = cut_face(image, face(box), size, crop, margin=0.5)
        inner = got[size // 2 + 1 :, size // 2 + 1 :]
        assert inner.min() == 200 and got[: size // 2 - 1].max() == 0 and got[:, : size // 2 - 1].max() == 0, crop
    got = cut_face(image, face((0, 0, 1, 1), on_square(-50, -50, 100)), size)
    assert got[size // 2 + 1 :, size // 2 + 1 :].min() == 200 and got[: size // 2 - 1].max() == 0


def test_over_the_edge_is_what_padding_by_hand_gives():
    image = picture(90, 70)
    padded = np.pad(image, ((40, 40), (40, 40), (0, 0)))
    for box in ((-20, -10, 60, 60), (50, 30, 60, 64), (-30, -30, 150, 130)):
        want = resize_crop(crop_box(padded, (box[0] + 40, box[1] + 40, *box[2:])), 32)
        np.testing.assert_array_equal(cut_face(image, face(box), 32, "given"), want, str(box))


def test_landmarks_on_the_template_change_nothing():
    # Pillow's bilinear sampling cuts fractions off.
    image = picture(96, 96)
    np.testing.assert_allclose(cut_face(image, face((0, 0, 1, 1), on_square(0, 0, 96)), 96).astype(int), image, atol=1)
    image = picture(200, 150)
    got = cut_face(image, face((0, 0, 1, 1), on_square(30, 20, 96)), 96)
    assert difference(got, image[20:116, 30:126]) < 1
    smaller = cut_face(image, face((0, 0, 1, 1), on_square(30, 20, 96)), 48)
    np.testing.assert_allclose(smaller.astype(int), resize_crop(got, 48), atol=1)


@pytest.mark.parametrize("degrees", [-20, 20, 90, 180])
@pytest.mark.parametrize("side", [60, 130, 210])
def test_a_turned_face_comes_out_upright(degrees, side):
    one = scenes.portrait(3)
    upright = np.asarray(Image.fromarray(one.image).resize((side, side), Image.Resampling.BICUBIC))
    scene = np.pad(upright, ((side, side), (side, side), (0, 0)))
    # Pillow turns anticlockwise, about the middle of the picture.
    turned = np.asarray(Image.fromarray(scene).rotate(-degrees, Image.Resampling.BICUBIC))
    straight = cut_face(scene, face((0, 0, 1, 1), on_square(side, side, side)), 64)
    got = cut_face(turned, face((0, 0, 1, 1), on_square(side, side, side, degrees)), 64)
    tilted = cut_face(turned, face((side, side, side, side)), 64, "given")
    assert difference(got, straight) < 4 < 0.3 * difference(tilted, straight)


def test_the_fit_is_by_least_squares():
    image = picture(400, 400)
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(0, 8, (5, 2))
        points = np.array(on_square(120, 130, 150, 12)) + noise
        # Umeyama's similarity as a linear system in a, b, x, y, solved by numpy; then the points it stands for exactly.
        design = np.concatenate([[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points])
        (a, b, x, y), *_ = np.linalg.lstsq(design, POINTS.ravel(), rcond=None)
        exact = np.linalg.solve([[a, -b], [b, a]], (POINTS - [x, y]).T).T
        want = cut_face(image, face((0, 0, 1, 1), exact.tolist()), 100)
        got = cut_face(image, face((0, 0, 1, 1), points.tolist()), 100)
        np.testing.assert_allclose(got.astype(int), want, atol=1)
        assert difference(got, cut_face(image, face((0, 0, 1, 1), (points - noise).tolist()), 100)) > 1


@pytest.mark.parametrize("degrees", [0, 30])
def test_shrinking_averages_all_pixels(degrees):
    # One-pixel stripes: sampled, they would come out as stripes or plain black and white; averaged, as grey.
    stripes = np.zeros((1200, 1200, 3), np.uint8)
    stripes[:, ::2] = 255
    for side, size in ((700, 64), (900, 100), (1100, 32)):
        got = cut_face(stripes, face((0, 0, 1, 1), on_square(50, 50, side, degrees)), size)
        inside = got[size // 4 : -size // 4, size // 4 : -size // 4]
        assert abs(inside.astype(int) - 127).max() < 16, (side, size)


def test_a_face_in_a_large_picture_is_the_same_face():
    # From 256 to 2,048 pixels onto 32: whole blocks are averaged before it is turned.
    small = picture(300, 280)
    for times in (1, 4, 8):
        image = np.repeat(np.repeat(small, times, 0), times, 1)
        for degrees in (0, 30):
            points = np.array(on_square(20, 10, 256, degrees)) * times
            got = cut_face(image, face((0, 0, 1, 1), points.tolist()), 32)
            want = cut_face(small, face((0, 0, 1, 1), on_square(20, 10, 256, degrees)), 32)
            assert difference(got, want) < 1.5, (times, degrees)


def test_enlarging_interpolates_once():
    image = picture(60, 60)
    got = cut_face(image, face((0, 0, 1, 1), on_square(10, 10, 40)), 160)
    assert difference(got[8:-8, 8:-8], resize_crop(image[10:50, 10:50], 160)[8:-8, 8:-8]) < 1


def test_a_face_far_larger_than_its_picture_costs_no_memory():
    image = picture(64, 64)
    for box in ((-400_000, -400_000, 800_000, 800_000), (-5e5, 0, 1e6, 1)):
        assert cut_face(image, face(box), 32, "given").shape == (32, 32, 3)
    assert cut_face(image, face((0, 0, 1, 1), on_square(-3e5, -3e5, 6e5)), 32).max() <= 255


def test_both_crops_frame_a_face_as_it_was_rendered():
    """A detector's box with the default margin, and landmarks on the template, give the training crop back."""
    pytest.importorskip("cv2")
    from tkfnet_engine.faces import HaarDetector

    sides, middles = [], []
    for count, seed in ((5, 0), (5, 1), (5, 2), (12, 1), (12, 2), (12, 3)):
        group = scenes.group(count, seed)
        image, found = group.image, HaarDetector().find_faces(group.image)
        for one, crop, points in zip(found, group.crops, group.landmarks, strict=True):
            x, y, side, _ = map(round, crop)
            bx, by, bw, bh = one.box
            sides.append(max(bw, bh) * (1 + 2 * MARGIN) / crop[2])
            middles.append(((bx + bw / 2 - crop[0]) / side - 0.5, (by + bh / 2 - crop[1]) / side - 0.5))
            own = resize_crop(image[y : y + side, x : x + side], 64)
            aligned = cut_face(image, face(one.box, points.tolist()), 64)
            larger = cut_face(image, face(crop), 64, "margin", margin=0.2)
            assert difference(aligned, own) < difference(larger, own)
    assert abs(np.median(sides) - 1) < 0.05 and min(sides) > 0.75 and max(sides) < 1.3
    assert np.abs(np.median(middles, 0)).max() < 0.07 and np.abs(middles).max() < 0.16


def test_the_template_is_where_the_renderer_draws():
    truths = [scenes.truth(i, i % 7, i, seed=11)[1] for i in range(280)]
    mean = np.mean(truths, 0)
    np.testing.assert_allclose(POINTS, mean, atol=0.006)
    np.testing.assert_allclose(POINTS[[0, 3], 0] + POINTS[[1, 4], 0], 1, atol=1e-9)


def test_crop_of():
    assert crop_of(face((0, 0, 9, 9))) == "margin" and crop_of(face((0, 0, 9, 9)), "given") == "given"
    good = on_square(10, 10, 80, 25)
    assert crop_of(face((0, 0, 9, 9), good)) == crop_of(face((0, 0, 9, 9), good), "given") == "five-point"
    mirrored = [good[i] for i in (1, 0, 2, 4, 3)]
    for bad in (mirrored, [[5, 5]] * 5, [[np.nan, 1]] * 5, [[np.inf, 1], *good[1:]], [[1e300, 1], *good[1:]], good[:4]):
        assert crop_of(face((0, 0, 9, 9), bad)) == "margin", bad
        with pytest.raises(ImageError, match=r"landmarks: got .* expected both eyes.*left to right.*margin"):
            cut_face(picture(100, 100), face((0, 0, 9, 9), bad), 32, "five-point")
    # Seen from the side, the points lie nearly on a line and are a face's all the same.
    profile = np.array(good)
    profile[:, 0] = 50 + 0.15 * (profile[:, 0] - 50)
    assert crop_of(face((0, 0, 9, 9), profile.tolist())) == "five-point"


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (0, 0, 5, -1), (np.nan, 0, 5, 5), (0, np.inf, 5, 5), (0, 0, 2e6, 5)], ids=str
)
@pytest.mark.parametrize("crop", ["given", "margin"])
def test_a_box_that_is_none(box, crop):
    with pytest.raises(ImageError, match=r"box: got .*expected X, Y, W, H"):
        cut_face(picture(64, 64), face(box), 32, crop)


def test_a_face_outside_its_picture():
    image = picture(64, 48)
    for box in ((70, 0, 10, 10), (0, 50, 10, 10), (-20, 0, 10, 10), (0, -30, 10, 10)):
        with pytest.raises(ImageError, match="expected it to touch the 64 x 48 pixels"):
            cut_face(image, face(box), 32, "given")
    with pytest.raises(ImageError, match="expected it to touch"):
        cut_face(image, face((0, 0, 1, 1), on_square(500, 500, 80)), 32)
    with pytest.raises(ImageError, match="landmarks: got None"):
        cut_face(image, face((0, 0, 9, 9)), 32, "five-point")


def test_arguments():
    image = picture(64, 48)
    with pytest.raises(UsageError, match="crop: got 'tight', expected one of given, margin, five-point"):
        cut_face(image, face((0, 0, 9, 9)), 32, "tight")
    for margin in (-0.1, 2.1, float("nan"), True, "0.2", None):
        with pytest.raises(UsageError, match=r"margin: got .*from 0 to 2"):
            cut_face(image, face((0, 0, 9, 9)), 32, "margin", margin)
    with pytest.raises(UsageError, match="size: got 0"):
        cut_face(image, face((0, 0, 9, 9)), 0)
    with pytest.raises(ImageError, match="expected an array uint8"):
        cut_face(image[..., 0], face((0, 0, 9, 9)), 32)


def test_which_crops_fit_which_engine():
    for trained, used in itertools.product(CROPS, CROPS):
        warning = check_crop_fits(trained, used)
        assert (warning is None) == (trained == used or "given" in (trained, used)), (trained, used)
    assert "--detector yunet:FILE" in check_crop_fits("five-point", "margin")
    assert "--detector haar" in check_crop_fits("margin", "five-point")
