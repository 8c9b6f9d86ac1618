"""The shipped reference on the GPU: rendered faces with the float32 answers, engine files, an opened engine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .on_gpu import this_arch

# The engines that `make gpu` has built; without one the tests build a smaller one.
ENGINE_VARIABLES = {
    "float16": "TKFNET_GPU_ENGINE",
    "int8": "TKFNET_GPU_ENGINE_INT8",
    "float8": "TKFNET_GPU_ENGINE_FLOAT8",
}
FACES, MAX_BATCH = 64, 64
# The emulator's: on a CPU about the fastest.
EMULATED_BATCH = 32


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


def built(checkpoint, faces, precision: str, path: Path) -> Path:
    """An engine for batches up to `MAX_BATCH`; in eight bits by a calibration on rendered faces, nothing kept float
    that need not be."""
    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export.fused_from_folded import fused_tensors
    from tkfnet_engine.export.ranges_from_data import cached_table
    from tkfnet_engine.export.verify import VerificationSet
    from tkfnet_engine.kernels.placement import STEM
    from tkfnet_engine.model.equalise import equalise
    from tkfnet_engine.model.fold import fold

    golden = VerificationSet(faces.pixels, "faces", "", faces.logits.argmax(1), faces.logits)
    folded, scales = fold(checkpoint.model, checkpoint.preprocessing), None
    kept = [STEM] if precision == "float8" else []
    if precision != "float16":
        table = cached_table(checkpoint)
        folded, scales = equalise(folded, table.shifts), table.scales(precision)
    tensors, _ = fused_tensors(folded, precision, MAX_BATCH, (this_arch(),), golden, scales, kept)
    facts = {
        "model": checkpoint.model.config.to_dict(),
        "labels": list(checkpoint.labels),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "precision": precision,
        "backend": "fused",
        "device": "cuda",
        "max_batch": MAX_BATCH,
    }
    if precision != "float16":
        facts["quantisation"] = {"weight_bits": 8, "kept_float": kept}
    write_bundle(path, tensors, facts)
    return path


@pytest.fixture(scope="session")
def engine_path(checkpoint, faces, tmp_path_factory) -> Path:
    if path := os.environ.get(ENGINE_VARIABLES["float16"]):
        return Path(path)
    return built(checkpoint, faces, "float16", tmp_path_factory.mktemp("engine") / "engine.tkf")


@pytest.fixture(scope="session", params=["int8", "float8"])
def eight_bits(request, checkpoint, faces, tmp_path_factory):
    """An engine in eight bits. path: its file; weights: packed; kept_float: units that stay FP16; logits: what the
    emulator answers to `faces`, on the CPU."""
    from tkfnet_engine.bundle import read_bundle
    from tkfnet_engine.kernels.chips import has_float8
    from tkfnet_engine.kernels.emulator import Emulator
    from tkfnet_engine.kernels.network import network_of
    from tkfnet_engine.kernels.planner import plan_from_network
    from tkfnet_engine.model.fold import fold

    precision, arch = request.param, this_arch()
    if precision == "float8" and not has_float8(arch):
        pytest.skip(f"{arch} has no FP8")
    path = os.environ.get(ENGINE_VARIABLES[precision])
    path = Path(path) if path else built(checkpoint, faces, precision, tmp_path_factory.mktemp(precision) / "e.tkf")
    bundle = read_bundle(path)
    weights, kept = bytes(bundle.pop("weights.packed")), tuple(bundle.facts["quantisation"]["kept_float"])
    network = network_of(fold(checkpoint.model, checkpoint.preprocessing))
    plan = plan_from_network(network, EMULATED_BATCH, precision, arch, kept_float=kept)
    logits = Emulator(plan, weights).run(faces.pixels)
    return SimpleNamespace(
        precision=precision, path=path, weights=weights, kept_float=kept, network=network, logits=logits
    )


@pytest.fixture
def engine(engine_path):
    from tkfnet_engine import Engine

    with Engine.load(engine_path) as opened:
        yield opened
