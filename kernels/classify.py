"""DCIF, the weighted pool and the classifier, one image a program, in one launch.

    c = sigmoid(W_e relu(W_s mean(z) + b_s) + b_e)                     channel filter, mean over the pixels
    m = sigmoid(conv7x7([mean over channels of c z, max of c z]))      spatial filter
    v = c mean(m z)
    logits = W_2 relu(W_1 relu(W_0 v + b_0) + b_1) + b_2

Without DCIF v = mean(z). A layer's vector lies along one axis of a tile, the next layer's along the other, so a chain
of two is a loop over the units between them, and nothing passes through memory. For small batches SPLIT programs share
an image: each does DCIF again, which costs less than one program reading all of W_0 and W_1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from .builder import PlanBuilder
from .network import Network
from .plan import IMAGES, Buffer
from .product import begin, relu, weight_bytes
from .tiles import power_of_two

SPATIAL_TAPS = 49
# 16 warps leave a thread 128 registers: at most 64 elements of the map, 16 of a weight.
WARPS = 16
MAP_TILE, WEIGHT_TILE = 32768, 8192


def classify_reference(z, dcif, head):
    """Plain PyTorch. z: [n, H, W, C]; dcif: None, or (squeeze w, b, expand w, b, spatial [1, 2, 7, 7]); head: three
    (w, b)."""
    z = z.float()
    v = z.mean((1, 2))
    if dcif is not None:
        squeeze_w, squeeze_b, expand_w, expand_b, spatial = dcif
        c = torch.sigmoid(F.linear(F.relu(F.linear(v, squeeze_w, squeeze_b)), expand_w, expand_b))
        filtered = z * c[:, None, None, :]
        context = torch.stack([filtered.mean(3), filtered.amax(3)], 1)
        m = torch.sigmoid(F.conv2d(context, spatial, padding=3))
        v = (z * m[:, 0, :, :, None]).mean((1, 2)) * c
    for w, b in head[:-1]:
        v = F.relu(F.linear(v, w, b))
    return F.linear(v, *head[-1])


@triton.jit
def _two_layers(
    v,  # [IN_BLOCK]
    w_in_ptr, b_in_ptr, w_out_ptr, first, last,
    IN: tl.constexpr, OUT: tl.constexpr, IN_BLOCK: tl.constexpr, OUT_BLOCK: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Sum over the hidden units first..last of w_out[unit] * relu(w_in[unit] . v + b_in[unit]): [OUT_BLOCK]."""
    inputs, outputs = tl.arange(0, IN_BLOCK)[None, :], tl.arange(0, OUT_BLOCK)[None, :]
    out = tl.zeros([OUT_BLOCK], tl.float32)
    for start in range(first, last, UNITS):
        unit = start + tl.arange(0, UNITS)  # [UNITS]
        real = unit < last
        w = tl.load(w_in_ptr + unit[:, None] * IN + inputs, mask=real[:, None] & (inputs < IN), other=0.0)
        hidden = tl.sum(w.to(tl.float32) * v[None, :], 1) + tl.load(b_in_ptr + unit, mask=real, other=0.0)
        w = tl.load(w_out_ptr + unit[:, None] * OUT + outputs, mask=real[:, None] & (outputs < OUT), other=0.0)
        out += tl.sum(w.to(tl.float32) * relu(hidden)[:, None], 0)
    return out


