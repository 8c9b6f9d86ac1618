"""The folded form equals the model: one proof per identity of `fold.py`, then the whole network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tkfnet_engine.compare import compare
from tkfnet_engine.model.dcif import DCIF
from tkfnet_engine.model.fold import HALF_PIXEL_SCALE, FoldedBlock, FoldedDCIF, FoldedTAFE, fold, fold_bn
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.model.tafe import TAFE
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

# `fold` stores float32, so even in float64 arithmetic each folded parameter carries one rounding of 2**-24.
ROUNDING = 2.0**-24


def _randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every affine, statistic and bias away from its start; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, low=-1.0, high=1.0):
        return torch.rand(shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            leaf = name.rpartition(".")[2]
            if leaf == "running_var":
                tensor.copy_(draw(tensor.shape, 0.3, 3.0))
            elif leaf == "running_mean":
                tensor.copy_(draw(tensor.shape, -0.5, 0.5))
            elif leaf in ("alpha", "beta") or (leaf == "weight" and tensor.dim() == 1):
                tensor.copy_(draw(tensor.shape, 0.5, 1.5) * torch.sign(draw(tensor.shape)))
            elif leaf == "bias":
                tensor.copy_(draw(tensor.shape, 0.1, 0.5))
            elif tensor.is_floating_point():
                tensor.copy_(draw(tensor.shape) * math.sqrt(6 / max(tensor[0].numel(), 1)))
    return module.eval()


def _images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def _close(got: torch.Tensor, expected: torch.Tensor, roundings: float) -> None:
    """Within `roundings` float32 roundings of the largest expected value."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    bound = roundings * ROUNDING * float(expected.detach().abs().max())
    assert float((got - expected).abs().max()) <= bound, f"{float((got - expected).abs().max())} > {bound}"


# --- identity 1: batch norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["conv", "strided", "depthwise", "linear"])
@torch.no_grad()
def test_batch_norm_folds_into_the_layer_before_it(kind, bias):
    layer, x = {
        "conv": (nn.Conv2d(5, 7, 3, padding=1, bias=bias), torch.randn(3, 5, 9, 6)),
        "strided": (nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=bias), torch.randn(2, 3, 17, 17)),
        "depthwise": (nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=bias), torch.randn(2, 6, 5, 5)),
        "linear": (nn.Linear(11, 6, bias=bias), torch.randn(4, 11)),
    }[kind]
    bn = (nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(layer.weight.shape[0])
    _randomise(nn.ModuleList([layer, bn]), seed=5)
    folded = fold_bn(layer, bn)
    assert folded.weight.dtype == folded.bias.dtype == torch.float32
    x = x.double()
    expected = bn.double()(layer.double()(x))
    # A sum of up to 150 products, each with one rounded factor.
    _close(folded.double()(x), expected, 150)
    assert (expected - layer(x)).abs().max() > 0.1


# --- identity 2: normalisation, and the padding trap -------------------------------------------------------


def _stem_model() -> TKFNet:
    model = TKFNet(TKFNetConfig(width=0.125))
    return _randomise(model, seed=11)


def _model_stem(model: TKFNet, pixels: torch.Tensor) -> torch.Tensor:
    """Convolution and batch norm on the normalised, zero-padded image, in float64."""
    facts = Preprocessing()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (facts.mean, facts.std))
    x = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    return model.backbone.bn1.double()(model.backbone.conv1.double()(x))


