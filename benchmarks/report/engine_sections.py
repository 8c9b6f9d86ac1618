"""Sections of the suite "engines": latency, throughput, speed-ups, accuracy. Each is made of one run, or None."""

from __future__ import annotations

from collections.abc import Sequence

from ..record import SUITES, Measurement, Run
from .charts import Bar, Line, Point, bars, ratios
from .figures import (
    COLD,
    MODES,
    NOTHING,
    TOTAL,
    batch_text,
    by_speed,
    engine,
    grouped,
    images_per_s,
    joined,
    number,
    of_suite,
    percent,
    place,
    precision_rank,
    reasons_of,
    scale_of,
    share,
    span,
    times,
    with_number,
)
from .plots import lines, points
from .tables import Block, Chart, Table, table_of

# Whose speed-ups are shown, beside those of a whole cold start.
_PAIRED = ("engines", "peers")
# Of `Measurement.gate`, the most telling first.
_METRICS = {"accuracy": "accuracy", "agreement": "same label as float32", "sqnr_db": "SQNR, dB"}


# --- shared ------------------------------------------------------------------------------------------------


def mode_rank(mode: str | None) -> tuple[int, str]:
    known = list(MODES)
    return (known.index(mode) if mode in MODES else len(known), mode or "")


def bars_of(measurements: Sequence[Measurement], title: str, about: str, what: str) -> Chart:
    """Medians with spread, by precision, best first. All of one unit. what: "ms of a batch", in words."""
    order = sorted(measurements, key=by_speed)
    scale = scale_of(order[0].unit, [m.median for m in order])
    groups = []
    for precision, same in grouped(order, lambda m: m.precision):
        group = [
            Bar(m.subject, scale(m.median), scale(m.low), scale(m.high), m.ours, number(scale(m.median))) for m in same
        ]
        groups.append((precision or "", group))
    best = min(order, key=lambda m: m.median if m.lower_is_better else -m.median)
    about = joined(about, scale.unit)
    says = f"{joined(title, about)}: {what} of {len(order)}; best {engine(best)} with {number(scale(best.median))}"
    return Chart(title, about, says, lambda: bars(groups), table_of_medians(order, joined(title, about)))


def table_of_medians(order: Sequence[Measurement], title: str) -> Table:
    scale = scale_of(order[0].unit, [m.median for m in order])
    head = ["", "precision", scale.unit, "low", "high", "p90", "p99", "of peak", "samples"]
    rows = []
    for m in order:
        values = [number(scale(value)) for value in (m.median, m.low, m.high, m.p90, m.p99)]
        last = [share(m.of_peak), f"{m.samples:,}" if m.samples else NOTHING]
        rows.append([m.subject, m.precision or "", *values, *last])
    return table_of(title, head, rows, 2, [m.ours for m in order])


def _engines(run: Run) -> list[tuple[tuple, list[Measurement]]]:
    """Those of one place together: ((mode, device), ..)."""
    found = grouped(of_suite(run, "engines"), lambda m: (m.mode, m.device))
    return sorted(found, key=lambda item: (mode_rank(item[0][0]), item[0][1]))


def _batch_title(m: Measurement) -> str:
    text = batch_text(m.batch) or "As a whole"
    return text[:1].upper() + text[1:]


# --- sections ----------------------------------------------------------------------------------------------


def latency(run: Run) -> Block | None:
    charts = []
    for _, here in _engines(run):
        timed = [m for m in with_number(here) if m.lower_is_better]
        for _, same in sorted(grouped(timed, lambda m: (m.batch or 0, m.unit)), key=lambda item: item[0]):
            charts.append(bars_of(same, _batch_title(same[0]), place(same[0]), "median time of a batch"))
    reasons = reasons_of(of_suite(run, "engines"))
    return Block("", tuple(charts), reasons=reasons, note=_spread_note(run)) if charts or reasons else None


def _spread_note(run: Run) -> str:
    """Where a record's spread is another than that of rounds."""
    others = sorted({str(m.more["spread"]) for m in of_suite(run, "engines") if "spread" in (m.more or {})})
    return f"The spread here: {', '.join(others)}." if others else ""


def throughput(run: Run) -> Block | None:
    charts = []
    for _, here in _engines(run):
        rated = [m for m in here if m.batch and images_per_s(m)]
        for precision, same in sorted(grouped(rated, lambda m: m.precision), key=lambda item: precision_rank(item[0])):
            engines = [line for line in map(_rates, grouped(same, lambda m: m.subject)) if len(line.xs) > 1]
            if engines:
                charts.append(_throughput(engines, precision or "All engines", place(same[0])))
    return Block("", tuple(charts), note=_spread_note(run)) if charts else None


def _rates(found: tuple[str, list[Measurement]]) -> Line:
    """One engine's, by batch. A batch measured both in images/s and in ms counts once."""
    name, same = found
    by_batch = {m.batch: (m, images_per_s(m)) for m in sorted(same, key=lambda m: (m.batch, m.unit == "images/s"))}
    rates = [rate for _, rate in by_batch.values()]
    values = ([rate[i] for rate in rates] for i in range(3))
    ys, lows, highs = map(tuple, values)
    return Line(name, tuple(map(float, by_batch)), ys, lows, highs, any(m.ours for m in same))


