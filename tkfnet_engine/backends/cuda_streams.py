"""Streams, events, copies and graphs on a GPU by few methods: what sessions over another's kernels need.

`StreamGpu` has them from `cuda-bindings`, `pycuda_gpu.PyCudaGpu` from PyCUDA.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import BackendError
from .cuda_driver import Gpu, check
from .cuda_graph import captured


class StreamGpu(Gpu):
    """`Gpu` with more methods; handles are integers. can_capture: whether there are graphs (`capture`)."""

    can_capture = True

    def stream(self) -> int:
        """A new stream, which does not wait for the default stream; to be given to `free_stream`."""
        return int(check(self.api.cuStreamCreate(self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def free_stream(self, stream: int) -> None:
        self.discard(self.api.cuStreamDestroy, stream)

    def synchronise(self, stream: int) -> None:
        """Waits for all work queued on the stream."""
        check(self.api.cuStreamSynchronize(stream))

    def event(self) -> int:
        """A new event, to be given to `free_event`."""
        return int(check(self.api.cuEventCreate(self.api.CUevent_flags.CU_EVENT_DISABLE_TIMING)))

    def free_event(self, event: int) -> None:
        self.discard(self.api.cuEventDestroy, event)

    def record(self, event: int, stream: int) -> None:
        """From now on the event stands for the work queued on the stream so far."""
        check(self.api.cuEventRecord(event, stream))

    def wait(self, stream: int, event: int) -> None:
        """Makes what comes next on `stream` wait for the event."""
        check(self.api.cuStreamWaitEvent(stream, event, 0))

    def reached(self, event: int) -> bool:
        """Whether the GPU has done what the event stands for."""
        return not self.api.cuEventQuery(event)[0]

    def wait_here(self, event: int) -> None:
        """Waits in this thread for the event; quiet if the context is gone."""
        self.discard(self.api.cuEventSynchronize, event)

    def copy_in(self, address: int, source: np.ndarray, stream: int) -> None:
        """Queues a copy of `source`, of `pinned` memory, to the GPU, on a stream that `stream()` made."""
        check(self.api.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, stream))

    def copy_out(self, target: np.ndarray, address: int, stream: int) -> None:
        """Likewise from the GPU."""
        check(self.api.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, stream))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> StreamGraph:
        """A graph of what `enqueue` queues on `stream`, which must be idle. Nothing of it runs."""
        graph = captured(self, stream, enqueue)
        try:
            return StreamGraph(self, check(self.api.cuGraphInstantiate(graph, 0)))
        finally:
            # What is launched is the instance; the graph itself serves updates only.
            self.discard(self.api.cuGraphDestroy, graph)


class StreamGraph:
    """Work that is queued as a whole."""

    def __init__(self, gpu: StreamGpu, instance: Any):
        self._gpu, self._instance = gpu, instance

    def launch(self, stream: int) -> None:
        check(self._gpu.api.cuGraphLaunch(self._instance, stream))

    def destroy(self) -> None:
        self._gpu.discard(self._gpu.api.cuGraphExecDestroy, self._instance)


def first_gpu() -> StreamGpu:
    """The first visible GPU, by `cuda-bindings` or, where that is not installed, by PyCUDA. `BackendError` without
    either, or without a GPU."""
    if importable("cuda.bindings"):
        return StreamGpu()
    if importable("pycuda"):
        from .pycuda_gpu import PyCudaGpu

        return PyCudaGpu()
    raise BackendError(
        "memory and streams on the GPU need cuda-bindings or PyCUDA, and neither is installed; "
        "pip install 'tkfnet-engine[cuda]'"
    )


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of "cuda.bindings", not even "cuda" is there
        return False
