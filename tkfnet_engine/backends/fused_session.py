"""A session of the fused engine: a set of buffers with its graphs. `session_pool` lends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..kernels.plan import ALIGNMENT, Plan
from .cuda_driver import Gpu, check
from .cuda_graph import BucketGraph


def session_bytes(plans: Mapping[int, Plan]) -> dict[str, int]:
    """What one session holds of each space, so that every plan can run in it."""
    return {
        space: -(-max(plan.nbytes(space) for plan in plans.values()) // ALIGNMENT) * ALIGNMENT
        for space in ("pixels", "logits", "arena", "counters")
    }


class Session:
    """One stream, one set of buffers and, once used, one graph per bucket. One caller at a time queues work in it.

    Work of a caller's stream may still be running when the next caller comes: the event orders the two.
    """

    def __init__(self, gpu: Gpu, plans: Mapping[int, Plan], weights: int, kernels: Any):
        """kernels: a function of a plan that gives its launches' kernels. The context must be current, here and in
        every method."""
        api = gpu.api
        self._gpu, self._api, self._plans, self._kernels = gpu, api, plans, kernels
        sizes = session_bytes(plans)
        self._memory = gpu.allocate(sum(sizes.values()), "one request's buffers")
        self._base = {"weights": weights}
        at = self._memory
        for space, nbytes in sizes.items():
            self._base[space] = at
            at += nbytes
        self._graphs: dict[int, BucketGraph] = {}
        self._staging: np.ndarray | None = None
        self._pending = False
        # The stream of the last caller. Coming back on it, its work is in order anyway.
        self.last_stream: int | None = None
        self._stream = self._event = None
        try:
            # Non-blocking: it does not wait for what others queue on the default stream.
            self._stream = check(api.cuStreamCreate(api.CUstream_flags.CU_STREAM_NON_BLOCKING))
            self._event = check(api.cuEventCreate(api.CUevent_flags.CU_EVENT_DISABLE_TIMING))
            if sizes["counters"]:
                check(api.cuMemsetD8Async(self._base["counters"], 0, sizes["counters"], self._stream))
                check(api.cuStreamSynchronize(self._stream))
        except BaseException:
            self.destroy()
            raise

    @property
    def idle(self) -> bool:
        """Whether the GPU has done all work queued in this session."""
        return not self._pending or not self._api.cuEventQuery(self._event)[0]

    def run(self, bucket: int, images: np.ndarray) -> np.ndarray:
        """Host to host: uint8 [N, S, S, 3], C-contiguous, N at most `bucket` -> float32 [N, classes]."""
        api, plan, count = self._api, self._plans[bucket], len(images)
        pixel_bytes, logit_bytes = images.nbytes, count * plan.classes * 4
        staging = self._staged(plan)
        np.copyto(staging[:pixel_bytes], images.reshape(-1))
        answer = staging[plan.nbytes("pixels") :][:logit_bytes]
        graph = self._graph(bucket)
        try:
            self._follow(self._stream)
            check(api.cuMemcpyHtoDAsync(self._base["pixels"], staging.ctypes.data, pixel_bytes, self._stream))
            graph.replay(self._stream, self._base["pixels"], self._base["logits"], count)
            check(api.cuMemcpyDtoHAsync(answer.ctypes.data, self._base["logits"], logit_bytes, self._stream))
            check(api.cuStreamSynchronize(self._stream))
        except BaseException:
            self._settle(self._stream)
            raise
        self._pending = False
        return answer.view(np.float32).reshape(count, plan.classes).copy()

    def queue(self, bucket: int, stream: int, pixels: int, logits: int, images: int) -> None:
        """Device to device, on the caller's stream; returns before the GPU has done it."""
        graph = self._graph(bucket)
        try:
            self._follow(stream)
            graph.replay(stream, pixels, logits, images)
            check(self._api.cuEventRecord(self._event, stream))
        except BaseException:
            self._settle(stream)
            raise
        self._pending, self.last_stream = True, stream

    def _settle(self, stream: Any) -> None:
        """After a failure halfway: nothing may still run that would write into the next caller's buffers."""
        self._gpu.discard(self._api.cuStreamSynchronize, stream)

    def _follow(self, stream: Any) -> None:
        """Makes `stream` wait for the work that still uses this session's buffers."""
        if self._pending:
            check(self._api.cuStreamWaitEvent(stream, self._event, 0))

    def _graph(self, bucket: int) -> BucketGraph:
        if bucket not in self._graphs:
            plan = self._plans[bucket]
            kernels = self._kernels(plan)
            self._graphs[bucket] = BucketGraph(self._gpu, plan, kernels, self._base, self._stream)
        return self._graphs[bucket]

    def _staged(self, plan: Plan) -> np.ndarray:
        """Page-locked memory for the plan's images and answer: it grows with the largest bucket used so far."""
        nbytes = plan.nbytes("pixels") + plan.nbytes("logits")
        if self._staging is None or len(self._staging) < nbytes:
            if self._staging is not None:
                old, self._staging = self._staging, None
                self._gpu.free_pinned(old)
            self._staging = self._gpu.pinned(nbytes)
        return self._staging

    def destroy(self) -> None:
        """Waits for the work queued, then frees everything."""
        gpu, api = self._gpu, self._api
        if self._pending:
            gpu.discard(api.cuEventSynchronize, self._event)
        for graph in self._graphs.values():
            graph.destroy()
        if self._event is not None:
            gpu.discard(api.cuEventDestroy, self._event)
        if self._stream is not None:
            gpu.discard(api.cuStreamDestroy, self._stream)
        if self._staging is not None:
            gpu.free_pinned(self._staging)
        gpu.free(self._memory)
