"""The network: its size, its names, its blocks against a naive re-computation, independence of a batch's images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tkfnet_engine.model.dcif import DCIF
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.model.tafe import TAFE
from tkfnet_engine.spec import TKFNetConfig


@pytest.fixture(scope="module")
def published() -> TKFNet:
    torch.manual_seed(0)
    return TKFNet().eval()


def test_parameter_count(published):
    assert sum(p.numel() for p in published.parameters()) == 14_017_289


@torch.no_grad()
def test_arithmetic_per_image(published):
    counter = FlopCounterMode(display=False)
    with counter:
        assert published(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    assert round(flops["Global"] / 1e9, 3) == 3.860
    assert round(flops["TKFNet.backbone"] / 1e9, 3) == 3.627


@torch.no_grad()
def test_backbone_map_is_512_by_7_by_7(published):
    assert published.backbone(torch.zeros(1, 3, 224, 224)).shape == (1, 512, 7, 7)


# --- names and shapes, from the spec's table ---------------------------------------------------------------


def _bn(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return vectors | {f"{name}.num_batches_tracked": ()}


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resnet18() -> dict[str, tuple[int, ...]]:
    """torchvision's resnet18().state_dict(), without its classifier."""
    expected = {"conv1.weight": (64, 3, 7, 7)} | _bn("bn1", 64)
    cin = 64
    for stage, cout in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for index in (0, 1):
            block = f"layer{stage}.{index}"
            expected |= {f"{block}.conv1.weight": (cout, cin, 3, 3)} | _bn(f"{block}.bn1", cout)
            expected |= {f"{block}.conv2.weight": (cout, cout, 3, 3)} | _bn(f"{block}.bn2", cout)
            if index == 0 and stage > 1:
                expected |= {f"{block}.downsample.0.weight": (cout, cin, 1, 1)} | _bn(f"{block}.downsample.1", cout)
            cin = cout
    return expected


def _resnet50() -> dict[str, tuple[int, ...]]:
    expected = {"conv1.weight": (64, 3, 7, 7)} | _bn("bn1", 64)
    cin = 64
    for stage, depth in ((1, 3), (2, 4), (3, 6), (4, 3)):
        channels = 32 << stage
        for index in range(depth):
            block, cout = f"layer{stage}.{index}", 4 * channels
            expected |= {f"{block}.conv1.weight": (channels, cin, 1, 1)} | _bn(f"{block}.bn1", channels)
            expected |= {f"{block}.conv2.weight": (channels, channels, 3, 3)} | _bn(f"{block}.bn2", channels)
            expected |= {f"{block}.conv3.weight": (cout, channels, 1, 1)} | _bn(f"{block}.bn3", cout)
            if index == 0:
                expected |= {f"{block}.downsample.0.weight": (cout, cin, 1, 1)} | _bn(f"{block}.downsample.1", cout)
            cin = cout
    return expected


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_every_name_and_shape_of_the_spec(published):
    c = 512
    expected = {f"backbone.{name}": shape for name, shape in _resnet18().items()}
    expected |= _affine("tafe.split", 2 * c, c, 1, 1) | _affine("tafe.pool_conv", c, 1, 3, 3)
    expected |= {"tafe.alpha": (1, c, 1, 1), "tafe.beta": (1, c, 1, 1)} | _affine("tafe.gate", c, c, 1, 1)
    expected |= _affine("tafe.detail.0", 2 * c, 1, 3, 3) | _affine("tafe.detail.1", 2 * c, 2 * c, 1, 1)
    expected |= _affine("tafe.detail.3", c, 2 * c, 1, 1) | _affine("tafe.merge", c, c, 1, 1)
    expected |= _affine("dcif.channel.0", 32, c) | _bn("dcif.channel.1", 32) | _affine("dcif.channel.3", c, 32)
    expected |= {"dcif.spatial.weight": (1, 2, 7, 7)}
    expected |= _affine("head.0", 256, c) | _bn("head.1", 256) | _affine("head.3", 128, 256) | _bn("head.4", 128)
    expected |= _affine("head.6", 7, 128)
    assert _shapes(published) == expected


