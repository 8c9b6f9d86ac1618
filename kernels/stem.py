"""Stem: uint8 pixels -> normalise -> 7x7 convolution, stride 2 -> + b -> ReLU -> 3x3 maximum, stride 2.

Two launches. `pack_pixels_kernel` writes each pixel as four FP16 channels on a map padded by three pixels: R, G and B
less a whole number near their mean, times 2**-6 (both exact in FP16), and 1. On padding all four are 0. The weight of
the fourth channel carries what is left of the means, so padding is what it is after normalisation: nothing. A window
is then 8 rows of 8 pixels x 4 channels, 32 neighbouring values a row; the weights of the eighth row and pixel are 0.

`stem_kernel` walks down the convolution's rows. Of each row it computes the even and the odd columns as two products;
the maximum over three columns is that of even, odd and odd shifted by one, and the shift is a product with a matrix
of zeros and ones, exact. A row that two pooled rows share is computed once per program.

In int8 the four channels are R, G and B less 128, exact again, and 64; the weights' one scale per output covers all
four. The maximum is taken of what is rounded already, which changes nothing, for rounding keeps the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .builder import PlanBuilder
from .network import STEM_PADDING, STEM_TAPS, Network
from .placement import STEM
from .plan import IMAGES, Buffer, itemsize
from .precisions import FLOAT16, StoredTypes, output_points, precision_of
from .product import begin, empty_sum, larger, relu, rounded
from .tiles import Product, Tile

# Pixels less their mean span about +-150; scaled so, their weights stay clear of FP16's subnormal range.
PIXEL_SCALE = 2.0**-6
# A window as it is stored: eight rows, taken two at a time, of eight pixels, so that each starts on 16 bytes, of four
# channels.
WINDOW_ROWS, WINDOW_ROW = 8, 32
# What int8 subtracts from every pixel, and what stands in the fourth channel of a real one.
INT8_MEAN, INT8_REAL = 128, 64
# Pooled columns per program.
COLUMNS = 64
PACK_BLOCK = 1024


def stem_reference(pixels, w, b, means):
    """Plain PyTorch. pixels: uint8 [n, S, S, 3]; w: [N, 3, 7, 7] for pixel - mean -> [n, h, w, N], of w's dtype."""
    x = pixels.permute(0, 3, 1, 2).float() - torch.tensor(means, device=pixels.device).reshape(1, 3, 1, 1)
    y = F.relu(F.conv2d((x * PIXEL_SCALE).to(w.dtype), w / PIXEL_SCALE, b, 2, STEM_PADDING))
    return F.max_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1)


