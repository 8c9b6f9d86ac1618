"""The shipped reference on the GPU: rendered faces with the float32 answers, an engine file, an opened engine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .on_gpu import this_arch

# The engine that `make gpu` has built; without it the tests build a smaller one.
ENGINE_VARIABLE = "TKFNET_GPU_ENGINE"
FACES, MAX_BATCH = 64, 64


@pytest.fixture(autouse=True)
def exact_float32():
    """The judge computes in float32, not in TF32, and sums FP16 products in float32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def checkpoint():
    from tkfnet_engine.build import reference_checkpoint
    from tkfnet_engine.model.checkpoint import load_checkpoint

    return load_checkpoint(os.environ.get("TKFNET_GPU_CHECKPOINT") or reference_checkpoint())


@pytest.fixture(scope="session")
def faces(checkpoint):
    """pixels: uint8 [64, S, S, 3], rendered; logits: float32 [64, classes], of the unfolded network."""
    import torch

    from tkfnet_engine.data import open_data
    from tkfnet_engine.model.net import normalise
    from tkfnet_engine.preprocess import stack_crops

    drawn = open_data("synthetic:n=700,seed=41", "test")
    pixels = stack_crops([drawn.image(i) for i in range(FACES)], checkpoint.preprocessing.size)
    with torch.no_grad():
        parts = [normalise(torch.from_numpy(pixels[i : i + 16]), checkpoint.preprocessing) for i in range(0, FACES, 16)]
        logits = np.concatenate([checkpoint.model(part).numpy() for part in parts])
    return SimpleNamespace(pixels=pixels, logits=logits)


@pytest.fixture(scope="session")
def engine_path(checkpoint, faces, tmp_path_factory) -> Path:
    if path := os.environ.get(ENGINE_VARIABLE):
        return Path(path)
    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export.fused_from_folded import fused_tensors
    from tkfnet_engine.export.verify import VerificationSet
    from tkfnet_engine.model.fold import fold

    golden = VerificationSet(faces.pixels, "faces", "", faces.logits)
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    tensors = fused_tensors(folded, "float16", MAX_BATCH, (this_arch(),), golden)
    facts = {
        "model": checkpoint.model.config.to_dict(),
        "labels": list(checkpoint.labels),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "precision": "float16",
        "backend": "fused",
        "device": "cuda",
        "max_batch": MAX_BATCH,
    }
    path = tmp_path_factory.mktemp("engine") / "engine.tkf"
    write_bundle(path, tensors, facts)
    return path


@pytest.fixture
def engine(engine_path):
    from tkfnet_engine import Engine

    with Engine.load(engine_path) as opened:
        yield opened
