"""`tiles.json`: tiles measured on real GPUs, with where and when. Read by `tiles.choose_tile`, written by `tune`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError

PATH = Path(__file__).with_name("tiles.json")
FORMAT = 1


@dataclass(frozen=True)
class Tile:
    """block_m x block_n of the output per program, block_k channels per step, `split` programs per tile.

    warps, stages: Triton's launch options.
    """

    block_m: int
    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Measured:
    """Where a time comes from. chip: the driver's name of it; driver: CUDA's version; triton: that compiled it."""

    chip: str
    driver: str
    date: str
    triton: str


class TileTable:
    """(product, precision, arch) -> tile, with the record of its measurement."""

    def __init__(self, path: str | os.PathLike | None, entries: list[dict[str, Any]], measured: Measured | None):
        self.path = Path(path or PATH)
        self._measured = measured
        self._entries = {(e["product"], e["precision"], e["arch"]): e for e in entries}

    @classmethod
    def read(cls, path: str | os.PathLike | None = None, measured: Measured | None = None) -> TileTable:
        """The table at `path`, by default the package's own; one that is not there is empty. measured: of what `put`
        will add. `UsageError` for a file of another form."""
        where = Path(path or PATH)
        if not where.exists():
            return cls(where, [], measured)
        try:
            fields = json.loads(where.read_text(encoding="utf-8"))
            if fields["format"] != FORMAT:
                raise ValueError(f"format {fields['format']!r}")
            table = cls(where, fields["tiles"], measured)
            for key in table._entries:
                table.get(*key)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{where}: it is no tile table of this version ({error!r}); remove it, or name another"
            ) from None
        return table

    def has(self, product: str, precision: str, arch: str) -> bool:
        return (product, precision, arch) in self._entries

    def get(self, product: str, precision: str, arch: str) -> Tile | None:
        entry = self._entries.get((product, precision, arch))
        return None if entry is None else Tile(**entry["tile"])

    def put(self, product: str, precision: str, arch: str, tile: Tile, us: float) -> None:
        """Enters `tile`, measured at `us` microseconds, in place of an earlier one."""
        if self._measured is None:
            raise AssertionError("a table read without `measured` is not written to")
        fields = {"product": product, "precision": precision, "arch": arch, "tile": asdict(tile), "us": round(us, 3)}
        self._entries[product, precision, arch] = fields | asdict(self._measured)

    def to_json(self) -> bytes:
        """One entry a line and in order, so that two tables compare line by line."""
        lines = [json.dumps(self._entries[key], sort_keys=True) for key in sorted(self._entries)]
        return ('{"format": %d, "tiles": [\n%s\n]}\n' % (FORMAT, ",\n".join(lines))).encode()  # noqa: UP031
