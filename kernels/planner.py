"""The plan of a whole network, and of its weights: `plan_from_network`, `weight_layout`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from ..errors import UsageError
from .builder import PlanBuilder
from .chips import ARCHS, CHIPS, default_chip
from .classify import SPATIAL_TAPS, add_classify
from .conv import add_blocks
from .network import Network
from .plan import DTYPES, Buffer, Plan, aligned
from .stem import WINDOW_ROW, WINDOW_ROWS, add_stem
from .tafe import DW_TAPS, add_tafe
from .tiles import Product, Tile, choose_tile

PRECISIONS = ("float16",)
# What is stored for each weight: its dtype and shape, by name.
Layout = dict[str, tuple[str, tuple[int, ...]]]


def plan_from_network(
    network: Network,
    batch: int,
    precision: str,
    arch: str,
    choose: Callable[..., Tile] | None = None,
    multiprocessors: int | None = None,
) -> Plan:
    """The launches of `network` for `batch` images on `arch` ("sm_90"). Needs neither GPU nor driver.

    choose: (Product, rows) -> Tile, instead of the table and the model of `tiles.py`; tests and `tune` pass their own.
    multiprocessors: of the chip to fill, default those of the chip which stands for `arch`. `UsageError` for an
    architecture, a precision or a batch that there are no kernels for.
    """
    if arch not in ARCHS:
        raise UsageError(f"arch: got {arch!r}, expected one of {', '.join(ARCHS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision: got {precision!r}, expected {' or '.join(PRECISIONS)} for the fused kernels")
    if type(batch) is not int or not 1 <= batch <= 65535:
        raise UsageError(f"batch: got {batch!r}, expected 1 to 65535")
    if choose is None:
        choose = functools.partial(_choose, precision, arch)
    pdl = ARCHS[arch].pdl
    multiprocessors = multiprocessors or CHIPS[default_chip(arch)].multiprocessors
    weights, weight_bytes = weight_buffers(network)
    builder = PlanBuilder(weights, weight_bytes)
    pixels = Buffer("pixels", 0, "u8", batch * network.size**2 * 3)
    logits = Buffer("logits", 0, "f32", batch * network.classes)
    x = add_stem(builder, network, batch, pixels, choose, pdl)
    x = add_blocks(builder, network.blocks, batch, x, network.pooled_side, choose, pdl)
    if network.pool is not None:
        x = add_tafe(builder, network, batch, x, choose, pdl)
    add_classify(builder, network, batch, x, logits, multiprocessors, pdl)
    return builder.finish(batch=batch, precision=precision, arch=arch, size=network.size, classes=network.classes)


def _choose(precision: str, arch: str, product: Product, rows: int | None = None) -> Tile:
    return choose_tile(product, precision, arch, rows)


def weight_layout(network: Network) -> Layout:
    """Every stored weight. Products are [out, in], in FP16; `squeeze`, .. `head.1` are as `classify_kernel` says."""
    c, hidden = network.channels, network.hidden
    layout: Layout = {"stem.w": ("f16", (network.stem, WINDOW_ROWS, WINDOW_ROW)), "stem.b": ("f32", (network.stem,))}
    for block in network.blocks:
        for conv in block.convs:
            layout[f"{conv.name}.w"] = ("f16", (conv.cout, conv.taps**2 * conv.cin))
            layout[f"{conv.name}.b"] = ("f32", (conv.cout,))
        if block.project is not None:
            layout[f"{block.project.name}.w"] = ("f16", (block.project.cout, block.project.cin))
    if network.pool is not None:
        layout |= {
            "tafe.split.w": ("f16", (2 * c, c)),
            "tafe.split.b": ("f32", (2 * c,)),
            "tafe.dw.w": ("f32", (2, DW_TAPS, c)),
            "tafe.dw.b": ("f32", (2, c)),
            "tafe.of_pool": ("f32", (c,)),
            "tafe.of_variance": ("f32", (c,)),
            "tafe.gate.w": ("f16", (c, c)),
            "tafe.gate.b": ("f32", (c,)),
            "tafe.detail.w": ("f16", (2 * c, 2 * c)),
            "tafe.detail.b": ("f32", (2 * c,)),
            "tafe.merge.x.w": ("f16", (c, c)),
            "tafe.merge.h.w": ("f16", (c, 2 * c)),
            "tafe.merge.b": ("f32", (c,)),
        }
    if hidden:
        layout |= {
            "dcif.squeeze.w": ("f16", (hidden, c)),
            "dcif.squeeze.b": ("f32", (hidden,)),
            "dcif.expand.w": ("f16", (hidden, c)),
            "dcif.expand.b": ("f32", (c,)),
            "dcif.spatial": ("f32", (2, SPATIAL_TAPS)),
        }
    wide, narrow, classes = network.wide, network.narrow, network.classes
    return layout | {
        "head.0.w": ("f16", (wide, c)),
        "head.0.b": ("f32", (wide,)),
        "head.1.w": ("f16", (wide, narrow)),
        "head.1.b": ("f32", (narrow,)),
        "head.2.w": ("f16", (classes, narrow)),
        "head.2.b": ("f32", (classes,)),
    }


def weight_buffers(network: Network) -> tuple[dict[str, Buffer], int]:
    """Where each weight lies in the blob, and the blob's size in bytes."""
    buffers, offset = {}, 0
    for name, (dtype, shape) in weight_layout(network).items():
        count = math.prod(shape)
        buffers[name] = Buffer("weights", offset, dtype, count)
        offset = aligned(offset + count * DTYPES[dtype][0])
    return buffers, offset