def packed_side(size: int, dtype: str = "f16") -> int:
    """Side of the packed map, with room for the eighth row and pixel of the last window. A row is whole units of 16
    bytes: 2 pixels in FP16, 4 in int8."""
    unit = 4 // itemsize(dtype)
    return -(-(size + 2 * STEM_PADDING) // unit) * unit


def whole_means(channel_means: tuple[float, ...]) -> tuple[int, ...]:
    """What the kernel subtracts from R, G and B."""
    return tuple(round(mean) for mean in channel_means)


@triton.jit
def pack_pixels_kernel(
    pixels_ptr, packed_ptr, images,
    SIZE: tl.constexpr, SIDE: tl.constexpr, PADDING: tl.constexpr,  # of a square of pixels, and of packed ones
    MEAN_R: tl.constexpr, MEAN_G: tl.constexpr, MEAN_B: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    image = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK] packed pixels
    row, column = at // SIDE - PADDING, at % SIDE - PADDING
    # A slot without an image is padding all over: none of its rows is real.
    real = (row >= 0) & (row < tl.where(image < images, SIZE, 0)) & (column >= 0) & (column < SIZE)
    channel = tl.arange(0, 4)[None, :]  # [1, 4]
    source = (image.to(tl.int64) * (SIZE * SIZE) + row * SIZE + column)[:, None] * 3 + channel
    value = tl.load(pixels_ptr + source, mask=real[:, None] & (channel < 3), other=0).to(tl.float32)  # [BLOCK, 4]
    mean = tl.where(channel == 0, MEAN_R, tl.where(channel == 1, MEAN_G, MEAN_B))
    if packed_ptr.dtype.element_ty == tl.int8:
        value = tl.where(channel < 3, value - mean, 64.0)
    else:
        value = tl.where(channel < 3, (value - mean) * 0.015625, 1.0)
    value = tl.where(real[:, None], value, 0.0)
    target = (image.to(tl.int64) * (SIDE * SIDE) + at)[:, None] * 4 + channel
    mask = (at < SIDE * SIDE)[:, None] & (channel < 4)
    tl.store(packed_ptr + target, value.to(packed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _ended(acc, scale, bias, dtype: tl.constexpr):
    """ReLU of the convolution, float32: as it is for FP16, else as it will be stored."""
    if scale is not None:
        acc = acc.to(tl.float32) * scale
    y = relu(acc + bias)
    if dtype == tl.float16:
        return y
    else:
        return rounded(y, dtype).to(tl.float32)


@triton.jit
def stem_kernel(
    packed_ptr, w_ptr, scale_ptr, b_ptr, y_ptr,
    SIDE: tl.constexpr,  # packed map, square
    HC: tl.constexpr, WC: tl.constexpr,  # the convolution's map
    P: tl.constexpr, Q: tl.constexpr, N: tl.constexpr,  # pooled map
    ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program computes ROWS pooled rows of BLOCK_M pooled columns; with OVERLAP the first of them belongs to the
    program on its left and only feeds the shift."""
    begin(PDL)
    STRIPS: tl.constexpr = (P + ROWS - 1) // ROWS
    image = (tl.program_id(0) // STRIPS).to(tl.int64)
    strip = tl.program_id(0) % STRIPS
    i = tl.arange(0, BLOCK_M)
    q = tl.program_id(1) * (BLOCK_M - OVERLAP) - OVERLAP + i  # [BLOCK_M] pooled columns
    columns = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] channels
    k = tl.arange(0, 64)  # two rows of a window
    shift = (i[None, :] == i[:, None] - 1).to(tl.float16)  # [BLOCK_M, BLOCK_M]
    OUT: tl.constexpr = y_ptr.dtype.element_ty
    scale = None
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    bias = tl.load(b_ptr + columns, mask=columns < N, other=0.0)[None, :]
    # Column 2 q of the convolution; a column is two packed pixels of four channels.
    window = (q * 16)[:, None] + (k // 32 * (SIDE * 4) + k % 32)[None, :]  # [BLOCK_M, 64]
    at = packed_ptr + image * (SIDE * SIDE * 4) + window
    w_at = w_ptr + (columns * 256)[None, :] + k[:, None]  # [64, BLOCK_N]
    largest = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for j in range(2 * ROWS + 1):
        row = 2 * strip * ROWS - 1 + j
        width = tl.where((row >= 0) & (row < HC), WC, 0)  # a row outside the map has no columns
        even = (q >= 0) & (2 * q < width)
        odd = (q >= 0) & (2 * q + 1 < width)
        x_even = empty_sum(w_ptr, BLOCK_M, BLOCK_N)
        x_odd = empty_sum(w_ptr, BLOCK_M, BLOCK_N)
        # Through L1: windows overlap, and the weights are the same for every row.
        for r in range(0, 8, 2):
            line = at + (2 * row + r) * (SIDE * 4)
            w = tl.load(w_at + r * 32, mask=(columns < N)[None, :], other=0.0, cache_modifier=".ca")
            x = tl.load(line, mask=even[:, None], other=0.0, cache_modifier=".ca")
            x_even = tl.dot(x, w, x_even, out_dtype=x_even.dtype)
            x = tl.load(line + 8, mask=odd[:, None], other=0.0, cache_modifier=".ca")
            x_odd = tl.dot(x, w, x_odd, out_dtype=x_odd.dtype)
        # ReLU makes 0 the least value, so 0 also stands for what lies outside the map.
        x_even = tl.where(even[:, None], _ended(x_even, scale, bias, OUT), 0.0)
        x_odd = tl.where(odd[:, None], _ended(x_odd, scale, bias, OUT), 0.0)
        # FP16 holds every value of int8 and of FP8.
        before = tl.dot(shift, x_odd.to(tl.float16))
        across = larger(larger(x_even, x_odd), before)
        first = j % 2 == 0  # an odd row: the last of one pooled row, the first of the next
        p = strip * ROWS + j // 2 - 1
        largest = larger(largest, across)
        width = tl.where(first & (j > 0) & (p < P), Q, 0)
        mask = ((q >= 0) & (i >= OVERLAP) & (q < width))[:, None] & (columns < N)[None, :]
        y = y_ptr + ((image * P + p) * Q + q)[:, None] * N + columns[None, :]
        tl.store(y, largest.to(OUT), mask=mask)
        largest = tl.where(first, across, largest)


def add_stem(
    builder: PlanBuilder,
    network: Network,
    batch: int,
    pixels: Buffer,
    choose: Callable[..., Tile],
    pdl: bool,
    types: StoredTypes = FLOAT16,
) -> Any:
    """Appends the two launches; returns the pooled map. choose: Product -> Tile, of block_m / 64 pooled rows."""
    weights, dtype = builder.weights, types.of_product(STEM)
    packed_width = packed_side(network.size, dtype)
    means = (INT8_MEAN,) * 3 if dtype == "i8" else whole_means(network.channel_means)
    packed = builder.buffer(dtype, batch * packed_width**2 * 4)
    builder.launch(
        {"pixels_ptr": pixels, "packed_ptr": packed, IMAGES: batch},
        {
            "SIZE": network.size,
            "SIDE": packed_width,
            "PADDING": STEM_PADDING,
            "MEAN_R": means[0],
            "MEAN_G": means[1],
            "MEAN_B": means[2],
            "BLOCK": PACK_BLOCK,
            "PDL": pdl,
        },
        name="pack_pixels",
        kernel="pack_pixels_kernel",
        grid=(-(-(packed_width**2) // PACK_BLOCK), batch, 1),
        warps=8,
        stages=1,
        flops=0,
        reads=pixels.nbytes,
        writes=packed.nbytes,
        loads=pixels.nbytes,
    )
    side, pooled = network.stem_side, network.pooled_side
    product = Product(
        "stem", batch * pooled * pooled, network.stem, WINDOW_ROW, WINDOW_ROWS, precision=precision_of(dtype)
    )
    tile = choose(product)
    rows, block_n = tile.block_m // COLUMNS, tile.block_n
    overlap = int(pooled > COLUMNS)
    grid = (batch * -(-pooled // rows), -(-pooled // (COLUMNS - overlap)), -(-network.stem // block_n))
    y = builder.buffer(types.of_map(output_points(network)[STEM]), batch * pooled * pooled * network.stem)
    w, scale, b = weights["stem.w"], weights.get("stem.scale"), weights["stem.b"]
    builder.launch(
        {"packed_ptr": packed, "w_ptr": w, "scale_ptr": scale, "b_ptr": b, "y_ptr": y},
        {
            "SIDE": packed_width,
            "HC": side,
            "WC": side,
            "P": pooled,
            "Q": pooled,
            "N": network.stem,
            "ROWS": rows,
            "BLOCK_M": COLUMNS,
            "BLOCK_N": block_n,
            "OVERLAP": overlap,
            "PDL": pdl,
        },
        name="stem",
        kernel="stem_kernel",
        grid=grid,
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * batch * side * side * network.stem * STEM_TAPS**2 * 3,
        reads=packed.nbytes + w.nbytes + (scale.nbytes if scale else 0) + b.nbytes,
        writes=y.nbytes,
        loads=grid[0] * grid[1] * grid[2] * (2 * rows + 1) * WINDOW_ROWS
        * itemsize(dtype) * WINDOW_ROW * (2 * COLUMNS + block_n),
    )  # fmt: skip
    return y
