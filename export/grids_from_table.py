"""The calibration table's scales as what maps are rounded to."""

from __future__ import annotations

from ..model.fake_quantised import Grid
from .calibration_table import CalibrationTable


def grids_from_table(table: CalibrationTable, kind: str) -> dict[str, Grid]:
    """By point. kind: "int8", "uint8" or "float8"; `UsageError` otherwise."""
    if kind == "uint8":
        return {point: Grid(kind, *table.affine(point)) for point in table.points}
    return {point: Grid(kind, scale) for point, scale in table.scales(kind).items()}
