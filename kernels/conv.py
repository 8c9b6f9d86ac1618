"""Residual blocks: 3x3 and 1x1 convolutions as implicit GEMM, the shortcut and ReLU in their epilogue.

    y = relu( conv(x) + b + shortcut )        shortcut: nothing, a map of y's shape, or a 1x1 convolution of another map

The 1x1 shortcut is part of the same sum: it goes on with the same accumulator, and its bias is in b. Where products are
quantised it is a map of its own, rounded as if it had been stored, and only the program that ends a tile computes it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .builder import PlanBuilder
from .network import Conv, Network
from .plan import itemsize
from .precisions import FLOAT16, StoredTypes, output_points, precision_of
from .product import (
    accumulate,
    begin,
    biased,
    block_sizes,
    empty_sum,
    relu,
    rounded,
    split_buffers,
    split_range,
    sum_parts,
    weight_bytes,
)
from .tiles import Product, Tile

NO_SHORTCUT, IDENTITY, PROJECT, PROJECT_ROUNDED = 0, 1, 2, 3


def conv_reference(x, w, b, stride: int, shortcut=None, project=None, project_stride: int = 1):
    """Plain PyTorch, NHWC. x: [n, H, W, C]; w: [N, C, taps, taps]; b: [N]; shortcut: [n, h, w, c] or None;
    project: [N, c, 1, 1] or None, of the shortcut. In the dtype of `x`."""
    y = F.conv2d(x.permute(0, 3, 1, 2), w, b, stride, padding=w.shape[-1] // 2)
    if shortcut is not None:
        shortcut = shortcut.permute(0, 3, 1, 2)
        if project is not None:
            shortcut = F.conv2d(shortcut, project, stride=project_stride)
        y = y + shortcut
    return torch.relu(y).permute(0, 2, 3, 1)


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, scale_ptr, b_ptr, shortcut_ptr, shortcut_scale_ptr, project_ptr, project_scale_ptr, project_b_ptr,
    y_ptr, partial_ptr, counter_ptr,
    batch,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,  # input map
    P: tl.constexpr, Q: tl.constexpr, N: tl.constexpr,  # output map
    TAPS: tl.constexpr, STRIDE: tl.constexpr,
    SHORTCUT: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, SC: tl.constexpr, S_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    begin(PDL)
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    part = tl.program_id(1)
    # Neighbouring programs share their rows of x, which are most of what a tile reads.
    m = (tile // TILES_N) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M] output pixels
    columns = (tile % TILES_N) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N] output channels
    valid = m < batch * (P * Q)
    image = m // (P * Q)
    p = m // Q % P
    q = m % Q

    STEPS: tl.constexpr = TAPS * TAPS * ((C + BLOCK_K - 1) // BLOCK_K)
    PROJECT_STEPS: tl.constexpr = (SC + BLOCK_K - 1) // BLOCK_K if SHORTCUT == 2 else 0
    first, last = split_range(STEPS + PROJECT_STEPS, part, SPLIT)
    top = p * STRIDE - TAPS // 2
    left = q * STRIDE - TAPS // 2
    acc = empty_sum(w_ptr, BLOCK_M, BLOCK_N)
    acc = accumulate(
        acc, x_ptr, w_ptr, (image * H + top) * W + left, top, left, valid, columns, first, tl.minimum(last, STEPS),
        None, None, H, W, C, N, TAPS, False, C % BLOCK_K == 0, BLOCK_K,
    )  # fmt: skip
    if SHORTCUT == 2:
        top = p * S_STRIDE
        left = q * S_STRIDE
        acc = accumulate(
            acc, shortcut_ptr, project_ptr, (image * SH + top) * SW + left, top, left, valid, columns,
            tl.maximum(first - STEPS, 0), last - STEPS, None, None, SH, SW, SC, N, 1, False, SC % BLOCK_K == 0, BLOCK_K,
        )  # fmt: skip
    if SPLIT > 1:
        acc, mine = sum_parts(acc, tile, part, partial_ptr, counter_ptr, SPLIT, BLOCK_M, BLOCK_N)
    else:
        mine = True
    if mine:
        offsets = m.to(tl.int64)[:, None] * N + columns[None, :]  # [BLOCK_M, BLOCK_N]
        mask = valid[:, None] & (columns < N)[None, :]
        y = biased(acc, scale_ptr, b_ptr, columns, columns < N)
        if SHORTCUT == 1:
            shortcut = tl.load(shortcut_ptr + offsets, mask=mask, other=0.0)
            if shortcut_scale_ptr is not None:
                shortcut = shortcut.to(tl.float32) * tl.load(shortcut_scale_ptr)
            y += shortcut
        if SHORTCUT == 3:
            top = p * S_STRIDE
            left = q * S_STRIDE
            acc = accumulate(
                empty_sum(project_ptr, BLOCK_M, BLOCK_N), shortcut_ptr, project_ptr, (image * SH + top) * SW + left,
                top, left, valid, columns, 0, (SC + BLOCK_K - 1) // BLOCK_K, None, None, SH, SW, SC, N, 1, False,
                SC % BLOCK_K == 0, BLOCK_K,
            )  # fmt: skip
            shortcut = biased(acc, project_scale_ptr, project_b_ptr, columns, columns < N)
            y += rounded(shortcut, project_ptr.dtype.element_ty).to(tl.float32) * tl.load(shortcut_scale_ptr)
        tl.store(y_ptr + offsets, rounded(relu(y), y_ptr.dtype.element_ty), mask=mask)


def add_conv(
    builder: PlanBuilder,
    conv: Conv,
    tile: Tile,
    batch: int,
    x: Any,
    sides: tuple[int, int],
    shortcut: tuple[Any, int, Conv | None] | None,
    pdl: bool,
    written: str = "f16",
) -> Any:
    """Appends `conv` on the map `x` of side sides[0]; returns its output, a map of side sides[1].

    shortcut: the map to add, its side, and the 1x1 convolution to pass it through, or None to add it as it is.
    written: the output's dtype. The dtypes of maps and weights decide what is computed (`layout.weight_layout`).
    """
    side, out = sides
    pixels, weights = batch * out * out, builder.weights
    rows, columns = -(-pixels // tile.block_m), -(-conv.cout // tile.block_n)
    y = builder.buffer(written, pixels * conv.cout)
    w = weights[f"{conv.name}.w"]
    partial, counters, partial_bytes = split_buffers(builder, rows * columns, tile, w.dtype)
    kind, other, other_side, project = NO_SHORTCUT, None, out, None
    if shortcut is not None:
        other, other_side, project = shortcut
        kind = IDENTITY
    if project is not None:
        kind = PROJECT if w.dtype == "f16" else PROJECT_ROUNDED
    args = {
        "x_ptr": x,
        "w_ptr": w,
        "scale_ptr": weights.get(f"{conv.name}.scale"),
        "b_ptr": weights[f"{conv.name}.b"],
        "shortcut_ptr": other,
        "shortcut_scale_ptr": weights.get(f"{conv.name}.shortcut_scale"),
        "project_ptr": weights[f"{project.name}.w"] if project else None,
        "project_scale_ptr": weights.get(f"{project.name}.scale") if project else None,
        "project_b_ptr": weights.get(f"{project.name}.b") if project else None,
        "y_ptr": y,
        "partial_ptr": partial,
        "counter_ptr": counters,
        "batch": batch,
    }
    k = conv.taps**2 * conv.cin + (project.cin if project else 0)
    # Of a projected map only every S_STRIDE-th pixel is asked for.
    other_channels = conv.cout if project is None else project.cin
    other_bytes = 0 if other is None else itemsize(other.dtype) * pixels * other_channels
    rereads = rows * tile.block_m * columns + columns * tile.block_n * rows
    builder.launch(
        args,
        {
            "H": side,
            "W": side,
            "C": conv.cin,
            "P": out,
            "Q": out,
            "N": conv.cout,
            "TAPS": conv.taps,
            "STRIDE": conv.stride,
            "SHORTCUT": kind,
            "SH": other_side,
            "SW": other_side,
            "SC": other_channels,
            "S_STRIDE": 1 if project is None else project.stride,
            **block_sizes(tile, pdl),
        },
        name=conv.name,
        kernel="conv_kernel",
        grid=(rows * columns, tile.split, 1),
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * pixels * conv.cout * k,
        reads=itemsize(x.dtype) * batch * side * side * conv.cin + weight_bytes(args) + other_bytes + partial_bytes,
        writes=y.nbytes + partial_bytes,
        loads=itemsize(w.dtype) * k * rereads + (other_bytes if kind == IDENTITY else 0) + partial_bytes,
    )
    return y


def conv_product(
    conv: Conv, shortcut: tuple[Any, int, Conv | None] | None, batch: int, out: int, precision: str = "float16"
) -> Product:
    """The convolution as the tile chooser sees it."""
    project = shortcut[2] if shortcut else None
    return Product(
        "conv",
        batch * out * out,
        conv.cout,
        conv.cin,
        conv.taps**2,
        extra=project.cin if project else 0,
        residual=shortcut is not None and project is None,
        precision=precision,
    )


def add_blocks(
    builder: PlanBuilder, network: Network, batch: int, x: Any, choose: Any, pdl: bool, types: StoredTypes = FLOAT16
) -> Any:
    """Appends the residual blocks on the stem's map `x`; returns the last map. choose: Product -> Tile."""
    side, points = network.pooled_side, output_points(network)
    for block in network.blocks:
        entry, entry_side = x, side
        for conv in block.convs:
            final = conv is block.convs[-1]
            out = conv.output_side(side)
            shortcut = (entry, entry_side, block.project) if final else None
            precision = precision_of(types.of_product(conv.name))
            tile = choose(conv_product(conv, shortcut, batch, out, precision))
            written = types.of_map(points[conv.name])
            x = add_conv(builder, conv, tile, batch, x, (side, out), shortcut, pdl, written)
            side = out
    return x
