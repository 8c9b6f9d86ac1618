"""Residual convolutions: the tiles of the real plans on cropped maps, and where tiles and maps do not meet."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.conv import add_conv, conv_reference
from tkfnet_engine.kernels.network import Block, Conv, Network, network_of
from tkfnet_engine.kernels.plan import DTYPES, Buffer, aligned
from tkfnet_engine.kernels.tiles import Tile
from tkfnet_engine.kernels.weights import conv_weight
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import TKFNetConfig

from .harness import Bench, Draw, assert_as_good_as_pytorch, blob_of, in_float64, in_half, real_plan, tile_of


@dataclass(frozen=True)
class Case:
    """A convolution on maps of `side`. identity: the shortcut is a map of the output's shape; project: it goes through
    this convolution, from a map of `project_side`."""

    conv: Conv
    tile: Tile
    side: int
    batch: int = 1
    identity: bool = False
    project: Conv | None = None
    project_side: int = 0

    def __str__(self) -> str:
        conv, tile = self.conv, self.tile
        shortcut = "-identity" if self.identity else f"-project{self.project.cin}" if self.project else ""
        return (
            f"{conv.taps}x{conv.taps}s{conv.stride}-{conv.cin}to{conv.cout}{shortcut}-{self.batch}x{self.side}"
            f"-{tile.block_m}x{tile.block_n}x{tile.block_k}-split{tile.split}"
        )


@dataclass(frozen=True)
class Values:
    """x: [n, H, W, C]; w: [N, C, taps, taps]; b: [N]; shortcut: [n, h, w, c] or None; project: [N, c, 1, 1] or None."""

    x: Tensor
    w: Tensor
    b: Tensor
    shortcut: Tensor | None
    project: Tensor | None

    def reference(self, convert: Any, case: Case) -> Tensor:
        strides = case.conv.stride, 1 if case.project is None else case.project.stride
        return convert(conv_reference, self.x, self.w, self.b, strides[0], self.shortcut, self.project, strides[1])


def normal_values(case: Case, draw: Draw) -> Values:
    def normal(shape, products=None):
        return draw.normal(*shape, scale=1.0 if products is None else products**-0.5)

    return _values(case, normal)


def whole_values(case: Case, draw: Draw) -> Values:
    """Whole numbers, whose sums float32 holds: the kernel's one rounding is that of its output."""
    return _values(case, lambda shape, products=None: draw.whole(*shape, largest=7 if products is None else 3))


def _values(case: Case, make: Any) -> Values:
    conv, project, out = case.conv, case.project, case.conv.output_side(case.side)
    shortcut = None
    if case.identity:
        shortcut = make((case.batch, out, out, conv.cout))
    elif project is not None:
        shortcut = make((case.batch, case.project_side, case.project_side, project.cin))
    return Values(
        x=make((case.batch, case.side, case.side, conv.cin)),
        w=make((conv.cout, conv.cin, conv.taps, conv.taps), conv.cin * conv.taps**2),
        b=make((conv.cout,)),
        shortcut=shortcut,
        project=None if project is None else make((conv.cout, project.cin, 1, 1), project.cin),
    )


def bench_of(case: Case, values: Values) -> Bench:
    conv, project, out = case.conv, case.project, case.conv.output_side(case.side)
    weights = {f"{conv.name}.w": conv_weight(values.w), f"{conv.name}.b": values.b}
    if project is not None:
        weights[f"{project.name}.w"] = conv_weight(values.project)
    buffers, offset = {}, 0
    for name, value in weights.items():
        dtype = "f32" if name.endswith(".b") else "f16"
        buffers[name] = Buffer("weights", offset, dtype, value.numel())
        offset = aligned(offset + value.numel() * DTYPES[dtype][0])
    builder = PlanBuilder(buffers, offset)
    x = builder.buffer("f16", values.x.numel())
    shortcut = None
    if values.shortcut is not None:
        other = builder.buffer("f16", values.shortcut.numel())
        shortcut = (other, case.project_side if project else out, project)
    add_conv(builder, conv, case.tile, case.batch, x, (case.side, out), shortcut, True)
    return Bench(builder, blob_of(buffers, offset, weights), case.batch)


def output_of(bench: Bench, values: Values, clean: bool = True) -> Tensor:
    """float16 [n, P, Q, N]."""
    inputs = {"x_ptr": values.x} | ({} if values.shortcut is None else {"shortcut_ptr": values.shortcut})
    return bench.run(clean=clean, **inputs)[f"{bench.plan.launches[0].name}.y"]


