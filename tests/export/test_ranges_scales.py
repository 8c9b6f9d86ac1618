"""Scales against brute force: each method on its own terms, the noise against real rounding, the best really best."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from tkfnet_engine.export.histogram import BINS, Histogram
from tkfnet_engine.export.scales_from_histogram import (
    GRIDS,
    KINDS,
    METHODS,
    best_scale,
    divergence,
    noise,
    ranges_of_methods,
    scale_of_range,
    sqnr_db,
)
from tkfnet_engine.kernels.quantise import to_float8, to_int8

SAMPLES = ("relu", "signed", "heavy", "gelu", "lopsided", "narrow", "negative")


@functools.cache
def _sample(kind: str, count: int = 20_000) -> np.ndarray:
    draw = np.random.default_rng(11)
    values = draw.standard_normal(count)
    values = {
        "relu": lambda: np.maximum(values, 0) * 3,
        "signed": lambda: values + 0.5,
        "heavy": lambda: draw.standard_t(3, count),
        "gelu": lambda: torch.nn.functional.gelu(torch.from_numpy(values)).numpy(),
        "lopsided": lambda: np.where(values < 0, -draw.uniform(0, 1, count), draw.exponential(0.3, count)),
        "narrow": lambda: 100 + values,
        "negative": lambda: -np.abs(values) - 1,
    }[kind]()
    return values.astype(np.float32)


def _histogram(values) -> Histogram:
    found = Histogram("point")
    found.add(torch.from_numpy(np.asarray(values, np.float32)))
    return found


@functools.cache
def _ranges(name: str, kind: str) -> dict[str, tuple[float, float]]:
    return ranges_of_methods(_histogram(_sample(name)), kind)


@pytest.fixture(params=SAMPLES)
def name(request):
    return request.param


@pytest.fixture
def sample(name):
    return _sample(name)


def _rounded(values: np.ndarray, kind: str, scale: float, zero_point: int) -> np.ndarray:
    """Quantised and back, by PyTorch and the kernels' own rounding."""
    wide = torch.from_numpy(values).double() / scale
    if kind == "int8":
        return (to_int8(wide).double() * scale).numpy()
    if kind == "float8":
        return (to_float8(wide.float()).double() * scale).numpy()
    return (((wide.round() + zero_point).clamp(0, 255) - zero_point) * scale).numpy()


def _true_sqnr(values: np.ndarray, kind: str, scale: float, zero_point: int) -> float:
    wide = values.astype(np.float64)
    return 10 * math.log10((wide**2).sum() / ((_rounded(values, kind, scale, zero_point) - wide) ** 2).sum())


def _ends(values: np.ndarray, kind: str) -> tuple[float, float]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return (low, high) if kind == "uint8" else (-max(-low, high), max(-low, high))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.61, 0.2, 0.03])
def test_noise_is_that_of_real_rounding(sample, kind, share):
    low, high = (np.array([end * share]) for end in _ends(sample, kind))
    (scale,), (zero_point,) = scale_of_range(kind, low, high)
    bins = _histogram(sample).bins()
    found = sqnr_db(bins.power, float(noise(bins, kind, low, high)[0]))
    assert found == pytest.approx(_true_sqnr(sample, kind, scale, int(zero_point)), abs=0.15)


