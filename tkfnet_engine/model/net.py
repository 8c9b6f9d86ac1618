"""TKFNet, the reference: plain PyTorch, exactly the published network.

normalised RGB [N, 3, H, W] -> ResNet -> TAFE -> DCIF -> global mean -> three-layer classifier -> [N, 7]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..spec import Preprocessing, TKFNetConfig
from .backbone import ResNet
from .dcif import DCIF
from .tafe import TAFE


class TKFNet(nn.Module):
    """The network of a `TKFNetConfig`; the default has 14,017,289 parameters.

    forward: float32 [N, 3, H, W], normalised (`normalise`), H = W = 224 -> logits float32 [N, classes].
    """

    def __init__(self, config: TKFNetConfig | None = None):
        super().__init__()
        self.config = config = config or TKFNetConfig()
        channels = config.features
        self.backbone = ResNet(config)
        self.tafe = TAFE(channels, config.pool) if config.tafe else nn.Identity()
        self.dcif = DCIF(channels) if config.dcif else nn.Identity()
        wide, narrow = config.scaled(256), config.scaled(128)
        self.head = nn.Sequential(
            nn.Linear(channels, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, narrow),
            nn.BatchNorm1d(narrow),
            nn.ReLU(),
            nn.Linear(narrow, config.classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        z = self.dcif(self.tafe(self.backbone(x)))
        return self.head(z.mean((2, 3)))


def normalise(images: Tensor, preprocessing: Preprocessing | None = None) -> Tensor:
    """uint8 pixels [N, H, W, 3] RGB -> the network's input, float32 [N, 3, H, W] (channels-last in memory)."""
    facts = preprocessing or Preprocessing()
    mean = torch.tensor(facts.mean, device=images.device)
    std = torch.tensor(facts.std, device=images.device)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class LoadReport:
    """What `load_backbone` did with each tensor of a file: names matched, and names left over."""

    matched: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        def listed(names: tuple[str, ...]) -> str:
            return ", ".join(names[:4]) + (f", and {len(names) - 4} more" if len(names) > 4 else "") or "none"

        return f"{len(self.matched)} tensors loaded; not used: {listed(self.unused)}"


def load_backbone(model: TKFNet, weights: Mapping[str, Tensor]) -> LoadReport:
    """Loads ResNet weights with torchvision's names into `model.backbone`.

    Prefixes other trainers add (`module.`, `backbone.`, `features.`, `model.`) are dropped; the classifier
    (`fc.*`) is left out. `CheckpointError` where a tensor has another shape or nothing matches.
    """
    target = model.backbone.state_dict()
    matched, unused = {}, []
    for name, tensor in weights.items():
        short = name
        while short.partition(".")[0] in ("module", "backbone", "features", "model"):
            short = short.partition(".")[2]
        if short not in target:
            unused.append(name)
        elif tensor.shape != target[short].shape:
            raise CheckpointError(
                f"{name}: got shape {list(tensor.shape)}, expected {list(target[short].shape)} for "
                f"{model.config.backbone} at width {model.config.width}; choose the backbone these weights are of"
            )
        else:
            matched[short] = tensor
    # Old files have no batch counters; they play no part in inference and start at zero.
    missing = [n for n in target if n not in matched and not n.endswith("num_batches_tracked")]
    if not matched:
        raise CheckpointError(
            f"no tensor of the file belongs to {model.config.backbone}: got names such as "
            f"{', '.join(list(weights)[:3]) or 'none'}, expected torchvision's (conv1.weight, layer1.0.conv1.weight ..)"
        )
    if missing:
        raise CheckpointError(
            f"the file holds only part of {model.config.backbone}: {len(missing)} tensors are missing, "
            f"such as {', '.join(missing[:3])}; a half-loaded backbone is not useful"
        )
    model.backbone.load_state_dict({**target, **matched})
    return LoadReport(tuple(sorted(matched)), tuple(sorted(unused)))
