"""Engines for the stand-ins of OpenVINO and of the GPU driver, and running the test programs over them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np

from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

SIZE, CLASSES = 32, 7


def engine_facts(**changes: object) -> dict:
    """The facts of an engine for OpenVINO, which an engine file cannot do without."""
    return {
        "model": TKFNetConfig().to_dict(),
        "labels": list(LABELS),
        "preprocessing": Preprocessing(size=SIZE).to_dict(),
        "precision": "float32",
        "backend": "openvino",
        "device": "cpu",
        "max_batch": 4,
        **changes,
    }


def standin_engine(path: Path, **changes: object) -> Path:
    """An engine whose graph fake_openvino.c understands: for batches up to 4, images of 32 x 32, 7 classes."""
    write_bundle(path, {"graph.onnx": f"STANDIN {SIZE} {CLASSES}".encode()}, engine_facts(**changes))
    return path


def standin_answers(images: np.ndarray) -> np.ndarray:
    """The logits that fake_openvino.c computes of uint8 [N, 32, 32, 3]: float32 [N, 7]."""
    flat = images.reshape(len(images), -1).astype(np.int64)
    sums = flat @ (np.arange(flat.shape[1]) % 251 + 1) % 9973
    return (sums[:, None] * np.arange(1, CLASSES + 1)).astype(np.float32)


def run_program(
    build: Path, name: str, *arguments: object, openvino: Path | None = None, expect: int = 0, **environment: str
) -> str:
    """Standard output of a test program; fails with its standard error unless it exits with `expect`."""
    settings = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "TKFNET_OPENVINO_LIBRARY")}
    if openvino:
        settings["TKFNET_OPENVINO_LIBRARY"] = str(openvino)
    command = [str(build / "programs" / name), *map(str, arguments)]
    done = subprocess.run(command, env=settings | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout if expect == 0 else done.stderr
