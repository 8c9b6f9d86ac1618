"""Engine files that hold a TensorRT plan, made by hand, and a stand-in for the backend that would run it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tkfnet_engine.backends.registry import BACKENDS, TENSORRT_PLAN
from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

SIZE = 32
PLAN = bytes(range(256)) * 40
PROFILES = [{"min": 1, "opt": 8, "max": 32}, {"min": 1, "opt": 8, "max": 32}]
SECTION = {
    "module": "tensorrt",
    "version": "10.9.0.34",
    "driver": 13000,
    "gpu": "NVIDIA H200",
    "capability": "9.0",
    "capabilities": ["9.0"],
    "profiles": PROFILES,
    "options": {
        "workspace": None,
        "optimization_level": 3,
        "version_compatible": False,
        "hardware_compatible": False,
    },
}
FACTS = {
    "backend": "tensorrt",
    "device": "cuda",
    "precision": "float16",
    "max_batch": 32,
    "labels": list(LABELS),
    "model": TKFNetConfig(width=0.125).to_dict(),
    "preprocessing": Preprocessing(size=SIZE).to_dict(),
    "tensorrt": SECTION,
    "versions": {"tensorrt": "10.9.0.34"},
    "hardware": {"machine": "x86_64", "processor": "a processor", "accelerator": "NVIDIA H200"},
    "verification": {"state": "unverified: no GPU"},
}


def write_engine(path: Path, plan: bytes | None = PLAN, tensors: dict[str, bytes] | None = None, **facts: Any) -> Path:
    """An engine file with the tensors and facts of a TensorRT one; a fact of ... is left out."""
    held = {"graph.onnx": b"graph", **({} if plan is None else {TENSORRT_PLAN: plan}), **(tensors or {})}
    write_bundle(path, held, {k: v for k, v in {**FACTS, **facts}.items() if v is not ...})
    return path


class Backend:
    """What is opened in the place of TensorRT: keeps what it was given, answers with each image's mean per column."""

    def __init__(self, monkeypatch: Any, *names: str):
        self.opened: list[tuple[str, bytes]] = []
        for name in names:
            module = ModuleType(f"tkfnet_engine.backends.standin_for_{name}")
            module.open_runner = partial(self._open, BACKENDS[name].artefact)
            monkeypatch.setitem(sys.modules, module.__name__, module)
            leaf = module.__name__.rpartition(".")[2]
            info = replace(BACKENDS[name], module=leaf, requires=(), devices=("cpu", "cuda"))
            monkeypatch.setitem(BACKENDS, name, info)

    def _open(self, tensor: str, facts: Any, artefacts: Any, device: str, threads: int) -> Backend:
        self.opened.append((tensor, artefacts.pop(tensor)))
        return self

    def run(self, images: np.ndarray) -> np.ndarray:
        means = images.reshape(len(images), -1).mean(1, dtype=np.float32)
        return means[:, None] + np.arange(len(LABELS), dtype=np.float32)

    def close(self) -> None:
        pass
