"""Sections of the suites "concurrency", "cold_start", "build_time", "peers". Each is made of one run, or None."""

from __future__ import annotations

from collections.abc import Sequence

from ..record import Measurement, Run
from .charts import Bar, Line, Stack, stacks
from .engine_sections import bars_of
from .figures import (
    COLD,
    MODES,
    NOTHING,
    TOTAL,
    batch_text,
    engine,
    grouped,
    joined,
    number,
    of_suite,
    plain,
    precision_rank,
    reasons_of,
    scale_of,
    with_number,
)
from .plots import lines
from .tables import Block, Chart, table_of

# Of `Measurement.more`.
OFFERED, THROUGHPUT = "offered", "throughput"
# Steps of a cold start in their order in time. What no step covers is the rest.
REST = "rest"
_STEPS = ("python", "import", "context", "load", "first")


# --- under load --------------------------------------------------------------------------------------------


def _load(m: Measurement) -> float | None:
    """Requests per second that were offered, or the threads that ask one after another."""
    return _fact(m, OFFERED) or m.clients


def _fact(m: Measurement, key: str) -> float | None:
    value = (m.more or {}).get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _is_open(m: Measurement) -> bool:
    return _fact(m, OFFERED) is not None


def concurrency(run: Run) -> Block | None:
    """By engine, percentiles; of all engines together, answers per second. Of an open loop `mode` names the load, which
    is the x axis here."""
    found = of_suite(run, "concurrency")
    known = [m for m in with_number(found) if _load(m) is not None]
    charts = []
    timed = [m for m in known if m.lower_is_better]
    kinds = grouped(timed, lambda m: (engine(m), m.device, m.batch, "" if _is_open(m) else m.mode, _is_open(m), m.unit))
    for _, same in sorted(kinds, key=lambda item: not item[0][4]):
        charts.append(_percentiles(sorted(same, key=_load)))
    rated = [(m, m.median) for m in known if not m.lower_is_better]
    rated += [(m, rate) for m in timed if not _is_open(m) and (rate := _fact(m, THROUGHPUT)) is not None]
    for _, some in grouped(rated, lambda item: (item[0].device, item[0].batch, item[0].mode)):
        charts.append(_rates(sorted(some, key=lambda item: _load(item[0]))))
    reasons = reasons_of(found)
    return Block("", tuple(charts), reasons=reasons) if charts or reasons else None


def _axis(m: Measurement) -> str:
    return "requests/s offered" if _is_open(m) else "clients"


def _about(m: Measurement) -> str:
    kind = "offered load" if _is_open(m) else m.mode or "clients"
    return joined(kind, "" if m.batch == 1 else batch_text(m.batch), "" if m.device == "cpu" else m.device)


def _percentiles(same: Sequence[Measurement]) -> Chart:
    scale = scale_of(same[0].unit, [m.median for m in same])
    last, title, about = same[-1], engine(same[0]), _about(same[0])
    series = []
    for name, key in (("p50", "median"), ("p90", "p90"), ("p99", "p99")):
        some = [m for m in same if getattr(m, key) is not None]
        if some:
            xs, ys = (tuple(map(f, some)) for f in (_load, lambda m, key=key: scale(getattr(m, key))))
            series.append(Line(name, xs, ys, (None,) * len(xs), (None,) * len(xs), key == "p99"))
    more = [key for key in dict.fromkeys(key for m in same for key in m.more or {}) if key != OFFERED]
    head = [_axis(last), f"p50, {scale.unit}", "low", "high", "p90", "p99", *more, "samples"]
    rows = []
    for m in same:
        values = [number(scale(value)) for value in (m.median, m.low, m.high, m.p90, m.p99)]
        others = [plain((m.more or {}).get(key)) for key in more]
        rows.append([plain(float(_load(m))), *values, *others, f"{m.samples:,}" if m.samples else NOTHING])
    says = (
        f"{joined(title, about)}: percentiles in {scale.unit} against {_axis(last)}; at {plain(float(_load(last)))}, "
    )
    says += f"p50 {number(scale(last.median))}, p99 {number(scale(last.p99))}"
    table = table_of(joined(title, about), head, rows, 0)
    return Chart(title, about, says, lambda: lines(series, _axis(last), scale.unit, same_kind=True), table)


