"""What the matrix-product kernels share: the implicit-GEMM loop, split-K, and the wait of dependent launch.

Maps are NHWC, weights [N, taps * taps * C]: both operands of a product are K-major. Both are FP16 or both FP8, and
accumulators float32, or both are int8, and accumulators int32: the element types of the pointers decide.

A quantised map holds v / s, rounded (`quantise.py`), for one scale s. Scales are folded into what a launch multiplies
and adds anyway, so an epilogue computes in units of what it writes: float32, each operation rounded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from .builder import PlanBuilder
from .plan import Buffer
from .tiles import Tile

# The interpreter rounds to FP8 half up and cuts off the subnormal numbers: there the rounding is done beforehand.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def begin(PDL: tl.constexpr):
    """The first line of every kernel. With programmatic dependent launch a kernel may start before the one before it
    has ended: wait for that here, before any access to the arena, then let the next one start likewise."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def empty_sum(w_ptr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The accumulator of a product with these weights."""
    return tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if w_ptr.dtype.element_ty == tl.int8 else tl.float32)


@triton.jit
def accumulate(
    acc,  # [BLOCK_M, BLOCK_N]
    x_ptr, w_ptr,
    pixel,  # [BLOCK_M] index of the window's first pixel in the input, before the map where padding comes first
    top, left,  # [BLOCK_M] that pixel's row and column in its map
    valid,  # [BLOCK_M] rows that exist
    columns,  # [BLOCK_N] output channels
    first, last,  # range of K-steps: tap by tap, within a tap by BLOCK_K channels
    gate_ptr, reciprocal,  # per input channel, and of the scale that x * gate is quantised by; or unused
    H: tl.constexpr, W: tl.constexpr, C, N, TAPS: tl.constexpr,
    GATED: tl.constexpr, EVEN: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + window(x) @ w^T over K-steps first..last; with GATED each input channel is multiplied by its gate.

    C, N: input and output channels, constexpr or not. EVEN: C is a multiple of BLOCK_K.
    """
    STEPS = (C + BLOCK_K - 1) // BLOCK_K
    # The windows of a tile overlap: a pixel is read up to nine times, all but once from L1 if it is let in there.
    CACHE: tl.constexpr = ".ca" if TAPS > 1 else ""
    # Hopper's tensor cores keep about 14 bits of an FP8 sum: after so many channels it joins one in float32.
    IMPRECISE: tl.constexpr = BLOCK_K if w_ptr.dtype.element_ty == tl.float8e4nv else 0
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
        if GATED:
            gate = tl.load(gate_ptr + channel, mask=channel < C, other=0.0)  # [BLOCK_K]
            if w.dtype == x.dtype:
                x = (x * gate[None, :]).to(x.dtype)
            else:
                # A product of two FP16 values is exact in float32.
                x = rounded(x.to(tl.float32) * gate.to(tl.float32)[None, :] * reciprocal, w.dtype)
        if GATED and IMPRECISE > 0:
            # An operand in registers is multiplied half by half (Triton 3.9), so no step would be summed as a whole.
            acc += tl.dot(x, w, max_num_imprecise_acc=IMPRECISE)
        else:
            acc = tl.dot(x, w, acc, max_num_imprecise_acc=IMPRECISE, out_dtype=acc.dtype)
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
        acc = tl.zeros([BLOCK_M, BLOCK_N], acc.dtype)
        for i in range(SPLIT):
            acc += tl.load(parts + i * (BLOCK_M * BLOCK_N) + offsets)
        tl.store(counter_ptr + tile, 0)
    return acc, last


@triton.jit
def biased(acc, scale_ptr, b_ptr, columns, exists):
    """acc * scale + b, float32; without a scale acc + b. columns, exists: [BLOCK_N]."""
    if scale_ptr is not None:
        acc = acc.to(tl.float32) * tl.load(scale_ptr + columns, mask=exists, other=0.0)[None, :]
    return acc + tl.load(b_ptr + columns, mask=exists, other=0.0)[None, :]


@triton.jit
def rounded(v, dtype: tl.constexpr):
    """float32, in units of the scale, to int8 or FP8, to the nearest and half to even; for FP16 v as it is.

    What is too large becomes the largest there is, and so does NaN, which int8 could not hold.
    """
    if dtype == tl.int8:
        v = tl.maximum(tl.minimum(v, 127.0), -127.0)
        # 1.5 * 2**23 leaves no bits for fractions, and the whole number in the lowest byte.
        return (v + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    elif dtype == tl.float8e4nv:
        v = tl.maximum(tl.minimum(v, 448.0), -448.0)
        if _INTERPRETED:
            v = _on_float8_grid(v)
        return v.to(tl.float8e4nv)
    else:
        return v


@triton.jit
def _on_float8_grid(v):
    """v, at most 448, rounded to e4m3: three bits after the first, and no finer than 2**-9."""
    exponent = tl.maximum((v.to(tl.int32, bitcast=True) >> 23) & 0xFF, 127 - 6)
    unit = ((exponent - 3) << 23).to(tl.float32, bitcast=True)
    return ((v / unit + 12582912.0) - 12582912.0) * unit


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


def split_buffers(builder: PlanBuilder, tiles: int, tile: Tile, dtype: str = "f16") -> tuple[Any, Any, int]:
    """What `sum_parts` needs for `tiles` tiles: the parts, the counters, the parts' bytes; unsplit: None, None, 0.

    dtype: of the product's operands.
    """
    if tile.split == 1:
        return None, None, 0
    count = tiles * tile.split * tile.block_m * tile.block_n
    return builder.buffer("i32" if dtype == "i8" else "f32", count), builder.counters(tiles), 4 * count


def block_sizes(tile: Tile, pdl: bool) -> dict[str, int | bool]:
    """The constexprs that every product kernel ends with."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "SPLIT": tile.split,
        "PDL": pdl,
    }


def weight_bytes(args: Mapping[str, Any]) -> int:
    """Bytes of all weights among a launch's arguments."""
    return sum(value.nbytes for value in args.values() if isinstance(value, Buffer) and value.space == "weights")
