"""What there is to tune: the products that the plans of a network ask tiles for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from .chips import has_float8
from .network import Network
from .plan import Plan
from .planner import PRECISIONS, plan_from_network
from .tile_table import Tile
from .tiles import Product, choose_tile


@dataclass(frozen=True)
class TileTask:
    """One product to find a tile for: the launch `name` of the plan for `batch`, tiles of `rows` rows or any.

    precision: of the product, which a plan of that precision has as well.
    """

    batch: int
    precision: str
    name: str
    product: Product
    rows: int | None


def precisions_on(arch: str) -> tuple[str, ...]:
    """Those that there are plans of on `arch`."""
    return tuple(name for name in PRECISIONS if name != "float8" or has_float8(arch))


def tasks_of(network: Network, batches: Iterable[int], precisions: Iterable[str], arch: str) -> list[TileTask]:
    """Every product that the plans for `batches` ask a tile for, each once, precision by precision, batch by batch."""
    tasks: dict[tuple[str, str], TileTask] = {}
    for precision, batch in itertools.product(precisions, tuple(batches)):
        asked: list[tuple[Product, int | None]] = []

        def choose(product: Product, rows: int | None = None) -> Tile:
            asked.append((product, rows))  # noqa: B023 - used within this turn only
            return choose_tile(product, arch, rows)

        plan = plan_from_network(network, batch, precision, arch, choose)
        # The planner asks once per launch, in their order; pixels are packed and logits made without a product.
        names = [launch.name for launch in plan.launches[1:-1]]
        for (product, rows), name in zip(asked, names, strict=True):
            task = TileTask(batch, product.precision, name, product, rows)
            tasks.setdefault((product.key, product.precision), task)
    return list(tasks.values())


def plan_with(network: Network, task: TileTask, tile: Tile, arch: str) -> Plan:
    """The plan for the task's batch, with `tile` for its product and the usual ones for the others."""

    def choose(product: Product, rows: int | None = None) -> Tile:
        return tile if product == task.product else choose_tile(product, arch, rows)

    return plan_from_network(network, task.batch, task.precision, arch, choose)
