"""Candidate tiles on this GPU: compiled, checked against plain PyTorch, timed. What `tune` measures with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..backends.fused import chosen_arch
from ..console import say
from ..errors import BackendError, UsageError
from ..kernels.chips import ARCHS
from ..kernels.network import network_of
from ..kernels.placement import placement_of
from ..kernels.plan import SPACES, Buffer, Launch, Plan
from ..kernels.quantise import to_float8, to_int8
from ..kernels.reference import differences
from ..kernels.tile_table import Tile
from ..kernels.tile_tasks import TileTask, plan_with
from ..kernels.weights import packed_weights
from ..model.checkpoint import load_checkpoint
from ..model.fold import fold
from .cubins_from_plan import compile_launches
from .plan_on_gpu import PlanOnGpu, threads_of

# Of every quantised map. They are drawn with a deviation of 1, so int8 holds four of it.
_SCALE = 1 / 32


@dataclass(frozen=True)
class _Candidate:
    tile: Tile
    plan: Plan
    launch: Launch


class TileBench:
    """This GPU and one network. arch: its architecture; chip, driver, triton: for the record."""

    def __init__(self, checkpoint: str):
        if not torch.cuda.is_available():
            raise UsageError("tune: got no usable NVIDIA GPU, expected one to measure on; run it where there is one")
        self.chip = torch.cuda.get_device_name()
        self.arch = chosen_arch(torch.cuda.get_device_capability(), list(ARCHS), self.chip)
        self.driver, self.triton = torch.version.cuda or "", version("triton")
        # The judge computes in float32, not in TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        loaded = load_checkpoint(checkpoint)
        self._folded = fold(loaded.model, loaded.preprocessing)
        self.network = network_of(self._folded)
        self._weights: dict[str, bytes] = {}

    def measure(self, task: TileTask, tiles: list[Tile]) -> list[tuple[Tile, float]]:
        """The tiles that compile, fit and are right, with microseconds per launch."""
        found = []
        for tile in tiles:
            plan = plan_with(self.network, task, tile, self.arch)
            launch = next(one for one in plan.launches if one.name == task.name)
            found.append(_Candidate(tile, plan, launch))
        failed: dict[str, BackendError] = {}
        cubins = compile_launches([c.launch for c in found], self.arch, failed=failed)
        nbytes = {space: max(c.plan.nbytes(space) for c in found) for space in SPACES}
        memory = PlanOnGpu(nbytes, self._packed(task.precision))
        timed = []
        for candidate in found:
            launch = candidate.launch
            if (cubin := cubins.get(launch.variant)) is None or cubin.spilled_bytes:
                continue
            memory.load({launch.variant: cubin}, threads_of([launch]))
            draw_maps(memory, launch)
            torch.cuda.synchronize()
            memory.run(candidate.plan, [launch])
            # Its transforms (Winograd, FFT) do not leave whole numbers whole, which must come out to the bit.
            torch.backends.cudnn.enabled = not launch.quantised
            if wrong := [d for d in differences(launch, memory.read) if not d.right]:
                say(f"{task.product.key} in {task.precision}: {candidate.tile} is wrong: {wrong[0]}; not timed")
                continue
            timed.append((candidate.tile, memory.time_us(candidate.plan, [launch])))
        return timed

    def _packed(self, precision: str) -> bytes:
        if precision not in self._weights:
            points = [point.name for point in placement_of(self.network).points]
            scales = None if precision == "float16" else dict.fromkeys(points, _SCALE)
            self._weights[precision] = packed_weights(self._folded, self.network, precision, scales)
        return self._weights[precision]


_STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "i8": lambda values: to_int8(values / _SCALE),
    "f8": lambda values: to_float8(values / _SCALE),
    "f16": Tensor.half,
}


def draw_maps(memory: Any, launch: Launch, seed: int = 0) -> None:
    """Random values, of a deviation of 1, in all maps that `launch` reads or writes; memory: a `PlanOnGpu`.

    What launches of other tiles left there may be NaN in another dtype.
    """
    for number, (_, buffer) in enumerate(launch.args):
        if isinstance(buffer, Buffer) and buffer.space == "arena" and buffer.dtype in _STORED:
            device = memory.read(buffer).device
            draw = torch.Generator(device).manual_seed(seed + number)
            memory.write(buffer, _STORED[buffer.dtype](torch.randn(buffer.count, generator=draw, device=device)))
