"""Augmentation, one transformation at a time."""

from __future__ import annotations

import pytest
import torch

from tkfnet_engine.data.transforms import MILD, PAPER, Augmentation, augment

NONE = Augmentation(flip=0.0)
# float32 sampling positions are off by some 1e-5 of a pixel, between neighbours at most 255 apart.
INTERPOLATION = 0.02


def _pixels(n: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed)).float()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [32, 48, 75, 224])
def test_no_augmentation_is_the_identity(side):
    images = _pixels(side=side)
    got = augment(images.clone(), NONE, _generator())
    assert got.shape == images.shape and got.dtype == torch.float32
    assert float((got - images).abs().max()) <= INTERPOLATION


@pytest.mark.parametrize("side", [32, 75])
def test_flip_alone_is_the_mirror_image(side):
    images = _pixels(side=side)
    got = augment(images.clone(), Augmentation(flip=1.0), _generator())
    # At a power of two every sampling position is exact.
    assert float((got - images.flip(3)).abs().max()) <= (0 if side == 32 else INTERPOLATION)


def test_flip_takes_its_share():
    images = torch.zeros(1000, 3, 2, 2)
    images[..., 0] = 200
    flipped = augment(images, Augmentation(flip=0.3), _generator())[:, 0, 0, 1] > 100
    assert 0.24 < float(flipped.float().mean()) < 0.36


