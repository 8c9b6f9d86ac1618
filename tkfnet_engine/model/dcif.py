"""DCIF, dual-context information filtering: a channel filter, then a spatial filter.

Source: arXiv 2505.09967 and the published code (mindspore-lab/models, official/cv/TKFNet).

    c = sigmoid(fc(relu(bn(fc(mean over H, W of z)))))                                  per channel
    m = sigmoid(conv7x7(concat(mean over channels, max over channels of z * c)))        per position
    z -> z * c * m
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 16


class DCIF(nn.Module):
    """[N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // REDUCTION, 1)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        c = torch.sigmoid(self.channel(z.mean((2, 3))))
        z = z * c[:, :, None, None]
        context = torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], dim=1)
        return z * torch.sigmoid(self.spatial(context))