def test_resnet50_backbone_has_torchvisions_names():
    assert _shapes(TKFNet(TKFNetConfig("resnet50")).backbone) == _resnet50()


def test_alpha_starts_at_one_and_beta_at_zero(published):
    fresh = TKFNet(TKFNetConfig(width=0.125)).tafe
    assert (fresh.alpha == 1).all() and (fresh.beta == 0).all()


# --- configurations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TKFNetConfig(width=0.125),
        TKFNetConfig(width=0.25, pool="nearest"),
        TKFNetConfig("resnet34", width=0.125),
        TKFNetConfig("resnet50", width=0.125),
        TKFNetConfig(width=0.125, tafe=False),
        TKFNetConfig(width=0.125, dcif=False),
        TKFNetConfig(width=0.125, tafe=False, dcif=False),
        TKFNetConfig(width=0.0625),
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [32, 75])
@torch.no_grad()
def test_configurations_build_and_answer(config, side):
    model = TKFNet(config).eval()
    logits = model(torch.randn(3, 3, side, side))
    assert logits.shape == (3, 7) and logits.isfinite().all()
    assert not any(name.startswith("tafe.") for name in model.state_dict()) or config.tafe
    assert not any(name.startswith("dcif.") for name in model.state_dict()) or config.dcif


def test_width_scales_channels_to_multiples_of_eight():
    model = TKFNet(TKFNetConfig(width=0.3))
    assert model.backbone.conv1.out_channels == 16  # 19.2
    assert model.backbone.layer4[1].conv2.out_channels == 152 == model.config.features  # 153.6
    assert all(p.shape[0] % 8 == 0 for n, p in model.named_parameters() if n.startswith("backbone"))


# --- blocks against the spec's formulas, in plain numpy -----------------------------------------------------


def _randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter and statistic away from its start, float64, evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(max(tensor[0].numel(), 1)))
    return module