def _throughput(engines: Sequence[Line], title: str, about: str) -> Chart:
    order = sorted(engines, key=lambda line: (not line.ours, -line.ys[-1], line.name))
    batches = sorted({x for line in order for x in line.xs})
    rows = []
    for line in order:
        rates = dict(zip(line.xs, zip(line.ys, line.lows, line.highs)))
        cells = [f"{number(rates[x][0])} ({span(*rates[x][1:])})" if x in rates else NOTHING for x in batches]
        rows.append([line.name, *(cell.replace(f" ({NOTHING})", "") for cell in cells)])
    head = ["images/s", *(batch_text(int(x)) for x in batches)]
    table = table_of(joined(title, about), head, rows, 1, [line.ours for line in order])
    best = max(order, key=lambda line: max(line.ys))
    says = f"{joined(title, about)}: images per second against batch; most {number(max(best.ys))}, by {best.name}"
    return Chart(title, about, says, lambda: lines(order, "images in a batch", "images/s"), table)


def speedups(run: Run) -> Block | None:
    """Of engines, of whole cold starts and of peers, each over what its suite compares with."""
    paired = [m for m in with_number(run.measurements) if m.speedup and (m.suite in _PAIRED or m.mode == TOTAL)]
    groups = grouped(paired, lambda m: (m.suite, m.mode, m.device, m.speedup.over, m.batch or 0))
    groups.sort(key=lambda item: (SUITES.index(item[0][0]), mode_rank(item[0][1]), *item[0][2:]))
    charts = tuple(_speedups(same) for _, same in groups)
    return Block("", charts) if charts else None


def _speedups(same: Sequence[Measurement]) -> Chart:
    order = sorted(same, key=lambda m: (precision_rank(m.precision), -m.speedup.median, m.subject))
    found = [
        (m.precision or "", Bar(m.subject, s.median, s.low, s.high, m.ours, times(s.median)))
        for m in order
        if (s := m.speedup)
    ]
    groups = [(precision, [bar for _, bar in some]) for precision, some in grouped(found, lambda item: item[0])]
    rows = [
        [m.subject, m.precision or "", *(times(v) for v in (m.speedup.median, m.speedup.low, m.speedup.high))]
        for m in order
    ]
    first, over = same[0], f"over {same[0].speedup.over}"
    title, about = _batch_title(first), joined("peers" if first.suite == "peers" else "", place(first), over)
    if first.mode == TOTAL:
        title, about = COLD[TOTAL], over
    table = table_of(
        joined(title, about), ["", "precision", "times as fast", "lowest", "highest"], rows, 2, [m.ours for m in order]
    )
    best = max(order, key=lambda m: m.speedup.median)
    says = f"{joined(title, about)}: times as fast; most {times(best.speedup.median)}, {engine(best)}"
    return Chart(title, about, says, lambda: ratios(groups), table)


def accuracy(run: Run) -> Block | None:
    charts, tables = [], []
    for _, here in _engines(run):
        judged = [
            m for m in here if m.batch and images_per_s(m) and any(_metric(m, name) is not None for name in _METRICS)
        ]
        if not judged:
            continue
        # The batch of which most is known; of equals the largest.
        _, same = max(grouped(judged, lambda m: m.batch), key=lambda item: (len(item[1]), item[0]))
        chart, points_shown = _accuracy(same)
        # One point alone is no picture.
        if points_shown > 1:
            charts.append(chart)
        else:
            tables.append(chart.table)
    return Block("", tuple(charts), tuple(tables)) if charts or tables else None


def _metric(m: Measurement, name: str) -> float | None:
    value = (m.gate or {}).get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _accuracy(same: Sequence[Measurement]) -> tuple[Chart, int]:
    """And how many points it shows."""
    name = next(name for name in _METRICS if any(_metric(m, name) is not None for m in same))
    text = number if name == "sqnr_db" else percent
    order = sorted(same, key=lambda m: (precision_rank(m.precision), -images_per_s(m)[0], m.subject))
    shown = []
    for _, some in grouped((m for m in order if _metric(m, name) is not None), lambda m: (m.precision, m.ours)):
        shown.append(Point(engine(some[0]), images_per_s(some[0])[0], _metric(some[0], name), some[0].ours))
    title, about = _batch_title(same[0]), place(same[0])
    rows = []
    for m in order:
        judged = [percent(_metric(m, "accuracy")), percent(_metric(m, "agreement")), number(_metric(m, "sqnr_db"))]
        rows.append([m.subject, m.precision or "", number(images_per_s(m)[0]), *judged])
    head = ["", "precision", "images/s", "accuracy", "same label", "SQNR, dB"]
    table = table_of(joined(title, about), head, rows, 2, [m.ours for m in order])
    says = f"{joined(title, about)}: {_METRICS[name]} against images per second, of {len(shown)} engines"
    return Chart(title, about, says, lambda: points(shown, "images/s", _METRICS[name], text), table), len(shown)
