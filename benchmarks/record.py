"""One run of the benchmarks: what was measured, on what, by which command. JSON, and nothing typed by hand.

A file is {"format": 1, "environment": {..}, "measurements": [..]}. `Measurement` is one number with all that it needs
to be believed, or the reason why there is none. docs/benchmarks.md explains the suites.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tkfnet_engine.atomic import write_atomically

FORMAT = 1
SUITES = ("engines", "kernels", "cold_start", "concurrency", "build_time", "roofline", "peers")


class RecordError(ValueError):
    """A file that is no record of a run."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as `over`: the median of the rounds' ratios, the lowest and the highest."""

    over: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """suite: of `SUITES`. subject: what was measured, "openvino", "cudnn conv". ours: whether this project makes it.
    precision, device: "int8", "cpu". mode: from where to where: "network" (pixels and logits stay where the engine
    wants them), "device" (in GPU memory), "host" (host memory to host memory), "jpeg" (JPEG bytes to probabilities), or
    what the suite calls it. batch: images at once. clients: threads that ask. unit: "ms", "s", "MiB", "GFLOP/s" ..

    samples: how many; median: of all of them; low, high: of the rounds' medians; p90, p99: null where there are too few
    samples for them. speedup: over another subject, paired by round. of_peak: part of the roofline, 0 to 1. gate: what
    was compared before timing: "sqnr_db", "agreement". more: of the suite's own. reason: why there is no number.
    """

    suite: str
    subject: str
    ours: bool = False
    precision: str | None = None
    device: str = "cpu"
    mode: str | None = None
    batch: int | None = None
    clients: int | None = None
    unit: str = "ms"
    samples: int = 0
    median: float | None = None
    low: float | None = None
    high: float | None = None
    p90: float | None = None
    p99: float | None = None
    speedup: Ratio | None = None
    of_peak: float | None = None
    gate: Mapping[str, Any] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise RecordError(f"suite: got {self.suite!r}, expected one of {', '.join(SUITES)}")
        if (self.median is None) == (self.reason is None):
            raise RecordError(
                f"{self.subject}: got median {self.median} and reason {self.reason!r}, expected one of both"
            )

    @property
    def key(self) -> tuple:
        """Equal for the same thing measured in two runs."""
        return (self.suite, self.subject, self.precision, self.device, self.mode, self.batch, self.clients, self.unit)

    @property
    def lower_is_better(self) -> bool:
        return not self.unit.endswith("/s")


@dataclass(frozen=True)
class Run:
    """environment: machine (a folder's name), chip, cores, memory_gib, system, driver, versions, commit, threads,
    command, date, and what else `machine.environment` finds. path: where it was read from."""

    environment: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    path: str = ""

    def write(self, path: Path) -> None:
        """Replaces the file as a whole. What a field has by default is left out."""
        defaults = asdict(Measurement("engines", "", reason="")) | {"suite": None, "subject": None, "reason": None}
        rows = [{k: v for k, v in asdict(m).items() if v != defaults.get(k)} for m in self.measurements]
        content = {"format": FORMAT, "environment": dict(self.environment), "measurements": rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_run(path: Path) -> Run:
    """`RecordError` for anything but what `Run.write` writes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise RecordError(f"format {content['format']!r}, expected {FORMAT}")
        return Run(content["environment"], tuple(map(_measurement, content["measurements"])), str(path))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(
            f"{path}: no record of a run ({error}); pytest benchmarks/ --benchmark-only makes one"
        ) from None


def _measurement(row: Mapping[str, Any]) -> Measurement:
    if unknown := row.keys() - {f.name for f in fields(Measurement)}:
        raise RecordError(f"unknown fields {', '.join(sorted(unknown))}")
    ratio = row.get("speedup")
    return Measurement(**{**row, "speedup": Ratio(**ratio) if ratio else None})


def merged(runs: Iterable[Run]) -> list[Run]:
    """Runs of one machine and commit as one, later measurements of the same thing in place of earlier ones."""
    by_place: dict[tuple, list[Run]] = {}
    for run in runs:
        by_place.setdefault((run.environment["machine"], run.environment["commit"]), []).append(run)
    made = []
    for same in by_place.values():
        latest = {m.key: m for run in same for m in run.measurements}
        made.append(Run(same[-1].environment, tuple(latest.values()), same[-1].path))
    return made