def check(case: Case, seed: int) -> None:
    values = normal_values(case, Draw(seed))
    exact, half = (values.reference(convert, case) for convert in (in_float64, in_half))
    got = output_of(bench_of(case, values), values).reshape(exact.shape)
    assert_as_good_as_pytorch(got, exact, half, "whole map")
    for name, edge in {"top": (0, 1), "bottom": (-1, 1), "left": (0, 2), "right": (-1, 2)}.items():
        assert_as_good_as_pytorch(*(y.select(edge[1], edge[0]) for y in (got, exact, half)), name)


@functools.cache
def _network(backbone: str) -> Network:
    """At width 1. The weights play no part; on PyTorch's meta device there are none."""
    with torch.device("meta"):
        model = TKFNet(TKFNetConfig(backbone=backbone))
    return network_of(fold(model.to_empty(device="cpu")))


def real_cases(backbone: str, batches: tuple[int, ...]) -> list[Case]:
    """Every different convolution of the plans for `batches` on sm_90, as their tiles compute it: three images of seven
    output pixels a side. The interpreter's time goes with the channels: of wide ones one image, two tiles of output
    channels, and only the first kind of shortcut with each tile."""
    network, cases = _network(backbone), {}
    for batch in batches:
        launches = {launch.name: launch for launch in real_plan(network, batch).launches}
        for block in network.blocks:
            for conv in block.convs:
                tile, wide = tile_of(launches[conv.name]), conv.cin > 128
                case = _real_case(conv, block, tile)
                shape = conv.cin, conv.cout, conv.taps, conv.stride, tile
                if wide:
                    cases.setdefault(shape, cropped(case))
                else:
                    cases.setdefault((*shape, case.identity, case.project), case)
    return list(cases.values())


def _real_case(conv: Conv, block: Block, tile: Tile) -> Case:
    case = Case(conv, tile, side=7 if conv.stride == 1 else 13, batch=3)
    if conv is not block.convs[-1]:
        return case
    if block.project is None:
        return replace(case, identity=True)
    return replace(case, project=block.project, project_side=7 if block.project.stride == 1 else 13)


def cropped(case: Case) -> Case:
    """One image, and output channels for two tiles."""
    cout = min(case.conv.cout, 2 * case.tile.block_n)
    project = None if case.project is None else replace(case.project, cout=cout)
    return replace(case, batch=1, conv=replace(case.conv, cout=cout), project=project)


@pytest.mark.parametrize("case", real_cases("resnet18", (1, 32, 256)), ids=str)
def test_the_tiles_of_resnet18_agree_with_pytorch(case):
    check(case, seed=1)


def test_the_widest_convolution_agrees_with_pytorch_in_full():
    """512 -> 512 channels and a projection from 256, as at batch 1: eight parts of ten K-steps."""
    block = _network("resnet18").blocks[6]
    launch = next(entry for entry in real_plan(_network("resnet18"), 1).launches if entry.name == "layer4.0.conv2")
    case = replace(_real_case(block.convs[1], block, tile_of(launch)), batch=1)
    assert (case.conv.cin, case.conv.cout, case.project.cin, case.conv.output_side(case.side)) == (512, 512, 256, 7)
    check(case, seed=6)


def of_resnet50() -> list[Case]:
    """The 1x1 convolutions where they are narrowest and widest: the first stage at batch 32, the last at batch 1."""
    cases = [c for c in real_cases("resnet50", (32,)) if c.conv.name.startswith(("layer1.0", "layer1.1"))]
    cases += [c for c in real_cases("resnet50", (1,)) if c.conv.name.startswith("layer4.0")]
    return [cropped(c) if c.conv.cout > 256 else c for c in cases if c.conv.taps == 1]


@pytest.mark.parametrize("case", of_resnet50(), ids=str)
def test_the_1x1_tiles_of_resnet50_agree_with_pytorch(case):
    check(case, seed=2)


def _conv(cin: int, cout: int, taps: int = 3, stride: int = 1) -> Conv:
    return Conv("layer1.0.conv1", cin, cout, taps, stride)


def _project(cin: int, cout: int, stride: int) -> Conv:
    return Conv("layer1.0.project", cin, cout, 1, stride)