def _offsets(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass from the middle, in pixels: [N, 2] as (down, right)."""
    weights = images[:, 0].double()
    place = torch.arange(weights.shape[1]) - (weights.shape[1] - 1) / 2
    total = weights.sum((1, 2))
    return torch.stack([(weights.sum(2) * place).sum(1) / total, (weights.sum(1) * place).sum(1) / total], 1)


def test_shift_reaches_as_far_as_it_says_both_ways():
    images = torch.zeros(500, 3, 64, 64)
    images[:, :, 24:40, 24:40] = 200
    moved = augment(images, Augmentation(flip=0.0, shift=0.125), _generator())
    offsets = _offsets(moved)
    assert float(offsets.abs().max()) <= 8 + 1e-3
    assert float(offsets.min(0).values.max()) < -7.5 and float(offsets.max(0).values.min()) > 7.5
    assert float(offsets.mean(0).abs().max()) < 1
    # Nothing but the place changes.
    torch.testing.assert_close(moved.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-4, atol=0)


def test_shift_moves_by_that_many_pixels_and_fills_black(monkeypatch):
    """With the draw pinned: the grid's reach is 1, so every picture moves by the whole distance."""
    monkeypatch.setattr(torch, "rand", lambda *size, generator=None: torch.ones(*size))
    images = _pixels(side=32) + 1
    moved = augment(images.clone(), Augmentation(flip=0.0, shift=0.25), _generator())
    assert float((moved[:, :, :24, :24] - images[:, :, 8:, 8:]).abs().max()) <= INTERPOLATION
    assert not moved[:, :, 24:].any() and not moved[:, :, :, 24:].any()


def test_rotation_turns_by_at_most_its_angle():
    images = torch.zeros(300, 3, 65, 65)
    images[:, :, 31:34, 56:59] = 200  # right of the middle, 25 pixels away
    offsets = _offsets(augment(images, Augmentation(flip=0.0, rotate=20.0), _generator()))
    angles = torch.rad2deg(torch.atan2(offsets[:, 0], offsets[:, 1]))
    assert 19 < float(angles.max()) <= 20.1 and -20.1 <= float(angles.min()) < -19
    torch.testing.assert_close(offsets.norm(dim=1), torch.full((300,), 25.0, dtype=torch.float64), rtol=0, atol=0.1)


def test_zoom_keeps_the_middle():
    images = torch.zeros(300, 3, 64, 64)
    images[:, :, 16:48, 16:48] = 100
    zoomed = augment(images, Augmentation(flip=0.0, scale=0.2), _generator())
    assert float(_offsets(zoomed).abs().max()) < 1e-3
    area = zoomed[:, 0].sum((1, 2)) / images[:, 0].sum((1, 2))
    assert 1 / 1.21**2 < float(area.min()) < 0.75 and 1.45 < float(area.max()) < 1 / 0.79**2


def test_light_changes_brightness_and_contrast_of_whole_images():
    images = torch.full((200, 3, 4, 4), 128.0)
    images[:, :, :, 2:] = 168
    lit = augment(images, Augmentation(flip=0.0, light=0.1), _generator())
    low, high = lit[:, 0, 0, 0], lit[:, 0, 0, 3]
    assert float((low - 128).abs().max()) <= 12.8 + INTERPOLATION and float((low - 128).abs().max()) > 11
    contrast = (high - low) / 40
    assert 0.9 - 1e-3 <= float(contrast.min()) < 0.92 and 1.08 < float(contrast.max()) <= 1.1 + 1e-3


def _erased(images: torch.Tensor) -> list[tuple[int, int] | None]:
    """(height, width) of what is not black any more, checked to be one full rectangle."""
    boxes = []
    for image in images:
        hit = (image > 0).any(0)
        rows, columns = hit.any(1).nonzero()[:, 0], hit.any(0).nonzero()[:, 0]
        if not len(rows):
            boxes.append(None)
            continue
        box = hit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        boxes.append(tuple(box.shape))
    return boxes


@pytest.mark.parametrize("area", [(0.02, 0.25), (0.1, 0.1)])
def test_erasing_stays_within_its_area_and_aspect(area):
    side = 112
    boxes = _erased(
        augment(torch.zeros(300, 3, side, side), Augmentation(0.0, erase=1.0, erase_area=area), _generator())
    )
    assert None not in boxes
    for h, w in boxes:
        # Each side is rounded to a pixel.
        assert (h - 0.5) * (w - 0.5) <= area[1] * side**2 and (h + 0.5) * (w + 0.5) >= area[0] * side**2
        assert (h - 0.5) / (w + 0.5) <= 3.3 and (h + 0.5) / (w - 0.5) >= 0.3
    shares = [h * w / side**2 for h, w in boxes]
    assert area[0] == area[1] or (min(shares) < 0.04 and max(shares) > 0.22)


def test_erasing_takes_its_share_and_reaches_the_borders():
    images = augment(torch.zeros(600, 3, 48, 48), Augmentation(0.0, erase=0.5), _generator())
    boxes = _erased(images)
    assert 0.42 < sum(b is not None for b in boxes) / 600 < 0.58
    hit = (images > 0).any(0).any(0)
    assert hit[0].any() and hit[-1].any() and hit[:, 0].any() and hit[:, -1].any()
    filled = images[images > 0]
    assert 115 < float(filled.mean()) < 140 and float(filled.max()) <= 255  # noise, not one colour


def test_whole_image_may_be_erased():
    image = augment(torch.zeros(4, 3, 8, 8), Augmentation(0.0, erase=1.0, erase_area=(1.0, 1.0)), _generator())
    assert image.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("recipe", [PAPER, MILD, Augmentation(0.5, 45, 0.3, 0.3, 0.9, 1.0)], ids=str)
def test_range_and_shape(recipe):
    images = _pixels(16)
    images[:4], images[4:8] = 0, 255
    got = augment(images, recipe, _generator(3))
    assert got.shape == images.shape and got.isfinite().all()
    assert float(got.min()) >= 0 and float(got.max()) <= 255 + 1e-3


@pytest.mark.parametrize("recipe", [PAPER, MILD], ids=str)
def test_the_generator_alone_decides(recipe):
    images = _pixels(8)
    first = augment(images.clone(), recipe, _generator(1))
    torch.rand(100)
    assert torch.equal(first, augment(images.clone(), recipe, _generator(1)))
    assert not torch.equal(first, augment(images.clone(), recipe, _generator(2)))
    # Images of a batch are drawn for separately.
    same = augment(images[:1].expand(8, -1, -1, -1), recipe, _generator(1))
    assert all(not torch.equal(same[0], same[i]) for i in range(1, 8))


def test_the_input_stays():
    images = _pixels()
    before = images.clone()
    augment(images, Augmentation(0.5, 10, 0.1, 0.1, 0.2, 1.0), _generator())
    assert torch.equal(images, before)


def test_the_published_recipe():
    assert Augmentation(0.5, 20.0, 32 / 224, 0.0, 0.0, 0.5, (0.02, 0.25)) == PAPER
