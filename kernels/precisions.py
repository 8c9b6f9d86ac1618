"""In which dtype each product computes and each map is stored: a precision, and what of it stays FP16."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..errors import UsageError
from .network import Network
from .placement import STEM, Placement, placement_of

PRECISIONS = ("float16", "int8", "float8")
# The dtype of a plan's quantised products and maps.
_QUANTISED = {"int8": "i8", "float8": "f8"}
_PRECISION_OF = {dtype: precision for precision, dtype in _QUANTISED.items()} | {"f16": "float16"}


@dataclass(frozen=True)
class StoredTypes:
    """Dtypes of one network's plan, as `plan.DTYPES` names them. placement: None in FP16."""

    quantised: str
    placement: Placement | None

    def of_product(self, name: str) -> str:
        """What the operands of the product `name` are stored in, "i8", "f8" or "f16"."""
        return self.quantised if self.placement and self.placement.has_product(name) else "f16"

    def of_map(self, point: str | None) -> str:
        """What the map at `point` of the placement is stored in; None is a map that no product reads."""
        return self.quantised if point and self.placement and self.placement.has_point(point) else "f16"


# All of a network.
FLOAT16 = StoredTypes("f16", None)


def stored_types(network: Network, precision: str, kept_float: Collection[str] = ()) -> StoredTypes:
    """kept_float: units of the placement that stay FP16. `UsageError` for a precision or a unit that there is not."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision: got {precision!r}, expected {' or '.join(PRECISIONS)} for the fused kernels")
    if precision == "float16":
        if kept_float:
            raise UsageError(f"kept in float: got {', '.join(sorted(kept_float))}, expected nothing with float16")
        return FLOAT16
    # Eight bits of a pixel, less the mean, do not fit the four significant ones of e4m3.
    kept = {*kept_float, STEM} if precision == "float8" else set(kept_float)
    return StoredTypes(_QUANTISED[precision], placement_of(network, kept))


def precision_of(dtype: str) -> str:
    """The precision of products with operands of `dtype`: "i8" -> "int8"."""
    return _PRECISION_OF[dtype]


def output_points(network: Network) -> dict[str, str | None]:
    """Of every convolution but projections, and of the stem, the point at which its output is read; None: as it is."""
    names = [block.convs[0].name.rpartition(".")[0] for block in network.blocks]
    after = [*names[1:], "tafe.split" if network.pool is not None else None]
    points: dict[str, str | None] = {STEM: names[0]}
    for block, following in zip(network.blocks, after, strict=True):
        for conv, then in zip(block.convs, block.convs[1:]):
            points[conv.name] = then.name
        points[block.convs[-1].name] = following
    return points
