"""How to train: the published recipe and two for rendered faces, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..data.transforms import MILD, PAPER, Augmentation
from ..errors import UsageError


@dataclass(frozen=True)
class Recipe:
    """stages: (image size, epochs) in order; small sizes first learn fast, the last size is the engine's.

    schedule "poly": lr falls from `lr` to `final_lr` with `power`. "one-cycle": rises over the first tenth of
    the steps, then falls along a cosine. smoothing: of the labels. optimizer "sgd": momentum 0.9, as published;
    "adamw": leaves the plateau that training from scratch starts on in a fraction of the steps. distillation: share of
    the loss that is divergence from the start's answers, in quantisation-aware training.
    """

    stages: tuple[tuple[int, int], ...]
    batch: int
    lr: float
    final_lr: float
    optimizer: str = "adamw"
    schedule: str = "one-cycle"
    power: float = 0.5
    weight_decay: float = 0.02
    smoothing: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    distillation: float = 0.0

    def __post_init__(self) -> None:
        for size, epochs in self.stages:
            if not (32 <= size <= 480 and epochs >= 1):
                raise UsageError(f"stage: got {size}x{epochs}, expected SIZExEPOCHS with size 32 to 480, epochs >= 1")
        if not self.stages:
            raise UsageError("stages: got none, expected at least one SIZExEPOCHS such as 224x60")
        if not (2 <= self.batch <= 65536 and self.lr > 0):
            raise UsageError(f"got batch {self.batch}, lr {self.lr}; expected batch >= 2 and lr > 0")

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.stages)

    def size_of(self, epoch: int) -> int:
        """The image size of `epoch` (from 0)."""
        for size, epochs in self.stages:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.stages[-1][0]

    def learning_rate(self, step: int, steps: int) -> float:
        """At `step` (from 0) of `steps`."""
        done = step / max(steps, 1)
        if self.schedule == "poly":
            return (self.lr - self.final_lr) * (1 - done) ** self.power + self.final_lr
        warm = 0.1
        if done < warm:
            return self.lr * (0.05 + 0.95 * done / warm)
        fall = (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2
        return self.final_lr + (self.lr - self.final_lr) * fall

    def optimizer_of(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def to_dict(self) -> dict[str, Any]:
        facts = asdict(self)
        facts["stages"] = [list(stage) for stage in self.stages]
        facts["augmentation"]["erase_area"] = list(self.augmentation.erase_area)
        return facts

    def with_stages(self, text: str) -> Recipe:
        """`text` as "80x10,112x6,224x1"."""
        try:
            stages = tuple((int(a), int(b)) for a, b in (part.split("x") for part in text.split(",")))
        except ValueError:
            raise UsageError(
                f"stages: got {text!r}, expected SIZExEPOCHS[,SIZExEPOCHS..] such as 112x8,224x2"
            ) from None
        return replace(self, stages=stages)


PRESETS: dict[str, Recipe] = {
    # RAF-DB as published: 60 epochs at 224, SGD, polynomial decay of power 0.5 from 0.1 towards 0.01.
    "paper": Recipe(
        stages=((224, 60),), batch=128, lr=0.1, final_lr=0.01, optimizer="sgd", schedule="poly", weight_decay=0.0,
        augmentation=PAPER,
    ),
    # About a minute on two cores with --width 0.25 and a few thousand rendered faces: shows that it learns.
    "quick": Recipe(stages=((80, 14),), batch=32, lr=2e-3, final_lr=1e-5, weight_decay=0.02, augmentation=MILD),
    # The shipped reference: progressive sizes, two epochs at the engine's while the rate is still high enough to adapt.
    "reference": Recipe(
        stages=((80, 4), (112, 3), (224, 2)), batch=64, lr=1e-3, final_lr=1e-6, weight_decay=0.05, smoothing=0.05,
        augmentation=MILD,
    ),
    # After a training, to get used to eight bits: a small rate, and mostly the float network's answers to learn from.
    # The size is the start's.
    "qat": Recipe(stages=((224, 1),), batch=32, lr=2e-5, final_lr=1e-7, weight_decay=0.0, distillation=0.8),
}  # fmt: skip
