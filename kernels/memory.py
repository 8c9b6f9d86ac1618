"""The memory spaces of a plan on the CPU, which the interpreter and the emulator run in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .plan import ALIGNMENT, SPACES, Buffer, Plan

TORCH_DTYPES = {
    "u8": torch.uint8,
    "i8": torch.int8,
    "f8": torch.float8_e4m3fn,
    "f16": torch.float16,
    "i32": torch.int32,
    "f32": torch.float32,
}
# Every byte of it: NaN in FP16, FP8 and float32.
POISON = 0xFF


class Memory:
    """All spaces of `plan`. They start as NaN, so that a value which is read before it is written shows; int8 has
    none, and starts as -1. Counters start at zero and persist from run to run, as on a GPU.

    weights: `weights.packed_weights`.
    """

    def __init__(self, plan: Plan, weights: bytes):
        self._plan = plan
        self._spaces = {
            space: torch.full([max(plan.nbytes(space), 1) + ALIGNMENT], POISON, dtype=torch.uint8) for space in SPACES
        }
        self._spaces["counters"].zero_()
        self._spaces["weights"][: len(weights)] = torch.frombuffer(bytearray(weights), dtype=torch.uint8)

    def view(self, buffer: Buffer) -> Tensor:
        """The buffer's elements, as a flat tensor over the same memory."""
        raw = self._spaces[buffer.space][buffer.offset : buffer.offset + buffer.nbytes]
        return raw.view(TORCH_DTYPES[buffer.dtype])

    def place(self, images: np.ndarray) -> None:
        """uint8 [n, S, S, 3], n at most the plan's batch, to where the plan reads its pixels."""
        pixels = self.view(Buffer("pixels", 0, "u8", self._plan.nbytes("pixels")))
        pixels[: images.size] = torch.from_numpy(images.reshape(-1).copy())

    def logits(self, images: int) -> np.ndarray:
        """A copy of what the plan wrote for the first `images`: float32 [images, classes]."""
        logits = self.view(Buffer("logits", 0, "f32", self._plan.batch * self._plan.classes))
        return logits.reshape(self._plan.batch, -1)[:images].numpy().copy()