@triton.jit
def _rows(z_ptr, start, HW: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pixels start.. of one image's map, float32 [ROWS, COLUMNS]; 0 beyond the map."""
    row, column = start + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(z_ptr + row * C + column, mask=(row < HW) & (column < C), other=0.0).to(tl.float32)


@triton.jit
def _filtered_mean(
    z_ptr, squeeze_w_ptr, squeeze_b_ptr, expand_w_ptr, expand_b_ptr, spatial_ptr,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, HIDDEN: tl.constexpr,
    ROWS: tl.constexpr, MAP: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr, HIDDEN_UNITS: tl.constexpr,
):  # fmt: skip
    """v of the formula above, [COLUMNS]. A map of more than ROWS pixels is read three times, ROWS at a time."""
    HW: tl.constexpr = H * W
    column = tl.arange(0, COLUMNS)
    z = _rows(z_ptr, 0, HW, C, ROWS, COLUMNS)
    mean = tl.sum(z, 0)
    for start in range(ROWS, HW, ROWS):
        mean += tl.sum(_rows(z_ptr, start, HW, C, ROWS, COLUMNS), 0)
    c = _two_layers(
        mean / HW, squeeze_w_ptr, squeeze_b_ptr, expand_w_ptr, 0, HIDDEN, C, C, COLUMNS, COLUMNS, HIDDEN_UNITS
    )
    c = tl.sigmoid(c + tl.load(expand_b_ptr + column, mask=column < C, other=0.0))

    to = tl.arange(0, MAP)[None, :]  # [1, MAP] pixels of the spatial filter's output
    m = tl.zeros([MAP], tl.float32)
    for start in range(0, HW, ROWS):
        if HW > ROWS:
            z = _rows(z_ptr, start, HW, C, ROWS, COLUMNS)
        filtered = z * c[None, :]
        average = tl.sum(filtered, 1) / C  # [ROWS]
        largest = tl.max(tl.where((column < C)[None, :], filtered, float("-inf")), 1)
        # What this pixel is to each output pixel: the 7x7 filter as a matrix.
        of = start + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
        down, right = of // W - to // W + 3, of % W - to % W + 3
        near = (down >= 0) & (down < 7) & (right >= 0) & (right < 7) & (of < HW) & (to < HW)
        tap = down * 7 + right
        m += tl.sum(tl.load(spatial_ptr + tap, mask=near, other=0.0) * average[:, None], 0)
        m += tl.sum(tl.load(spatial_ptr + 49 + tap, mask=near, other=0.0) * largest[:, None], 0)
    m = tl.sigmoid(m)

    v = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, HW, ROWS):
        if HW > ROWS:
            z = _rows(z_ptr, start, HW, C, ROWS, COLUMNS)
        of = start + tl.arange(0, ROWS)[:, None]
        m_rows = tl.sum(tl.where(to == of, m[None, :], 0.0), 1)  # [ROWS] m along the other axis
        v += tl.sum(z * m_rows[:, None], 0)
    return v / HW * c


