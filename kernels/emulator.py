"""Runs a plan by plain PyTorch, launch by launch: what a quantised engine answers, about as fast as PyTorch computes
the network in float32, and for any number of images.

Where products are int8 the answer is that of the kernels, but for the last bits of float sums. In FP16 and FP8 it is
that of the same formulas in float32, each map rounded as it is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .memory import TORCH_DTYPES, Memory
from .plan import IMAGES, Buffer, Launch, Plan
from .quantised_reference import Reader, quantised_outputs
from .reference import expected_outputs


class Emulator:
    """One plan with its `Memory`; a plan for a batch of 32 is about the fastest. weights: `weights.packed_weights`."""

    def __init__(self, plan: Plan, weights: bytes):
        self.plan = plan
        self._memory = Memory(plan, weights)

    @torch.inference_mode()
    def run(self, images: np.ndarray, after: Callable[[Launch], None] | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3] -> float32 logits [n, classes]; n may be more than the plan's batch. after: called after
        each launch."""
        batch = self.plan.batch
        parts = [self._run(images[start : start + batch], after) for start in range(0, len(images), batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.plan.classes), np.float32)

    def view(self, buffer: Buffer) -> Tensor:
        """The buffer's elements, as a flat tensor over the same memory."""
        return self._memory.view(buffer)

    def _run(self, images: np.ndarray, after: Callable[[Launch], None] | None) -> np.ndarray:
        self._memory.place(images)
        for launch in self.plan.launches:
            args = tuple((name, len(images) if name == IMAGES else value) for name, value in launch.args)
            for name, value in emulated_outputs(dataclasses.replace(launch, args=args), self.view).items():
                self.view(dict(args)[name])[: value.numel()] = value.flatten()
            if after is not None:
                after(launch)
        return self._memory.logits(len(images))


def emulated_outputs(launch: Launch, read: Reader) -> dict[str, Tensor]:
    """By parameter name, what `launch` stores. read: a buffer's elements, flat."""
    if launch.quantised:
        return {name: value for name, (value, _) in quantised_outputs(launch, read).items()}
    args = dict(launch.args)
    found = expected_outputs(launch, read, torch.float32)
    return {name: value.to(TORCH_DTYPES[args[name].dtype]) for name, value in found.items()}
