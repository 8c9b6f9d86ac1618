"""Residual convolutions of eight bits: int8 to the bit, FP8 to the neighbouring value, and every mixture with FP16."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.conv import add_conv
from tkfnet_engine.kernels.network import Conv
from tkfnet_engine.kernels.plan import Buffer, aligned, itemsize
from tkfnet_engine.kernels.tiles import Tile

from .harness import OTHER_POISON, POISON, Bench, Draw, blob_of, programs_reordered
from .test_conv import EDGES, Case

LARGEST = {"i8": 127.0, "f8": 448.0, "f16": 1000.0}


@dataclass(frozen=True)
class Types:
    """Dtypes of the operands, of the map that is added as it is, and of the output."""

    product: str
    residual: str
    written: str

    def __str__(self) -> str:
        return f"{self.product}+{self.residual}to{self.written}"


ALL_INT8, ALL_FLOAT8 = Types("i8", "i8", "i8"), Types("f8", "f8", "f8")
# What neighbours that stay FP16 make of it.
MIXED = [Types(*t.split()) for t in ("i8 i8 f16", "i8 f16 i8", "i8 f16 f16", "f16 i8 i8", "f16 i8 f16", "f16 f16 i8")]
MIXED += [Types(*t.split()) for t in ("f8 f16 f8", "f8 f8 f16", "f16 f8 f8", "f16 f16 f8")]


class Drawn:
    """Random maps and weights of a case, and scales that spread the output over what it can hold."""

    def __init__(self, case: Case, types: Types, seed: int):
        draw, conv, project = Draw(seed), case.conv, case.project
        self.case, self.types, out = case, types, conv.output_side(case.side)
        quantised = types.product != "f16"
        self.x = draw.quantised(types.product, case.batch, case.side, case.side, conv.cin, positive=True)
        weights = {f"{conv.name}.w": draw.quantised(types.product, conv.cout, conv.taps**2 * conv.cin)}
        self.shortcut = None
        if case.identity:
            self.shortcut = draw.quantised(types.residual, case.batch, out, out, conv.cout, positive=True)
        elif project is not None:
            shape = case.batch, case.project_side, case.project_side, project.cin
            self.shortcut = draw.quantised(types.product, *shape, positive=True)
        # The largest sum is worth one and a half times what the output can hold.
        spread = self._sum(self.x, weights[f"{conv.name}.w"], conv).abs().max() / 1.5
        largest = LARGEST[types.written]
        if (types.product, types.written) != ("f16", "f16"):
            weights[f"{conv.name}.scale"] = draw.positive(conv.cout, scale=largest / spread)
        weights[f"{conv.name}.b"] = draw.normal(conv.cout, scale=largest / 8)
        if project is not None:
            weights[f"{project.name}.w"] = draw.quantised(types.product, project.cout, project.cin)
        if project is not None and quantised:
            spread = self._sum(self.shortcut, weights[f"{project.name}.w"], project).abs().max() / 1.5
            weights[f"{project.name}.scale"] = draw.positive(project.cout, scale=LARGEST[types.product] / spread)
            weights[f"{project.name}.b"] = draw.normal(project.cout, scale=LARGEST[types.product] / 8)
        if quantised if project else case.identity and (types.residual, types.written) != ("f16", "f16"):
            ratio = 0.5 * largest / LARGEST[types.residual]
            weights[f"{conv.name}.shortcut_scale"] = draw.positive(1, scale=ratio)
        self.weights = weights

    @staticmethod
    def _sum(x: Tensor, w: Tensor, conv: Conv) -> Tensor:
        """[n, H, W, C] and [N, taps * taps * C] -> [n, N, P, Q]."""
        w = w.reshape(conv.cout, conv.taps, conv.taps, conv.cin).permute(0, 3, 1, 2)
        return F.conv2d(x.permute(0, 3, 1, 2), w, None, conv.stride, conv.taps // 2)

    def bench(self, split: int | None = None) -> Bench:
        case, types, conv = self.case, self.types, self.case.conv
        buffers, offset = {}, 0
        for name, value in self.weights.items():
            dtype = types.product if name.endswith(".w") else "f32"
            buffers[name] = Buffer("weights", offset, dtype, value.numel())
            offset = aligned(offset + value.numel() * itemsize(dtype))
        builder = PlanBuilder(buffers, offset)
        x = builder.buffer(types.product, self.x.numel())
        shortcut, out = None, conv.output_side(case.side)
        if self.shortcut is not None:
            other = builder.buffer(types.product if case.project else types.residual, self.shortcut.numel())
            shortcut = (other, case.project_side if case.project else out, case.project)
        tile = case.tile if split is None else replace(case.tile, split=split)
        add_conv(builder, conv, tile, case.batch, x, (case.side, out), shortcut, True, types.written)
        return Bench(builder, blob_of(buffers, offset, self.weights), case.batch)

    def run(self, bench: Bench, poison: int = POISON, clean: bool = True) -> Tensor:
        """float64 [n, P, Q, N]. The harness has compared it with the formula in float32, operation by operation."""
        inputs = {"x_ptr": self.x} | ({} if self.shortcut is None else {"shortcut_ptr": self.shortcut})
        held = bench.run(poison=poison, clean=clean, **inputs)[f"{self.case.conv.name}.y"]
        out = self.case.conv.output_side(self.case.side)
        return held.double().reshape(self.case.batch, out, out, self.case.conv.cout)

    def exact(self) -> Tensor:
        """The output before it is rounded, in float64, of PyTorch's own convolution; only a projection is rounded."""
        conv, project, w = self.case.conv, self.case.project, self.weights

        def biased(x: Tensor, of: Conv) -> Tensor:
            return x * w.get(f"{of.name}.scale", one)[:, None, None] + w.get(f"{of.name}.b", 0 * one)[:, None, None]

        one = torch.ones(conv.cout, dtype=torch.float64)
        y = self._sum(self.x, w[f"{conv.name}.w"], conv)
        ratio = w.get(f"{conv.name}.shortcut_scale", torch.ones(1, dtype=torch.float64))
        if project is None:
            y = biased(y, conv)
            y = y if self.shortcut is None else y + self.shortcut.permute(0, 3, 1, 2) * ratio
        elif self.types.product == "f16":
            y = biased(y + self._sum(self.shortcut, w[f"{project.name}.w"], project), conv)
        else:
            shortcut = biased(self._sum(self.shortcut, w[f"{project.name}.w"], project), project)
            y = biased(y, conv) + rounded(shortcut, self.types.product) * ratio
        return torch.relu(y).permute(0, 2, 3, 1)


