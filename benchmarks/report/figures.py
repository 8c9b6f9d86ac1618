"""How numbers, engines and places are written, and in which order engines stand. Nothing is measured or drawn here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..record import Measurement, Run

Key = TypeVar("Key")

PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8", "float8")
# `Measurement.mode` in words, where it is no word of its own suite.
MODES = {
    "network": "network alone",
    "device": "in GPU memory",
    "host": "host memory to host memory",
    "jpeg": "JPEG bytes to probabilities",
}
# Modes of a cold start, the whole of it first, of memory and of files.
TOTAL = "start_to_first"
COLD = {
    TOTAL: "Start of a process to the first answer",
    "context_to_first": "CUDA context to the first answer",
    "import": "Import alone",
    "peak_memory": "Peak memory",
    "beyond_context": "Memory beyond the CUDA context",
    "file": "Engine file",
}
NOTHING = "–"
# Of "ms" and what is computed from it.
MS_PER_S = 1000.0


# --- numbers ---------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, above a thousand all of them: "0.0381", "14.5", "121,905"."""
    if value is None:
        return NOTHING
    if value == 0 or abs(value) >= 999.5:
        return f"{value:,.0f}"
    size = math.floor(math.log10(float(f"{abs(value):.2e}")))
    return f"{value:.2e}" if size < -5 else f"{value:.{max(0, 2 - size)}f}"


def span(low: float | None, high: float | None, scale: float = 1.0) -> str:
    """ "14.4–14.7", or nothing where one is unknown."""
    return NOTHING if low is None or high is None else f"{number(low * scale)}–{number(high * scale)}"


def times(value: float | None) -> str:
    """ "2.31×"."""
    return NOTHING if value is None else f"{value:,.2f}×"


def percent(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def share(value: float | None) -> str:
    """Of a peak."""
    return percent(value, 1)


@dataclass(frozen=True)
class Scale:
    """unit = factor times the record's unit."""

    factor: float
    unit: str

    def __call__(self, value: float | None) -> float | None:
        return None if value is None else value * self.factor


_SCALES: Mapping[str, tuple[tuple[Callable[[float, float], bool], Scale], ...]] = {
    "ms": (
        (lambda low, high: high < 1, Scale(1000.0, "µs")),
        (lambda low, high: low >= 10_000, Scale(0.001, "s")),
    ),
    "GFLOP/s": ((lambda low, high: low >= 10_000, Scale(0.001, "TFLOP/s")),),
    "GB/s": ((lambda low, high: low >= 10_000, Scale(0.001, "TB/s")),),
}


def scale_of(unit: str, values: Iterable[float | None]) -> Scale:
    """In what unit the values are best read together."""
    known = [abs(value) for value in values if value is not None]
    for fits, scale in _SCALES.get(unit, ()) if known else ():
        if fits(min(known), max(known)):
            return scale
    return Scale(1.0, unit)


def images_per_s(m: Measurement) -> tuple[float, float | None, float | None] | None:
    """Median, lowest, highest; None for what is no time of a batch."""
    if m.median is None:
        return None
    if m.unit == "images/s":
        return m.median, m.low, m.high
    if m.unit != "ms" or not m.batch or m.median <= 0:
        return None
    low, high = (m.batch * MS_PER_S / value if value else None for value in (m.high, m.low))
    return m.batch * MS_PER_S / m.median, low, high


# --- words -----------------------------------------------------------------------------------------------


def plain(value: Any) -> str:
    """Any value of a record in one line: "a 1, b 2" of a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def engine(m: Measurement) -> str:
    """ "openvino int8"."""
    return f"{m.subject} {m.precision}" if m.precision else m.subject


def place(m: Measurement) -> str:
    """From where to where: "network alone", on which device unless that says so."""
    parts = [MODES.get(m.mode, m.mode) if m.mode else "", "" if m.device == "cpu" or m.mode == "device" else m.device]
    return ", ".join(filter(None, parts))


def is_eager(over: str) -> bool:
    """Whether a speed-up is over PyTorch as it runs without a compiler."""
    return "eager" in over.lower()


def batch_text(batch: int | None) -> str:
    return "" if batch is None else "1 image" if batch == 1 else f"batch {batch}"


def machine_of(run: Run) -> str:
    return plain(run.environment.get("chip") or run.environment["machine"])


def commit_of(run: Run) -> str:
    """Twelve digits, and "+" where files differed from it."""
    commit = plain(run.environment["commit"])
    return commit[:12] + ("+" if commit.endswith("+") or run.environment.get("changed") else "")


def title_of(run: Run, runs: Sequence[Run]) -> str:
    """Tells `run` from the others: chip, or with the commit where two are of one."""
    same = [other for other in runs if machine_of(other) == machine_of(run)]
    if len(same) == 1:
        return machine_of(run)
    return f"{machine_of(run)}, {commit_of(run)}, {plain(run.environment.get('date'))[:10]}"


# --- order -----------------------------------------------------------------------------------------------


def precision_rank(precision: str | None) -> tuple[int, str]:
    known = precision in PRECISIONS
    return (PRECISIONS.index(precision) if known else len(PRECISIONS), precision or "")


def by_speed(m: Measurement) -> tuple:
    """By precision, best first."""
    value = math.inf if m.median is None else m.median if m.lower_is_better else -m.median
    return (precision_rank(m.precision), value, m.subject)


def grouped(
    measurements: Iterable[Measurement], key: Callable[[Measurement], Key]
) -> list[tuple[Key, list[Measurement]]]:
    """In the order in which they are found."""
    found: dict[Key, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(key(m), []).append(m)
    return list(found.items())


def of_suite(run: Run, suite: str) -> list[Measurement]:
    return [m for m in run.measurements if m.suite == suite]


def with_number(measurements: Iterable[Measurement]) -> list[Measurement]:
    return [m for m in measurements if m.median is not None]


# --- what is missing --------------------------------------------------------------------------------------


def reasons_of(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """ "fused int8 · tensorrt float16: why (network alone, batch 1, 8)": engines of one reason at the same places."""
    missing = [m for m in measurements if m.reason is not None]
    found = []
    for (name, reason), same in grouped(missing, lambda m: (engine(m), m.reason)):
        places = [_missing_at(where, here) for where, here in grouped(same, place)]
        found.append((reason, "; ".join(filter(None, places)), name))
    texts = []
    for (reason, about), same in grouped(found, lambda one: one[:2]):
        texts.append(f"{' · '.join(name for *_, name in same)}: {reason}" + (f" ({about})" if about else ""))
    return tuple(texts)


def _missing_at(where: str, here: Sequence[Measurement]) -> str:
    batches = ", ".join(dict.fromkeys(str(m.batch) for m in here if m.batch is not None))
    clients = ", ".join(dict.fromkeys(str(m.clients) for m in here if m.clients is not None))
    return ", ".join(filter(None, (where, batches and f"batch {batches}", clients and f"clients {clients}")))
