"""Whole networks in the interpreter: from pixels to logits, against the folded network in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tkfnet_engine.build import reference_checkpoint
from tkfnet_engine.compare import compare
from tkfnet_engine.data import open_data
from tkfnet_engine.kernels.interpret import Interpreter, interpreter_plan
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.plan import Launch, Plan
from tkfnet_engine.kernels.reference import differences
from tkfnet_engine.kernels.weights import packed_weights
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import FoldedTKFNet, fold
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.preprocess import stack_crops
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from .harness import assert_as_good_as_pytorch, real_plan

REQUIRED_SQNR_DB = 45.0
# What one rounding to FP16 is worth in roundings to float32, in which logits are written.
HALF_ROUNDING = 2**13


def settled_model(pixels: np.ndarray, preprocessing: Preprocessing, config: TKFNetConfig) -> TKFNet:
    """A random network whose batch norms know these images, and whose logits differ from image to image."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        model = TKFNet(config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean of what it sees
        inputs = normalise(torch.from_numpy(pixels), preprocessing)
        for _ in range(2):
            model(inputs)
        last = model.eval().head[6]
        last.weight /= model(inputs).std(0).mean()
        last.bias -= model(inputs).mean(0)
    return model


def interpreter_of(plan: Plan, folded: FoldedTKFNet) -> Interpreter:
    return Interpreter(plan, packed_weights(folded, network_of(folded)))


def half_logits(model: TKFNet, preprocessing: Preprocessing, pixels: np.ndarray) -> torch.Tensor:
    """Plain PyTorch in FP16: backbone and TAFE; the rest in float32, as in the kernels."""
    return fold(model, preprocessing).half()(torch.from_numpy(pixels))


def run_judged(interpreter: Interpreter, pixels: np.ndarray) -> np.ndarray:
    """The logits; every launch has been judged by itself, by what it read."""

    def judge(launch: Launch) -> None:
        wrong = [str(d) for d in differences(launch, interpreter.view) if not d.right]
        assert not wrong, f"{launch.name}: {wrong}"

    return interpreter.run(pixels, judge)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pool": "nearest", "dcif": False, "size": 97},
        {"tafe": False, "classes": 10},
        {"tafe": False, "dcif": False, "width": 0.0625},
        {"width": 0.25, "size": 33},
        {"backbone": "resnet34"},
        {"backbone": "resnet50"},
    ],
    ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()) or "resnet18",
)
@torch.no_grad()
def test_small_networks_agree_with_pytorch(config: dict[str, Any], noise):
    config = {"width": 0.125, "size": 64} | config
    preprocessing = Preprocessing(size=config.pop("size"))
    pixels = noise(16, preprocessing.size, seed=3)
    model = settled_model(pixels, preprocessing, TKFNetConfig(**config))
    folded = fold(model, preprocessing)
    interpreter = interpreter_of(interpreter_plan(network_of(folded), 3, "float16", "sm_90"), folded)
    got = torch.from_numpy(run_judged(interpreter, pixels[:3]))
    exact, half = folded(torch.from_numpy(pixels[:3])).double(), half_logits(model, preprocessing, pixels[:3])
    assert exact.std(0).mean() > 0.3  # images differ
    assert_as_good_as_pytorch(got, exact, half, roundings=HALF_ROUNDING)


@torch.no_grad()
def test_the_tiles_of_a_real_plan_agree_with_pytorch(noise):
    """With splits in most layers; and an image's logits do not depend on what else runs, or ran before."""
    preprocessing = Preprocessing(size=33)
    pixels = noise(16, 33, seed=4)
    model = settled_model(pixels, preprocessing, TKFNetConfig(width=0.125))
    folded = fold(model, preprocessing)
    plan = real_plan(network_of(folded), 3)
    splits = [dict(launch.constexprs).get("SPLIT", 1) for launch in plan.launches]
    assert sum(split > 1 for split in splits) >= 10
    interpreter = interpreter_of(plan, folded)
    got = run_judged(interpreter, pixels[:3])
    exact, half = folded(torch.from_numpy(pixels[:3])).double(), half_logits(model, preprocessing, pixels[:3])
    assert_as_good_as_pytorch(torch.from_numpy(got), exact, half, roundings=HALF_ROUNDING)
    # Fewer images than the plan is for, in another place, after another run.
    assert (interpreter.run(pixels[2:4])[0] == got[2]).all()


@torch.no_grad()
def test_the_shipped_reference_agrees_with_pytorch():
    """Rendered faces at 224 x 224, at batch 1 and at batch 3."""
    checkpoint = load_checkpoint(reference_checkpoint())
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    faces = open_data("synthetic:n=1400,seed=977", "test")
    pixels = stack_crops([faces.image(i) for i in range(4)], checkpoint.preprocessing.size)
    network = network_of(folded)
    parts = [
        interpreter_of(interpreter_plan(network, len(part), "float16", "sm_90"), folded).run(part)
        for part in (pixels[:1], pixels[1:])
    ]
    got, exact = np.concatenate(parts), folded(torch.from_numpy(pixels))
    comparison = compare(exact.numpy(), got, REQUIRED_SQNR_DB)
    assert comparison.sqnr_db >= REQUIRED_SQNR_DB and comparison.top1_agreement == 1, str(comparison)
    half = half_logits(checkpoint.model, checkpoint.preprocessing, pixels)
    assert_as_good_as_pytorch(torch.from_numpy(got), exact.double(), half, roundings=HALF_ROUNDING)
