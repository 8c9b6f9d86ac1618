"""TAFE's three launches: each against PyTorch from what the one before it wrote, and the statistics by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tkfnet_engine.kernels.tafe import (
    add_tafe,
    detail_and_gate_reference,
    merge_reference,
    split_reference,
    tile_rows,
)
from tkfnet_engine.kernels.tiles import Product, Tile, choose_tile

from .harness import (
    Bench,
    Draw,
    assert_as_good_as_pytorch,
    builder_of,
    in_float64,
    in_half,
    random_weights,
    small_network,
)


@dataclass(frozen=True)
class Case:
    """A map of `side` x `side` pixels and `channels`; `tile`: (Product, rows) -> Tile."""

    side: int
    channels: int
    batch: int
    tile: Callable[..., Tile]
    pool: str = "max"

    def bench(self, weights: dict[str, Tensor]) -> Bench:
        network = small_network(self.side, self.channels, pool=self.pool)
        assert (network.side, network.channels) == (self.side, self.channels)
        builder, blob = builder_of(network, weights)
        f = builder.buffer("f16", self.batch * self.side**2 * self.channels)
        add_tafe(builder, network, self.batch, f, self.tile, True)
        return Bench(builder, blob, self.batch)

    def weights(self, draw: Draw) -> dict[str, Tensor]:
        return random_weights(small_network(self.side, self.channels, pool=self.pool), draw)

    def map(self, draw: Draw) -> Tensor:
        return draw.normal(self.batch, self.side, self.side, self.channels)


def planned(bucket: int) -> Callable[..., Tile]:
    """The tile that sm_90's plan for `bucket` images has, whatever the batch that is computed with it."""

    def choose(product: Product, rows: int | None = None) -> Tile:
        m = {"split": bucket * 64, "merge": bucket * 64, "detail": bucket * 49}[product.kind]
        return choose_tile(replace(product, m=m), "sm_90", rows)

    choose.__name__ = f"planned_for_{bucket}"
    return choose


def forced(columns: int, channels: int, split: int = 1, detail_rows: int = 64) -> Callable[..., Tile]:
    def choose(product: Product, rows: int | None = None) -> Tile:
        return Tile(rows or detail_rows, columns, channels, split, 4, 2)

    choose.__name__ = f"{columns}x{channels}-split{split}"
    return choose


ONE_TILE = forced(64, 64)


def run(case: Case, weights: dict[str, Tensor], f: Tensor, bench: Bench | None = None) -> dict[str, Tensor]:
    """Every map of the three launches, FP16, in the shapes of the references; d in the kernel's order of channels."""
    n, side, c = case.batch, case.side, case.channels
    held = (bench or case.bench(weights)).run(f_ptr=f)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "x": ("split", (n, side, side, c)),
        "d": ("split", (n, side, side, 2 * c)),
        "s": ("split", (n, c)),
        "h": ("detail_and_gate", (n, side, side, 2 * c)),
        "g": ("detail_and_gate", (n, c)),
        "z": ("merge", (n, side, side, c)),
    }
    return {name: held[f"tafe.{launch}.{name}"].reshape(shape) for name, (launch, shape) in shapes.items()}


def split_arguments(case: Case, weights: dict[str, Tensor]) -> tuple[Any, ...]:
    """Of `split_reference`, but for f: depthwise channel 2 i + j is output j of channel i, stored j by j."""
    c = case.channels
    return (
        weights["tafe.split.w"],
        weights["tafe.split.b"],
        weights["tafe.dw.w"].permute(2, 0, 1).reshape(2 * c, 1, 3, 3),
        weights["tafe.dw.b"].T.reshape(2 * c),
        weights["tafe.of_pool"],
        weights["tafe.of_variance"],
        case.pool,
    )


