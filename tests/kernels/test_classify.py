"""DCIF, the weighted pool and the classifier: one launch, float32 inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tkfnet_engine.kernels.classify import add_classify, classify_reference
from tkfnet_engine.kernels.network import Network
from tkfnet_engine.kernels.plan import Buffer

from .harness import (
    Bench,
    Draw,
    assert_as_good_as_pytorch,
    builder_of,
    in_float32,
    in_float64,
    programs_reordered,
    random_weights,
    small_network,
)

# Where each rounds once: mean, squeeze, expand, spatial filter, weighted mean, and the classifier's three layers.
LAYERS = 8
# Multiprocessors to fill: an image is shared by up to eight programs, or it is one's own.
MANY, ONE = 132, 1


@dataclass(frozen=True)
class Case:
    """hidden: None for the network's own, 0 without DCIF. multiprocessors: MANY or ONE. rows: of the map that the
    kernel holds at once."""

    side: int
    channels: int
    batch: int
    multiprocessors: int = ONE
    rows: int | None = None
    hidden: int | None = None
    classes: int = 7
    wide: int = 64
    narrow: int = 24

    @property
    def network(self) -> Network:
        facts = {"classes": self.classes, "wide": self.wide, "narrow": self.narrow}
        if self.hidden is not None:
            facts["hidden"] = self.hidden
        return small_network(self.side, self.channels, **facts)

    def map(self, draw: Draw) -> Tensor:
        return draw.normal(self.batch, self.side, self.side, self.channels)

    def bench(self, weights: dict[str, Tensor]) -> Bench:
        builder, blob = builder_of(self.network, weights)
        z = builder.buffer("f16", self.batch * self.side**2 * self.channels)
        logits = Buffer("logits", 0, "f32", self.batch * self.classes)
        add_classify(builder, self.network, self.batch, z, logits, self.multiprocessors, True)
        return Bench(builder, blob, self.batch, classes=self.classes)

    def logits(self, bench: Bench, z: Tensor, images: int | None = None) -> Tensor:
        """All rows of the plan's logits."""
        held = bench.run(z_ptr=z, images=images)
        return held[f"{bench.plan.launches[0].name}.logits"].reshape(self.batch, self.classes)


def reference_arguments(weights: dict[str, Tensor]) -> tuple[Any, Any]:
    """dcif and head of `classify_reference`, from what is stored."""
    dcif = None
    if "dcif.spatial" in weights:
        squeeze = weights["dcif.squeeze.w"], weights["dcif.squeeze.b"]
        expand = weights["dcif.expand.w"].T, weights["dcif.expand.b"]
        dcif = (*squeeze, *expand, weights["dcif.spatial"].reshape(1, 2, 7, 7))
    w = [weights[f"head.{i}.w"] for i in range(3)]
    return dcif, [(v.T if i == 1 else v, weights[f"head.{i}.b"]) for i, v in enumerate(w)]


CASES = [
    Case(7, 512, 1, MANY, rows=64, wide=256, narrow=128),  # as the network has it at batch 1
    Case(7, 512, 3, rows=64, hidden=0, wide=256, narrow=128),
    Case(7, 512, 3, MANY, rows=64, hidden=0, classes=10),
    Case(1, 40, 5, classes=10),
    Case(1, 40, 1, MANY, hidden=0),
    Case(2, 24, 3, MANY, classes=2),
    Case(8, 72, 1, rows=64),
    # A map that is read in several pieces, the last of them short; ResNet-50's channels.
    Case(15, 256, 1, rows=128),
    Case(15, 512, 1, MANY, rows=64, hidden=4),
    Case(15, 256, 3, rows=128, hidden=0, classes=10),
    Case(7, 2048, 1, MANY, rows=16, hidden=5),
    Case(7, 2048, 1, rows=16, hidden=0, wide=8, narrow=8),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.side}x{c.side}x{c.channels}-{c.batch}-{c.multiprocessors}-dcif{c.network.hidden}"
)
def test_the_logits_agree_with_pytorch(case):
    draw = Draw(case.side)
    weights, z = random_weights(case.network, draw), case.map(draw)
    bench = case.bench(weights)
    facts = dict(bench.plan.launches[0].constexprs)
    assert (facts["SPLIT"] > 1) == (case.multiprocessors == MANY)
    assert case.rows in (None, facts["ROWS"])
    arguments = z, *reference_arguments(weights)
    exact, own = in_float64(classify_reference, *arguments), in_float32(classify_reference, *arguments)
    assert_as_good_as_pytorch(case.logits(bench, z), exact, own, roundings=LAYERS)


