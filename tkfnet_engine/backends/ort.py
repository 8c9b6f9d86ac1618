"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError
from .registry import CLOSED, GRAPH, Artefacts


class OrtRunner:
    """One session; ONNX Runtime documents `run` as safe from many threads.

    as_written: the graph's own arithmetic, node by node, to judge a graph that is for another runtime.
    """

    def __init__(self, graph: bytes, threads: int, as_written: bool = False):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if as_written:
            # Of Q/DQ pairs among FP16 tensors the optimiser makes something that lost 5 dB of 34 (1.32).
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding's exception classes share no public base
            raise BackendError(f"onnxruntime {ort.__version__} refuses the engine's graph: {error}") from error

    def run(self, images: np.ndarray) -> np.ndarray:
        session = self._session
        if session is None:
            raise BackendError(CLOSED)
        return session.run(["logits"], {"images": images})[0]

    def close(self) -> None:
        self._session = None


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> OrtRunner:
    return OrtRunner(artefacts.pop(GRAPH), threads)
