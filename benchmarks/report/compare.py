"""Two runs of one machine, measurement by measurement: faster, slower, or within the noise of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..record import Measurement, Run
from .figures import (
    NOTHING,
    Scale,
    batch_text,
    commit_of,
    engine,
    machine_of,
    number,
    place,
    plain,
    scale_of,
    span,
    times,
)
from .tables import Table, markdown_table, table_of

THRESHOLD = 0.10
FASTER, SLOWER, NOISE, LOST, FOUND = "faster", "slower", "within noise", "lost its number", "has a number now"
# In this order they are shown: what matters most first.
_ORDER = (LOST, SLOWER, FASTER, FOUND, NOISE)


@dataclass(frozen=True)
class Verdict:
    """cost: how many times as much as before, above 1 is worse; None where one of both has no number above 0. failed:
    whether it is worse beyond noise and threshold, or lost its number."""

    old: Measurement
    new: Measurement
    verdict: str
    cost: float | None
    failed: bool


def compared(old: Run, new: Run, threshold: float = THRESHOLD) -> list[Verdict]:
    """Of what stands in both; without a number in either one there is nothing to say."""
    before = {m.key: m for m in old.measurements}
    pairs = [(before[m.key], m) for m in new.measurements if m.key in before]
    found = [_judged(a, b, threshold) for a, b in pairs if a.median is not None or b.median is not None]
    return sorted(found, key=lambda v: (not v.failed, _ORDER.index(v.verdict), -abs((v.cost or 1.0) - 1.0)))


def _judged(old: Measurement, new: Measurement, threshold: float) -> Verdict:
    if new.median is None:
        return Verdict(old, new, LOST, None, True)
    if old.median is None:
        return Verdict(old, new, FOUND, None, False)
    (old_low, old_high), (new_low, new_high) = _interval(old), _interval(new)
    if old_low <= new_high and new_low <= old_high:
        verdict = NOISE
    else:
        verdict = SLOWER if (new_low > old_high) == old.lower_is_better else FASTER
    cost = None
    if old.median > 0 and new.median > 0:
        cost = new.median / old.median if old.lower_is_better else old.median / new.median
    return Verdict(old, new, verdict, cost, verdict == SLOWER and (cost is None or cost > 1 + threshold))


def _interval(m: Measurement) -> tuple[float, float]:
    """The spread; of one that has none the median alone."""
    ends = [value for value in (m.low, m.median, m.high) if value is not None]
    return min(ends), max(ends)


def table(found: Sequence[Verdict]) -> Table:
    rows = []
    for one in found:
        unit = scale_of(one.old.unit, [one.old.median, one.new.median])
        m = one.old
        what = [m.suite, engine(m), place(m), batch_text(m.batch), f"{m.clients} clients" if m.clients else ""]
        cells = [_cell(m, unit) for m in (one.old, one.new)]
        verdict = one.verdict if one.new.reason is None else f"{one.verdict}: {one.new.reason}"
        rows.append([", ".join(filter(None, what)), verdict, unit.unit, *cells, times(one.cost)])
    return table_of("Compared", ["", "verdict", "unit", "old", "new", "cost"], rows, 3)


def _cell(m: Measurement, unit: Scale) -> str:
    spread = span(m.low, m.high, unit.factor)
    return number(unit(m.median)) + ("" if m.median is None or spread == NOTHING else f" ({spread})")


def summary(old: Run, new: Run, found: Sequence[Verdict], threshold: float) -> list[str]:
    """The runs, the counts, and what stands in one alone, a line each."""
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in _ORDER}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing stands in both"
    old_keys, new_keys = ({m.key for m in run.measurements} for run in (old, new))
    failed = sum(one.failed for one in found)
    lines = [f"{name}: {machine_of(run)}, {plain(run.environment.get('date'))[:10]}, commit "
             f"{commit_of(run)}" for name, run in (("old", old), ("new", new))]  # fmt: skip
    lines.append(f"{said}; cost: new over old, above 1 is worse")
    if old_keys != new_keys:
        lines.append(f"only in old: {len(old_keys - new_keys)}, only in new: {len(new_keys - old_keys)}")
    return [*lines, f"{failed} failed: worse by more than {threshold:.0%} beyond the noise, or without a number"]


def text(found: Table) -> str:
    """For a terminal."""
    cells = [found.head, *found.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(found.head))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if i in found.numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(lines: Sequence[str], found: Table) -> str:
    return "# Two runs compared\n\n" + "\n".join(f"- {line}" for line in lines) + f"\n\n{markdown_table(found)}\n"