def in_kernel_order(d: Tensor) -> Tensor:
    """Channels 2 i + j -> j C + i."""
    return d.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def check(case: Case, seed: int) -> None:
    draw = Draw(seed)
    weights, f = case.weights(draw), case.map(draw)
    got = run(case, weights, f)
    wide = {name: value.double() for name, value in got.items()}

    def judge(names: str, reference: Callable, *arguments: Any) -> None:
        results = (in_float64(reference, *arguments), in_half(reference, *arguments))
        exact, half = (r if isinstance(r, tuple) else (r,) for r in results)
        for name, e, h in zip(names, exact, half, strict=True):
            if name == "d":
                e, h = in_kernel_order(e), in_kernel_order(h)
                for edge in (0, -1):
                    for axis in (1, 2):
                        parts = (y.select(axis, edge) for y in (got[name], e, h))
                        assert_as_good_as_pytorch(*parts, f"d's edge {edge} of axis {axis}")
            assert_as_good_as_pytorch(got[name], e, h, name)

    judge("xds", split_reference, f, *split_arguments(case, weights))
    w = {name.removeprefix("tafe."): value for name, value in weights.items()}
    gate = wide["s"], w["gate.w"], w["gate.b"]
    judge("hg", detail_and_gate_reference, wide["d"], w["detail.w"], w["detail.b"], *gate)
    merge_w = torch.cat([w["merge.x.w"], w["merge.h.w"]], 1)
    judge("z", merge_reference, wide["x"], wide["g"], wide["h"], merge_w, w["merge.b"])


CASES = [
    # The network's own map with the tiles of its plans; 32 images have almost those of 256.
    Case(7, 512, 1, planned(1)),
    Case(7, 512, 1, planned(256), "nearest"),
    # One to 225 pixels an image: rows of a tile from 1 of 64 to 225 of 256.
    Case(1, 32, 5, ONE_TILE),
    Case(2, 32, 3, forced(32, 16), "nearest"),
    Case(3, 32, 3, forced(32, 32, split=2)),
    Case(8, 32, 1, forced(32, 32)),
    Case(9, 32, 1, forced(32, 32), "nearest"),
    Case(15, 32, 1, forced(32, 32)),
    # Channels that are no multiple of the tile's columns or of its K-step: a tile must not straddle y and x.
    Case(7, 40, 3, forced(32, 32)),
    Case(7, 40, 1, forced(64, 16, split=4)),
    Case(2, 72, 3, forced(64, 64, split=8), "nearest"),
    # More images than a tile of the gate has rows.
    Case(1, 24, 17, forced(32, 32, detail_rows=16)),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c.side}x{c.side}x{c.channels}-{c.batch}-{c.pool}-{c.tile.__name__}"
)
def test_each_launch_agrees_with_pytorch(case):
    check(case, seed=case.side)


@pytest.mark.parametrize(("pixels", "rows"), [(1, 64), (4, 64), (49, 64), (64, 64), (65, 128), (225, 256)])
def test_a_tile_holds_a_whole_image(pixels, rows):
    assert tile_rows(pixels) == rows


# --- statistics: x = f, for they are taken of x -----------------------------------------------------------


SIDES = (1, 2, 3, 7, 15)


def x_is_f(case: Case) -> dict[str, Tensor]:
    """Weights with which x is f: what is put in has its statistic come out. Everything else is small."""
    c = case.channels
    weights = {name: torch.zeros_like(value) for name, value in case.weights(Draw(0)).items()}
    weights["tafe.split.w"][c:] = torch.eye(c)
    return weights


@pytest.mark.parametrize("pool", ["max", "nearest"])
@pytest.mark.parametrize(("side", "tile"), [*((side, ONE_TILE) for side in SIDES), (7, forced(32, 32, split=2))])
def test_the_pool_is_exact(side, tile, pool):
    """Also where every value is negative: neither the rows behind the image nor its neighbours count."""
    case = Case(side, 40, 3, tile, pool)
    weights = x_is_f(case)
    weights["tafe.of_pool"] += 1
    f = (case.map(Draw(side)) - 40).half().double()
    f[:, :, :, ::2] *= -1
    got = run(case, weights, f)
    assert torch.equal(got["x"], f.half())
    assert torch.equal(got["s"], (f.amax((1, 2)) if pool == "max" else f[:, 0, 0]).half())


@pytest.mark.parametrize(("side", "tile"), [*((side, ONE_TILE) for side in SIDES), (7, forced(32, 32, split=2))])
def test_the_variance_does_not_cancel(side, tile):
    """The mean square less the square of the mean would lose it: of 1e6 + 0.25, float32 keeps four bits of the 0.25."""
    case = Case(side, 40, 3, tile)
    weights = x_is_f(case)
    weights["tafe.of_variance"] += 1
    means = torch.tensor([0.0, 1000.0, -1000.0, 100.0], dtype=torch.float64).repeat(10)
    spreads = torch.tensor([1.0, 0.5, 1.0, 0.1], dtype=torch.float64).repeat(10)
    f = (means + spreads * case.map(Draw(side))).half().double()
    got = run(case, weights, f)
    assert torch.equal(got["x"], f.half())
    variance = f.var((1, 2), correction=0)
    assert side == 1 or (variance > 0).sum() >= 100
    # The least number of FP16 is 2**-24.
    assert ((got["s"].double() - variance).abs() <= 1e-3 * variance + 2**-24).all()


