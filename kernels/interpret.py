"""Runs a plan in Triton's interpreter, on the CPU: what a plan computes, proven without a GPU.

The environment variable TRITON_INTERPRET=1 must be set before Triton is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

import numpy as np
import torch

from ..errors import BackendError
from .library import kernel_named
from .memory import Memory
from .network import Network
from .plan import IMAGES, Buffer, Launch, Plan
from .planner import plan_from_network
from .tiles import Product, Tile, power_of_two


class Interpreter:
    """One plan with its `Memory`. weights: `weights.packed_weights`."""

    def __init__(self, plan: Plan, weights: bytes):
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise BackendError(
                f"TRITON_INTERPRET: got {os.environ.get('TRITON_INTERPRET')!r}, expected '1' before Triton is imported"
            )
        self.plan = plan
        self._memory = Memory(plan, weights)

    def run(self, images: np.ndarray, after: Callable[[Launch], None] | None = None) -> np.ndarray:
        """uint8 [n, S, S, 3], n at most the plan's batch -> float32 logits [n, classes]. after: called after each
        launch."""
        self._memory.place(images)
        for launch in self.plan.launches:
            self._launch(launch, len(images))
            if after is not None:
                after(launch)
        return self._memory.logits(len(images))

    def view(self, buffer: Buffer) -> torch.Tensor:
        """The buffer's elements, as a flat tensor over the same memory."""
        return self._memory.view(buffer)

    def _launch(self, launch: Launch, images: int) -> None:
        args = {name: self.view(v) if isinstance(v, Buffer) else v for name, v in launch.args}
        if IMAGES in args:
            args[IMAGES] = images
        constexprs = dict(launch.constexprs) | {"PDL": False}  # the interpreter has no dependent launch
        kernel_named(launch.kernel)[launch.grid](**args, **constexprs)


def interpreter_plan(network: Network, batch: int, precision: str, arch: str, kept_float: Collection[str] = ()) -> Plan:
    """A plan whose tiles suit the interpreter, where every program and every step costs the same whatever its size."""
    return plan_from_network(network, batch, precision, arch, _large_tile, multiprocessors=1, kept_float=kept_float)


def _large_tile(product: Product, rows: int | None = None) -> Tile:
    block_k = max(product.least_k, min(256, power_of_two(product.channels)))
    return Tile(rows or 256, max(32, min(256, power_of_two(product.n))), block_k, split=1, warps=8, stages=2)