@pytest.mark.parametrize("what", ["random", "mean colour", "black border", "white", "black"])
@torch.no_grad()
def test_normalisation_folds_into_the_stem_and_keeps_its_padding(what):
    pixels = _images(2, 40)
    if what == "mean colour":
        pixels[:] = torch.tensor([124, 116, 104], dtype=torch.uint8)
    elif what == "black border":
        pixels[:, :6], pixels[:, -6:], pixels[:, :, :6], pixels[:, :, -6:] = 0, 0, 0, 0
    elif what in ("white", "black"):
        pixels[:] = 255 if what == "white" else 0
    model = _stem_model()
    folded = fold(model)
    stem = folded.stem.double()
    x = pixels.double().permute(0, 3, 1, 2) - folded.pixel_mean.double()
    got, expected = stem(x), _model_stem(model, pixels)
    # 147 products of size 150 * w with a rounded weight, plus the rounded pixel mean.
    bound = ROUNDING * float(2 * 256 * stem.weight.abs().sum((1, 2, 3)).max() + stem.bias.abs().max())
    assert float((got - expected).abs().max()) <= bound < 1e-2

    # The trap: with the mean in the bias, the padding would be black pixels instead of mean-coloured ones.
    naive_bias = stem.bias - (stem.weight * folded.pixel_mean.double()).sum((1, 2, 3))
    naive = F.conv2d(pixels.double().permute(0, 3, 1, 2), stem.weight, naive_bias, stride=2, padding=3)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert float((naive - expected)[inside].abs().max()) <= bound
    assert float((naive - expected).abs().max()) > 100 * bound, "the test has no teeth"


@torch.no_grad()
def test_other_preprocessing_constants_are_folded():
    facts = Preprocessing(size=64, mean=(0.1, 0.7, 0.45), std=(0.5, 0.3, 0.9))
    # Enough logits that the largest of the reference's own errors is no matter of luck.
    model, pixels = _calibrated(TKFNetConfig(width=0.125)), _images(16, 64, seed=3)
    exact, allowed = _exact(model, pixels, facts), _tolerance(model, pixels, facts)
    assert float((fold(model, facts)(pixels).double() - exact).abs().max()) <= allowed
    assert float((fold(model)(pixels).double() - exact).abs().max()) > 100 * allowed


# --- identities 3 and 4: TAFE ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["max", "nearest"])
@pytest.mark.parametrize("size", [(7, 7), (1, 1), (15, 15), (3, 11)], ids=str)
@torch.no_grad()
def test_folded_tafe(pool, size):
    tafe = _randomise(TAFE(24, pool), seed=21)
    folded = FoldedTAFE(tafe).double()
    f = torch.randn(2, 24, *size, dtype=torch.float64)
    # Statistics are taken in float32 inside: exact for inputs that float32 holds, up to its own rounding.
    _close(folded(f), tafe.double()(f), 24 * 24)


@torch.no_grad()
def test_depthwise_on_a_single_pixel_is_its_centre_tap():
    """Identity 3 alone, exactly: gate(alpha * dw(p) + beta * v) on a 1x1 map."""
    tafe = _randomise(TAFE(16, "max"), seed=4)
    folded = FoldedTAFE(tafe).double()
    tafe.double()
    pooled, variance = torch.randn(3, 16, 1, 1).double(), torch.rand(3, 16, 1, 1).double()
    expected = tafe.gate(tafe.alpha * tafe.pool_conv(pooled) + tafe.beta * variance)
    got = folded.gate(folded.of_pool * pooled + folded.of_variance * variance)
    _close(got, expected, 16 * 16)
    # On a larger map the neighbours matter, so this identity is not one of arithmetic in general.
    wide = torch.randn(1, 16, 2, 2).double()
    assert (tafe.pool_conv(wide) - wide * tafe.pool_conv.weight[None, :, 0, 1, 1, None, None]).abs().max() > 0.1


@torch.no_grad()
def test_merge_after_the_sum_is_one_product():
    """Identity 4 alone: W (x + F h + f) + b = [W | W F] [x ; h] + b'."""
    tafe = _randomise(TAFE(16, "max"), seed=6)
    folded = FoldedTAFE(tafe).double()
    tafe.double()
    x, h = torch.randn(2, 16, 5, 5).double(), torch.randn(2, 32, 5, 5).double()
    assert folded.merge.weight.shape == (16, 48, 1, 1)
    _close(folded.merge(torch.cat([x, h], 1)), tafe.merge(x + tafe.detail[3](h)), 48 * 16)


