"""`torch.compile` on the folded network. The first call of each batch size compiles, which takes a while."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from .eager import TorchRunner, folded_network
from .registry import Artefacts


class CompiledRunner(TorchRunner):
    """Compilation is not safe from two threads at once: the first call of a batch size holds a lock."""

    def __init__(self, network, device: str):
        import torch

        super().__init__(torch.compile(network, dynamic=False), device)
        self._lock, self._seen = threading.Lock(), set()

    def run(self, images: np.ndarray) -> np.ndarray:
        if len(images) in self._seen:
            return super().run(images)
        with self._lock:
            logits = super().run(images)
            self._seen.add(len(images))
        return logits


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> CompiledRunner:
    import torch

    torch.set_num_threads(threads)
    # One program per batch size. The default is to fall back to eager after 8, without a word.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return CompiledRunner(folded_network(facts, artefacts, device), device)
