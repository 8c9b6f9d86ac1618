"""One request over a TensorRT engine: its buffers, its stream, its execution contexts, and a CUDA graph per batch."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from ..errors import BackendError
from .cuda_driver import OutOfMemory, poisoned
from .cuda_streams import StreamGpu
from .trt_engine import TrtEngine

# What TensorRT demands of every address it is given (NvInferRuntime.h, setTensorAddress).
ALIGNMENT = 256
# Graphs per session. Each has a context of its own; the one that was not used for longest goes.
MAX_GRAPHS = 8
# Contexts that could not be freed, since their context on the GPU is gone: their destructors would call the driver.
_abandoned: list[Any] = []


@dataclass(frozen=True)
class Limits:
    """Images per request, and classes per image. least: fewer are padded."""

    least: int
    most: int
    image_bytes: int
    classes: int


class TrtSession:
    """One stream, one set of buffers, one context for any batch and, once used, one with a graph per batch. One caller
    at a time queues work in it.

    All its contexts work in the same memory, one after the other: work of a caller's stream may still be running when
    the next caller comes, and the event orders the two. A graph stays valid only while its context is left alone
    (TensorRT's guide on CUDA graphs): so no other work is given to that.
    """

    def __init__(self, gpu: StreamGpu, engine: TrtEngine, limits: Limits, profile: int):
        """The context must be current, here and in every method."""
        self._gpu, self._engine, self._limits, self._profile = gpu, engine, limits, profile
        sizes = (limits.most * limits.image_bytes, 4 * limits.most * limits.classes, engine.scratch_bytes)
        self._memory = gpu.allocate(sum(map(_aligned, sizes)), "one request's buffers")
        self._pixels = self._memory
        self._logits = self._pixels + _aligned(sizes[0])
        self._scratch = self._logits + _aligned(sizes[1])
        self._graphs: OrderedDict[int, tuple[Any, Any]] = OrderedDict()  # batch -> (graph, its context)
        self._graphable = gpu.can_capture
        self._staging: np.ndarray | None = None
        self._pending = False
        # The stream of the last caller. Coming back on it, its work is in order anyway.
        self.last_stream: int | None = None
        self._stream = self._event = self._any = None
        try:
            self._stream = gpu.stream()
            self._event = gpu.event()
            self._any = self._new_context()
            gpu.synchronise(self._stream)
        except BaseException:
            self.destroy()
            raise

    @property
    def idle(self) -> bool:
        """Whether the GPU has done all work queued in this session."""
        return not self._pending or self._gpu.reached(self._event)

    # --- requests ------------------------------------------------------------------------------------------

    def run(self, images: np.ndarray) -> np.ndarray:
        """Host to host: uint8 [N, S, S, 3], C-contiguous, N at most `most` -> float32 [N, classes]."""
        gpu, stream, count = self._gpu, self._stream, len(images)
        batch = max(count, self._limits.least)
        pixels, answer = self._staged(batch, count)
        np.copyto(pixels[: images.nbytes], images.reshape(-1))
        pixels[images.nbytes :] = 0
        graph, context = self._graphs.get(batch) or (None, None)
        try:
            self._follow(stream)
            gpu.copy_in(self._pixels, pixels, stream)
            if graph is not None:
                self._graphs.move_to_end(batch)
                graph.launch(stream)
            else:
                context = self._context_to_capture()
                self._engine.bind(context, batch, self._pixels, self._logits)
                self._engine.enqueue(context, stream)
            gpu.copy_out(answer, self._logits, stream)
            gpu.synchronise(stream)
        except BaseException:
            self._settle(stream, context)
            raise
        self._pending = False
        logits = answer.view(np.float32).reshape(count, self._limits.classes).copy()
        if graph is None and context is not self._any:
            self._capture(batch, context)
        return logits

    def queue(self, stream: int, pixels: int, logits: int, images: int) -> None:
        """Device to device, on the caller's stream; returns before the GPU has done it."""
        try:
            self._follow(stream)
            self._engine.bind(self._any, images, pixels, logits)
            self._engine.enqueue(self._any, stream)
            self._gpu.record(self._event, stream)
        except BaseException:
            self._settle(stream)
            raise
        self._pending, self.last_stream = True, stream

    def profile(self, images: np.ndarray, runs: int) -> list[tuple[str, float]]:
        """Each layer and its median milliseconds over `runs` runs of these images, after one that does not count."""
        gpu, engine, stream = self._gpu, self._engine, self._stream
        pixels, _ = self._staged(len(images), len(images))
        np.copyto(pixels, images.reshape(-1))
        context, profiler, times = None, engine.profiler(), []
        try:
            self._follow(stream)
            # One of its own: measuring makes it slower.
            context = self._new_context()
            context.profiler, context.enqueue_emits_profile = profiler, False
            gpu.copy_in(self._pixels, pixels, stream)
            engine.bind(context, len(images), self._pixels, self._logits)
            for _ in range(runs + 1):
                profiler.times.clear()
                engine.enqueue(context, stream)
                gpu.synchronise(stream)
                if not context.report_to_profiler():
                    raise engine.failure("does not tell its layers' times")
                times.append(list(profiler.times))
        except BaseException:
            self._settle(stream, context)
            raise
        self._pending = False
        names = [name for name, _ in times[-1]]
        if not names or any([name for name, _ in run] != names for run in times[1:]):
            raise engine.failure("does not tell its layers' times")
        return [(name, median(run[i][1] for run in times[1:])) for i, name in enumerate(names)]

    # --- contexts and graphs -------------------------------------------------------------------------------

    def _new_context(self) -> Any:
        return self._engine.context(self._profile, self._scratch, self._stream)

    def _context_to_capture(self) -> Any:
        """A context for the graph of a new batch, or the one for any where there are to be no more graphs."""
        if self._graphable:
            try:
                return self._new_context()
            except OutOfMemory:
                self._without_graphs("the GPU's memory does not hold their contexts")
            except BackendError as error:  # requests can still be answered by the one that is there
                if poisoned():
                    raise
                self._without_graphs(str(error))
        return self._any

    def _capture(self, batch: int, context: Any) -> None:
        """Keeps a graph of what `context` has just run: that has settled all that belongs to a new batch."""
        # Only TensorRT for RTX can be asked.
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._stream):
            return self._without_graphs("TensorRT says that this engine cannot be captured")
        try:
            graph = self._gpu.capture(self._stream, lambda: self._engine.enqueue(context, self._stream))
        except BackendError as error:
            if poisoned():
                raise
            return self._without_graphs(str(error))
        self._graphs[batch] = (graph, context)
        if len(self._graphs) > MAX_GRAPHS:
            _, (oldest, _) = self._graphs.popitem(last=False)
            oldest.destroy()

    def _without_graphs(self, reason: str) -> None:
        self._graphable = False
        warnings.warn(f"small batches take longer, for they run without CUDA graphs: {reason}", RuntimeWarning, 2)

    # --- order and memory ----------------------------------------------------------------------------------

    def _follow(self, stream: int) -> None:
        """Makes `stream` wait for the work that still uses this session's buffers."""
        if self._pending:
            self._gpu.wait(stream, self._event)

    def _settle(self, stream: int, context: Any = None) -> None:
        """After a failure halfway: nothing may still run that would write into the next caller's buffers. Raises what
        the driver says if that has ended everything: TensorRT's own words for it are no help. context: what was not
        kept for later calls."""
        if not poisoned():
            with suppress(BackendError):
                self._gpu.synchronise(stream)
        if reason := poisoned():
            _abandoned.append(context)
            raise BackendError(reason) from None

    def _staged(self, batch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Page-locked memory for `batch` images and `count` answers: it grows with the largest batch used so far."""
        pixels, logits = batch * self._limits.image_bytes, 4 * batch * self._limits.classes
        if self._staging is None or len(self._staging) < _aligned(pixels) + logits:
            if self._staging is not None:
                old, self._staging = self._staging, None
                self._gpu.free_pinned(old)
            self._staging = self._gpu.pinned(_aligned(pixels) + logits)
        return self._staging[:pixels], self._staging[_aligned(pixels) :][: 4 * count * self._limits.classes]

    def destroy(self) -> None:
        """Waits for the work queued, then frees everything."""
        gpu = self._gpu
        if self._pending:
            gpu.wait_here(self._event)
        contexts = [self._any, *(context for _, context in self._graphs.values())]
        for graph, _ in self._graphs.values():
            graph.destroy()
        self._graphs.clear()
        self._any = None
        free_objects(gpu, contexts)
        if self._event is not None:
            gpu.free_event(self._event)
        if self._stream is not None:
            gpu.free_stream(self._stream)
        if self._staging is not None:
            gpu.free_pinned(self._staging)
        gpu.free(self._memory)


def free_objects(gpu: StreamGpu, objects: list[Any]) -> None:
    """Drops TensorRT's objects with the context current, as their destructors need it."""
    try:
        with gpu:
            objects.clear()
    except BackendError:  # poisoned, or after a fork
        _abandoned.extend(objects)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
