"""What the matrix-product kernels share: the implicit-GEMM loop, split-K, and the wait of dependent launch.

Maps are NHWC, weights [N, taps * taps * C]: both operands of a product are K-major. Accumulators are float32.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .builder import PlanBuilder
from .tiles import Tile


@triton.jit
def begin(PDL: tl.constexpr):
    """The first line of every kernel. With programmatic dependent launch a kernel may start before the one before it
    has ended: wait for that here, before any access to the arena, then let the next one start likewise."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def accumulate(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr, w_ptr,
    pixel,  # [BLOCK_M] index of the window's first pixel in the input, before the map where padding comes first
    top, left,  # [BLOCK_M] that pixel's row and column in its map
    valid,  # [BLOCK_M] rows that exist
    columns,  # [BLOCK_N] output channels
    first, last,  # range of K-steps: tap by tap, within a tap by BLOCK_K channels
    scale_ptr,  # per input channel, or unused
    H: tl.constexpr, W: tl.constexpr, C, N, TAPS: tl.constexpr,
    SCALED: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + window(x) @ w^T over K-steps first..last; with SCALED each input channel is multiplied by its scale.

    C, N: input and output channels, constexpr or not. EVEN: C is a multiple of BLOCK_K.
    """
    STEPS = (C + BLOCK_K - 1) // BLOCK_K
    # The windows of a tile overlap: a pixel is read up to nine times, all but once from L1 if it is let in there.
    CACHE: tl.constexpr = ".ca" if TAPS > 1 else ""
    x_rows = x_ptr + pixel.to(tl.int64)[:, None] * C  # [BLOCK_M, 1]
    w_rows = w_ptr + columns.to(tl.int64)[None, :] * (TAPS * TAPS * C)  # [1, BLOCK_N]
    for step in range(first, last):
        tap = step // STEPS
        channel = (step - tap * STEPS) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        down, right = tap // TAPS, tap % TAPS
        inside = valid
        if TAPS > 1:
            row, column = top + down, left + right
            inside = inside & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        x_mask = inside[:, None]
        w_mask = (columns < N)[None, :]
        if not EVEN:
            x_mask = x_mask & (channel < C)[None, :]
            w_mask = w_mask & (channel < C)[:, None]
        x = tl.load(x_rows + ((down * W + right) * C + channel)[None, :], mask=x_mask, other=0.0, cache_modifier=CACHE)
        w = tl.load(w_rows + (tap * C + channel)[:, None], mask=w_mask, other=0.0)
        if SCALED:
            scale = tl.load(scale_ptr + channel, mask=channel < C, other=0.0)  # [BLOCK_K]
            x = (x * scale[None, :]).to(x.dtype)
        acc = tl.dot(x, w, acc)
    return acc


@triton.jit
def split_range(steps, part, SPLIT: tl.constexpr):
    """K-steps of one of SPLIT programs that share a tile."""
    return part * steps // SPLIT, (part + 1) * steps // SPLIT


@triton.jit
def sum_parts(
    acc,  # [BLOCK_M, BLOCK_N]
    tile, part, partial_ptr, counter_ptr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(sum over the SPLIT programs of a tile, whether this program has it): the program that arrives last does.

    It adds the parts in their own order, not in that of arrival, so that equal inputs give equal bits, and leaves
    the counter at zero for the next launch.
    """
    offsets = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    parts = partial_ptr + tile.to(tl.int64) * (SPLIT * BLOCK_M * BLOCK_N)
    tl.store(parts + part * (BLOCK_M * BLOCK_N) + offsets, acc)
    # Every thread's stores before the one thread's release.
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") == SPLIT - 1
    if last:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i in range(SPLIT):
            acc += tl.load(parts + i * (BLOCK_M * BLOCK_N) + offsets)
        tl.store(counter_ptr + tile, 0)
    return acc, last


@triton.jit
def larger(x, y):
    """max(x, y), but NaN stays NaN: what overflowed must not come out as a plausible answer."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    return larger(x, 0.0)


@triton.jit
def gelu(x):
    """The exact form: x times the normal distribution's integral to x."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


def split_buffers(builder: PlanBuilder, tiles: int, tile: Tile) -> tuple[Any, Any, int]:
    """What `sum_parts` needs for `tiles` tiles: the parts, the counters, the parts' bytes; unsplit: None, None, 0."""
    if tile.split == 1:
        return None, None, 0
    count = tiles * tile.split * tile.block_m * tile.block_n
    return builder.buffer("f32", count), builder.counters(tiles), 4 * count


def block_sizes(tile: Tile, pdl: bool) -> dict[str, int | bool]:
    """The constexprs that every product kernel ends with."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SPLIT": tile.split,
        "PDL": pdl,
    }
