"""TAFE's three launches of eight bits, each by itself and with the others in FP16: int8 to the bit where sums are
whole, the rest to the neighbouring value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tkfnet_engine.kernels.plan import Buffer
from tkfnet_engine.kernels.planner import weight_layout
from tkfnet_engine.kernels.precisions import stored_types
from tkfnet_engine.kernels.tafe import (
    add_tafe,
    detail_and_gate_reference,
    merge_reference,
    split_reference,
)
from tkfnet_engine.kernels.tiles import Product, Tile

from .harness import OTHER_POISON, POISON, Bench, Draw, builder_of, in_float64, small_network
from .test_tafe import forced, in_kernel_order

UNITS = ("tafe.split", "tafe.detail_and_gate", "tafe.merge")
QUANTISED = {"int8": "i8", "float8": "f8"}
MOST = {"i8": 127.0, "f8": 448.0}
# Of f, d, s and of the merge's operands: what a step is worth, for values of about one.
STEP = {"i8": 0.03, "f8": 0.01}


@dataclass(frozen=True)
class Case:
    """A map of `side` x `side` pixels and `channels`; `tile`: (Product, rows) -> Tile. kept: units that stay FP16."""

    side: int
    channels: int
    batch: int
    tile: Callable[..., Tile]
    pool: str = "max"
    precision: str = "int8"
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        kept = "-".join(unit.removeprefix("tafe.") for unit in self.kept)
        return f"{self.precision}-{self.side}x{self.channels}-{self.batch}-{self.pool}-{self.tile.__name__}-{kept or 0}"


class Tafe:
    """Random weights in the layout of a case, whose maps are of about one before they are divided by their scales."""

    def __init__(self, case: Case, seed: int):
        self.case, draw, c = case, Draw(seed), case.channels
        self.network = small_network(case.side, c, pool=case.pool)
        # The case is of TAFE: the stem and the one block before it are not built here.
        self.types = stored_types(self.network, case.precision, case.kept)
        self.layout = weight_layout(self.network, case.precision, case.kept)
        dtype = QUANTISED[case.precision]
        step = STEP[dtype]
        self.weights: dict[str, Tensor] = {}
        for name, (held, shape) in self.layout.items():
            if held in MOST:
                self.weights[name] = draw.quantised(held, *shape)
            elif held == "f16":
                self.weights[name] = draw.normal(*shape, scale=shape[-1] ** -0.5)
            else:
                self.weights[name] = draw.normal(*shape, scale=0.5).float().double()
        spread = {"i8": 73.0, "f8": 100.0}[dtype]
        for name, inputs in (("split", c), ("gate", c), ("detail", 2 * c), ("merge", 3 * c)):
            if f"tafe.{name}.scale" in self.layout:
                shape = self.layout[f"tafe.{name}.scale"][1]
                self.weights[f"tafe.{name}.scale"] = draw.positive(*shape, scale=1 / (spread**2 * inputs**0.5))
        for name, point in (("dw.w", "detail"), ("dw.b", "detail"), ("of_pool", "gate"), ("of_variance", "gate")):
            if self.types.of_map(f"tafe.{point}") != "f16":
                self.weights[f"tafe.{name}"] = (self.weights[f"tafe.{name}"] / step).float().double()
        if "tafe.merge.reciprocal" in self.layout:
            self.weights["tafe.merge.reciprocal"] = torch.tensor([1 / step], dtype=torch.float32).double()
        shape = case.batch, case.side, case.side, c
        self.f = draw.quantised(self.types.of_map("tafe.split"), *shape, positive=True)

    def bench(self) -> Bench:
        case = self.case
        builder, blob = builder_of(self.network, self.weights, case.precision, case.kept)
        f = builder.buffer(self.types.of_map("tafe.split"), self.f.numel())
        add_tafe(builder, self.network, case.batch, f, case.tile, True, self.types)
        return Bench(builder, blob, case.batch)

    def run(self, bench: Bench, poison: int = POISON) -> dict[str, Tensor]:
        """Every map, float64, as stored. The harness has compared each launch with the formulas in float32."""
        n, side, c = self.case.batch, self.case.side, self.case.channels
        held = bench.run(poison=poison, f_ptr=self.f)
        shapes = {
            "split.x": (n, side, side, c),
            "split.d": (n, side, side, 2 * c),
            "split.s": (n, c),
            "detail_and_gate.h": (n, side, side, 2 * c),
            "detail_and_gate.g": (n, c),
            "merge.z": (n, side, side, c),
        }
        return {name[-1]: held[f"tafe.{name}"].double().reshape(shape) for name, shape in shapes.items()}

    def product(self, name: str) -> tuple[Tensor, Tensor]:
        """(weight with its scale, bias), float64."""
        if name == "merge":
            weight = torch.cat([self.weights["tafe.merge.x.w"], self.weights["tafe.merge.h.w"]], 1)
        else:
            weight = self.weights[f"tafe.{name}.w"]
        scale = self.weights.get(f"tafe.{name}.scale", torch.ones(1, dtype=torch.float64))
        return weight * scale[:, None], self.weights[f"tafe.{name}.b"]


def of_launches(launch: str, bench: Bench) -> dict[str, Buffer | int]:
    return dict(next(entry for entry in bench.plan.launches if entry.name == launch).args)


def check(case: Case, seed: int) -> None:
    """Against plain PyTorch in float64, launch by launch from what the one before it wrote."""
    tafe, c = Tafe(case, seed), case.channels
    bench = tafe.bench()
    got = tafe.run(bench)
    types, w = tafe.types, tafe.weights

    def judge(name: str, exact: Tensor, point: str | None) -> None:
        dtype = types.of_map(point)
        if dtype == "f16":
            # Sums in float32, then FP16; a few values of a chain of two roundings.
            bound = 2.0**-10 * exact.abs() + 2e-3 * exact.abs().max()
        else:
            exact = exact.clamp(-MOST[dtype], MOST[dtype])
            bound = 0.5 + 0.02 if dtype == "i8" else 2.0**-4 * 1.05 * exact.abs() + 0.02
        assert ((got[name] - exact).abs() <= bound).all(), f"{name}: {(got[name] - exact).abs().max()}"
        assert got[name].unique().numel() > min(20, got[name].numel() // 4)

    dw_w = w["tafe.dw.w"].permute(2, 0, 1).reshape(2 * c, 1, 3, 3)
    dw_b = w["tafe.dw.b"].T.reshape(2 * c)
    statistics = w["tafe.of_pool"], w["tafe.of_variance"], case.pool
    x, d, s = in_float64(split_reference, tafe.f, *tafe.product("split"), dw_w, dw_b, *statistics)
    judge("x", x, None)
    # Statistic and detail are those of the stored map: by what was stored of x; y is not stored.
    pooled = got["x"].amax((1, 2)) if case.pool == "max" else got["x"][:, 0, 0]
    s = w["tafe.of_pool"] * pooled + w["tafe.of_variance"] * got["x"].var((1, 2), correction=0)
    judge("s", s, "tafe.gate")
    if types.of_map("tafe.detail") == "f16":
        judge("d", in_kernel_order(d), "tafe.detail")
    else:
        # y's rounding to FP16 is worth part of a step in each of nine taps.
        slack = 9 * 2.0**-11 * w["tafe.dw.w"].abs().max() * x.abs().max()
        exact = in_kernel_order(d).clamp(-MOST[types.of_map("tafe.detail")], MOST[types.of_map("tafe.detail")])
        step = 0.5 if case.precision == "int8" else 2.0**-4 * exact.abs() + 0.02
        assert ((got["d"] - exact).abs() <= step + slack).all()
    h, g = in_float64(detail_and_gate_reference, got["d"], *tafe.product("detail"), got["s"], *tafe.product("gate"))
    judge("g", g, None)
    reciprocal = w.get("tafe.merge.reciprocal", torch.ones(1, dtype=torch.float64))
    judge("h", h * reciprocal, "tafe.merge")
    gated = got["x"] * got["g"][:, None, None, :] * reciprocal
    if types.of_product("tafe.merge") == "i8":
        gated = gated.round().clamp(-127, 127)
    elif types.of_product("tafe.merge") == "f8":
        gated = gated.clamp(-448, 448).float().to(torch.float8_e4m3fn).double()
    ones = torch.ones_like(got["g"])
    judge("z", in_float64(merge_reference, gated, ones, got["h"], *tafe.product("merge")), None)
    again = tafe.run(bench, OTHER_POISON)
    assert all(torch.equal(again[name], got[name]) for name in got)


SMALL = forced(32, 32)
KEPT = [(), *((unit,) for unit in UNITS), UNITS[:2], UNITS[1:], UNITS[::2]]
CASES = [
    # One to 225 pixels an image.
    Case(1, 32, 5, forced(64, 64)),
    Case(3, 32, 3, forced(32, 32, split=2), "nearest"),
    Case(7, 64, 2, forced(64, 64)),
    Case(9, 32, 1, SMALL),
    pytest.param(Case(15, 32, 1, SMALL), marks=pytest.mark.full),
    # Channels that are no multiple of the tile's columns or of its K-step.
    Case(7, 40, 2, SMALL),
    Case(2, 72, 3, forced(64, 64, split=8), "nearest"),
    # More images than a tile of the gate has rows.
    Case(1, 24, 17, forced(32, 32, detail_rows=16)),
    Case(7, 40, 1, forced(32, 32, split=2), precision="float8"),
    Case(2, 72, 3, forced(64, 64, split=4), "nearest", precision="float8"),
    *(Case(3, 40, 2, forced(32, 32, split=2), kept=kept) for kept in KEPT[1:]),
    *(Case(2, 40, 3, forced(32, 64), precision="float8", kept=kept) for kept in KEPT[1:]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_launch_is_what_it_must_be(case):
    check(case, seed=case.side)


def test_dtypes_are_those_of_who_reads():
    """In each mixture: a map is quantised where what reads it is, and sums of int8 products are whole numbers."""
    for kept in KEPT:
        bench = Tafe(Case(1, 32, 1, forced(32, 32, split=2), kept=kept), 1).bench()
        split, detail, merge = (of_launches(name, bench) for name in UNITS)
        held = {unit: "f16" if unit in kept else "i8" for unit in UNITS}
        assert split["f_ptr"].dtype == split["w_ptr"].dtype == held["tafe.split"]
        assert {split["d_ptr"].dtype, split["s_ptr"].dtype, detail["w_g_ptr"].dtype} == {held["tafe.detail_and_gate"]}
        assert {detail["h_ptr"].dtype, merge["w_x_ptr"].dtype, merge["w_h_ptr"].dtype} == {held["tafe.merge"]}
        assert {split["x_ptr"].dtype, detail["g_ptr"].dtype, merge["z_ptr"].dtype} == {"f16"}
        for unit, launch in zip(UNITS, (split, detail, merge)):
            assert launch["partial_ptr"].dtype == ("i32" if held[unit] == "i8" else "f32")


def test_the_gated_map_is_rounded_as_it_is_loaded():
    """x g of a half of a step goes to the even neighbour, and what is too large is clamped."""
    tafe = Tafe(Case(3, 32, 1, SMALL), 2)
    for name in ("tafe.merge.x.w", "tafe.merge.h.w", "tafe.merge.b"):
        tafe.weights[name].zero_()
    tafe.weights["tafe.merge.x.w"][:] = torch.eye(32)
    tafe.weights["tafe.merge.scale"].fill_(1.0)
    # x = f / 2 and g = gelu of a large number, which is that number: 4.
    tafe.weights["tafe.split.w"].zero_()[32:] = torch.eye(32)
    tafe.weights["tafe.split.scale"].fill_(0.5)
    tafe.weights["tafe.split.b"].zero_()
    tafe.weights["tafe.gate.w"].zero_()
    tafe.weights["tafe.gate.b"].fill_(8.0)
    tafe.weights["tafe.merge.reciprocal"].fill_(0.125)
    values = torch.tensor([0.0, 1, 2, 3, 5, 7, 100, 126, 127], dtype=torch.float64)
    tafe.f = values.reshape(1, 3, 3, 1).expand(1, 3, 3, 32).contiguous()
    got = tafe.run(tafe.bench())
    assert got["g"].unique().tolist() == [8.0]
    # x g / 8 = f / 2: 0.5, 1, 1.5, 2.5, 3.5, 50, 63, 63.5
    assert got["z"][..., 0].flatten().tolist() == [0, 0, 1, 2, 2, 4, 50, 63, 64]
    tafe.weights["tafe.merge.reciprocal"].fill_(1.0)
    assert tafe.run(tafe.bench())["z"][0, 2, 2, 0] == 127


def test_an_image_does_not_depend_on_its_neighbours():
    case = Case(3, 40, 3, forced(64, 32, split=2))
    tafe = Tafe(case, 3)
    together = tafe.run(tafe.bench())["z"]
    alone = Tafe(Case(3, 40, 1, case.tile), 3)
    alone.weights = tafe.weights
    for i in (1, 2):
        alone.f = tafe.f[i : i + 1]
        assert torch.equal(alone.run(alone.bench())["z"][0], together[i])


def test_products_are_chosen_tiles_for_in_their_own_precision():
    asked: list[Product] = []

    def choose(product: Product, rows: int | None = None) -> Tile:
        asked.append(product)
        return SMALL(product, rows)

    choose.__name__ = "choose"
    Tafe(Case(3, 32, 1, choose, kept=("tafe.detail_and_gate",)), 4).bench()
    assert [(p.kind, p.precision) for p in asked] == [("split", "int8"), ("detail", "float16"), ("merge", "int8")]
