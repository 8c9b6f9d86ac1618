"""The README's table, and the place in the README where it stands."""

from __future__ import annotations

from collections.abc import Sequence

from ..record import Measurement, Run
from .figures import (
    MODES,
    NOTHING,
    Scale,
    batch_text,
    commit_of,
    grouped,
    is_eager,
    machine_of,
    number,
    of_suite,
    plain,
    precision_rank,
    reasons_of,
    scale_of,
    span,
    times,
)
from .reading import ReportError
from .tables import escaped_markdown, markdown_table, table_of

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
BATCHES = (1, 8, 32)
# Of `environment["versions"]`, those that decide how fast an engine is.
_VERSIONS = ("python", "torch", "onnxruntime", "openvino", "triton", "cuda", "tensorrt", "tensorrt_rtx")


def readme_table(run: Run) -> str:
    """The engines of `run`, ours first: median with spread by batch, how many times as fast as eager in the smallest
    and the largest; the conditions in a line above, what has no number in one below. `ReportError` for a run without
    engines."""
    here = _main_place(run)
    timed = {m.batch for m in here if m.median is not None}
    batches = [batch for batch in BATCHES if batch in timed] or sorted(timed)
    if not batches:
        raise ReportError(f"{run.path}: no engines in suite 'engines'; expected some for the README's table")
    shown = [m for m in here if m.median is not None and m.batch in batches]
    scale = scale_of("ms", [m.median for m in shown])
    rows, ours = [], []
    for _, same in sorted(grouped(shown, lambda m: (m.subject, m.precision)), key=lambda item: _order(item[1])):
        by_batch = {m.batch: m for m in same}
        ours.append(same[0].ours)
        cells = [_cell(by_batch.get(batch), scale) for batch in batches]
        ratios = [_ratio(by_batch.get(batch)) for batch in _ends(batches)]
        rows.append([same[0].subject, same[0].precision or "", *cells, *ratios])
    head = ["engine", "precision", *(f"{batch_text(batch)}, {scale.unit}" for batch in batches)]
    head += [f"× eager, {batch_text(batch)}" for batch in _ends(batches)]
    lines = [_conditions(run, shown), "", markdown_table(table_of("engines", head, rows, 2, ours))]
    if missing := reasons_of(m for m in here if m.batch in batches):
        lines += ["", f"Without a number: {escaped_markdown('; '.join(missing))}."]
    return "\n".join(lines)


def _ends(batches: Sequence[int]) -> list[int]:
    """The smallest and the largest."""
    return sorted({batches[0], batches[-1]})


def _main_place(run: Run) -> list[Measurement]:
    """Times of batches at the first place of `MODES` where any were measured, on one device."""
    found = [m for m in of_suite(run, "engines") if m.batch and m.unit == "ms"]
    measured = {(m.mode, m.device) for m in found if m.median is not None}
    rank = {mode: i for i, mode in enumerate(MODES)}
    best = min(measured, key=lambda one: (rank.get(one[0], len(rank)), one[0] or "", one[1]), default=None)
    return [m for m in found if (m.mode, m.device) == best]


def _order(same: Sequence[Measurement]) -> tuple:
    """Ours first; then by precision, and by the time of the smallest batch."""
    first = min(same, key=lambda m: m.batch)
    return (not first.ours, precision_rank(first.precision), first.batch, first.median, first.subject)


def _cell(m: Measurement | None, scale: Scale) -> str:
    if m is None:
        return NOTHING
    spread = span(m.low, m.high, scale.factor)
    return number(scale(m.median)) + ("" if spread == NOTHING else f" ({spread})")


def _ratio(m: Measurement | None) -> str:
    if m is None or m.speedup is None or not is_eager(m.speedup.over):
        return NOTHING
    return f"{times(m.speedup.median)} ({m.speedup.low:.2f}–{m.speedup.high:.2f})"


def _conditions(run: Run, here: Sequence[Measurement]) -> str:
    facts = run.environment
    versions = facts.get("versions")
    named = [f"{name} {versions[name]}" for name in _VERSIONS if name in versions] if isinstance(versions, dict) else []
    parts = [
        machine_of(run),
        f"{plain(facts['threads'])} threads" if facts.get("threads") is not None else "",
        *named,
        plain(facts["date"])[:10] if facts.get("date") else "",
        f"commit {commit_of(run)}",
    ]
    mode = MODES.get(here[0].mode or "", here[0].mode or "engine alone")
    spread = next((plain(m.more["spread"]) for m in here if "spread" in (m.more or {})), "lowest and highest round")
    place = f"Median of a batch, {mode} ({spread})"
    over = sorted({m.speedup.over for m in here if m.speedup and is_eager(m.speedup.over)})
    baseline = f"; × eager: times as fast as {' or '.join(over)}" if over else ""
    command = f", by `{plain(facts['command']).replace('`', '')}`" if facts.get("command") else ""
    return escaped_markdown(f"{place}{baseline}. {', '.join(filter(None, parts))}") + f"{command}."


def readme_block(runs: Sequence[Run]) -> str:
    """What stands between the marks."""
    return "\n\n".join(map(readme_table, runs))


def rewritten(text: str, runs: Sequence[Run], path: str = "README.md") -> str:
    """`text` with the tables between its marks. `ReportError` unless each mark is there once, in this order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ReportError(
            f"{path}: got {text.count(BEGIN)} of {BEGIN} and {text.count(END)} of {END}, expected one of each, in this "
            "order; put both on lines of their own where the table shall stand"
        )
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{readme_block(runs)}\n{END}{rest.partition(END)[2]}"