def _weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: (1 + math.erf(v / math.sqrt(2))) / 2)(x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _conv1x1(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    """x [C, H, W]."""
    return np.einsum("oi,ihw->ohw", w[f"{name}.weight"][:, :, 0, 0], x) + w[f"{name}.bias"][:, None, None]


def _conv(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One output channel of a zero-padded convolution, position by position: x [C, H, W], weight [C, K, K]."""
    reach = weight.shape[1] // 2
    _, height, width = x.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        out[i, j] += x[:, i + di, j + dj] @ weight[:, di + reach, dj + reach]
    return out


def _depthwise(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    per_input = len(weight) // len(x)
    return np.stack([_conv(x[[o // per_input]], weight[o]) + bias[o] for o in range(len(weight))])


def _naive_tafe(w: dict[str, np.ndarray], f: np.ndarray, pool: str) -> np.ndarray:
    channels, height, width = f.shape
    both = _conv1x1(w, "split", f)
    y, x = both[:channels], both[channels:]
    rows, columns = max(height // 8, 1), max(width // 8, 1)
    pooled = np.zeros((channels, rows, columns))
    for i in range(rows):
        for j in range(columns):
            if pool == "max":
                window = x[
                    :,
                    i * height // rows : -(-(i + 1) * height // rows),
                    j * width // columns : -(-(j + 1) * width // columns),
                ]
                pooled[:, i, j] = window.max((1, 2))
            else:
                pooled[:, i, j] = x[:, i * height // rows, j * width // columns]
    s = _depthwise(w, "pool_conv", pooled)
    v = np.array([[[np.mean((plane - plane.mean()) ** 2)]] for plane in x])
    g = _gelu(_conv1x1(w, "gate", w["alpha"][0] * s + w["beta"][0] * v))
    x_l = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            x_l[:, i, j] = x[:, i, j] * g[:, i * rows // height, j * columns // width]
    detail = _gelu(_conv1x1(w, "detail.1", _depthwise(w, "detail.0", y)))
    return _conv1x1(w, "merge", x_l + _conv1x1(w, "detail.3", detail))


@pytest.mark.parametrize("pool", ["max", "nearest"])
@pytest.mark.parametrize("size", [(7, 7), (1, 1), (5, 3), (17, 17), (16, 25), (23, 9)], ids=str)
@torch.no_grad()
def test_tafe_equals_the_formulas(pool, size):
    tafe = _randomised(TAFE(3, pool), seed=sum(size))
    f = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected = np.stack([_naive_tafe(_weights(tafe), image.numpy(), pool) for image in f])
    np.testing.assert_allclose(tafe(f).numpy(), expected, rtol=0, atol=1e-11)


@torch.no_grad()
def test_tafe_pool_modes_differ_and_the_pooled_map_grows():
    tafe = _randomised(TAFE(3, "max"), 1)
    x = torch.randn(1, 3, 23, 17, dtype=torch.float64)
    assert tafe.pooled(x).shape == (1, 3, 2, 2)
    other = TAFE(3, "nearest").double()
    other.load_state_dict(tafe.state_dict())
    assert (tafe(x) - other(x)).abs().max() > 1e-3


def _naive_dcif(w: dict[str, np.ndarray], z: np.ndarray) -> np.ndarray:
    h = w["channel.0.weight"] @ z.mean((1, 2)) + w["channel.0.bias"]
    h = (h - w["channel.1.running_mean"]) / np.sqrt(w["channel.1.running_var"] + 1e-5)
    h = np.maximum(h * w["channel.1.weight"] + w["channel.1.bias"], 0)
    c = _sigmoid(w["channel.3.weight"] @ h + w["channel.3.bias"])
    filtered = z * c[:, None, None]
    m = _sigmoid(_conv(np.stack([filtered.mean(0), filtered.max(0)]), w["spatial.weight"][0]))
    return filtered * m


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (9, 4)], ids=str)
@torch.no_grad()
def test_dcif_equals_the_formulas(size):
    dcif = _randomised(DCIF(48), seed=3)
    z = torch.randn(2, 48, *size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = np.stack([_naive_dcif(_weights(dcif), image.numpy()) for image in z])
    np.testing.assert_allclose(dcif(z).numpy(), expected, rtol=0, atol=1e-12)


# --- pixels and batches ------------------------------------------------------------------------------------


def test_normalise_is_the_published_formula():
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    x = normalise(pixels)
    assert x.shape == (2, 3, 5, 4) and x.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        expected = (pixels[..., channel].double() / 255 - mean) / std
        # |x| <= 2.7 after four float32 roundings.
        torch.testing.assert_close(x[:, channel].double(), expected, rtol=0, atol=4 * 2.7 * 2.0**-23)


@pytest.mark.parametrize("neighbour", [0, 255, math.nan], ids=["black", "white", "nan"])
@pytest.mark.parametrize("pool", ["max", "nearest"])
@torch.no_grad()
def test_an_image_does_not_see_its_neighbours_or_its_slot(neighbour, pool):
    torch.manual_seed(2)
    model = TKFNet(TKFNetConfig(width=0.125, pool=pool)).eval()
    crop = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    noise = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    alone = normalise(crop)
    expected = model(alone)
    # Batches of equal size take the same code path, so that only the neighbours and the slot differ.
    reference = model(torch.cat([alone, normalise(noise)[:4]]))[0]
    # A batch of another size may sum in another order.
    torch.testing.assert_close(reference, expected[0], rtol=1e-4, atol=1e-5)
    for slot in range(5):
        if math.isnan(neighbour):
            batch = torch.full((5, 3, 64, 64), math.nan)
        else:
            batch = normalise(torch.full((5, 64, 64, 3), neighbour, dtype=torch.uint8))
        batch[slot] = alone[0]
        logits = model(batch)
        torch.testing.assert_close(logits[slot], reference, rtol=1e-5, atol=1e-6)
        if math.isnan(neighbour):
            assert logits[[i for i in range(5) if i != slot]].isnan().all()
