"""The stem in int8, and with eight bits behind an FP16 one: padding that is nothing, interiors that are exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.network import STEM_PADDING, Network
from tkfnet_engine.kernels.plan import Buffer, aligned, itemsize
from tkfnet_engine.kernels.precisions import StoredTypes, stored_types
from tkfnet_engine.kernels.quantised_weights import int8_stem_weight
from tkfnet_engine.kernels.stem import PIXEL_SCALE, add_stem, packed_side
from tkfnet_engine.kernels.tiles import Product, Tile, candidates
from tkfnet_engine.kernels.weights import stem_weight

from .harness import OTHER_POISON, POISON, Bench, Draw, blob_of
from .test_stem import MEANS, stem_network, strip

BLOCK = "layer1.0"


def types_of(network: Network, product: str, written: str) -> StoredTypes:
    """The types of a network whose stem multiplies in `product` and whose first block reads `written`."""
    kept = [] if product == "i8" else ["stem"]
    kept += [] if written != "f16" else ["layer1.0.conv1"]
    types = stored_types(network, "float8" if "f8" in (product, written) else "int8", kept)
    assert (types.of_product("stem"), types.of_map(BLOCK)) == (product, written)
    return types


class Stem:
    """A stem with random weights of a trained one's size. w: [N, 3, 7, 7] for pixel - mean; b: [N]; s: the output's
    scale, 1 for FP16."""

    def __init__(self, size: int, channels: int, product: str, written: str, seed: int, means=MEANS):
        draw = Draw(seed)
        self.network = replace(stem_network(size, channels, means))
        self.types = types_of(self.network, product, written)
        self.w = draw.normal(channels, 3, 7, 7, scale=147**-0.5) * PIXEL_SCALE
        self.b = draw.normal(channels, scale=0.5)
        self.s = {"i8": 6 / 127, "f8": 6 / 448, "f16": 1.0}[written]
        if product == "i8":
            packed, self.scale, self.rest = int8_stem_weight(self.w, means)
            weights = {"w": packed, "scale": self.scale.double() / self.s, "b": (self.b + self.rest) / self.s}
        else:
            weights = {"w": stem_weight(self.w, means), "b": self.b / self.s}
            if written != "f16":
                weights["scale"] = torch.full([channels], 1 / self.s, dtype=torch.float64)
        self.weights = {f"stem.{name}": value for name, value in weights.items()}

    def bench(self, batch: int, tile: Tile) -> Bench:
        buffers, offset = {}, 0
        for name, value in self.weights.items():
            dtype = self.types.of_product("stem") if name == "stem.w" else "f32"
            buffers[name] = Buffer("weights", offset, dtype, value.numel())
            offset = aligned(offset + value.numel() * itemsize(dtype))
        builder = PlanBuilder(buffers, offset)
        pixels = Buffer("pixels", 0, "u8", batch * self.network.size**2 * 3)
        add_stem(builder, self.network, batch, pixels, lambda product: tile, True, self.types)
        return Bench(builder, blob_of(buffers, offset, self.weights), batch, self.network.size)

    def run(self, bench: Bench, pixels: np.ndarray, poison: int = POISON) -> Tensor:
        """float64 [n, P, Q, N], in units of the scale. The harness has compared it with the formula, to the bit."""
        y = bench.run(pixels, poison=poison)["stem.y"].double()
        return y.reshape(bench.plan.batch, self.network.pooled_side, self.network.pooled_side, -1)

    def exact(self, pixels: np.ndarray) -> Tensor:
        """float64, before rounding, of the rounded weights on pixel - mean, zero-padded as PyTorch pads."""
        w, b = self.w, self.b
        if self.types.of_product("stem") == "i8":
            held = self.weights["stem.w"][:, :7, :7, :3].permute(0, 3, 1, 2).double()
            w = held * self.scale.double()[:, None, None, None]
        x = torch.from_numpy(pixels).double().permute(0, 3, 1, 2)
        x = x - torch.tensor(self.network.channel_means, dtype=torch.float64)[:, None, None]
        y = F.relu(F.conv2d(x, w, b, 2, STEM_PADDING))
        return F.max_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1) / self.s


SHAPES = [
    (32, 64, 1, strip(4, 64), "i8"),
    (29, 8, 2, strip(8), "i8"),
    (29, 8, 2, strip(8), "f16"),
    (45, 40, 1, strip(3, 32), "i8"),
    # More columns than a tile has rows: programs overlap.
    pytest.param(260, 24, 1, strip(66), "i8", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("size", "channels", "batch", "tile", "written"), SHAPES)
def test_the_int8_stem_is_that_of_its_weights(size, channels, batch, tile, written):
    stem, pixels = Stem(size, channels, "i8", written, size), Draw(size).pixels(batch, size)
    bench = stem.bench(batch, tile)
    got, exact = stem.run(bench, pixels), stem.exact(pixels)
    # Inside nothing but the output is rounded. Windows of a pooled pixel that lies one from the edge reach the padding.
    step = 0.5 + 1e-3 if written == "i8" else 2.0**-11 * exact.max() + 1e-5
    exact = exact.clamp(max=127) if written == "i8" else exact
    inside = slice(2, -2)
    assert ((got - exact)[:, inside, inside].abs() <= step).all()
    # At the edge the fourth channel's rounding shows: half a unit of a weight, times 64, for each pixel of padding.
    padding = 28 + 24 if size < 260 else 52
    rounding = (stem.scale.double() * 32 * padding / stem.s).max()
    assert ((got - exact).abs() <= step + rounding).all()
    assert got.unique().numel() > 40
    if size == 29:
        assert torch.equal(stem.run(bench, pixels, OTHER_POISON), got)


@pytest.mark.parametrize("written", ["i8", "f8"])
def test_an_fp16_stem_writes_eight_bits(written):
    stem, pixels = Stem(29, 24, "f16", written, 1), Draw(1).pixels(2, 29)
    got, exact = stem.run(stem.bench(2, strip(4)), pixels), stem.exact(pixels)
    if written == "i8":
        assert ((got - exact.clamp(max=127)).abs() <= 0.5 + 0.1).all()
    else:
        assert ((got - exact.clamp(max=448)).abs() <= 2.0**-4 * exact + 0.4).all()
    assert got.unique().numel() > 40


def test_every_tile_that_the_planner_may_choose_gives_the_same_bits():
    stem, pixels = Stem(20, 24, "i8", "i8", 5), Draw(5).pixels(1, 20)
    tiles = list(candidates(Product("stem", 5 * 5, 24, 32, 8, precision="int8"), "sm_90"))
    assert len(tiles) >= 4  # of 5 rows: a strip of 1, and strips that reach beyond them
    tiles = [tiles[0], tiles[1], tiles[3]]
    maps = [stem.run(stem.bench(1, tile), pixels) for tile in tiles]
    assert all(torch.equal(m, maps[0]) for m in maps)


@pytest.mark.parametrize("size", [13, 16])
@pytest.mark.parametrize("images", [1, 3])
def test_pixels_are_packed_exactly(size, images):
    stem, pixels = Stem(size, 32, "i8", "i8", 9), Draw(size).pixels(3, size)
    pixels.reshape(-1)[:256] = np.arange(256)
    side = packed_side(size, "i8")
    assert side % 4 == 0 and side >= size + 6
    packed = stem.bench(3, strip(4)).run(pixels[:images])["pack_pixels.packed"].reshape(3, side, side, 4)
    expected = torch.zeros(3, side, side, 4, dtype=torch.float64)
    inside = expected[:images, 3 : 3 + size, 3 : 3 + size]
    inside[..., :3] = torch.from_numpy(pixels[:images]).double() - 128
    inside[..., 3] = 64
    assert torch.equal(packed.double(), expected)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 128)])
def test_one_colour_shows_an_error_in_the_padding(colour):
    """Also with means far from those of photographs, where the fourth channel has the largest weights."""
    for means in (MEANS, (0.0, 20.0, 255.0)):
        stem = Stem(29, 32, "i8", "f16", 7, means)
        pixels = np.full((1, 29, 29, 3), colour, np.uint8)
        got, exact = stem.run(stem.bench(1, strip(8)), pixels), stem.exact(pixels)
        assert (got[:, 2:-2, 2:-2] == got[:, 3:4, 3:4]).all()
        assert ((got - exact)[:, 2:-2, 2:-2].abs() <= 2.0**-11 * exact.max() + 1e-5).all()
        assert ((got - exact).abs() <= 2.0**-11 * exact.max() + stem.scale.max() * 32 * 52 + 1e-5).all()


def test_the_fourth_channel_and_the_bias_carry_the_means():
    w = Draw(10).normal(16, 3, 7, 7)
    packed, scale, rest = int8_stem_weight(w, MEANS)
    assert packed.dtype == torch.int8 and not packed[:, 7].any() and not packed[:, :, 7].any()
    offset = 128 - torch.tensor(MEANS, dtype=torch.float64)
    held = packed[:, :7, :7].double()
    wanted = held[..., :3] @ offset
    assert ((64 * held[..., 3] - wanted).abs() <= 32).all()
    # Over a whole window of real pixels what is lost is in the bias, all of it.
    carried = scale.double() * 64 * held[..., 3].sum((1, 2)) + rest
    assert torch.allclose(carried, scale.double() * wanted.sum((1, 2)), rtol=0, atol=1e-12)
    error = held[..., :3].permute(0, 3, 1, 2) * scale.double()[:, None, None, None] - w
    assert error.square().mean() <= (scale.double() ** 2).mean() / 10


def test_spare_slots_are_computed_from_nothing():
    stem, pixels = Stem(29, 32, "i8", "i8", 11), Draw(11).pixels(3, 29)
    bench = stem.bench(3, strip(8))
    full, some = stem.run(bench, pixels), stem.run(bench, pixels[:1])
    assert torch.equal(some[:1], full[:1])
    nothing = torch.relu((stem.b + stem.rest) / stem.s).round().clamp(max=127)
    assert torch.equal(some[1:], nothing.expand_as(some[1:]))
