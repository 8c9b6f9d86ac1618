"""TAFE, multi-branch attention, in three launches. f: the backbone's last map, one image a tile.

    y, x  = W_s f + b_s                                        split_kernel, with everything below that one image and
    s     = a * max(x) + b * var(x)    or x[0, 0] for max      one tile of channels suffice for: the statistics of x,
    d     = dwconv3x3(y), two channels for each of y           and the depthwise detail of y
    g     = gelu(W_g s + b_g)          h = gelu(W_d d + b_d)   detail_and_gate_kernel, two products side by side
    z     = W_m [x * g ; h] + b_m                              merge_kernel, the gate applied as x is loaded

The depthwise convolution needs the neighbours of a pixel, that is, other rows of the tile: each of its nine shifts is
a product with a matrix of zeros and ones, exact, on the tensor cores, and y is never stored.

Where products are quantised, so are f, d, s, h and, as it is loaded, the operand x g; x, g and z stay FP16. The scales
of d and s are in the weights that make them, that of the merge's operands is the one value behind `reciprocal_ptr`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .builder import PlanBuilder
from .network import Network
from .plan import itemsize
from .precisions import FLOAT16, StoredTypes, precision_of
from .product import (
    accumulate,
    begin,
    biased,
    block_sizes,
    empty_sum,
    gelu,
    rounded,
    split_buffers,
    split_range,
    sum_parts,
    weight_bytes,
)
from .tiles import Product, power_of_two

DW_TAPS = 9


def split_reference(f, w, b, dw_w, dw_b, of_pool, of_variance, pool: str):
    """Plain PyTorch. f: [n, H, W, C]; dw_w: [2 C, 1, 3, 3] -> x [n, H, W, C], d [n, H, W, 2 C], s [n, C]."""
    y, x = F.conv2d(f.permute(0, 3, 1, 2), w[:, :, None, None], b).chunk(2, 1)
    d = F.conv2d(y, dw_w, dw_b, padding=1, groups=y.shape[1])
    wide = x.float()
    pooled = wide.amax((2, 3)) if pool == "max" else wide[:, :, 0, 0]
    s = of_pool * pooled + of_variance * wide.var((2, 3), correction=0)
    return x.permute(0, 2, 3, 1), d.permute(0, 2, 3, 1), s.to(f.dtype)


def detail_and_gate_reference(d, w_d, b_d, s, w_g, b_g):
    """Plain PyTorch. d: [n, H, W, 2 C]; s: [n, C] -> h [n, H, W, 2 C], g [n, C]."""
    return F.gelu(F.linear(d, w_d, b_d)), F.gelu(F.linear(s, w_g, b_g))


def merge_reference(x, g, h, w, b):
    """Plain PyTorch. x: [n, H, W, C]; g: [n, C]; h: [n, H, W, 2 C]; w: [C, 3 C] -> z [n, H, W, C]."""
    return F.linear(torch.cat([x * g[:, None, None, :], h], -1), w, b)


@triton.jit
def split_kernel(
    f_ptr, w_ptr, scale_ptr, b_ptr, dw_w_ptr, dw_b_ptr, of_pool_ptr, of_variance_ptr,
    x_ptr, d_ptr, s_ptr, partial_ptr, counter_ptr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, NEAREST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    TILES: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N  # of one half: no tile straddles y and x
    tile = tl.program_id(0)
    part = tl.program_id(1)
    image = tile // (2 * TILES)
    of_x = tile // TILES % 2
    channel = (tile % TILES) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] within the half
    rows = tl.arange(0, BLOCK_M)
    valid = rows < H * W
    exists = (channel < C)[None, :]
    # A channel beyond the half would read the other half's weights: send it beyond both, where the load is masked.
    columns = tl.where(channel < C, of_x * C + channel, 2 * C)
    first, last = split_range((C + BLOCK_K - 1) // BLOCK_K, part, SPLIT)
    acc = empty_sum(w_ptr, BLOCK_M, BLOCK_N)
    acc = accumulate(
        acc, f_ptr, w_ptr, image * (H * W) + rows, rows, rows, valid, columns, first, last, None, None,
        H, W, C, 2 * C, 1, False, C % BLOCK_K == 0, BLOCK_K,
    )  # fmt: skip
    if SPLIT > 1:
        acc, mine = sum_parts(acc, tile, part, partial_ptr, counter_ptr, SPLIT, BLOCK_M, BLOCK_N)
    else:
        mine = True
    if mine:
        # Rounded as it is stored: the statistics are those of the stored map.
        map = biased(acc, scale_ptr, b_ptr, columns, channel < C).to(tl.float16)
        mask = valid[:, None] & exists
        pixel = image.to(tl.int64) * (H * W) + rows  # [BLOCK_M]
        if of_x == 1:
            tl.store(x_ptr + pixel[:, None] * C + channel[None, :], map, mask=mask)
            x = map.to(tl.float32)
            inside = valid[:, None]
            if NEAREST:
                pooled = tl.sum(tl.where((rows == 0)[:, None], x, 0.0), 0)
            else:
                pooled = tl.max(tl.where(inside, x, float("-inf")), 0)
            mean = tl.sum(tl.where(inside, x, 0.0), 0) / (H * W)
            off = tl.where(inside, x - mean[None, :], 0.0)
            variance = tl.sum(off * off, 0) / (H * W)
            statistic = tl.load(of_pool_ptr + channel, mask=channel < C, other=0.0) * pooled
            statistic += tl.load(of_variance_ptr + channel, mask=channel < C, other=0.0) * variance
            tl.store(s_ptr + image * C + channel, rounded(statistic, s_ptr.dtype.element_ty), mask=channel < C)
        else:
            even = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            odd = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            y = tl.where(valid[:, None], map, 0.0).to(tl.float16)
            down, right = rows // W, rows % W
            for tap in range(9):
                r, c = tap // 3 - 1, tap % 3 - 1
                lands = (down + r >= 0) & (down + r < H) & (right + c >= 0) & (right + c < W)
                shift = (rows[None, :] == (rows + r * W + c)[:, None]) & lands[:, None]  # [BLOCK_M, BLOCK_M]
                shifted = tl.dot(shift.to(tl.float16), y)
                even += shifted * tl.load(dw_w_ptr + tap * C + channel, mask=channel < C, other=0.0)[None, :]
                odd += shifted * tl.load(dw_w_ptr + (9 + tap) * C + channel, mask=channel < C, other=0.0)[None, :]
            even += tl.load(dw_b_ptr + channel, mask=channel < C, other=0.0)[None, :]
            odd += tl.load(dw_b_ptr + C + channel, mask=channel < C, other=0.0)[None, :]
            d = d_ptr + pixel[:, None] * (2 * C) + channel[None, :]
            tl.store(d, rounded(even, d_ptr.dtype.element_ty), mask=mask)
            tl.store(d + C, rounded(odd, d_ptr.dtype.element_ty), mask=mask)


@triton.jit
def detail_and_gate_kernel(
    d_ptr, w_d_ptr, scale_d_ptr, b_d_ptr, reciprocal_ptr, h_ptr, s_ptr, w_g_ptr, scale_g_ptr, b_g_ptr, g_ptr,
    partial_ptr, counter_ptr,
    batch,
    HW: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = gelu(x @ w^T + b), the first programs of the gate's operands, the others of the detail's: neither waits for
    the other. One product with its operands selected, not two branches, which would have shared memory each."""
    begin(PDL)
    GATE_TILES_N: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    DETAIL_TILES_N: tl.constexpr = (2 * C + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    part = tl.program_id(1)
    gate_tiles = tl.cdiv(batch, BLOCK_M) * GATE_TILES_N
    gate = tile < gate_tiles
    of = tl.where(gate, tile, tile - gate_tiles)  # tile of its own product
    tiles_n = tl.where(gate, GATE_TILES_N, DETAIL_TILES_N)
    size = tl.where(gate, C, 2 * C)  # of both channel dimensions
    x_ptr = tl.where(gate, s_ptr, d_ptr)
    w_ptr = tl.where(gate, w_g_ptr, w_d_ptr)
    b_ptr = tl.where(gate, b_g_ptr, b_d_ptr)
    if reciprocal_ptr is None:
        y_ptr = tl.where(gate, g_ptr, h_ptr)
    scale_ptr = None
    if scale_d_ptr is not None:
        scale_ptr = tl.where(gate, scale_g_ptr, scale_d_ptr)

    m = (of // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    columns = (of % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    valid = m < tl.where(gate, batch, batch * HW)
    first, last = split_range(tl.cdiv(size, BLOCK_K), part, SPLIT)
    acc = empty_sum(w_ptr, BLOCK_M, BLOCK_N)
    acc = accumulate(
        acc, x_ptr, w_ptr, m, m, m, valid, columns, first, last, None, None,
        1, 1, size, size, 1, False, C % BLOCK_K == 0, BLOCK_K,
    )  # fmt: skip
    if SPLIT > 1:
        acc, mine = sum_parts(acc, tile, part, partial_ptr, counter_ptr, SPLIT, BLOCK_M, BLOCK_N)
    else:
        mine = True
    if mine:
        y = biased(acc, scale_ptr, b_ptr, columns, columns < size)
        mask = valid[:, None] & (columns < size)[None, :]
        if reciprocal_ptr is None:
            tl.store(y_ptr + m.to(tl.int64)[:, None] * size + columns[None, :], gelu(y).to(tl.float16), mask=mask)
        else:
            y = gelu(y)
            offsets = m.to(tl.int64)[:, None] * size + columns[None, :]
            of_g = valid[:, None] & (columns < tl.where(gate, C, 0))[None, :]
            of_h = valid[:, None] & (columns < tl.where(gate, 0, 2 * C))[None, :]
            tl.store(g_ptr + offsets, y.to(tl.float16), mask=of_g)
            h = rounded(y * tl.load(reciprocal_ptr), h_ptr.dtype.element_ty)
            tl.store(h_ptr + offsets, h, mask=of_h)


@triton.jit
def merge_kernel(
    x_ptr, g_ptr, reciprocal_ptr, w_x_ptr, h_ptr, w_h_ptr, scale_ptr, b_ptr, z_ptr, partial_ptr, counter_ptr,
    HW: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    TILES: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    STEPS_H: tl.constexpr = (2 * C + BLOCK_K - 1) // BLOCK_K
    tile = tl.program_id(0)
    part = tl.program_id(1)
    image = tile // TILES
    columns = (tile % TILES) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    rows = tl.arange(0, BLOCK_M)
    valid = rows < HW
    pixel = image * HW + rows
    first, last = split_range(STEPS + STEPS_H, part, SPLIT)
    reciprocal = None
    if reciprocal_ptr is not None:
        reciprocal = tl.load(reciprocal_ptr)
    acc = empty_sum(w_x_ptr, BLOCK_M, BLOCK_N)
    acc = accumulate(
        acc, x_ptr, w_x_ptr, pixel, rows, rows, valid, columns, first, tl.minimum(last, STEPS),
        g_ptr + image * C, reciprocal, 1, 1, C, C, 1, True, C % BLOCK_K == 0, BLOCK_K,
    )  # fmt: skip
    acc = accumulate(
        acc, h_ptr, w_h_ptr, pixel, rows, rows, valid, columns, tl.maximum(first - STEPS, 0), last - STEPS,
        None, None, 1, 1, 2 * C, C, 1, False, 2 * C % BLOCK_K == 0, BLOCK_K,
    )  # fmt: skip
    if SPLIT > 1:
        acc, mine = sum_parts(acc, tile, part, partial_ptr, counter_ptr, SPLIT, BLOCK_M, BLOCK_N)
    else:
        mine = True
    if mine:
        z = biased(acc, scale_ptr, b_ptr, columns, columns < C)
        mask = valid[:, None] & (columns < C)[None, :]
        tl.store(z_ptr + pixel.to(tl.int64)[:, None] * C + columns[None, :], z.to(tl.float16), mask=mask)


def tile_rows(pixels: int) -> int:
    """Rows of a tile that holds one image's map of `pixels`: what one wgmma takes, or more."""
    return max(64, power_of_two(pixels))


def add_tafe(
    builder: PlanBuilder, network: Network, batch: int, f: Any, choose: Any, pdl: bool, types: StoredTypes = FLOAT16
) -> Any:
    """Appends the three launches on the map `f`; returns z, a map of f's shape. choose: (Product, rows) -> Tile."""
    weights, side, c = builder.weights, network.side, network.channels
    pixels = side * side
    rows = tile_rows(pixels)

    dtype = types.of_product("tafe.split")
    tile = choose(Product("split", batch * rows, 2 * c, c, 1, precision=precision_of(dtype)), rows)
    columns = 2 * -(-c // tile.block_n)
    x = builder.buffer("f16", batch * pixels * c)
    d = builder.buffer(types.of_map("tafe.detail"), 2 * batch * pixels * c)
    s = builder.buffer(types.of_map("tafe.gate"), batch * c)
    partial, counters, partial_bytes = split_buffers(builder, batch * columns, tile, dtype)
    args = {
        "f_ptr": f,
        "w_ptr": weights["tafe.split.w"],
        "scale_ptr": weights.get("tafe.split.scale"),
        "b_ptr": weights["tafe.split.b"],
        "dw_w_ptr": weights["tafe.dw.w"],
        "dw_b_ptr": weights["tafe.dw.b"],
        "of_pool_ptr": weights["tafe.of_pool"],
        "of_variance_ptr": weights["tafe.of_variance"],
        "x_ptr": x,
        "d_ptr": d,
        "s_ptr": s,
        "partial_ptr": partial,
        "counter_ptr": counters,
    }
    builder.launch(
        args,
        {"H": side, "W": side, "C": c, "NEAREST": network.pool == "nearest", **block_sizes(tile, pdl)},
        name="tafe.split",
        kernel="split_kernel",
        grid=(batch * columns, tile.split, 1),
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * batch * pixels * c * (2 * c + 2 * DW_TAPS),
        reads=f.nbytes + weight_bytes(args) + partial_bytes,
        writes=x.nbytes + d.nbytes + s.nbytes + partial_bytes,
        loads=itemsize(dtype) * c * batch * columns * (rows + tile.block_n) + partial_bytes,
    )

    dtype = types.of_product("tafe.detail")
    tile = choose(Product("detail", batch * pixels, 2 * c, 2 * c, 1, precision=precision_of(dtype)), None)
    gate_tiles = -(-batch // tile.block_m) * -(-c // tile.block_n)
    detail_rows, detail_columns = -(-batch * pixels // tile.block_m), -(-2 * c // tile.block_n)
    h = builder.buffer(types.of_map("tafe.merge"), 2 * batch * pixels * c)
    g = builder.buffer("f16", batch * c)
    tiles = gate_tiles + detail_rows * detail_columns
    partial, counters, partial_bytes = split_buffers(builder, tiles, tile, dtype)
    area = tile.block_m + tile.block_n
    args = {
        "d_ptr": d,
        "w_d_ptr": weights["tafe.detail.w"],
        "scale_d_ptr": weights.get("tafe.detail.scale"),
        "b_d_ptr": weights["tafe.detail.b"],
        "reciprocal_ptr": weights.get("tafe.merge.reciprocal"),
        "h_ptr": h,
        "s_ptr": s,
        "w_g_ptr": weights["tafe.gate.w"],
        "scale_g_ptr": weights.get("tafe.gate.scale"),
        "b_g_ptr": weights["tafe.gate.b"],
        "g_ptr": g,
        "partial_ptr": partial,
        "counter_ptr": counters,
        "batch": batch,
    }
    builder.launch(
        args,
        {"HW": pixels, "C": c, **block_sizes(tile, pdl)},
        name="tafe.detail_and_gate",
        kernel="detail_and_gate_kernel",
        grid=(tiles, tile.split, 1),
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * batch * (pixels * 4 * c * c + c * c),
        reads=d.nbytes + s.nbytes + weight_bytes(args) + partial_bytes,
        writes=h.nbytes + g.nbytes + partial_bytes,
        loads=itemsize(dtype) * area * c * (gate_tiles + 2 * detail_rows * detail_columns) + partial_bytes,
    )

    dtype = types.of_product("tafe.merge")
    tile = choose(Product("merge", batch * rows, c, c, 1, 2 * c, precision=precision_of(dtype)), rows)
    columns = -(-c // tile.block_n)
    z = builder.buffer("f16", batch * pixels * c)
    partial, counters, partial_bytes = split_buffers(builder, batch * columns, tile, dtype)
    args = {
        "x_ptr": x,
        "g_ptr": g,
        "reciprocal_ptr": weights.get("tafe.merge.reciprocal"),
        "w_x_ptr": weights["tafe.merge.x.w"],
        "h_ptr": h,
        "w_h_ptr": weights["tafe.merge.h.w"],
        "scale_ptr": weights.get("tafe.merge.scale"),
        "b_ptr": weights["tafe.merge.b"],
        "z_ptr": z,
        "partial_ptr": partial,
        "counter_ptr": counters,
    }
    row_bytes = itemsize(x.dtype) * c + itemsize(h.dtype) * 2 * c
    builder.launch(
        args,
        {"HW": pixels, "C": c, **block_sizes(tile, pdl)},
        name="tafe.merge",
        kernel="merge_kernel",
        grid=(batch * columns, tile.split, 1),
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * batch * pixels * c * 3 * c,
        reads=x.nbytes + h.nbytes + g.nbytes + weight_bytes(args) + partial_bytes,
        writes=z.nbytes + partial_bytes,
        loads=batch * columns * (rows * row_bytes + tile.block_n * 3 * c * itemsize(dtype)) + partial_bytes,
    )
    return z