def _rates(rated: Sequence[tuple[Measurement, float]]) -> Chart:
    """Answers per second of every engine."""
    first, series = rated[0][0], []
    for name, some in grouped(rated, lambda item: engine(item[0])):
        ends = [(m.low, m.high) if not m.lower_is_better else (None, None) for m, _ in some]
        xs, ys = tuple(_load(m) for m, _ in some), tuple(rate for _, rate in some)
        series.append(Line(name, xs, ys, *zip(*ends), some[0][0].ours))
    series.sort(key=lambda line: (not line.ours, -line.ys[-1], line.name))
    title, about = "Answers per second", _about(first)
    loads = sorted({x for line in series for x in line.xs})
    rows = [[s.name, *(number(dict(zip(s.xs, s.ys)).get(x)) for x in loads)] for s in series]
    table = table_of(
        joined(title, about), [_axis(first), *(plain(float(x)) for x in loads)], rows, 1, [s.ours for s in series]
    )
    says = f"{joined(title, about)}: against {_axis(first)}; most {number(max(max(s.ys) for s in series))}"
    return Chart(title, about, says, lambda: lines(series, _axis(first), "answers/s"), table)


# --- cold start --------------------------------------------------------------------------------------------


def cold_start(run: Run) -> Block | None:
    found = of_suite(run, "cold_start")
    known = with_number(found)
    stacked = []
    for _, same in grouped(known, lambda m: (m.subject, m.precision, m.device)):
        steps = [m for m in same if m.unit == "ms" and m.mode in (*_STEPS, TOTAL)]
        # One that has a single step, as the import of a library, stands among its like.
        stacked += [steps] if len(steps) > 1 else []
    charts = [_steps(stacked)] if stacked else []
    shown = {m.key for steps in stacked for m in steps}
    others = grouped((m for m in known if m.key not in shown), lambda m: (m.mode, m.unit, m.batch))
    rank = {mode: i for i, mode in enumerate(COLD)}
    for (mode, _, batch), same in sorted(others, key=lambda item: rank.get(item[0][0], len(rank))):
        charts.append(bars_of(same, COLD.get(mode, mode or "As a whole"), batch_text(batch), "median"))
    reasons = reasons_of(found)
    return Block("", tuple(charts), reasons=reasons) if charts or reasons else None


def _steps(stacked: Sequence[Sequence[Measurement]]) -> Chart:
    """Steps in their order in time; what is in the whole and in no step goes before them."""
    wholes = [m.median for steps in stacked for m in steps if m.mode == TOTAL]
    scale = scale_of("ms", wholes or [m.median for steps in stacked for m in steps])
    modes = {m.mode for steps in stacked for m in steps}
    names = [step for step in _STEPS if step in modes]
    found = []
    for steps in stacked:
        by_mode = {m.mode: m for m in steps}
        parts = [by_mode[name].median if name in by_mode else None for name in names]
        total, known = by_mode.get(TOTAL), sum(filter(None, parts))
        rest = max(total.median - known, 0.0) if total else None
        found.append((steps[0], total, [rest, *parts], known if total is None else total.median))
    found.sort(key=lambda one: (precision_rank(one[0].precision), one[3], one[0].subject))
    if wholes:
        names = [REST, *names]
    rows, cells = [], []
    for first, total, parts, _ in found:
        values = tuple(scale(part) for part in (parts if wholes else parts[1:]))
        ends = [scale(getattr(total, key, None)) for key in ("median", "low", "high")]
        rows.append(Stack(engine(first), values, total and Bar("", *ends, first.ours, number(ends[0])), first.ours))
        cells.append([engine(first), *map(number, values), *map(number, ends)])
    title = COLD[TOTAL]
    table = table_of(title, ["", *names, "as a whole", "low", "high"], cells, 1, [row.ours for row in rows])
    best = min((row.total.value for row in rows if row.total), default=None)
    says = f"{title}, {scale.unit}: {', '.join(names)} of {len(rows)} engines; shortest as a whole {number(best)}"
    return Chart(title, scale.unit, says, lambda: stacks(names, rows), table)


# --- bars --------------------------------------------------------------------------------------------------


def _bars(run: Run, suite: str, what: str) -> Block | None:
    found = of_suite(run, suite)
    charts = []
    for (mode, batch, _, device), same in grouped(with_number(found), lambda m: (m.mode, m.batch, m.unit, m.device)):
        title = (MODES.get(mode, mode) if mode else "") or what
        about = joined(batch_text(batch), "" if device == "cpu" else device)
        charts.append(bars_of(same, title[:1].upper() + title[1:], about, what))
    reasons = reasons_of(found)
    return Block("", tuple(charts), reasons=reasons) if charts or reasons else None


def build_time(run: Run) -> Block | None:
    return _bars(run, "build_time", "time to build")


def peers(run: Run) -> Block | None:
    return _bars(run, "peers", "median")
