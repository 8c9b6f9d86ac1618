"""Training-time augmentation of a whole batch: flip, rotation, shift, light, erasing.

Flip, rotation and shift are one affine resampling, so a pixel is interpolated once. The published recipe
(flip, rotation up to 20 degrees, crop of 224 after padding by 32, erasing) is `PAPER`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """flip: probability. rotate: degrees, either way. shift: fraction of the side, either way (a random crop
    after padding). scale: relative zoom, either way. light: relative brightness and contrast, either way.
    erase: probability; erase_area: its fraction of the image, from and to."""

    flip: float = 0.5
    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    light: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.25)


PAPER = Augmentation(rotate=20.0, shift=32 / 224, erase=0.5)
# Rendered faces come with pose, light and occlusion of their own.
MILD = Augmentation(rotate=4.0, shift=0.04, scale=0.05, light=0.1)


def augment(images: Tensor, recipe: Augmentation, generator: torch.Generator) -> Tensor:
    """float32 pixels [N, 3, S, S] in 0..255 -> the same shape; what moves in from outside is black."""

    def uniform(count: int, reach: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * reach

    n, _, side, _ = images.shape
    angle = torch.deg2rad(uniform(n, recipe.rotate))
    zoom = 1 + uniform(n, recipe.scale)
    mirror = torch.where(torch.rand(n, generator=generator) < recipe.flip, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.cos(angle) * zoom * mirror
    theta[:, 0, 1] = -torch.sin(angle) * zoom
    theta[:, 1, 0] = torch.sin(angle) * zoom * mirror
    theta[:, 1, 1] = torch.cos(angle) * zoom
    theta[:, :, 2] = torch.stack([uniform(n, 2 * recipe.shift), uniform(n, 2 * recipe.shift)], dim=1)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    if recipe.light:
        gain = (1 + uniform(n, recipe.light)).reshape(n, 1, 1, 1).to(images.device)
        lift = (uniform(n, recipe.light) * 128).reshape(n, 1, 1, 1).to(images.device)
        images = ((images - 128) * gain + 128 + lift).clamp_(0, 255)
    if recipe.erase:
        _erase(images, recipe, generator, side)
    return images


def _erase(images: Tensor, recipe: Augmentation, generator: torch.Generator, side: int) -> None:
    """Replaces one rectangle (aspect 0.3 to 3.3) of some images by noise, in place."""
    low, high = recipe.erase_area
    for index in range(len(images)):
        chance, area, aspect, top, left = torch.rand(5, generator=generator).tolist()
        if chance >= recipe.erase:
            continue
        area = (low + (high - low) * area) * side * side
        ratio = 0.3 * (3.3 / 0.3) ** aspect
        h, w = min(side, max(1, round((area * ratio) ** 0.5))), min(side, max(1, round((area / ratio) ** 0.5)))
        y, x = round(top * (side - h)), round(left * (side - w))
        noise = torch.rand(3, h, w, generator=generator) * 255
        images[index, :, y : y + h, x : x + w] = noise.to(images.device)
