"""TAFE, texture-aware feature extraction: a statistics gate and a local-detail branch over one map.

Source: arXiv 2505.09967 and the published code (mindspore-lab/models, official/cv/TKFNet).

    y, x = split(conv1x1[C -> 2C](f))
    g    = gelu(conv1x1(alpha * dwconv3x3(pool(x)) + beta * var(x)))
    z    = conv1x1(x * upsample(g) + conv1x1(gelu(conv1x1(dwconv3x3[C -> 2C](y)))))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The gate looks at the map pooled by this factor (1x1 for the 7x7 map of a 224x224 crop).
POOL_FACTOR = 8


def spatial_variance(x: Tensor) -> Tensor:
    """Population variance over H, W: [N, C, H, W] -> [N, C, 1, 1]. Two passes, so nothing cancels."""
    centred = x - x.mean((2, 3), keepdim=True)
    return (centred * centred).mean((2, 3), keepdim=True)


class TAFE(nn.Module):
    """[N, C, H, W] -> [N, C, H, W]. pool: "max" (the paper) or "nearest" (the published code)."""

    def __init__(self, channels: int, pool: str):
        super().__init__()
        self.pool = pool
        self.split = nn.Conv2d(channels, 2 * channels, 1)
        self.pool_conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gate = nn.Conv2d(channels, channels, 1)
        self.detail = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=channels),
            nn.Conv2d(2 * channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.merge = nn.Conv2d(channels, channels, 1)

    def pooled(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, max(H//8, 1), max(W//8, 1)]."""
        size = (max(x.shape[2] // POOL_FACTOR, 1), max(x.shape[3] // POOL_FACTOR, 1))
        if self.pool == "max":
            return F.adaptive_max_pool2d(x, size)
        return F.interpolate(x, size, mode="nearest")

    def forward(self, f: Tensor) -> Tensor:
        y, x = self.split(f).chunk(2, dim=1)
        statistics = self.alpha * self.pool_conv(self.pooled(x)) + self.beta * spatial_variance(x)
        g = F.gelu(self.gate(statistics))
        gated = x * F.interpolate(g, x.shape[2:], mode="nearest")
        return self.merge(gated + self.detail(y))
