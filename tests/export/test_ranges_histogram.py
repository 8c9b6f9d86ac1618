"""The histogram against numpy: exact counts, whatever the order, however the values are split, as it grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tkfnet_engine.errors import CheckpointError
from tkfnet_engine.export import histogram as module
from tkfnet_engine.export.histogram import BINS, Histogram

FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=40)


def _of(*batches) -> Histogram:
    found = Histogram("layer1.0")
    for batch in batches:
        found.add(torch.as_tensor(batch, dtype=torch.float32))
    return found


def _same(a: Histogram, b: Histogram) -> bool:
    facts = [(h.reach, h.count, h.zeros, h.minimum, h.maximum) for h in (a, b)]
    return facts[0] == facts[1] and (a.counts == b.counts).all()


def _sample(kind: str, count: int = 50_000) -> np.ndarray:
    draw = np.random.default_rng(5)
    values = draw.standard_normal(count) if kind != "heavy" else draw.standard_t(2.5, count)
    return (np.maximum(values, 0) if kind == "relu" else values + 0.3).astype(np.float32)


@pytest.mark.parametrize("kind", ["relu", "signed", "heavy"])
def test_counts_are_those_of_numpy(kind):
    values = _sample(kind)
    found = _of(values)
    largest = np.abs(values).max()
    assert found.reach / 2 <= largest < found.reach and np.log2(found.reach) % 1 == 0
    wide, edges = values.astype(np.float64), np.linspace(0, found.reach, BINS + 1)
    for row, part in ((0, wide[wide > 0]), (1, -wide[wide < 0])):
        # numpy's bins are closed on the left, as ours are.
        np.testing.assert_array_equal(found.counts[row], np.histogram(part, edges)[0])
    assert found.zeros == (values == 0).sum() and found.count == len(values)
    assert (found.minimum, found.maximum) == (values.min(), values.max())


@settings(max_examples=50, deadline=None)
@given(FLOATS, st.data())
@example([0.0, 0.25, 0.0], None)
@example([1.0, 1.5, 3.0, 4.0, -8.0], None)
@example([1e-45, 1.0, -1e-45, 0.0, -0.0], None)
@example([3.4028234663852886e38, -1e-38, 2.0**-120], None)
def test_counts_do_not_depend_on_the_split_or_the_order(values, data):
    whole = _of(values)
    assert whole.counts.sum() + whole.zeros == whole.count == len(values) and (whole.counts >= 0).all()
    cuts = range(len(values)) if data is None else sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    parts = np.split(np.array(values, np.float32), list(cuts))
    assert _same(_of(*parts), whole) and _same(_of(*parts[::-1]), whole)


def test_growing_merges_bins_without_losing_one():
    values = np.abs(_sample("signed"))
    steps = [values * 2.0**k for k in range(-8, 9, 2)]
    assert _same(_of(*steps), _of(np.concatenate(steps)))
    grown = _of(values, [2.0**60])
    assert grown.counts[0, 0] == len(values) and grown.counts[0].nonzero()[0].tolist() == [0, BINS // 2]


def test_more_values_in_a_bin_than_float32_counts():
    found = _of(torch.ones(2**24 + 5))
    assert found.counts.max() == found.count == 2**24 + 5


def test_values_come_in_parts(monkeypatch):
    values = _sample("signed", 1000)
    whole = _of(values)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert _same(_of(values), whole)


def test_any_shape_and_none():
    values = _sample("signed", 240)
    shaped = Histogram("x")
    shaped.add(torch.from_numpy(values).reshape(2, 3, 8, 5).permute(0, 2, 3, 1))
    shaped.add(torch.empty(0, 3))
    assert _same(shaped, _of(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    found = _of([1.0])
    values = _sample("signed", 1000)
    values[617] = bad
    with pytest.raises(CheckpointError, match=r"layer1\.0: got NaN or infinite values"):
        found.add(torch.from_numpy(values))
    assert found.count == 1


@pytest.mark.parametrize("kind", ["relu", "signed", "heavy"])
def test_bins_in_use_hold_all_but_zeros(kind):
    values = _sample(kind)
    bins = _of(values).bins()
    assert bins.count.sum() + bins.zeros == len(values)
    assert (bins.low < bins.high).all() and (np.diff(bins.low) > 0).all()
    assert bins.high[-1] == values.max() and (bins.low[0] == values.min() or kind == "relu")
    assert bins.power == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=1e-4)


@pytest.mark.parametrize("values", [[2.0], [-2.0], [2.0, 0.0], [-4.0, 4.0], [1e-45]])
def test_an_extreme_on_a_bins_edge_leaves_it_a_width(values):
    bins = _of(values).bins()
    assert (bins.low < bins.high).all() and bins.count.sum() == np.count_nonzero(values)
    assert bins.low.min() >= min(values) * 1.0001 - 1e-3 and bins.high.max() <= max(max(values) * 1.0001, 1e-3)


def test_a_map_of_zeros():
    found = _of(np.zeros(9))
    assert (found.zeros, found.minimum, found.maximum) == (9, 0, 0) and len(found.bins().count) == 0
    assert found.percentile(0.5, True) == found.percentile(0.5, False) == 0


@pytest.mark.parametrize("kind", ["relu", "signed", "heavy"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999, 1.0])
def test_percentiles_are_numpys_within_a_bin(kind, share):
    values = _sample(kind)
    found, width = _of(values), _of(values).reach / BINS
    # Where values are sparser than bins, numpy interpolates between two of them.
    around = [max(0.0, share - 1 / len(values)), min(1.0, share + 1 / len(values))]
    for magnitudes, of in ((True, np.abs(values)), (False, values)):
        low, high = np.quantile(of.astype(np.float64), around)
        assert low - width <= found.percentile(share, magnitudes) <= high + width


def test_values_lie_evenly_within_a_bin():
    found = _of(np.random.default_rng(0).uniform(-1, 1, 100_000), [4000.0])
    for share in (0.2, 0.5, 0.9):
        assert found.percentile(share, True) == pytest.approx(share, rel=0.02)
        assert found.percentile(share, False) == pytest.approx(2 * share - 1, abs=0.02)
