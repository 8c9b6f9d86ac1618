"""Fake quantisation: the grids, the straight-through gradients, and a whole network against one written in numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import Placement, placement_of
from tkfnet_engine.kernels.quantise import INT8_MOST, REDUCED_MOST, float8_weight, quantised_weight
from tkfnet_engine.model.fake_quantised import Grid, fake_quantised, rounded, rounded_weight, weight_scale
from tkfnet_engine.model.fold import FoldedTKFNet, fold, fold_live
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.spec import TKFNetConfig

TINY = TKFNetConfig(width=0.0625)
KINDS = ("int8", "uint8", "float8")


def _images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> TKFNet:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        net = TKFNet(TINY)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        net.tafe.beta.uniform_(-0.5, 0.5)
        net.train()(normalise(_images(24, 1)))
        return net.eval()


@pytest.fixture(autouse=True)
def no_gradients(model):
    model.zero_grad()


@pytest.fixture
def folded(model) -> FoldedTKFNet:
    return fold(model)


@pytest.fixture(scope="module")
def placement(model) -> Placement:
    return placement_of(network_of(fold(model)))


# --- one map -----------------------------------------------------------------------------------------------

# Every finite value of e4m3: 4 bits of exponent with bias 7, 3 of mantissa, subnormals below 2**-6.
E4M3 = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
E4M3 = np.array(sorted({sign * value for value in E4M3[:-1] for sign in (-1, 1)}))  # the last is NaN


def _nearest(values: np.ndarray, kind: str, scale: float, zero: int = 0) -> np.ndarray:
    """Independent of the code under test: in float64, to the nearest number, of two as near the even one."""
    units = np.asarray(values, np.float64) / scale
    if kind != "float8":
        least, most = (-127, 127) if kind == "int8" else (0, 255)
        return (np.clip(np.rint(units) + zero, least, most) - zero) * scale
    above = np.clip(np.searchsorted(E4M3, units), 1, len(E4M3) - 1)
    low, high = E4M3[above - 1], E4M3[above]
    # The numbers of one sign alternate between even and odd mantissas.
    even = (np.searchsorted(E4M3, 0.0) - above) % 2 == 0
    upper = (units - low > high - units) | ((units - low == high - units) & even)
    return np.where(upper, high, low) * scale


@pytest.mark.parametrize(("kind", "zero"), [("int8", 0), ("uint8", 0), ("uint8", 77), ("uint8", 255), ("float8", 0)])
def test_values_land_on_the_nearest_number(kind, zero):
    scale = 0.03125  # exact: values half way between two numbers stay half way
    draw = np.random.default_rng(zero)
    values = np.concatenate([draw.normal(0, 3, 4000), np.arange(-600, 601) * scale / 2, E4M3 * scale, [1e6, -1e6, 0.0]])
    values = values.astype(np.float32)
    got = rounded(torch.from_numpy(values), Grid(kind, scale, zero)).numpy()
    assert got.dtype == np.float32
    assert np.array_equal(got, _nearest(values, kind, scale, zero).astype(np.float32))
    assert len(np.unique(got)) > 200
    assert rounded(torch.zeros(1), Grid(kind, scale, zero)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(kind):
    values = torch.tensor([math.nan, 1.0, math.inf, -math.inf])
    got = rounded(values, Grid(kind, 0.5))
    assert got.isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("kind", "zero", "inside", "outside"),
    [
        ("int8", 0, [-127.4, -3.2, 0.0, 0.5, 127.4], [-127.6, 127.6, 1e9, -1e9]),
        ("uint8", 0, [-0.4, 0.0, 200.5, 255.4], [-0.6, 255.6]),
        ("uint8", 100, [-100.4, 0.0, 155.4], [-100.6, 155.6]),
        ("float8", 0, [-448.0, -0.001, 0.0, 3.3, 448.0], [448.5, -460.0]),
    ],
)
def test_gradients_pass_straight_through_and_stop_where_clipped(kind, zero, inside, outside):
    values = (torch.tensor([*inside, *outside]) * 0.25).requires_grad_()
    upstream = torch.linspace(1, 2, len(values))
    rounded(values, Grid(kind, 0.25, zero)).backward(upstream)
    expected = torch.where(torch.arange(len(values)) < len(inside), upstream, 0.0)
    assert torch.equal(values.grad, expected)


@pytest.mark.parametrize(
    "wrong",
    [("int4", 1.0), ("int8", 0.0), ("int8", -1.0), ("float8", math.inf), ("uint8", math.nan), ("int8", 1.0, 3),
     ("uint8", 1.0, 256), ("uint8", 1.0, -1)],
    ids=str,
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match="got "):
        Grid(*wrong)


# --- one weight --------------------------------------------------------------------------------------------


def _weight(seed: int = 0) -> torch.Tensor:
    weight = torch.randn(16, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    weight[3] = 0.0
    weight[4, 0, 0, 0] = 40.0
    return weight


@pytest.mark.parametrize("most", [INT8_MOST, REDUCED_MOST])
def test_a_weight_is_what_its_integers_stand_for(most):
    integers, scale = quantised_weight(_weight(), most)
    expected = integers * scale[:, None, None, None]
    assert torch.equal(rounded_weight(_weight(), "int8", most), expected)
    assert torch.equal(rounded_weight(_weight(), "uint8", most), expected)
    assert torch.equal(rounded_weight(_weight().double(), "int8", most).float(), expected)
    assert integers.abs().max() == most and (expected - _weight()).abs().max() > 0.01


def test_a_float8_weight_is_what_is_stored():
    stored, scale = float8_weight(_weight())
    expected = stored.float() * scale[:, None, None, None]
    assert torch.equal(rounded_weight(_weight(), "float8"), expected)


def test_a_scale_that_is_given_is_used_and_what_it_clips_gets_no_gradient():
    weight, scale = _weight().requires_grad_(), weight_scale(_weight(), "int8")
    assert torch.equal(rounded_weight(weight, "int8", scale=scale), rounded_weight(_weight(), "int8"))
    halved = rounded_weight(weight, "int8", scale=scale / 2)
    halved.backward(torch.full_like(halved, 3.0))
    kept = (weight.detach() / (scale / 2)[:, None, None, None]).abs() <= 127.5
    assert torch.equal(weight.grad, kept * 3.0)
    assert 0 < (~kept).sum() < kept.sum()
    assert torch.equal(halved.detach().abs().amax((1, 2, 3))[0], 127 * scale[0] / 2)
    fewer = rounded_weight(weight, "int8", REDUCED_MOST, scale / 2)
    assert torch.equal(fewer.detach().abs().amax((1, 2, 3))[0], 63 * scale[0] / 2)


def test_a_weight_is_divided_as_exactly_as_in_the_build():
    """Half way between two numbers but for the last bits, which float32 division would lose."""
    scale = torch.tensor([0.012345679])
    weight = ((torch.arange(-120, 120) + 0.5) * scale.double()).float()[None]
    expected = (weight.double() / scale.double()).round() * scale
    assert torch.equal(rounded_weight(weight, "int8", scale=scale), expected.float())
    assert not torch.equal((weight / scale).round() * scale, expected.float()), "the test has no teeth"


# --- the whole network, in numpy ---------------------------------------------------------------------------


def _conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    pad = weight.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    if weight.shape[1] == 1 != x.shape[1]:  # depthwise: each input channel has len(weight) / C outputs
        windows = windows.repeat(len(weight) // x.shape[1], 1)
        return np.einsum("nchwij,cij->nchw", windows, weight[:, 0]) + bias[:, None, None]
    return np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[:, None, None]


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _best_rounded(weight: np.ndarray) -> np.ndarray:
    """Each output channel by itself: of 26 scales the one with the least squared error, the largest at a draw."""
    out = np.empty_like(weight)
    for row, values in enumerate(weight):
        least, largest = math.inf, np.abs(values).max() or 1.0
        for share in np.linspace(0.5, 1, 26):
            error = ((_clipped(values, largest * share / 127) - values) ** 2).sum()
            if error <= least:
                least, scale = error, np.float64(np.float32(largest * share / 127))
        out[row] = _clipped(values, scale)
    return out


def _clipped(values: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(values / scale), -127, 127) * scale


class _Numpy:
    """A folded ResNet-18 TKFNet in float64. grids: by point, rounded there; products: whose weights are rounded.
    seen: the least and largest value at each point."""

    def __init__(self, folded: FoldedTKFNet, grids: Mapping[str, Grid], products: set[str]):
        self.values = {name: value.double().numpy() for name, value in folded.state_dict().items()}
        self.grids, self.products = grids, products
        self.seen: dict[str, tuple[float, float]] = {}

    def point(self, name: str, x: np.ndarray) -> np.ndarray:
        self.seen[name] = float(x.min()), float(x.max())
        grid = self.grids.get(name)
        return x if grid is None else _nearest(x, grid.kind, grid.scale, grid.zero)

    def product(self, name: str, module: str, x: np.ndarray, stride: int = 1) -> np.ndarray:
        weight = self.values[f"{module}.weight"]
        if name in self.products:
            if any(grid.kind == "float8" for grid in self.grids.values()):
                scale = np.abs(weight.reshape(len(weight), -1)).max(1).astype(np.float32) / np.float32(448)
                scale = scale.astype(np.float64)[:, None, None, None]
                weight = _nearest(weight / scale, "float8", 1.0) * scale
            else:
                weight = _best_rounded(weight)
        return _conv(x, weight, self.values[f"{module}.bias"], stride)

    def plain(self, module: str, x: np.ndarray) -> np.ndarray:
        return x @ self.values[f"{module}.weight"].T + self.values[f"{module}.bias"]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        x = images.transpose(0, 3, 1, 2) - self.values["pixel_mean"]
        x = np.maximum(self.product("stem", "stem", x, 2), 0)
        windows = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = np.lib.stride_tricks.sliding_window_view(windows, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5))
        for index in range(8):
            x = self.block(x, f"layer{index // 2 + 1}.{index % 2}", f"blocks.{index}", index)
        return self.head(self.tafe(x))

    def block(self, x: np.ndarray, name: str, module: str, index: int) -> np.ndarray:
        stride = 2 if index in (2, 4, 6) else 1
        x = shortcut = self.point(name, x)
        if stride == 2:
            shortcut = self.product(f"{name}.project", f"{module}.project", x, 2)
            shortcut = self.point(f"{name}.project.output", shortcut)
        x = np.maximum(self.product(f"{name}.conv1", f"{module}.convs.0", x, stride), 0)
        x = self.product(f"{name}.conv2", f"{module}.convs.1", self.point(f"{name}.conv2", x))
        return np.maximum(x + shortcut, 0)

    def tafe_product(self, name: str, module: str, x: np.ndarray) -> np.ndarray:
        return self.product(f"tafe.{name}", f"tafe.{module}", self.point(f"tafe.{name}", x))

    def tafe(self, f: np.ndarray) -> np.ndarray:
        y, x = np.split(self.tafe_product("split", "split", f), 2, 1)
        values = self.values
        narrow = x.astype(np.float32)
        s = values["tafe.of_pool"] * narrow.max((2, 3), keepdims=True)
        s = s + values["tafe.of_variance"] * narrow.astype(np.float64).var((2, 3), keepdims=True)
        g = _gelu(self.tafe_product("gate", "gate", s))
        d = _conv(y, values["tafe.detail_dw.weight"], values["tafe.detail_dw.bias"])
        h = _gelu(self.tafe_product("detail", "detail_pw", d))
        return self.tafe_product("merge", "merge", np.concatenate([x * g, h], 1))

    def head(self, z: np.ndarray) -> np.ndarray:
        c = _sigmoid(self.plain("dcif.expand", np.maximum(self.plain("dcif.squeeze", z.mean((2, 3))), 0)))
        filtered = z * c[:, :, None, None]
        context = np.stack([filtered.mean(1), filtered.max(1)], 1)
        m = _sigmoid(_conv(context, self.values["dcif.spatial.weight"], np.zeros(1)))
        x = (filtered * m).mean((2, 3))
        for layer in range(3):
            x = self.plain(f"head.{layer}", x)
            x = np.maximum(x, 0) if layer < 2 else x
        return x


def _wide(folded: FoldedTKFNet) -> FoldedTKFNet:
    """With float64 where maps are quantised: sums in another order then decide no rounding."""
    for part in (folded.stem, folded.blocks, folded.tafe):
        part.double()
    return folded


@pytest.fixture(scope="module")
def ranges(model) -> dict[str, tuple[float, float]]:
    network = _Numpy(fold(model), {}, set())
    network(_images(8).numpy())
    return network.seen


def _grids(ranges: Mapping[str, tuple[float, float]], kind: str) -> dict[str, Grid]:
    """A little is clipped everywhere."""
    grids = {}
    for name, (low, high) in ranges.items():
        low, high = min(low, 0) * 0.9, max(high, 0) * 0.9
        if kind == "uint8":
            scale = float(np.float32((high - low) / 255))
            grids[name] = Grid(kind, scale, round(-low / scale))
        else:
            grids[name] = Grid(kind, float(np.float32(max(-low, high) / (127 if kind == "int8" else 448))))
    return grids


def test_the_numpy_network_is_the_network(folded, ranges, placement):
    assert set(ranges) == {point.name for point in placement.points if not point.optional} != set()
    expected = _Numpy(folded, {}, set())(_images(8).numpy())
    with torch.no_grad():
        assert np.abs(_wide(folded)(_images(8)).numpy() - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_network_equals_one_in_numpy(folded, placement, ranges, kind):
    images, grids = _images(8), _grids(ranges, kind)
    with torch.no_grad():
        plain = _wide(folded)(images).numpy()
        with fake_quantised(folded, placement, grids):
            got = folded(images).numpy()
    expected = _Numpy(folded, grids, {p.name for p in placement.products})(images.numpy())
    assert np.abs(got - expected).max() < 1e-4 * np.abs(plain - expected).max()
    assert np.abs(plain - expected).max() > 1e-2 * plain.std(), "nothing was rounded"


@pytest.mark.parametrize(
    ("unit", "products", "maps"),
    [
        ("stem", {"stem"}, []),
        ("layer1.1.conv1", {"layer1.1.conv1"}, ["layer1.1"]),
        (
            "layer2.0",
            {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.project"},
            ["layer2.0", "layer2.0.conv2", "layer2.0.project.output"],
        ),
        ("tafe.detail_and_gate", {"tafe.detail", "tafe.gate"}, ["tafe.detail", "tafe.gate"]),
        ("tafe.merge", {"tafe.merge"}, ["tafe.merge"]),
    ],
)
def test_one_unit_alone(folded, placement, ranges, unit, products, maps):
    """Only its weights, and the maps that it reads."""
    alone = placement_of(network_of(folded), set(placement.units) - {unit})
    images, grids = _images(8), _grids(ranges, "int8")
    with torch.no_grad(), fake_quantised(_wide(folded), alone, grids):
        got = folded(images).numpy()
    expected = _Numpy(folded, {name: grids[name] for name in maps}, products)(images.numpy())
    plain = _Numpy(folded, {}, set())(images.numpy())
    assert np.abs(got - expected).max() < 1e-4 * np.abs(plain - expected).max()


# --- the context -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["", "exception"])
@torch.inference_mode()
def test_the_network_is_as_before_afterwards(folded, placement, ranges, fails):
    before, logits = dict(folded.named_parameters()), folded(_images(2))
    order = list(folded.state_dict())
    try:
        with fake_quantised(folded, placement, _grids(ranges, "int8")):
            assert list(folded.state_dict()) == order
            assert not torch.equal(folded(_images(2)), logits)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert list(folded.state_dict()) == order
    assert all(value is before[name] for name, value in folded.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in folded.modules())
    assert torch.equal(folded(_images(2)), logits)


def test_what_cannot_be_rounded_is_refused(folded, placement, ranges):
    grids = _grids(ranges, "int8")

    def enter(network, given):
        with fake_quantised(network, placement, given):
            raise AssertionError("not refused")

    with pytest.raises(UsageError, match=r"no grid for layer1\.0, tafe\.merge; calibrate"):
        enter(folded, {name: grid for name, grid in grids.items() if name not in ("layer1.0", "tafe.merge")})
    with pytest.raises(UsageError, match=r"got grids of \['int8', 'uint8'\], expected one kind"):
        enter(folded, grids | {"layer1.0": Grid("uint8", 1.0)})
    with pytest.raises(UsageError, match="network in FP16"):
        enter(fold(TKFNet(TINY)).half(), grids)


def test_weights_of_seven_bits(folded, placement, ranges):
    expected = rounded_weight(folded.tafe.merge.weight, "uint8", REDUCED_MOST)
    with fake_quantised(folded, placement, _grids(ranges, "uint8"), most=REDUCED_MOST):
        assert torch.equal(folded.tafe.merge.weight, expected)


# --- through a live fold -----------------------------------------------------------------------------------


def test_a_live_fold_computes_the_same_and_trains(model, folded, placement, ranges):
    grids, images = _grids(ranges, "int8"), _images(8)
    with torch.no_grad(), fake_quantised(folded, placement, grids):
        expected = folded(images)
    live = fold_live(model)
    with fake_quantised(live, placement, grids):
        logits = live(images)
    assert torch.equal(logits.detach(), expected)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_behind_a_map_that_is_all_clipped_nothing_learns(model, placement, ranges):
    grids = _grids(ranges, "int8") | {"layer2.1": Grid("int8", 1e-9)}
    live = fold_live(model)
    with fake_quantised(live, placement, grids):
        live(_images(8)).square().sum().backward()
    before, after = model.backbone.layer2[0].conv1.weight.grad, model.backbone.layer2[1].conv2.weight.grad
    # Zero is inside every range: only where the map is zero may anything pass, and there the ReLU is shut.
    assert not before.any() and after.any()


def test_held_scales_are_those_of_the_start(model, folded, placement, ranges):
    grids = _grids(ranges, "int8")
    held = {p.name: weight_scale(folded.get_submodule(p.module).weight, "int8") for p in placement.products}
    outputs = []
    with torch.no_grad():
        for scales in (None, held, {name: scale * 3 for name, scale in held.items()}):
            with fake_quantised(folded, placement, grids, weight_scales=scales):
                outputs.append(folded(_images(4)))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