def test_the_statistics_are_those_of_the_stored_map():
    """x is rounded before its variance is taken, as plain FP16 does: 2048.4 and 2049.4 are stored as 2048 and 2050."""
    case = Case(2, 32, 1, forced(32, 32))
    weights = x_is_f(case)
    weights["tafe.of_variance"] += 1
    weights["tafe.split.b"] += 2048
    f = torch.tensor([0.4, 1.4, 0.4, 1.4], dtype=torch.float64).half().double().reshape(1, 2, 2, 1).expand(1, 2, 2, 32)
    got = run(case, weights, f)
    assert got["x"].unique().tolist() == [2048.0, 2050.0] and got["s"].unique().tolist() == [1.0]


def test_pool_and_variance_add_up():
    case = Case(7, 40, 3, ONE_TILE)
    weights, f = x_is_f(case), case.map(Draw(3))
    weights["tafe.of_pool"] += Draw(4).whole(40, largest=4)
    weights["tafe.of_variance"] += Draw(5).whole(40, largest=4)
    expected = weights["tafe.of_pool"] * f.amax((1, 2))
    expected += weights["tafe.of_variance"] * f.var((1, 2), correction=0)
    got = run(case, weights, f)["s"].double()
    assert (got - expected).abs().max() <= 2**-11 * expected.abs().max() + 2**-20


# --- depthwise, gate, neighbours ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_the_depthwise_detail_is_exact(side):
    """Whole numbers: all nine taps, both outputs of each channel, and every border."""
    case, draw = Case(side, 40, 2, ONE_TILE), Draw(side)
    weights = x_is_f(case)
    weights["tafe.split.w"][:40] = torch.eye(40)
    weights["tafe.split.b"][:40] = draw.whole(40, largest=3)  # padding is that of y, not of f
    weights["tafe.dw.w"] = draw.whole(2, 9, 40, largest=4)
    weights["tafe.dw.b"] = draw.whole(2, 40, largest=4)
    f = draw.whole(2, side, side, 40, largest=9)
    _, d, _ = in_float64(split_reference, f, *split_arguments(case, weights))
    assert torch.equal(run(case, weights, f)["d"], in_kernel_order(d).half())


def test_the_gate_is_that_of_its_image_and_channel():
    """z = x g where the merge's product is the identity and its detail half is nothing."""
    case, draw = Case(7, 40, 3, ONE_TILE), Draw(6)
    weights, f = x_is_f(case), case.map(Draw(7))
    weights["tafe.of_pool"] += 1
    weights["tafe.gate.w"] = draw.normal(40, 40, scale=0.1)
    weights["tafe.gate.b"] += 2
    weights["tafe.merge.x.w"] = torch.eye(40)
    got = run(case, weights, f)
    assert got["g"].std(0).min() > 0 and got["g"].std(1).min() > 0
    assert torch.equal(got["z"], (f * got["g"].double()[:, None, None]).half())
    assert not got["h"].any()


def test_an_image_does_not_depend_on_its_neighbours():
    case = Case(3, 40, 3, forced(64, 32, split=2))
    weights, f = case.weights(Draw(8)), case.map(Draw(9))
    together = run(case, weights, f)["z"]
    for i in (1, 2):
        alone = run(replace(case, batch=1), weights, f[i : i + 1])["z"]
        assert torch.equal(alone[0], together[i])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("pool", ["max", "nearest"])
def test_a_nan_comes_out_and_stays_in_its_image(pool):
    case = Case(3, 32, 3, forced(32, 32), pool)
    weights, f = case.weights(Draw(10)), case.map(Draw(11))
    good = run(case, weights, f)
    f[1, 2, 1] = torch.nan
    got = run(case, weights, f)
    assert torch.equal(got["z"][[0, 2]], good["z"][[0, 2]])
    assert got["s"][1].isnan().all() and got["z"][1].isnan().all()


def test_two_runs_give_the_same_bits():
    case = Case(3, 40, 3, forced(64, 16, split=2))
    weights, f = case.weights(Draw(12)), case.map(Draw(13))
    bench = case.bench(weights)
    first, second = (run(case, weights, f, bench) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
