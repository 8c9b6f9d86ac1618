"""The plan of a whole network: `plan_from_network`; that of its weights is in `layout.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection

from ..errors import UsageError
from .builder import PlanBuilder
from .chips import ARCHS, CHIPS, default_chip
from .classify import add_classify
from .conv import add_blocks
from .layout import weight_buffers, weight_layout
from .network import Network
from .plan import Buffer, Plan
from .precisions import PRECISIONS, stored_types
from .stem import add_stem
from .tafe import add_tafe
from .tiles import Product, Tile, choose_tile

__all__ = ["PRECISIONS", "plan_from_network", "weight_buffers", "weight_layout"]


def plan_from_network(
    network: Network,
    batch: int,
    precision: str,
    arch: str,
    choose: Callable[..., Tile] | None = None,
    multiprocessors: int | None = None,
    kept_float: Collection[str] = (),
) -> Plan:
    """The launches of `network` for `batch` images on `arch` ("sm_90"). Needs neither GPU nor driver.

    choose: (Product, rows) -> Tile, instead of the table and the model of `tiles.py`; tests and `tune` pass their own.
    multiprocessors: of the chip to fill, default those of the chip which stands for `arch`. kept_float: units of
    `placement.placement_of` that stay FP16. `UsageError` for an architecture, a precision, a unit or a batch that there
    are no kernels for.
    """
    if arch not in ARCHS:
        raise UsageError(f"arch: got {arch!r}, expected one of {', '.join(ARCHS)}")
    types = stored_types(network, precision, kept_float)
    if precision == "float8" and not ARCHS[arch].fp8:
        raise UsageError(f"precision: got 'float8' on {arch}, which has no FP8, expected int8, or sm_89 or later")
    if type(batch) is not int or not 1 <= batch <= 65535:
        raise UsageError(f"batch: got {batch!r}, expected 1 to 65535")
    if choose is None:
        choose = functools.partial(_choose, arch)
    pdl = ARCHS[arch].pdl
    multiprocessors = multiprocessors or CHIPS[default_chip(arch)].multiprocessors
    weights, weight_bytes = weight_buffers(network, precision, kept_float)
    builder = PlanBuilder(weights, weight_bytes)
    pixels = Buffer("pixels", 0, "u8", batch * network.size**2 * 3)
    logits = Buffer("logits", 0, "f32", batch * network.classes)
    x = add_stem(builder, network, batch, pixels, choose, pdl, types)
    x = add_blocks(builder, network, batch, x, choose, pdl, types)
    if network.pool is not None:
        x = add_tafe(builder, network, batch, x, choose, pdl, types)
    add_classify(builder, network, batch, x, logits, multiprocessors, pdl)
    return builder.finish(batch=batch, precision=precision, arch=arch, size=network.size, classes=network.classes)


def _choose(arch: str, product: Product, rows: int | None = None) -> Tile:
    return choose_tile(product, arch, rows)