def test_noise_where_bins_are_wide():
    """Most values in one bin, which a midpoint would take for a single value."""
    values = np.concatenate([np.random.default_rng(0).uniform(0, 1, 200_000), [4000.0]]).astype(np.float32)
    bins = _histogram(values).bins()
    (scale,), _ = scale_of_range("int8", np.array([-0.4]), np.array([0.4]))
    true = ((_rounded(values[:-1], "int8", scale, 0) - values[:-1].astype(np.float64)) ** 2).sum() + (4000 - 0.4) ** 2
    assert float(noise(bins, "int8", np.array([-0.4]), np.array([0.4]))[0]) == pytest.approx(true, rel=1e-5)
    clipped = _histogram(values[:-1]).bins()
    assert float(noise(clipped, "int8", np.array([-0.4]), np.array([0.4]))[0]) == pytest.approx(
        true - (4000 - 0.4) ** 2, rel=0.01
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_holds_what_the_type_holds(kind):
    grid = GRIDS[kind]
    assert 0.0 in grid.levels and (np.diff(grid.levels) > 0).all()
    assert (grid.levels[0], grid.levels[-1]) == {"int8": (-127, 127), "uint8": (0, 255), "float8": (-448, 448)}[kind]
    values = np.random.default_rng(1).uniform(-500, 500, 2000)
    nearest = np.abs(values[:, None] - grid.levels).argmin(1)
    np.testing.assert_array_equal(grid.nearest(values), nearest)
    # The integral against a sum, over a stretch with steps and clipping.
    ends = np.array([grid.levels[0] - 7.3, grid.levels[-1] + 3.1])
    points = np.linspace(*ends, 200_001)
    squares = (points - grid.levels[grid.nearest(points)]) ** 2
    found = np.diff(grid.error_integral(ends))[0]
    assert found == pytest.approx(squares.mean() * (ends[1] - ends[0]), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_max_clips_nothing(name, sample, kind):
    found = _ranges(name, kind)["max"]
    assert found == _ends(sample, kind)
    (scale,), (zero_point,) = scale_of_range(kind, *(np.array([end]) for end in found))
    step = scale * (32 if kind == "float8" else 1)
    assert np.abs(_rounded(sample, kind, scale, int(zero_point)) - sample).max() <= step * 0.5001


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [99.999, 99.99, 99.9])
def test_percentiles(name, sample, kind, share):
    found = _ranges(name, kind)[f"percentile-{share}"]
    width = _histogram(sample).reach / BINS
    if kind == "uint8" and sample.min() < 0:
        cut = (100 - share) / 2
        wanted, of = (cut, 100 - cut), sample.astype(np.float64)
    else:
        wanted, of = (share,), np.abs(sample.astype(np.float64))
    for end, percent in zip(found[-len(wanted) :], wanted):
        beside = 100 / len(sample)
        low, high = np.percentile(of, [max(percent - beside, 0), min(percent + beside, 100)])
        if kind == "uint8":
            low, high = (min(low, 0), min(high, 0)) if percent < 50 else (max(low, 0), max(high, 0))
        assert low - width <= end <= high + width
    if len(wanted) == 1:
        assert found[0] == (0 if kind == "uint8" else -found[1])


def _naive_divergence(bins, kind: str, low: float, high: float) -> float:
    """TensorRT's and ONNX Runtime's loop, one bin at a time."""
    (scale,), (zero_point,) = scale_of_range(kind, np.array([low]), np.array([high]))
    centres, counts = [(a + b) / 2 for a, b in zip(bins.low, bins.high)], list(bins.count)
    inside = [i for i, centre in enumerate(centres) if low <= centre <= high]
    wanted = {i: counts[i] for i in inside}
    wanted[inside[0]] += sum(counts[i] for i, centre in enumerate(centres) if centre < low)
    wanted[inside[-1]] += sum(counts[i] for i, centre in enumerate(centres) if centre > high)
    members: dict[float, list[int]] = {}
    for i in inside:
        distance = np.abs(GRIDS[kind].levels - zero_point - centres[i] / scale)
        members.setdefault(int(distance.argmin()), []).append(i)
    spread = {i: sum(counts[j] for j in group) / len(group) for group in members.values() for i in group}
    of_p, of_q = sum(wanted.values()), sum(spread.values())
    return sum(wanted[i] / of_p * math.log(wanted[i] / of_p * of_q / spread[i]) for i in inside)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy(kind):
    for of in ("relu", "heavy"):
        histogram = _histogram(_sample(of, 400))
        bins, ends = histogram.bins(), ranges_of_methods(histogram, kind)["max"]
        found = ranges_of_methods(histogram, kind)["entropy"]
        shares = [j / 128 for j in range(8, 129)]
        tried = {share: _naive_divergence(bins, kind, ends[0] * share, ends[1] * share) for share in shares}
        for share in (1.0, 0.5, 0.25):
            assert divergence(bins, kind, ends[0] * share, ends[1] * share) == pytest.approx(tried[share], rel=1e-9)
        assert tried[found[1] / ends[1]] == pytest.approx(min(tried.values()), rel=1e-9)


def test_entropy_with_nothing_inside_is_infinite():
    assert divergence(_histogram([5.0, 7.0]).bins(), "int8", -1.0, 1.0) == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_as_good_as_trying_every_range(name, sample, kind):
    bins, (low, high) = _histogram(sample).bins(), _ends(sample, kind)
    ends = _ranges(name, kind)["mse"]
    found = float(noise(bins, kind, *(np.array([end]) for end in ends))[0])
    shares = np.linspace(0.01, 1, 150)
    tried = noise(bins, kind, low * shares, high * shares).min()
    if kind == "uint8" and low < 0 < high:
        coarse = np.linspace(0.1, 1, 30)
        both = [array.ravel() for array in np.meshgrid(low * coarse, high * coarse)]
        tried = min(tried, noise(bins, kind, *both).min())
    assert low <= ends[0] <= 0 <= ends[1] <= high
    assert 10 * math.log10(found / tried) < 0.05


def test_each_end_is_clipped_by_itself():
    """One value far below a million that end abruptly above: cutting that end is worth 3 dB, cutting both none."""
    values = np.append(np.random.default_rng(0).uniform(0, 2, 1_000_000), -4.0)
    low, high = ranges_of_methods(_histogram(values), "uint8")["mse"]
    assert 1.98 < high <= 2 and -0.75 < low < -0.5


def test_one_value_far_away_is_cut_off():
    values = np.append(np.random.default_rng(0).uniform(0, 1, 1_000_000), 40.0)
    # Where 2 t / (12 x 127^2) = 2 (40 - t) / 10^6.
    assert 5.9 < ranges_of_methods(_histogram(values), "int8")["mse"][1] < 7


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_is_best_and_every_method_is_recorded(name, sample, kind):
    best = best_scale(_histogram(sample), kind)
    assert tuple(best.sqnr_db) == METHODS and best.sqnr_db[best.method] == max(best.sqnr_db.values())
    assert best.scale == float(np.float32(best.scale)) and (best.zero_point == 0 or kind == "uint8")
    of_methods = {}
    for method, ends in _ranges(name, kind).items():
        (scale,), (zero_point,) = scale_of_range(kind, *(np.array([end]) for end in ends))
        of_methods[method] = scale, int(zero_point)
        assert best.sqnr_db[method] == pytest.approx(_true_sqnr(sample, kind, scale, int(zero_point)), abs=0.15)
    assert (best.scale, best.zero_point) == of_methods[best.method]


def test_the_best_is_not_always_one_method():
    """Two values far apart lose everything to clipping; normal ones gain from it."""
    outliers = np.concatenate([np.full(2000, 1.0), np.full(2000, 127.0)])
    assert best_scale(_histogram(outliers), "int8").method == "max"
    assert best_scale(_histogram(_sample("signed")), "int8").method == "mse"


def test_zero_is_exact_in_uint8(name, sample):
    best = best_scale(_histogram(sample), "uint8")
    assert 0 <= best.zero_point <= 255
    assert _rounded(np.zeros(1, np.float32), "uint8", best.scale, best.zero_point)[0] == 0
    assert best.zero_point == {"relu": 0, "narrow": 0, "negative": 255}.get(name, best.zero_point)
    if name in ("signed", "heavy", "gelu"):
        assert 0 < best.zero_point < 255


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [[0.0] * 5, [0.0, 1e-45], [3e38, -3e38], [1e-38], [-2.0], [0.0] * 99999 + [1e-3]])
def test_maps_of_almost_nothing_have_a_usable_scale(kind, values):
    best = best_scale(_histogram(values), kind)
    assert np.isfinite(best.scale) and best.scale >= np.finfo(np.float32).tiny
    assert all(math.isfinite(v) and str(v) != "-0.0" for v in best.sqnr_db.values())
    if not any(values):
        assert best.scale > 1e-3, "products of two tiny scales vanish"
    if max(map(abs, values)) > 1e-37:
        assert best.sqnr_db[best.method] > 40