EDGES = [
    # Channels that are no multiple of the block, on both sides.
    Case(_conv(24, 40), Tile(64, 32, 32, 1, 4, 2), side=9, batch=1),
    Case(_conv(24, 40), Tile(64, 64, 16, 1, 4, 2), side=9, batch=3, identity=True),
    Case(_conv(40, 24, stride=2), Tile(64, 32, 16, 1, 4, 2), side=13, batch=5),
    Case(_conv(40, 72, taps=1), Tile(128, 64, 64, 1, 4, 2), side=7, batch=3),
    Case(_conv(40, 72), Tile(64, 64, 32, 1, 4, 2), 7, 3, project=_project(24, 72, 2), project_side=13),
    Case(_conv(40, 72), Tile(64, 64, 32, 1, 4, 2), 7, 1, project=_project(24, 72, 2), project_side=14),
    Case(_conv(72, 136), Tile(128, 128, 32, 1, 8, 2), 5, 5, project=_project(40, 136, 1), project_side=5),
    # Maps of one, two and three pixels a side: most taps are padding.
    Case(_conv(16, 32), Tile(64, 32, 16, 1, 4, 2), side=1, batch=5),
    Case(_conv(16, 32, stride=2), Tile(64, 32, 16, 1, 4, 2), side=1, batch=3),
    Case(_conv(16, 32, stride=2), Tile(64, 32, 16, 1, 4, 2), side=2, batch=3),
    Case(_conv(16, 32, stride=2), Tile(64, 32, 16, 1, 4, 2), side=3, batch=1),
    # Even sides with stride 2: the last window ends at the map's edge, with no padding behind it.
    Case(_conv(16, 32, stride=2), Tile(64, 32, 16, 1, 4, 2), side=14, batch=1),
    Case(_conv(16, 32, taps=1, stride=2), Tile(64, 32, 16, 1, 4, 2), side=14, batch=3),
    # Exactly one tile, and one pixel more.
    Case(_conv(16, 32), Tile(64, 32, 16, 1, 4, 2), side=8, batch=1),
    Case(_conv(16, 64, taps=1), Tile(64, 64, 16, 1, 4, 2), side=1, batch=65),
    # Split: ranges that start within a tap, that are uneven, that are empty, and that straddle the projection.
    Case(_conv(40, 40), Tile(64, 32, 16, 4, 4, 2), side=7, batch=3, identity=True),
    Case(_conv(64, 64), Tile(64, 64, 64, 8, 4, 2), side=7, batch=1),
    Case(_conv(64, 64, taps=1), Tile(64, 64, 32, 4, 4, 2), side=7, batch=1, identity=True),
    Case(_conv(24, 40), Tile(64, 32, 32, 4, 4, 2), 7, 3, project=_project(72, 40, 2), project_side=13),
    Case(_conv(16, 40, taps=1), Tile(64, 32, 16, 8, 4, 2), 7, 3, project=_project(24, 40, 1), project_side=7),
]


@pytest.mark.parametrize("case", EDGES, ids=str)
def test_edges_are_exact(case):
    values = whole_values(case, Draw(3))
    exact = values.reference(in_float64, case)
    assert exact.max() < 2**15 and (exact == 0).any()  # FP16 holds the sum, and ReLU has something to do
    got = output_of(bench_of(case, values), values).reshape(exact.shape)
    assert torch.equal(got, exact.half())


@pytest.mark.parametrize("case", EDGES[1::4], ids=str)
def test_edges_agree_with_pytorch(case):
    check(case, seed=4)


def test_every_output_channel_has_its_own_weights_and_bias():
    """Products are found by row and column: a transposed or shifted operand cannot pass."""
    case = Case(_conv(32, 48, taps=1), Tile(64, 32, 16, 1, 4, 2), side=5)
    x = torch.zeros(1, 5, 5, 32, dtype=torch.float64)
    x.view(25, 32)[torch.arange(25), torch.arange(25)] = 1.0
    w = torch.arange(48.0 * 32, dtype=torch.float64).reshape(48, 32, 1, 1)
    values = Values(x, w, torch.arange(48, dtype=torch.float64) / 64, None, None)
    got = output_of(bench_of(case, values), values).reshape(25, 48)
    assert torch.equal(got, (w.reshape(48, 32)[:, :25].T + values.b).half())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("split", [1, 4])
def test_a_nan_comes_out_and_stays_in_its_image(split):
    """ReLU must not turn what a broken checkpoint made into a number, and no neighbour in the tile may see it."""
    case = Case(_conv(16, 32), Tile(64, 32, 16, split, 4, 2), side=5, batch=3)
    values = normal_values(case, Draw(5))
    bench = bench_of(case, values)
    good = output_of(bench, values).reshape(3, 25, 32)
    values.x[1, 2, 2] = torch.nan
    got = output_of(bench, values).reshape(3, 25, 32)
    assert torch.equal(got[[0, 2]], good[[0, 2]])
    near = torch.zeros(5, 5, dtype=torch.bool)
    near[1:4, 1:4] = True
    assert got[1, near.flatten()].isnan().all() and torch.equal(got[1, ~near.flatten()], good[1, ~near.flatten()])
