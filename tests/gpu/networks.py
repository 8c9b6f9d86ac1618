"""Small networks of every kind, with random weights."""

from __future__ import annotations

import numpy as np
import torch

from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

NETWORKS = {
    "resnet18, width 0.125": TKFNetConfig(width=0.125),
    "resnet18, width 0.25": TKFNetConfig(width=0.25),
    "resnet34": TKFNetConfig(backbone="resnet34", width=0.125),
    "resnet50": TKFNetConfig(backbone="resnet50", width=0.125),
    "nearest": TKFNetConfig(width=0.125, pool="nearest"),
    "no TAFE": TKFNetConfig(width=0.125, tafe=False),
    "no DCIF": TKFNetConfig(width=0.125, dcif=False),
    "neither": TKFNetConfig(width=0.125, tafe=False, dcif=False),
}


def random_model(config: TKFNetConfig, preprocessing: Preprocessing) -> TKFNet:
    """Random weights, batch norms that know noise, logits that spread."""
    draw = np.random.default_rng(7)
    coarse = draw.integers(0, 256, (24, 4, 4, 3)).repeat(-(-preprocessing.size // 4), 1)
    coarse = coarse.repeat(-(-preprocessing.size // 4), 2)[:, : preprocessing.size, : preprocessing.size]
    pixels = (coarse + draw.integers(-40, 41, coarse.shape)).clip(0, 255).astype(np.uint8)
    inputs = normalise(torch.from_numpy(pixels), preprocessing)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = TKFNet(config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean of what it sees
        for _ in range(3):
            model(inputs)
        last = model.eval().head[6]
        last.weight /= model(inputs).std(0).mean()
        last.bias -= model(inputs).mean(0)
    return model