# --- identity 5: DCIF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (15, 4)], ids=str)
@torch.no_grad()
def test_folded_dcif_is_dcif_and_the_global_mean(size):
    dcif = _randomise(DCIF(48), seed=8)
    folded = FoldedDCIF(dcif)
    z = torch.randn(3, 48, *size)
    expected = dcif.double()(z.double()).mean((2, 3))
    got = folded(z)
    # float32 inside by design: judged against what plain PyTorch errs in float32, plus rounding.
    plain = dcif.float()(z).mean((2, 3))
    allowed = 2 * float((plain - expected).abs().max()) + 48 * ROUNDING * float(expected.abs().max())
    assert float((got - expected).abs().max()) <= allowed


@torch.no_grad()
def test_channel_filter_leaves_the_weighted_pool():
    """mean(m c z) = c mean(m z), in float64, where nothing else differs."""
    z, c, m = (torch.rand(s, dtype=torch.float64) for s in ((2, 9, 5, 4), (2, 9), (2, 1, 5, 4)))
    torch.testing.assert_close((m * c[:, :, None, None] * z).mean((2, 3)), c * (m * z).mean((2, 3)), rtol=1e-14, atol=0)


# --- the whole network -------------------------------------------------------------------------------------

CONFIGS = [
    TKFNetConfig(width=0.125),
    TKFNetConfig(width=0.125, pool="nearest"),
    TKFNetConfig("resnet34", width=0.125),
    TKFNetConfig("resnet50", width=0.0625),
    TKFNetConfig(width=0.125, tafe=False),
    TKFNetConfig(width=0.125, dcif=False),
    TKFNetConfig(width=0.125, tafe=False, dcif=False),
    TKFNetConfig(width=0.25, classes=3),
]


def _tolerance(model: TKFNet, pixels: torch.Tensor, facts: Preprocessing | None = None) -> float:
    """Twice what the model itself errs in float32 against float64, plus rounding of the largest logit."""
    exact, plain = _exact(model, pixels, facts), model(normalise(pixels, facts))
    return 2 * float((plain.double() - exact).abs().max()) + 64 * ROUNDING * float(exact.abs().max())


def _exact(model: TKFNet, pixels: torch.Tensor, facts: Preprocessing | None = None) -> torch.Tensor:
    facts = facts or Preprocessing()
    wide = TKFNet(model.config).double().eval()
    wide.load_state_dict(model.state_dict())
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (facts.mean, facts.std))
    return wide(((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2))


def _calibrated(config: TKFNetConfig, side: int = 64) -> TKFNet:
    """Random weights whose batch norms hold the statistics of random images, as training leaves them."""
    torch.manual_seed(17)
    model = _randomise(TKFNet(config), seed=17)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        for seed in range(2):
            model(normalise(_images(24, side, seed)))
    return model.eval()


@pytest.mark.parametrize("side", [64, 97])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_folded_network_equals_the_model(config, side):
    model, pixels = _calibrated(config), _images(4, side, seed=50)
    exact = _exact(model, pixels)
    got = fold(model)(pixels)
    assert got.dtype == torch.float32 and got.shape == (4, config.classes)
    error, allowed = float((got.double() - exact).abs().max()), _tolerance(model, pixels)
    assert error <= allowed, f"{error} > {allowed}"
    # Images differ by far more than the tolerance, so that agreement means something.
    assert float(exact.std(0).min()) > 100 * allowed


@torch.no_grad()
def test_largest_documented_size_still_equals_the_model():
    model, pixels = _calibrated(TKFNetConfig(width=0.0625)), _images(2, 480, seed=1)
    facts = Preprocessing(size=480)
    assert model.backbone(normalise(pixels)).shape[2:] == (15, 15)
    error = float((fold(model, facts)(pixels).double() - _exact(model, pixels)).abs().max())
    assert error <= _tolerance(model, pixels)


def test_a_size_the_folded_form_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="480"):
        fold(TKFNet(TKFNetConfig(width=0.0625)), Preprocessing(size=481))