def rounded(values: Tensor, dtype: str) -> Tensor:
    if dtype == "i8":
        return values.round().clamp(-127, 127)
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).double()


def test_the_scales_are_given_where_the_layout_has_them():
    """What is drawn here has the names and the shapes that a network of such types has."""
    from tkfnet_engine.kernels.network import Block
    from tkfnet_engine.kernels.planner import weight_layout

    from .harness import small_network

    project = Conv("layer1.0.project", 8, 16, 1, 2)
    blocks = (Block((Conv("layer1.0.conv1", 8, 16, 3, 2), Conv("layer1.0.conv2", 16, 16, 3, 1)), project),)
    blocks += (Block((Conv("layer1.1.conv1", 16, 16, 3, 1), Conv("layer1.1.conv2", 16, 16, 3, 1)), None),)
    layout = weight_layout(small_network(16, 16, blocks=blocks), "int8")
    for case, types in (
        (Case(blocks[0].convs[1], Tile(64, 32, 32, 1, 4, 2), 4, project=project, project_side=8), ALL_INT8),
        (Case(blocks[1].convs[1], Tile(64, 32, 32, 1, 4, 2), 4, identity=True), ALL_INT8),
    ):
        for name, value in Drawn(case, types, 1).weights.items():
            assert layout[name][1] == tuple(value.shape)


