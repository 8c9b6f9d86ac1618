"""What there is to tune: the products that the plans of a network ask tiles for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .network import Network
from .plan import Plan
from .planner import plan_from_network
from .tile_table import Tile
from .tiles import Product, choose_tile


@dataclass(frozen=True)
class TileTask:
    """One product to find a tile for: the launch `name` of the plan for `batch`, tiles of `rows` rows or any."""

    batch: int
    precision: str
    name: str
    product: Product
    rows: int | None


def tasks_of(network: Network, batches: Iterable[int], precision: str, arch: str) -> list[TileTask]:
    """Every product that the plans for `batches` ask a tile for, each once, batch by batch."""
    tasks: dict[str, TileTask] = {}
    for batch in batches:
        asked: list[tuple[Product, int | None]] = []

        def choose(product: Product, rows: int | None = None) -> Tile:
            asked.append((product, rows))  # noqa: B023 - used within this turn only
            return choose_tile(product, precision, arch, rows)

        plan = plan_from_network(network, batch, precision, arch, choose)
        # The planner asks once per launch, in their order; pixels are packed and logits made without a product.
        names = [launch.name for launch in plan.launches[1:-1]]
        for (product, rows), name in zip(asked, names, strict=True):
            tasks.setdefault(product.key, TileTask(batch, precision, name, product, rows))
    return list(tasks.values())


def plan_with(network: Network, task: TileTask, tile: Tile, arch: str) -> Plan:
    """The plan for the task's batch, with `tile` for its product and the usual ones for the others."""

    def choose(product: Product, rows: int | None = None) -> Tile:
        return tile if product == task.product else choose_tile(product, task.precision, arch, rows)

    return plan_from_network(network, task.batch, task.precision, arch, choose)
