"""What is quantised in a folded network: the one description that calibration, Q/DQ graphs and fused plans share.

Products are quantised: every convolution of the backbone and every product of TAFE. The rest stays float: the depthwise
convolution, statistics, the gate's multiplication, DCIF, pooling and the classifier. A map is stored quantised where
all that read it are quantised products or the addition at a block's end, so that a shortcut is never widened.

A unit is what can go back to float by itself. The convolutions of a projected block are one: two of them read the same
map, and the projection ends in the same addition as the last. So are TAFE's detail and gate, which share a launch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..errors import UsageError
from .network import Network

# What the unit of the first convolution is called.
STEM = "stem"


@dataclass(frozen=True)
class Point:
    """A tensor that is stored quantised, with one scale.

    name: of what reads it, a block ("layer1.0") or a product ("layer1.0.conv2"), or of the product whose output it is
    ("layer2.0.project.output"). module: in a `model.fold.FoldedTKFNet`, whose input it is, or its output. positive: it
    comes out of a ReLU. optional: only a runtime quantises it whose integer products cannot end in float, or in an
    addition.
    """

    name: str
    module: str
    of_output: bool
    positive: bool
    optional: bool = False


@dataclass(frozen=True)
class QuantisedProduct:
    """name: as `network.Network` names it ("layer1.0.conv1", "tafe.gate"). module: in a `FoldedTKFNet`. point: what it
    reads, None for the stem, which reads pixels. unit: with what it goes back to float."""

    name: str
    module: str
    point: str | None
    unit: str


@dataclass(frozen=True)
class Placement:
    points: tuple[Point, ...]
    products: tuple[QuantisedProduct, ...]

    @property
    def units(self) -> tuple[str, ...]:
        """In the network's order, each once."""
        return tuple(dict.fromkeys(product.unit for product in self.products))

    def has_point(self, name: str) -> bool:
        return any(point.name == name for point in self.points)

    def has_product(self, name: str) -> bool:
        return any(product.name == name for product in self.products)


def placement_of(network: Network, kept_float: Collection[str] = ()) -> Placement:
    """The placement of `network`. kept_float: units that stay float; `UsageError` for one that there is not."""
    points = [Point(f"{STEM}.output", "stem", True, False, optional=True)]
    products = [QuantisedProduct(STEM, "stem", None, STEM)]
    for index, block in enumerate(network.blocks):
        module, name = f"blocks.{index}", block.convs[0].name.rpartition(".")[0]
        points.append(Point(name, module, False, True))
        for i, conv in enumerate(block.convs):
            if i:
                points.append(Point(conv.name, f"{module}.convs.{i}", False, True))
            unit = name if block.project else conv.name
            products.append(QuantisedProduct(conv.name, f"{module}.convs.{i}", conv.name if i else name, unit))
            points.append(Point(f"{conv.name}.output", f"{module}.convs.{i}", True, False, optional=True))
        if block.project is not None:
            points.append(Point(f"{block.project.name}.output", f"{module}.project", True, False))
            products.append(QuantisedProduct(block.project.name, f"{module}.project", name, name))
    if network.pool is not None:
        for product, module, positive in (
            ("split", "split", True),
            ("detail", "detail_pw", False),
            ("gate", "gate", False),
            ("merge", "merge", False),
        ):
            unit = "tafe.detail_and_gate" if product in ("detail", "gate") else f"tafe.{product}"
            points.append(Point(f"tafe.{product}", f"tafe.{module}", False, positive))
            products.append(QuantisedProduct(f"tafe.{product}", f"tafe.{module}", f"tafe.{product}", unit))
            points.append(Point(f"tafe.{product}.output", f"tafe.{module}", True, False, optional=True))
    whole = Placement(tuple(points), tuple(products))
    if unknown := sorted(set(kept_float) - set(whole.units)):
        raise UsageError(f"kept in float: got {', '.join(unknown)}, expected some of {', '.join(whole.units)}")
    kept = tuple(product for product in whole.products if product.unit not in kept_float)
    read = {product.point for product in kept} | {f"{product.name}.output" for product in kept}
    return Placement(tuple(point for point in whole.points if point.name in read), kept)