# Channels of a step are at least 32.
CASES = [replace(case, tile=replace(case.tile, block_k=max(32, case.tile.block_k))) for case in EDGES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_int8_is_what_it_must_be(case):
    """To the bit (the harness), within half a step of float64's answer, and whatever lies in memory."""
    drawn = Drawn(case, ALL_INT8, 1)
    bench = drawn.bench()
    got, exact = drawn.run(bench), drawn.exact()
    assert ((got - exact.clamp(0, 127)).abs() <= 0.5 + 1e-4).all()
    assert got.unique().numel() > 30 and (got == 0).any() and (got == 127).any() == (exact >= 126.5).any()
    assert torch.equal(drawn.run(bench, OTHER_POISON), got)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_float8_is_what_it_must_be(case):
    drawn = Drawn(case, ALL_FLOAT8, 2)
    bench = drawn.bench()
    got, exact = drawn.run(bench), drawn.exact().clamp(0, 448)
    # Half of the distance to the next value: three bits after the first, and no finer than 2**-9.
    half_step = torch.ldexp(torch.ones_like(exact), (torch.frexp(exact).exponent - 5).clamp(min=-10))
    assert ((got - exact).abs() <= 1.001 * half_step + 1e-4).all() and got.unique().numel() > 25
    assert torch.equal(drawn.run(bench, OTHER_POISON), got)


SMALL = [case for case in CASES if case.identity or case.project or case.tile.split > 1]


@pytest.mark.parametrize("types", MIXED, ids=str)
@pytest.mark.parametrize("number", range(3))
def test_neighbours_of_other_types_meet(types, number):
    """A unit that stays FP16 reads what a quantised one wrote, and the other way round."""
    kinds = [c for c in SMALL if c.identity][::2] + [c for c in SMALL if c.project and types.product == "f16"][:1]
    drawn = Drawn((kinds + SMALL[-2:])[number], types, 3)
    bench = drawn.bench()
    got, exact = drawn.run(bench), drawn.exact()
    if types.written == "i8":
        assert ((got - exact.clamp(0, 127)).abs() <= 0.5 + 2e-3).all()
    else:
        relative = 2.0**-11 if types.written == "f16" else 2.0**-4
        exact = exact.clamp(0, 65504 if types.written == "f16" else 448)
        assert ((got - exact).abs() <= 1.01 * relative * exact.abs() + 2e-3 * exact.max()).all()
    assert got.unique().numel() > 30
    assert torch.equal(drawn.run(bench, OTHER_POISON), got)


@pytest.mark.parametrize("case", [c for c in SMALL if c.project][:2] + [c for c in SMALL if c.identity][:1], ids=str)
@pytest.mark.parametrize("split", [2, 4, 8])
def test_a_split_sum_of_int8_is_the_sum(case, split):
    """In any number of parts, in any order of the programs, and with the parts of the run before in memory."""
    drawn = Drawn(case, ALL_INT8, 4)
    whole, bench = drawn.run(drawn.bench(split=1)), drawn.bench(split)
    assert torch.equal(drawn.run(bench), whole)
    assert dict(bench.plan.launches[0].args)["partial_ptr"].dtype == "i32"
    with programs_reordered(lambda i, n: n - 1 - i):
        assert torch.equal(drawn.run(bench, clean=False), whole)


def test_a_projected_shortcut_is_rounded_as_if_it_were_stored():
    """Halves of a step go to the even neighbour, and what is too large is clamped, before it is added."""
    conv, project = Conv("layer1.0.conv1", 32, 32, 1, 1), Conv("layer1.0.project", 32, 32, 1, 1)
    case = Case(conv, Tile(64, 32, 32, 1, 4, 2), 3, project=project, project_side=3)
    drawn = Drawn(case, ALL_INT8, 5)
    drawn.x, drawn.shortcut = torch.zeros_like(drawn.x), torch.zeros_like(drawn.shortcut)
    drawn.shortcut[..., 0] = torch.tensor([1.0, 3, 5, 7, -1, -3, -5, 127, -127]).reshape(1, 3, 3)
    weights = drawn.weights
    weights["layer1.0.project.w"].zero_()[:, 0] = 1
    weights["layer1.0.project.scale"].fill_(0.5)[31] = 2.0
    weights["layer1.0.project.b"].zero_()
    weights["layer1.0.conv1.b"].fill_(64)
    weights["layer1.0.conv1.shortcut_scale"].fill_(0.25)
    got = drawn.run(drawn.bench())
    # 0.5, 1.5, 2.5, 3.5 and -0.5 .. go to 0, 2, 2, 4, 0, -2, -2; with the scale 0.25 and 64: to even again.
    assert got[0, ..., 0].flatten().tolist() == [64, 64, 64, 65, 64, 64, 64, 80, 48]
    assert got[0, ..., 31].flatten()[-2:].tolist() == [96, 32]  # 254 and -254 were clamped


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("written", "largest"), [("i8", 127.0), ("f8", 448.0)])
def test_what_overflowed_saturates(written, largest):
    """FP16 maps may hold infinities and NaN; eight bits hold neither, and give the largest value."""
    case = Case(Conv("layer1.0.conv1", 32, 32, 1, 1), Tile(64, 32, 32, 1, 4, 2), 2)
    drawn = Drawn(case, Types("f16", "f16", written), 6)
    drawn.x[0, 0, 0, 0], drawn.x[0, 1, 1, 0] = torch.nan, torch.inf
    drawn.weights["layer1.0.conv1.w"][:, 0] = torch.where(torch.arange(32) < 16, 1.0, -1.0)
    got = drawn.run(drawn.bench())
    assert (got[0, 0, 0] == largest).all()
    assert (got[0, 1, 1, :16] == largest).all() and (got[0, 1, 1, 16:] == 0).all()
    assert not got.isnan().any() and (got[0, 0, 1] < largest).any()
