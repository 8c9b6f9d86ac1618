"""What `export.plan_on_gpu.PlanOnGpu` does, on the CPU: launches do what the emulator says that they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tkfnet_engine.kernels.emulator import emulated_outputs
from tkfnet_engine.kernels.memory import Memory
from tkfnet_engine.kernels.plan import Buffer, Launch, Plan

US = 5.0


class EmulatedGpu:
    """after: called with each launch that has run, and this memory, to spoil what it wrote."""

    def __init__(
        self, nbytes: Mapping[str, int], weights: bytes, after: Callable[[Launch, EmulatedGpu], None] | None = None
    ):
        self._memory = Memory(_Sizes(nbytes), weights)
        self._after = after
        self.loaded: set[str] = set()
        self.timed: list[tuple[str, ...]] = []

    def load(self, cubins: Mapping[str, Any], threads: Mapping[str, int]) -> None:
        assert cubins.keys() <= threads.keys()
        self.loaded |= cubins.keys()

    def read(self, buffer: Buffer) -> Tensor:
        return self._memory.view(buffer)

    def write(self, buffer: Buffer, values: Tensor) -> None:
        self.read(buffer).copy_(values.reshape(-1))

    def run(self, plan: Plan, launches: Sequence[Launch] | None = None) -> None:
        for launch in launches or plan.launches:
            assert launch.variant in self.loaded
            args = dict(launch.args)
            for name, value in emulated_outputs(launch, self.read).items():
                self.read(args[name])[: value.numel()] = value.flatten()
            if self._after is not None:
                self._after(launch, self)

    def time_us(self, plan: Plan, launches: Sequence[Launch]) -> float:
        self.timed.append(tuple(launch.name for launch in launches))
        return US * len(launches)


class _Sizes:
    """As much of a `Plan` as `Memory` asks for."""

    def __init__(self, nbytes: Mapping[str, int]):
        self._nbytes = nbytes

    def nbytes(self, space: str) -> int:
        return self._nbytes[space]