@triton.jit
def classify_kernel(
    z_ptr, squeeze_w_ptr, squeeze_b_ptr, expand_w_ptr, expand_b_ptr, spatial_ptr,
    w0_ptr, b0_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, partial_ptr, counter_ptr, logits_ptr, images,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    HIDDEN: tl.constexpr, WIDE: tl.constexpr, NARROW: tl.constexpr, CLASSES: tl.constexpr,
    ROWS: tl.constexpr, MAP: tl.constexpr, COLUMNS: tl.constexpr, NARROW_BLOCK: tl.constexpr, CLASS_BLOCK: tl.constexpr,
    UNITS: tl.constexpr, HIDDEN_UNITS: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """w1 and the expanding w are stored [in, out], the others [out, in]."""
    begin(PDL)
    image = tl.program_id(0)
    part = tl.program_id(1)
    z_ptr += image.to(tl.int64) * (H * W * C)
    if HIDDEN > 0:
        v = _filtered_mean(
            z_ptr, squeeze_w_ptr, squeeze_b_ptr, expand_w_ptr, expand_b_ptr, spatial_ptr,
            H, W, C, HIDDEN, ROWS, MAP, COLUMNS, UNITS, HIDDEN_UNITS,
        )  # fmt: skip
    else:
        v = tl.zeros([COLUMNS], tl.float32)
        for start in range(0, H * W, ROWS):
            v += tl.sum(_rows(z_ptr, start, H * W, C, ROWS, COLUMNS), 0)
        v = v / (H * W)
    first, last = part * WIDE // SPLIT, (part + 1) * WIDE // SPLIT
    hidden = _two_layers(v, w0_ptr, b0_ptr, w1_ptr, first, last, C, NARROW, COLUMNS, NARROW_BLOCK, UNITS)
    narrow = tl.arange(0, NARROW_BLOCK)
    mine = True
    if SPLIT > 1:
        parts = partial_ptr + image * (SPLIT * NARROW_BLOCK) + narrow
        tl.store(parts + part * NARROW_BLOCK, hidden)
        # Every thread's stores before the one thread's release; then the last to arrive adds, in the parts' order.
        tl.debug_barrier()
        mine = tl.atomic_add(counter_ptr + image, 1, sem="acq_rel") == SPLIT - 1
        if mine:
            hidden = tl.zeros([NARROW_BLOCK], tl.float32)
            for i in range(SPLIT):
                hidden += tl.load(parts + i * NARROW_BLOCK)
            tl.store(counter_ptr + image, 0)
    if mine:
        hidden = relu(hidden + tl.load(b1_ptr + narrow, mask=narrow < NARROW, other=0.0))
        label = tl.arange(0, CLASS_BLOCK)
        mask = (label < CLASSES)[:, None] & (narrow < NARROW)[None, :]
        w = tl.load(w2_ptr + label[:, None] * NARROW + narrow[None, :], mask=mask, other=0.0).to(tl.float32)
        logits = tl.sum(w * hidden[None, :], 1) + tl.load(b2_ptr + label, mask=label < CLASSES, other=0.0)
        tl.store(logits_ptr + image * CLASSES + label, logits, mask=label < tl.where(image < images, CLASSES, 0))


def add_classify(
    builder: PlanBuilder, network: Network, batch: int, z: Any, logits: Buffer, multiprocessors: int, pdl: bool
) -> None:
    """Appends the launch that turns the map `z` into `logits`."""
    weights, side, c = builder.weights, network.side, network.channels
    columns = power_of_two(c)
    narrow = power_of_two(network.narrow)
    units = max(1, min(32, WEIGHT_TILE // columns))
    split = _split(batch, network.wide, units, multiprocessors)
    filters = ("squeeze.w", "squeeze.b", "expand.w", "expand.b", "spatial")
    partial_bytes = 0 if split == 1 else 4 * batch * split * narrow
    args: dict[str, Any] = {"z_ptr": z}
    args |= {f"{n.replace('.', '_')}_ptr": weights[f"dcif.{n}"] if network.hidden else None for n in filters}
    args |= {f"{kind}{layer}_ptr": weights[f"head.{layer}.{kind}"] for layer in range(3) for kind in ("w", "b")}
    args |= {
        "partial_ptr": builder.buffer("f32", batch * split * narrow) if split > 1 else None,
        "counter_ptr": builder.counters(batch) if split > 1 else None,
        "logits_ptr": logits,
        IMAGES: batch,
    }
    read = weight_bytes(args)
    map_bytes = 2 * batch * side * side * c
    per_image = (
        side * side * c * 5 + 4 * c * network.hidden + side * side * 2 * 2 * SPATIAL_TAPS if network.hidden else 0
    )
    head = 2 * (c * network.wide + network.wide * network.narrow + network.narrow * network.classes)
    builder.launch(
        args,
        {
            "H": side,
            "W": side,
            "C": c,
            "HIDDEN": network.hidden,
            "WIDE": network.wide,
            "NARROW": network.narrow,
            "CLASSES": network.classes,
            "ROWS": max(1, min(power_of_two(side * side), MAP_TILE // columns)),
            "MAP": power_of_two(side * side),
            "COLUMNS": columns,
            "NARROW_BLOCK": narrow,
            "CLASS_BLOCK": power_of_two(network.classes),
            "UNITS": units,
            "HIDDEN_UNITS": max(1, min(power_of_two(max(1, network.hidden)), units)),
            "SPLIT": split,
            "PDL": pdl,
        },
        name="dcif_and_head" if network.hidden else "head",
        kernel="classify_kernel",
        grid=(batch, split, 1),
        warps=WARPS,
        stages=2,
        flops=batch * (per_image + head),
        reads=map_bytes + read + partial_bytes,
        writes=logits.nbytes + partial_bytes,
        loads=split * map_bytes + batch * read + partial_bytes,
    )


def _split(batch: int, wide: int, units: int, multiprocessors: int) -> int:
    """Programs per image: as many as find a multiprocessor of their own, each with a whole loop step of units."""
    split = 1
    while 2 * split * batch <= multiprocessors and 2 * split * units <= wide and split < 8:
        split *= 2
    return split
