"""Runs a plan in Triton's interpreter, on the CPU: what a plan computes, proven without a GPU.

The environment variable TRITON_INTERPRET=1 must be set before Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from ..errors import BackendError
from .library import kernel_named
from .network import Network
from .plan import ALIGNMENT, IMAGES, SPACES, Buffer, Launch, Plan
from .planner import plan_from_network
from .tiles import LEAST_K, Product, Tile, power_of_two

_TORCH = {"u8": torch.uint8, "i8": torch.int8, "f16": torch.float16, "i32": torch.int32, "f32": torch.float32}
# Every byte of it: NaN in FP16 and in float32.
POISON = 0xFF


class Interpreter:
    """One plan with its memory. The arena starts as NaN: a value that is read before it is written shows.

    weights: `weights.packed_weights`. Counters persist from run to run, as on a GPU.
    """

    def __init__(self, plan: Plan, weights: bytes):
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise BackendError(
                f"TRITON_INTERPRET: got {os.environ.get('TRITON_INTERPRET')!r}, expected '1' before Triton is imported"
            )
        self.plan = plan
        self._memory = {
            space: torch.full([max(plan.nbytes(space), 1) + ALIGNMENT], POISON, dtype=torch.uint8) for space in SPACES
        }
        self._memory["counters"].zero_()
        self._memory["weights"][: len(weights)] = torch.frombuffer(bytearray(weights), dtype=torch.uint8)

    def run(self, images: np.ndarray, after: Callable[[Launch], None] | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3], n at most the plan's batch -> float32 logits [n, classes]. after: called after each
        launch."""
        pixels = self.view(Buffer("pixels", 0, "u8", self.plan.nbytes("pixels")))
        pixels[: images.size] = torch.from_numpy(images.reshape(-1).copy())
        for launch in self.plan.launches:
            self._launch(launch, len(images))
            if after is not None:
                after(launch)
        logits = self.view(Buffer("logits", 0, "f32", self.plan.batch * self.plan.classes))
        return logits.reshape(self.plan.batch, -1)[: len(images)].numpy().copy()

    def view(self, buffer: Buffer) -> torch.Tensor:
        """The buffer's elements, as a flat tensor over the same memory."""
        return self._memory[buffer.space][buffer.offset : buffer.offset + buffer.nbytes].view(_TORCH[buffer.dtype])

    def _launch(self, launch: Launch, images: int) -> None:
        args = {name: self.view(v) if isinstance(v, Buffer) else v for name, v in launch.args}
        if IMAGES in args:
            args[IMAGES] = images
        constexprs = dict(launch.constexprs) | {"PDL": False}  # the interpreter has no dependent launch
        kernel_named(launch.kernel)[launch.grid](**args, **constexprs)


def interpreter_plan(network: Network, batch: int, precision: str, arch: str) -> Plan:
    """A plan whose tiles suit the interpreter, where every program and every step costs the same whatever its size."""
    return plan_from_network(network, batch, precision, arch, _large_tile, multiprocessors=1)


def _large_tile(product: Product, rows: int | None = None) -> Tile:
    block_k = max(LEAST_K, min(256, power_of_two(product.channels)))
    return Tile(rows or 256, max(32, min(256, power_of_two(product.n))), block_k, split=1, warps=8, stages=2)
