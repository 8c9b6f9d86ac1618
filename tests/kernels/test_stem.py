"""The stem: pixels packed exactly, padding that is nothing, and every border of the map by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.network import Network
from tkfnet_engine.kernels.plan import Buffer
from tkfnet_engine.kernels.stem import PIXEL_SCALE, add_stem, packed_side, stem_reference, whole_means
from tkfnet_engine.kernels.tiles import Product, Tile, candidates
from tkfnet_engine.kernels.weights import stem_weight

from .harness import Bench, Draw, assert_as_good_as_pytorch, blob_of, in_float64, in_half, small_network

MEANS = (123.675, 116.28, 103.53)


def strip(rows: int, channels: int = 32) -> Tile:
    """A tile of `rows` pooled rows; the planner knows it as so many times 64 pixels."""
    return Tile(rows * 64, channels, 32, split=1, warps=4, stages=3)


EIGHT_ROWS = strip(8)


def stem_network(size: int, channels: int, means: tuple[float, ...] = MEANS) -> Network:
    return replace(small_network(), size=size, stem=channels, channel_means=means)


def bench_of(network: Network, w: Tensor, b: Tensor, batch: int, tile: Tile = EIGHT_ROWS) -> Bench:
    """w: [N, 3, 7, 7] for pixel - mean; b: [N]."""
    values = {"stem.w": stem_weight(w, network.channel_means), "stem.b": b}
    w_bytes = 2 * values["stem.w"].numel()
    assert w_bytes % 256 == 0
    buffers = {
        "stem.w": Buffer("weights", 0, "f16", w_bytes // 2),
        "stem.b": Buffer("weights", w_bytes, "f32", len(b)),
    }
    builder = PlanBuilder(buffers, w_bytes + 4 * len(b))
    pixels = Buffer("pixels", 0, "u8", batch * network.size**2 * 3)
    add_stem(builder, network, batch, pixels, lambda product: tile, True)
    return Bench(builder, blob_of(buffers, w_bytes + 4 * len(b), values), batch, network.size)


def pooled_of(bench: Bench, network: Network, pixels: np.ndarray) -> Tensor:
    """float16 [plan's batch, P, Q, N]."""
    y = bench.run(pixels)["stem.y"]
    return y.reshape(bench.plan.batch, network.pooled_side, network.pooled_side, network.stem)


def weights_of(channels: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """As a trained stem's: pixels of +-150 become values of about one. FP16 holds w / PIXEL_SCALE."""
    return draw.normal(channels, 3, 7, 7, scale=147**-0.5) * PIXEL_SCALE, draw.normal(channels, scale=0.5)


def check(got: Tensor, network: Network, pixels: np.ndarray, w: Tensor, b: Tensor) -> None:
    """The whole map, what lies inside, and each border row and column."""
    arguments = torch.from_numpy(pixels), w, b, network.channel_means
    exact = in_float64(stem_reference, *arguments)
    half = in_half(stem_reference, *arguments)
    whole = slice(None)
    parts = {"map": (whole, whole), "inside": (slice(1, -1), slice(1, -1))}
    parts |= {"top": (0, whole), "bottom": (-1, whole), "left": (whole, 0), "right": (whole, -1)}
    for name, (rows, columns) in parts.items():
        assert_as_good_as_pytorch(*(y[:, rows, columns] for y in (got, exact, half)), name)


@pytest.mark.parametrize(
    ("size", "channels", "batch", "tile"),
    [
        (32, 64, 1, strip(4, 64)),
        (33, 64, 1, strip(1, 32)),
        (46, 40, 3, strip(7, 64)),
        (29, 8, 5, strip(8)),
        (45, 40, 1, strip(2, 32)),
        (97, 24, 1, strip(8)),
        (61, 72, 1, strip(14, 64)),
        (256, 8, 1, strip(64)),
        (260, 40, 1, strip(33, 64)),
    ],
    ids=lambda value: f"strip{value.block_m // 64}x{value.block_n}" if isinstance(value, Tile) else None,
)
def test_the_stem_agrees_with_pytorch(size, channels, batch, tile):
    network, draw = stem_network(size, channels), Draw(size)
    pixels = draw.pixels(batch, size)
    w, b = weights_of(channels, draw)
    bench = bench_of(network, w, b, batch, tile)
    overlap = dict(bench.plan.launches[1].constexprs)["OVERLAP"]
    assert overlap == (size > 256)  # the pooled map has more columns than a tile has rows
    check(pooled_of(bench, network, pixels), network, pixels, w, b)


def test_every_tile_that_the_planner_may_choose_gives_the_same_bits():
    """Also where the last strip reaches beyond the map."""
    network, draw = stem_network(36, 24), Draw(5)
    pixels = draw.pixels(1, 36)
    w, b = weights_of(24, draw)
    tiles = list(candidates(Product("stem", 9 * 9, 24, 32, 8), "sm_90"))
    assert len(tiles) >= 4 and network.pooled_side == 9
    maps = [pooled_of(bench_of(network, w, b, 1, tile), network, pixels) for tile in tiles]
    assert all(torch.equal(m, maps[0]) for m in maps)


@pytest.mark.parametrize("fill", ["black", "white", "mean", "noise"])
@pytest.mark.parametrize("size", [29, 32])
def test_whole_numbers_are_exact(size, fill):
    """Whole means and weights that are whole in units of 2**-6: nothing is rounded but the output."""
    network, draw = stem_network(size, 32, means=(124.0, 116.0, 104.0)), Draw(size)
    w, b = draw.whole(32, 3, 7, 7, largest=3) * PIXEL_SCALE, draw.whole(32, largest=40)
    pixels = draw.pixels(1, size)
    if fill != "noise":
        pixels[:] = {"black": 0, "white": 255, "mean": (124, 116, 104)}[fill]
    got = pooled_of(bench_of(network, w, b, 1), network, pixels)
    exact = in_float64(stem_reference, torch.from_numpy(pixels), w, b, network.channel_means)
    assert torch.equal(got, exact.half())
    if fill == "mean":
        assert torch.equal(got, torch.relu(b).half().expand_as(got))  # padding differs in nothing from the mean


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (124, 116, 104), (255, 0, 128)])
def test_one_colour_shows_an_error_in_the_padding(colour):
    """With means that are no whole numbers. Inside all pixels are alike; what differs is what padding does."""
    network, draw = stem_network(41, 32), Draw(7)
    pixels = np.full((1, 41, 41, 3), colour, np.uint8)
    w, b = weights_of(32, draw)
    got = pooled_of(bench_of(network, w, b, 1), network, pixels)
    check(got, network, pixels, w, b)
    assert (got[:, 2:-2, 2:-2] == got[:, 5:6, 5:6]).all()


