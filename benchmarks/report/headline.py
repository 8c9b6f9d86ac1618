"""The three or four most telling figures of a run, and the line that says where they were measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..record import Measurement, Run
from .figures import (
    MODES,
    NOTHING,
    batch_text,
    commit_of,
    engine,
    images_per_s,
    is_eager,
    joined,
    machine_of,
    number,
    of_suite,
    place,
    plain,
    scale_of,
    share,
    span,
    times,
)

MOST = 4


@dataclass(frozen=True)
class Figure:
    """value: with its unit. what: what it is. of: whose, and its spread."""

    value: str
    what: str
    of: str


def conditions(run: Run) -> str:
    """ "2 cores, 4 threads, 16 GiB; 2026-11-23, commit c5fca5e63669; by `make bench`", as far as it is known."""
    facts = run.environment
    texts = (("cores", "{} cores"), ("threads", "{} threads"), ("memory_gib", "{} GiB"), ("driver", "driver {}"))
    machine = [text.format(plain(facts[key])) for key, text in texts if facts.get(key) is not None]
    when = [plain(facts["date"])[:10]] if facts.get("date") else []
    when.append(f"commit {commit_of(run)}")
    by = [f"by {plain(facts['command'])}"] if facts.get("command") else []
    return "; ".join(filter(None, (", ".join(machine), ", ".join(when), *by)))


def headline(run: Run) -> tuple[Figure, ...]:
    return tuple(figure for _, figure in zip(range(MOST), _figures(run)))


def _figures(run: Run) -> Iterator[Figure]:
    ours = [m for m in _main_mode(run) if m.ours and m.median is not None and m.median > 0]
    timed = [m for m in ours if m.batch and m.lower_is_better]
    least = min((m.batch for m in timed), default=None)
    first = min((m for m in timed if m.batch == least), key=lambda m: m.median, default=None)
    if first:
        scale = scale_of(first.unit, [first.median])
        value = f"{number(scale(first.median))} {scale.unit}"
        yield Figure(value, f"fastest, {batch_text(least)}", _of(first, span(first.low, first.high, scale.factor)))
    rated = [(m, rates) for m in ours if (rates := images_per_s(m))]
    if rated:
        most, rates = max(rated, key=lambda item: item[1][0])
        yield Figure(f"{number(rates[0])} /s", f"most images, {batch_text(most.batch)}", _of(most, span(*rates[1:])))
    faster = [m for m in ours if m.speedup and is_eager(m.speedup.over)]
    if faster:
        best = max(faster, key=lambda m: m.speedup.median)
        what = f"as fast as {best.speedup.over}, {batch_text(best.batch)}".rstrip(", ")
        yield Figure(times(best.speedup.median), what, _of(best, span(best.speedup.low, best.speedup.high)))
    yield from _of_processes(run)
    kernels = [m for m in of_suite(run, "kernels") if m.ours and m.of_peak is not None]
    if kernels:
        best = max(kernels, key=lambda m: m.of_peak)
        yield Figure(share(best.of_peak), f"of the roofline, {batch_text(best.batch)}".rstrip(", "), engine(best))


def _of_processes(run: Run) -> Iterator[Figure]:
    starts = [
        m
        for m in of_suite(run, "cold_start")
        if m.ours and m.median is not None and m.mode in ("start_to_first", "context_to_first")
    ]
    if starts:
        # From the start of the process where that is known of one.
        best = min(starts, key=lambda m: (m.mode != "start_to_first", m.median))
        scale = scale_of(best.unit, [best.median])
        what = "from start to first answer" if best.mode == "start_to_first" else "from CUDA context to first answer"
        spread = span(best.low, best.high, scale.factor)
        yield Figure(f"{number(scale(best.median))} {scale.unit}", what, _of(best, spread))
    loaded = [m for m in of_suite(run, "concurrency") if m.ours and m.p99 is not None and "offered" in (m.more or {})]
    if loaded:
        most = max(loaded, key=lambda m: (plain(m.more["offered"]) != "", _number(m.more["offered"]), -m.p99))
        scale = scale_of(most.unit, [most.p99])
        what = f"99 % of requests, {plain(most.more['offered'])} /s offered"
        yield Figure(f"{number(scale(most.p99))} {scale.unit}", what, engine(most))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _of(m: Measurement, spread: str) -> str:
    where = place(m) if m.suite == "engines" else ""
    return joined(engine(m), where, "" if spread == NOTHING else spread)


def _main_mode(run: Run) -> list[Measurement]:
    """Engines from where to where most are compared: the first of `MODES` that was measured."""
    found = of_suite(run, "engines")
    modes = {m.mode for m in found if m.median is not None}
    main = next((mode for mode in MODES if mode in modes), None)
    return [m for m in found if m.mode == main] if main else found


def title(run: Run) -> str:
    return machine_of(run)
