"""Where each weight lies in the blob that plans point into: the same for every batch and architecture."""

from __future__ import annotations

import math
from collections.abc import Collection

from .classify import SPATIAL_TAPS
from .network import Block, Network
from .placement import STEM
from .plan import Buffer, aligned, itemsize
from .precisions import StoredTypes, output_points, stored_types
from .stem import WINDOW_ROW, WINDOW_ROWS
from .tafe import DW_TAPS

# What is stored for each weight: its dtype and shape, by name.
Layout = dict[str, tuple[str, tuple[int, ...]]]


def weight_layout(network: Network, precision: str = "float16", kept_float: Collection[str] = ()) -> Layout:
    """Every stored weight. Products are [out, in], in FP16 or eight bits; `squeeze`, .. `head.1` as `classify_kernel`
    says. `.scale` turns a product's sum into units of what it writes, channel by channel, and `.shortcut_scale` a map
    that joins it; `.b` is in those units. `UsageError` as `precisions.stored_types`."""
    types, points = stored_types(network, precision, kept_float), output_points(network)
    layout: Layout = {}
    taps = (network.stem, WINDOW_ROWS, WINDOW_ROW)
    _add_product(layout, STEM, types.of_product(STEM), taps, types.of_map(points[STEM]))
    for block in network.blocks:
        _add_block(layout, block, types, types.of_map(points[block.convs[-1].name]))
    if network.pool is not None:
        _add_tafe(layout, network.channels, types)
    c, hidden = network.channels, network.hidden
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


def _add_product(layout: Layout, name: str, dtype: str, shape: tuple[int, ...], written: str) -> None:
    """dtype: of the operands; written: of the output."""
    layout[f"{name}.w"] = (dtype, shape)
    if (dtype, written) != ("f16", "f16"):
        layout[f"{name}.scale"] = ("f32", shape[:1])
    layout[f"{name}.b"] = ("f32", shape[:1])


def _add_block(layout: Layout, block: Block, types: StoredTypes, written: str) -> None:
    for conv, then in zip(block.convs, (*block.convs[1:], None)):
        out = types.of_map(then.name) if then else written
        _add_product(layout, conv.name, types.of_product(conv.name), (conv.cout, conv.taps**2 * conv.cin), out)
    project, dtype = block.project, types.of_product(block.project.name) if block.project else "f16"
    entry = types.of_map(block.convs[0].name.rpartition(".")[0])
    if project is not None:
        if dtype == "f16":  # a part of the last product's own sum
            layout[f"{project.name}.w"] = ("f16", (project.cout, project.cin))
        else:
            _add_product(layout, project.name, dtype, (project.cout, project.cin), dtype)
    if dtype != "f16" or (project is None and (entry, written) != ("f16", "f16")):
        layout[f"{conv.name}.shortcut_scale"] = ("f32", (1,))


def _add_tafe(layout: Layout, c: int, types: StoredTypes) -> None:
    _add_product(layout, "tafe.split", types.of_product("tafe.split"), (2 * c, c), "f16")
    layout |= {
        "tafe.dw.w": ("f32", (2, DW_TAPS, c)),
        "tafe.dw.b": ("f32", (2, c)),
        "tafe.of_pool": ("f32", (c,)),
        "tafe.of_variance": ("f32", (c,)),
    }
    _add_product(layout, "tafe.gate", types.of_product("tafe.gate"), (c, c), "f16")
    _add_product(layout, "tafe.detail", types.of_product("tafe.detail"), (2 * c, 2 * c), "f16")
    dtype = types.of_product("tafe.merge")
    if dtype != "f16":
        # Of the gated map and of the detail alike: both are operands of one sum.
        layout["tafe.merge.reciprocal"] = ("f32", (1,))
        layout["tafe.merge.scale"] = ("f32", (c,))
    layout["tafe.merge.x.w"] = (dtype, (c, c))
    layout["tafe.merge.h.w"] = (dtype, (c, 2 * c))
    layout["tafe.merge.b"] = ("f32", (c,))


def weight_buffers(
    network: Network, precision: str = "float16", kept_float: Collection[str] = ()
) -> tuple[dict[str, Buffer], int]:
    """Where each weight lies in the blob, and the blob's size in bytes."""
    buffers, offset = {}, 0
    for name, (dtype, shape) in weight_layout(network, precision, kept_float).items():
        count = math.prod(shape)
        buffers[name] = Buffer("weights", offset, dtype, count)
        offset = aligned(offset + count * itemsize(dtype))
    return buffers, offset
