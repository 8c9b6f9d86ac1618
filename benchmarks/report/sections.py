"""What the report says, as tables and charts for each run; a section for which nothing was measured says that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..record import Measurement, Run
from .engine_sections import accuracy, latency, speedups, throughput
from .figures import NOTHING, plain, title_of
from .process_sections import build_time, cold_start, concurrency, peers
from .roofline_section import roofline
from .tables import Block, Section, Table, table_of

_FILLED = "Filled and bold: this project; outlined: others."
_SPREAD = "the lowest and the highest round"
# key, title, note, what is said where there is nothing, and what makes it of a run.
_SECTIONS: tuple[tuple[str, str, str, str, Callable[[Run], Block | None]], ...] = (
    (
        "latency",
        "Latency",
        f"Median time of a batch, shorter is better. {_FILLED} Whiskers: {_SPREAD}.",
        "Latency was not measured.",
        latency,
    ),
    (
        "throughput",
        "Throughput against batch",
        f"Images per second at the median, by batch. {_FILLED} Upright strokes: {_SPREAD}.",
        "Throughput against batch was not measured: that takes two batches of one engine.",
        throughput,
    ),
    (
        "speedups",
        "Speed-ups",
        f"How many times as fast, paired by round: median, lowest and highest. {_FILLED}",
        "Speed-ups were not measured.",
        speedups,
    ),
    (
        "accuracy",
        "Speed against accuracy",
        "What was compared before timing, against speed; of each precision the fastest of this project, filled, and of "
        "others, outlined. The table has all.",
        "Speed against accuracy was not measured: no engine says what it was compared by.",
        accuracy,
    ),
    (
        "concurrency",
        "Latency under load",
        "Half, nine tenths and 99 % of the requests take at most so long.",
        "Latency under load was not measured.",
        concurrency,
    ),
    (
        "roofline",
        "Kernels under the roofline",
        "The roof is what products or memory allow at best; a kernel's number is its row in the table, left out where "
        "numbers would meet. Filled circles: this project; outlined squares: others.",
        "Kernels and the roofline were not measured.",
        roofline,
    ),
    (
        "cold_start",
        "Cold start, memory, size",
        "From a fresh process to the first answer: steps, and the whole as a line with its spread. Rest: the whole "
        f"less its steps. {_FILLED}",
        "Cold start, memory and file size were not measured.",
        cold_start,
    ),
    ("build_time", "Build times", _FILLED, "Build times were not measured.", build_time),
    ("peers", "Peers of the field", _FILLED, "Peers of the field were not measured.", peers),
)


def sections(runs: Sequence[Run]) -> list[Section]:
    """In the order of the page. Titles of blocks tell the runs apart where there are several."""
    made = []
    for key, title, note, missing, block in _SECTIONS:
        found = [(run, one) for run in runs if (one := block(run)) is not None]
        blocks = tuple(replace(one, title=title_of(run, runs) if len(runs) > 1 else "") for run, one in found)
        made.append(Section(key, title, note, missing, blocks))
    return made


# --- the machine -------------------------------------------------------------------------------------------

_FIRST = ("chip", "machine", "cores", "threads", "memory_gib", "system", "driver", "date", "commit", "command")
_NAMES = {"memory_gib": "memory, GiB", "gpu_memory_gib": "GPU memory, GiB"}


def machines(runs: Sequence[Run]) -> Table:
    """A fact a row, a run a column; versions and whatever else is known last."""
    facts = [_flat(run) for run in runs]
    keys = list(dict.fromkeys([*_FIRST, *(key for one in facts for key in one)]))
    rows = [(key.replace("_", " "), *(one.get(key, NOTHING) for one in facts)) for key in keys]
    rows = [(_NAMES.get(key, row[0]), *row[1:]) for key, row in zip(keys, rows) if any(c != NOTHING for c in row[1:])]
    head = ("fact", *(title_of(run, runs) if len(runs) > 1 else "value" for run in runs))
    return Table("Machines, versions, commands", head, tuple(rows))


def _flat(run: Run) -> dict[str, str]:
    found = {}
    for key, value in run.environment.items():
        if key == "versions" and isinstance(value, dict):
            found |= {str(name): plain(version) for name, version in value.items()}
        else:
            found[key] = plain(value)
    return found


# --- everything --------------------------------------------------------------------------------------------

_ALL = (
    "subject", "precision", "suite", "mode", "device", "unit", "batch", "clients", "median", "low", "high", "p90",
    "p99", "samples", "speed-up", "over", "of roofline", "gate", "more", "reason",
)  # fmt: skip
_ALL_TEXTS = 6


def everything(run: Run, title: str) -> Table:
    """Every measurement with every field, six digits."""
    order = sorted(run.measurements, key=lambda m: (m.suite, m.mode or "", m.batch or 0, m.subject, m.precision or ""))
    return table_of(title, _ALL, [_all(m) for m in order], _ALL_TEXTS, [m.ours for m in order])


def _all(m: Measurement) -> tuple[str, ...]:
    ratio = m.speedup
    speedup = f"{ratio.median:.4g} ({ratio.low:.4g}–{ratio.high:.4g})" if ratio else ""
    cells = (
        m.subject, m.precision, m.suite, m.mode, m.device, m.unit, m.batch, m.clients, m.median, m.low, m.high, m.p90,
        m.p99, m.samples or None, speedup, ratio and ratio.over, m.of_peak, plain(m.gate or {}), plain(m.more or {}),
        m.reason,
    )  # fmt: skip
    return tuple("" if cell is None else plain(float(cell) if isinstance(cell, float) else cell) for cell in cells)