@pytest.mark.parametrize("training", [True, False])
def test_fold_leaves_the_model_as_it_was(training):
    model = _calibrated(TKFNetConfig(width=0.125)).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    folded = fold(model)
    folded.half()
    for tensor in folded.state_dict().values():  # nor does it share memory with the model
        tensor.fill_(math.nan)
    assert all(module.training is training for module in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grads
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor), name


def test_folded_form_is_for_inference():
    folded = fold(TKFNet(TKFNetConfig(width=0.125)))
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(module.training for module in folded.modules())
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.half().parameters())


# --- half precision ----------------------------------------------------------------------------------------


def _rounded_to_half(network: nn.Module) -> nn.Module:
    """The half network's numbers in float32 arithmetic: weights as they are, every map rounded to FP16 once."""
    for part in (network.stem, network.blocks, network.tafe):
        part.float()
        for module in part.modules():
            if isinstance(module, (nn.Conv2d, FoldedBlock)):
                module.register_forward_hook(lambda _, __, out: out.half().float())
    return network


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_half_errs_no_more_than_rounding_the_maps_explains(config):
    # Batch norms calibrated at the size the network is asked at; else its logits hardly differ between images.
    model, pixels = _calibrated(config), _images(24, 64, seed=70)
    reference = fold(model)(pixels).numpy()
    got = fold(model).half()(pixels)
    assert got.dtype == torch.float32
    report = compare(reference, got.numpy(), required_sqnr_db=40)
    explained = compare(reference, _rounded_to_half(fold(model).half())(pixels).numpy(), required_sqnr_db=40)
    assert report.rms_error <= 2 * explained.rms_error, f"{report}; rounding alone: {explained}"
    # Random weights amplify rounding from block to block: in ResNet-34 and 50 rounding alone leaves 24 to 35 dB.
    if config.backbone == "resnet18":
        assert report.sqnr_db >= 40, str(report)
        assert report.disagreements == report.near_ties


@torch.no_grad()
def test_half_twice_is_half_once():
    model, pixels = _calibrated(TKFNetConfig(width=0.125)), _images(2, 64)
    once, twice = fold(model).half(), fold(model).half().half()
    assert once.pixel_scale == twice.pixel_scale == HALF_PIXEL_SCALE
    for (name, a), (_, b) in zip(once.state_dict().items(), twice.state_dict().items(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert torch.equal(once(pixels), twice(pixels))


def test_half_leaves_statistics_and_classifier_in_float32():
    folded = fold(TKFNet(TKFNetConfig(width=0.125))).half()
    for name, tensor in folded.state_dict().items():
        part = name.partition(".")[0]
        assert tensor.dtype == (torch.float16 if part in ("stem", "blocks", "tafe") else torch.float32), name


@torch.no_grad()
def test_pixel_scale_is_a_power_of_two_and_cancels_exactly():
    assert math.frexp(HALF_PIXEL_SCALE)[0] == 0.5
    model = _calibrated(TKFNetConfig(width=0.125))
    plain, half = fold(model), fold(model).half()
    assert torch.equal(half.stem.weight.float(), (plain.stem.weight / HALF_PIXEL_SCALE).half().float())
    # What the scale is for: not one weight that matters in FP16's subnormal range.
    used = plain.stem.weight.abs() > plain.stem.weight.abs().max() * 2.0**-10
    assert half.stem.weight.float().abs()[used].min() >= np.finfo(np.float16).smallest_normal


@torch.no_grad()
def test_white_and_black_do_not_overflow_half():
    model = _calibrated(TKFNetConfig(width=0.125))
    half = fold(model).half()
    for value in (0, 255):
        assert half(torch.full((2, 64, 64, 3), value, dtype=torch.uint8)).isfinite().all()


def test_folding_the_same_model_twice_is_deterministic():
    model = _calibrated(replace(TKFNetConfig(), width=0.125))
    first, second = fold(model).state_dict(), fold(model).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
