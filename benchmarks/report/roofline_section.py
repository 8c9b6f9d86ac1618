"""The section of the suites "kernels" and "roofline": every kernel beneath what products and memory allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..record import Measurement, Run
from .charts import Bar, Point, bars
from .figures import (
    NOTHING,
    Scale,
    batch_text,
    engine,
    grouped,
    joined,
    number,
    of_suite,
    place,
    plain,
    precision_rank,
    reasons_of,
    scale_of,
    share,
    span,
    with_number,
)
from .plots import roofline as draw_roofline
from .tables import Block, Chart, Table, table_of

PRODUCTS, BANDWIDTH = " products", "memory bandwidth"
# To 10^9 per second.
_GIGA = {"G": 1.0, "T": 1e3, "M": 1e-3}


def _fact(m: Measurement, key: str) -> float | None:
    value: Any = (m.more or {}).get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _seconds(m: Measurement) -> float | None:
    factor = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}.get(m.unit)
    return m.median * factor if factor and m.median and m.median > 0 else None


def _gflops(m: Measurement) -> float | None:
    flops, seconds = _fact(m, "flops"), _seconds(m)
    return _fact(m, "gflops") or (flops / seconds / 1e9 if flops and seconds else None)


def _gbs(m: Measurement) -> float | None:
    nbytes, seconds = _fact(m, "bytes"), _seconds(m)
    return _fact(m, "gbs") or (nbytes / seconds / 1e9 if nbytes and seconds else None)


def _per_byte(m: Measurement) -> float | None:
    """Operations per byte."""
    over, under = (_fact(m, "flops"), _fact(m, "bytes")) if _fact(m, "bytes") else (_gflops(m), _gbs(m))
    return over / under if over and under else None


def roofline(run: Run) -> Block | None:
    peaks, kernels = with_number(of_suite(run, "roofline")), of_suite(run, "kernels")
    charts, tables = [], []
    groups = grouped(with_number(kernels), lambda m: (m.device, m.mode, m.precision))
    groups.sort(key=lambda item: (item[0][0], item[0][1] or "", precision_rank(item[0][2])))
    for _, same in groups:
        by_batch = sorted(grouped(same, lambda m: m.batch or 0), key=lambda item: item[0])
        drawn = [item for item in by_batch if any(map(_per_byte, item[1]))]
        # The smallest and the largest batch tell most; all of them stand in the tables.
        shown = {drawn[0][0], drawn[-1][0]} if drawn else set()
        for batch, some in by_batch:
            title, about = some[0].precision or "All kernels", joined(batch_text(batch or None), place(some[0]))
            table, numbers = _table(some, joined(title, about))
            if batch in shown:
                charts.append(_chart(some, numbers, peaks, (title, about), table))
            else:
                tables.append(table)
    charts += _engines(run)
    if peaks:
        tables.insert(0, _peaks(peaks))
    reasons = reasons_of([*kernels, *of_suite(run, "roofline")])
    return Block("", tuple(charts), tuple(tables), reasons) if charts or tables or reasons else None


def _engines(run: Run) -> list[Chart]:
    """Whole engines' part of the peak, in the largest batch."""
    known = [m for m in with_number(of_suite(run, "engines")) if m.of_peak is not None]
    return [
        _of_peak(max(grouped(here, lambda m: m.batch or 0), key=lambda item: item[0])[1])
        for _, here in grouped(known, lambda m: (m.device, m.mode))
    ]


def _of_peak(some: Sequence[Measurement]) -> Chart:
    order = sorted(some, key=lambda m: (precision_rank(m.precision), -m.of_peak, m.subject))
    found = [(m.precision or "", Bar(m.subject, m.of_peak, None, None, m.ours, share(m.of_peak))) for m in order]
    groups = [(precision, [bar for _, bar in same]) for precision, same in grouped(found, lambda item: item[0])]
    title, about = "Whole engines, of the peak", joined(batch_text(some[0].batch), place(some[0]))
    rows = [[m.subject, m.precision or "", share(m.of_peak)] for m in order]
    best = max(order, key=lambda m: m.of_peak)
    says = f"{joined(title, about)}: most {share(best.of_peak)}, {engine(best)}"
    table = table_of(joined(title, about), ["", "precision", "of peak"], rows, 2, [m.ours for m in order])
    return Chart(title, about, says, lambda: bars(groups), table)


def _peaks(peaks: Sequence[Measurement]) -> Table:
    rows = [
        [m.subject, m.unit, plain((m.more or {}).get("from", "measured")), number(m.median), span(m.low, m.high)]
        for m in peaks
    ]
    return table_of("The roof", ["", "unit", "from", "peak", "spread"], rows, 3)


def _table(some: Sequence[Measurement], title: str) -> tuple[Table, dict[tuple, int]]:
    """And the number of every kernel, the longest first."""
    order = sorted(some, key=lambda m: (-m.median, m.subject))
    numbers = {m.key: i for i, m in enumerate(order, 1)}
    scale = scale_of(order[0].unit, [m.median for m in order])
    head = ["kernel", "no.", scale.unit, "low", "high", "GFLOP/s", "GB/s", "ops/byte", "of roofline"]
    rows = []
    for m in order:
        rates = [number(value) for value in (_gflops(m), _gbs(m), _per_byte(m))]
        part = NOTHING if m.of_peak is None else share(m.of_peak)
        values = [number(scale(value)) for value in (m.median, m.low, m.high)]
        rows.append([m.subject, str(numbers[m.key]), *values, *rates, part])
    return table_of(title, head, rows, 1, [m.ours for m in order]), numbers


def _chart(
    some: Sequence[Measurement], numbers: dict[tuple, int], peaks: Sequence[Measurement], titles: tuple[str, str],
    table: Table,
) -> Chart:  # fmt: skip
    found = [(m, _per_byte(m), _gflops(m)) for m in some if _per_byte(m) and _gflops(m)]
    roofs = _roofs(peaks, some[0])
    memory = [m for m in peaks if m.subject == BANDWIDTH and m.device == some[0].device]
    slope = max((m.median * _GIGA.get(m.unit[:1], 1.0) for m in memory), default=None)
    scale = scale_of("GFLOP/s", [gflops for *_, gflops in found] + [peak for _, peak in roofs])
    if roofs and max(peak for _, peak in roofs) >= 10_000:
        scale = Scale(0.001, "TFLOP/s")
    points = [Point(str(numbers[m.key]), x, scale(y), m.ours) for m, x, y in found]
    lines = [(f"{name}, {number(scale(peak))}", scale(peak)) for name, peak in roofs]
    bandwidth = slope and (f"memory, {number(slope)} GB/s", scale(slope))
    fastest = max(found, key=lambda item: item[2])
    says = f"{joined(*titles)}: roofline of {len(found)} kernels; fastest {engine(fastest[0])} with "
    says += f"{number(scale(fastest[2]))} {scale.unit}"
    return Chart(*titles, says, lambda: draw_roofline(points, lines, bandwidth, scale.unit), table)


def _roofs(peaks: Sequence[Measurement], kernel: Measurement) -> list[tuple[str, float]]:
    """Names and 10^9 operations per second: of the kernel's precision, else of every one; of several the highest."""
    here = [m for m in peaks if m.subject.endswith(PRODUCTS) and m.device == kernel.device]
    own = [m for m in here if m.subject.removesuffix(PRODUCTS) == kernel.precision]
    found: dict[str, float] = {}
    for m in own or here:
        found[m.subject] = max(found.get(m.subject, 0.0), m.median * _GIGA.get(m.unit[:1], 1.0))
    return sorted(found.items(), key=lambda item: item[1])