def test_the_padding_of_the_maximum_is_not_a_pixel():
    """Where every sum is negative, ReLU and the maximum's padding both give zero; where none is, neither does."""
    network = stem_network(32, 32)
    w = torch.zeros(32, 3, 7, 7, dtype=torch.float64)
    b = torch.linspace(-1, 1, 32, dtype=torch.float64).half().double()
    got = pooled_of(bench_of(network, w, b, 1), network, Draw(8).pixels(1, 32))
    assert torch.equal(got, torch.relu(b).half().expand_as(got))


@pytest.mark.parametrize("size", [13, 16])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_pixels_are_packed_exactly(size, images):
    network, pixels = stem_network(size, 32), Draw(size).pixels(3, size)
    pixels.reshape(-1)[:256] = np.arange(256)
    bench = bench_of(network, *weights_of(32, Draw(9)), 3, strip(4))
    side = packed_side(size)
    packed = bench.run(pixels[:images])["pack_pixels.packed"].reshape(3, side, side, 4)
    expected = torch.zeros(3, side, side, 4, dtype=torch.float64)
    inside = expected[:images, 3 : 3 + size, 3 : 3 + size]
    inside[..., :3] = (torch.from_numpy(pixels[:images]).double() - torch.tensor([124.0, 116.0, 104.0])) / 64
    inside[..., 3] = 1
    assert torch.equal(packed.double(), expected)


def test_the_fourth_channel_carries_the_rest_of_the_mean():
    assert whole_means(MEANS) == (124, 116, 104)
    w = Draw(10).normal(16, 3, 7, 7)
    packed = stem_weight(w, MEANS).double()
    assert (packed[:, 7] == 0).all() and (packed[:, :, 7] == 0).all()
    packed = packed[:, :7]
    assert torch.equal(packed[:, :, :7, :3].permute(0, 3, 1, 2), (w * 64).float().double())
    # w . (pixel - mean) for any pixel, from what is stored.
    pixel = torch.tensor([17.0, 201.0, 96.0], dtype=torch.float64)
    stored = torch.cat([(pixel - torch.tensor([124.0, 116.0, 104.0])) / 64, torch.ones(1, dtype=torch.float64)])
    expected = torch.einsum("nchw,c->nhw", w, pixel - torch.tensor(MEANS, dtype=torch.float64))
    assert torch.allclose(packed[:, :7, :7] @ stored, expected, rtol=0, atol=1e-4)


def test_spare_slots_are_computed_from_nothing():
    """Whatever lies in the caller's memory behind the images, their slots are as if all of them were padding."""
    network, draw = stem_network(29, 32), Draw(11)
    pixels = draw.pixels(3, 29)
    w, b = weights_of(32, draw)
    bench = bench_of(network, w, b, 3)
    full = pooled_of(bench, network, pixels)
    for images in (1, 2):
        some = pooled_of(bench, network, pixels[:images])
        assert torch.equal(some[:images], full[:images])
        assert torch.equal(some[images:], torch.relu(b).half().expand_as(some[images:]))
