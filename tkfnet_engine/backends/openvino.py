"""OpenVINO on the CPU."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError
from .registry import CLOSED, GRAPH, Artefacts

# Requests beyond the number of streams only wait for each other, and each holds activations of its own.
MAX_REQUESTS = 4


class OpenVinoRunner:
    """One compiled model; each call borrows an infer request, which must not be shared between threads."""

    def __init__(self, graph: bytes, threads: int):
        self._model = compile_graph(graph, threads)
        self._requests: queue.LifoQueue = queue.LifoQueue()
        for _ in range(MAX_REQUESTS):
            self._requests.put(None)

    def run(self, images: np.ndarray) -> np.ndarray:
        model = self._model
        if model is None:
            raise BackendError(CLOSED)
        request = self._requests.get()
        try:
            # Requests are made when first needed: one caller never pays for four.
            request = request or model.create_infer_request()
            request.infer({0: images}, share_inputs=True)
            return request.get_output_tensor(0).data.copy()
        finally:
            # Closed meanwhile: the turn goes on to whoever waits for it, the request does not.
            self._requests.put(request if self._model is not None else None)

    def close(self) -> None:
        self._model = None
        with self._requests.mutex:
            self._requests.queue[:] = [None] * len(self._requests.queue)


def compile_graph(graph: bytes, threads: int) -> Any:
    """The `openvino.CompiledModel` of an engine's graph. `BackendError` where OpenVINO refuses it."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # The default is BF16 on processors that have it: another precision than the one asked for.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        return core.compile_model(core.read_model(graph), "CPU", settings)
    except RuntimeError as error:
        raise BackendError(f"openvino {openvino.__version__} refuses the engine's graph: {error}") from error


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> OpenVinoRunner:
    return OpenVinoRunner(artefacts.pop(GRAPH), threads)
