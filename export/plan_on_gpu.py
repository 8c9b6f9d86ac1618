"""Single launches of a plan on this GPU, over PyTorch's memory: to check them and to time them. Engines use
`backends/fused.py`; this is for `tune`, the GPU tests and the GPU benchmarks."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.cuda_driver import Gpu
from ..backends.cuda_graph import BucketGraph, Kernel
from ..kernels.memory import TORCH_DTYPES
from ..kernels.plan import SPACES, Buffer, Launch, Plan
from .cubins_from_plan import Cubin

SAMPLES = 9
# A timed graph is long beside the events' resolution (half a microsecond), and has no more launches than are quickly
# captured.
LEAST_US, MOST_LAUNCHES = 1000.0, 1000


class PlanOnGpu:
    """Memory for plans of one network and batch, and a stream. The arena holds random numbers until a plan has run."""

    def __init__(self, nbytes: Mapping[str, int], weights: bytes, seed: int = 0):
        """nbytes: of each space, enough for every plan to come. weights: the packed blob."""
        self.gpu = Gpu()
        self.stream = torch.cuda.Stream()
        draw = torch.Generator("cuda").manual_seed(seed)
        self._memory = {s: torch.zeros(max(nbytes[s], 256), dtype=torch.uint8, device="cuda") for s in SPACES}
        self._memory["weights"][: len(weights)] = torch.frombuffer(bytearray(weights), dtype=torch.uint8).cuda()
        self._memory["pixels"].random_(0, 256, generator=draw)
        arena = self._memory["arena"]
        arena[: len(arena) // 2 * 2].view(torch.float16).normal_(generator=draw)
        torch.cuda.synchronize()
        self._base = {space: memory.data_ptr() for space, memory in self._memory.items()}
        self._kernels: dict[str, Kernel] = {}
        self._modules: list[Any] = []

    def load(self, cubins: Mapping[str, Cubin], threads: Mapping[str, int]) -> None:
        """Makes kernels launchable. threads: per block, by variant. `BackendError` where one does not fit the GPU."""
        with self.gpu:
            for variant, cubin in cubins.items():
                if variant not in self._kernels:
                    module, function = self.gpu.function(cubin.code, cubin.entry, cubin.shared_bytes, threads[variant])
                    self._modules.append(module)
                    self._kernels[variant] = Kernel(function, cubin.shared_bytes)

    def read(self, buffer: Buffer) -> Tensor:
        """The buffer's elements, flat, on the GPU: a view of its memory."""
        raw = self._memory[buffer.space][buffer.offset : buffer.offset + buffer.nbytes]
        return raw.view(TORCH_DTYPES[buffer.dtype])

    def write(self, buffer: Buffer, values: Tensor) -> None:
        self.read(buffer).copy_(values.reshape(-1))

    def run(self, plan: Plan, launches: Sequence[Launch] | None = None) -> None:
        """Runs some launches of `plan`, by default all, and waits for them."""
        graph = self._graph(plan, launches or plan.launches)
        try:
            self._replay(graph, plan.batch)
            self.stream.synchronize()
        finally:
            with self.gpu:
                graph.destroy()

    def time_us(self, plan: Plan, launches: Sequence[Launch]) -> float:
        """Microseconds of `launches` within a graph that repeats them, so that their operands are as warm in the caches
        as they fit: a longer graph less a shorter one, which takes the start of a graph out of it."""

        def graph_us(times: int) -> float:
            return self._time(plan, tuple(launches) * times, SAMPLES)

        once = graph_us(1)
        estimate = max((graph_us(11) - once) / 10, 0.5)
        times = max(5, min(int(LEAST_US / estimate), MOST_LAUNCHES // len(launches)))
        return max((graph_us(1 + times) - once) / times, 1e-3)

    def _time(self, plan: Plan, launches: Sequence[Launch], samples: int) -> float:
        graph = self._graph(plan, launches)
        try:
            taken = []
            for sample in range(samples + 1):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record(self.stream)
                self._replay(graph, plan.batch)
                end.record(self.stream)
                end.synchronize()
                if sample:  # the first replay uploads the graph
                    taken.append(begin.elapsed_time(end) * 1e3)
            return statistics.median(taken)
        finally:
            with self.gpu:
                graph.destroy()

    def _graph(self, plan: Plan, launches: Sequence[Launch]) -> BucketGraph:
        with self.gpu:
            some = dataclasses.replace(plan, launches=tuple(launches))
            return BucketGraph(self.gpu, some, self._kernels, self._base, self.stream.cuda_stream)

    def _replay(self, graph: BucketGraph, images: int) -> None:
        with self.gpu:
            graph.replay(self.stream.cuda_stream, self._base["pixels"], self._base["logits"], images)


def threads_of(launches: Sequence[Launch]) -> dict[str, int]:
    """Threads per block, by variant."""
    return {launch.variant: 32 * launch.warps for launch in launches}