@pytest.mark.parametrize("channels", [40, 64])
def test_the_largest_of_negative_values_is_negative(channels):
    """A tile's columns behind the last channel hold zeros, which must not be the maximum."""
    case, draw = Case(3, channels, 3), Draw(1)
    weights, z = random_weights(case.network, draw), case.map(draw)
    z = (-z.abs() - 4).half().double()
    weights["dcif.spatial"] = draw.normal(2, 49, scale=0.05)
    arguments = z, *reference_arguments(weights)
    exact, own = in_float64(classify_reference, *arguments), in_float32(classify_reference, *arguments)
    assert_as_good_as_pytorch(case.logits(case.bench(weights), z), exact, own, roundings=LAYERS)


@pytest.mark.parametrize("tap", [(0, 0, 1), (0, 6, 3), (1, 2, 6), (1, 3, 3)])
def test_each_tap_of_the_spatial_filter_lies_where_it_should(tap):
    """One tap at a time, so that a flipped or transposed filter cannot hide in a sum of 98."""
    kind, row, column = tap
    case, draw = Case(7, 24, 1), Draw(2)
    weights, z = random_weights(case.network, draw), case.map(draw)
    weights["dcif.spatial"] = torch.zeros(2, 49, dtype=torch.float64)
    weights["dcif.spatial"][kind, 7 * row + column] = 4.0
    arguments = z, *reference_arguments(weights)
    exact, own = in_float64(classify_reference, *arguments), in_float32(classify_reference, *arguments)
    assert_as_good_as_pytorch(case.logits(case.bench(weights), z), exact, own, roundings=LAYERS)


@pytest.mark.parametrize("multiprocessors", [MANY, ONE])
@pytest.mark.parametrize("hidden", [None, 0])
def test_rows_without_an_image_stay_untouched(multiprocessors, hidden):
    case = Case(2, 24, 5, multiprocessors, hidden=hidden)
    weights, z = random_weights(case.network, Draw(3)), case.map(Draw(4))
    bench = case.bench(weights)
    full = case.logits(bench, z)
    assert full.isfinite().all()
    for images in (1, 3, 5):
        some = case.logits(bench, z, images)
        assert torch.equal(some[:images], full[:images]) and some[images:].isnan().all()


def test_the_order_of_the_programs_changes_no_bit():
    case = Case(2, 24, 2, MANY, wide=256)
    weights, z = random_weights(case.network, Draw(5)), case.map(Draw(6))
    bench = case.bench(weights)
    assert bench.plan.launches[0].grid == (2, 8, 1)
    in_order = case.logits(bench, z)
    for permute in (lambda i, n: n - 1 - i, lambda i, n: i * 7 % n):
        with programs_reordered(permute):
            assert torch.equal(case.logits(bench, z), in_order)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("hidden", [None, 0])
def test_a_nan_comes_out_and_stays_in_its_image(hidden):
    """Three ReLUs lie on its way; none may turn it into a number."""
    case = Case(3, 24, 3, MANY, hidden=hidden, wide=256)
    weights, z = random_weights(case.network, Draw(7)), case.map(Draw(8))
    bench = case.bench(weights)
    good = case.logits(bench, z)
    z[1, 2, 0, 5] = torch.nan
    got = case.logits(bench, z)
    assert torch.equal(got[[0, 2]], good[[0, 2]]) and got[1].isnan().all()
