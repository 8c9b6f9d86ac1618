"""The INT8 report from its measurements: ratios, verdicts, Markdown. Pure functions of the JSON. Standard library.

measured:
    date, environment, settings {"rounds", "samples", "batches", "only", "stopped"}, flops (of one image),
    contestants  name -> {"kind", "backend", "bytes", "how", "products", "missing", "failed", ..}: see `compare_int8.py`
    accuracy     {"data", "images", "rows": name -> row, "agreement": name -> name -> share}, or None
    speed        name -> batch -> p50 in ms by round, null where a round has none, or None
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

AUTO, FLOAT = "int8 auto", "float32 auto"
INT_MM, INT_MM_SIZE = "torch._int_mm", 2048
CPU_INT8 = ("int8 onnxruntime", "int8 openvino", AUTO)
# The three that must agree, and all that must keep their accuracy.
AGREEING = ("int8 onnxruntime", "int8 openvino", "int8 fused")
GATED = ("float16 onnxruntime", *AGREEING, "float8 fused")
# Targets. Times as fast as float32, by batch; of the best peer's speed; of the rate of `INT_MM`, from a batch on.
TIMES_FLOAT = {1: 2.0, 8: 2.2}
OF_BEST_PEER = 0.97
OF_INT_MM, RATED_FROM = 0.70, 8
AGREEMENT = 0.99
MOST_BYTES = 16e6

Measured = Mapping[str, Any]
_UNKNOWN = {"value": "not measured", "met": None, "short": None}


def record_name(measured: Measured) -> str:
    """Processor and date: "intel-r-xeon-r-processor-int8-2026-11-22"."""
    processor = re.sub(r"[^a-z0-9]+", "-", measured["environment"]["processor"].lower()).strip("-")
    return f"{processor}-int8-{measured['date'][:10]}"


# --- from the rounds ---------------------------------------------------------------------------------------


def rounds_of(measured: Measured, name: str, batch: int) -> list[float | None]:
    return (measured["speed"] or {}).get(name, {}).get(str(batch), [])


def spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """{"median", "lowest", "highest", "rounds"} of what there is; None of nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    middle = statistics.median(found)
    return {"median": middle, "lowest": min(found), "highest": max(found), "rounds": len(found)}


def paired(over: Sequence[float | None], under: Sequence[float | None]) -> list[float | None]:
    """over / under, round by round; None for a round that one of them lacks."""
    return [None if a is None or b is None else a / b for a, b in zip(over, under, strict=False)]


def ratio(measured: Measured, name: str, batch: int, to: str = AUTO) -> dict[str, Any] | None:
    """How many times as long as `to` takes `name`."""
    return spread(paired(rounds_of(measured, name, batch), rounds_of(measured, to, batch)))


def tops(measured: Measured, name: str, batch: int) -> list[float | None]:
    """10^12 operations a second by round, a multiply-accumulate being two."""
    done = 2 * INT_MM_SIZE**3 if name == INT_MM else measured["flops"] * batch
    return [None if ms is None else done / ms / 1e9 for ms in rounds_of(measured, name, batch)]


def share_of_int_mm(measured: Measured, name: str, batch: int) -> dict[str, Any] | None:
    return spread(paired(tops(measured, name, batch), tops(measured, INT_MM, INT_MM_SIZE)))


def passed(measured: Measured, name: str) -> bool | None:
    return ((measured["accuracy"] or {}).get("rows", {}).get(name) or {}).get("passed")


def best_peer(measured: Measured, batch: int) -> str | None:
    """The fastest peer, whether it keeps the accuracy or not: the sterner measure."""
    medians = {
        name: found["median"]
        for name, one in measured["contestants"].items()
        if one["kind"] == "peer" and (found := spread(rounds_of(measured, name, batch)))
    }
    return min(medians, key=medians.__getitem__, default=None)


# --- against the targets -----------------------------------------------------------------------------------


def verdicts(measured: Measured) -> list[dict[str, Any]]:
    """For each target {"target", "value", "met", "short"}: met is None where it was not measured, short is what is
    missing to it, None where nothing is."""
    found = [*_fast_enough(measured), *_right_enough(measured), *_small_enough(measured)]
    return [{"target": target} | verdict for target, verdict in found]


def _fast_enough(measured: Measured) -> Iterable[tuple[str, dict[str, Any]]]:
    batches = measured["settings"]["batches"]
    for batch, least in TIMES_FLOAT.items():
        if batch in batches:
            target = f"batch {batch}: {AUTO} is {least} times as fast as {FLOAT}"
            yield target, _at_least(ratio(measured, FLOAT, batch), least)
    for batch in batches:
        best = best_peer(measured, batch)
        verdict = _at_least(ratio(measured, best, batch) if best else None, OF_BEST_PEER)
        if best:
            judged = {True: "", False: ", which fails the gate", None: ", whose accuracy was not measured"}
            verdict |= {"value": f"{verdict['value']}, of {best}{judged[passed(measured, best)]}"}
        yield f"batch {batch}: {AUTO} has {OF_BEST_PEER} of the best peer's speed, or more", verdict
    for batch in batches:
        if batch >= RATED_FROM:
            target = f"batch {batch}: {AUTO} computes at {OF_INT_MM:.0%} of the rate of {INT_MM}, or more"
            yield target, _at_least(share_of_int_mm(measured, AUTO, batch), OF_INT_MM)


def _right_enough(measured: Measured) -> Iterable[tuple[str, dict[str, Any]]]:
    accuracy = measured["accuracy"] or {"rows": {}, "agreement": {}}
    for name in GATED:
        row, verdict = accuracy["rows"].get(name), dict(_UNKNOWN)
        if row is not None:
            value = f"{row['accuracy_kept']:.2%} of its accuracy, its label on {row['agreement']:.2%}"
            verdict = {"value": value, "met": row["passed"], "short": "; ".join(row["faults"]) or None}
        yield f"{name} passes the accuracy gate against float32", verdict
    for i, one in enumerate(AGREEING):
        for other in AGREEING[i + 1 :]:
            share = accuracy["agreement"].get(one, {}).get(other)
            yield f"{one} and {other} agree on {AGREEMENT:.0%} of the images, or more", _share(share)


def _small_enough(measured: Measured) -> Iterable[tuple[str, dict[str, Any]]]:
    for name in CPU_INT8:
        nbytes, verdict = measured["contestants"].get(name, {}).get("bytes"), dict(_UNKNOWN)
        if nbytes is not None:
            over = nbytes - MOST_BYTES
            short = None if over < 0 else f"{over / 1e6:.3f} MB"
            verdict = {"value": f"{nbytes / 1e6:.2f} MB", "met": short is None, "short": short}
        yield f"{name} is a file under {MOST_BYTES / 1e6:.0f} MB", verdict


def _at_least(found: dict[str, Any] | None, least: float) -> dict[str, Any]:
    if found is None:
        return dict(_UNKNOWN)
    # What is judged is the number, not its rounding: the digits shown must show on which side it is.
    short = None if found["median"] >= least else f"{least - found['median']:.3g}"
    return {"value": ratio_cell(found, 3), "met": short is None, "short": short}


def _share(share: float | None) -> dict[str, Any]:
    if share is None:
        return dict(_UNKNOWN)
    short = None if share >= AGREEMENT else f"{100 * (AGREEMENT - share):.3g} points"
    return {"value": f"{share:.2%}", "met": short is None, "short": short}


def verdict_line(verdict: Mapping[str, Any]) -> str:
    if verdict["met"] is None:
        return f"not measured: {verdict['target']}"
    what = "holds" if verdict["met"] else f"falls short by {verdict['short']}"
    return f"{what}: {verdict['target']}: {verdict['value']}"


# --- Markdown ----------------------------------------------------------------------------------------------


def markdown(measured: Measured) -> str:
    """measured: with its "verdicts"."""
    sections = [
        ("Targets", _targets(measured)),
        ("Engines and peers", _contestants(measured)),
        ("Accuracy", _accuracy(measured)),
        ("Pairwise top-1 agreement", _agreement(measured)),
        ("Speed: p50 in ms, median of the rounds (lowest to highest)", _speed(measured)),
        (f"Times as long as {AUTO}, paired by round", _ratios(measured)),
        (f"Rate: TOP/s, and of {INT_MM} {INT_MM_SIZE}^3 in the same round", _rates(measured)),
        ("Products: the precision that ran", _by_layer(measured, "layers", str)),
        (
            "Units: SQNR in dB with this unit alone in eight bits",
            _by_layer(measured, "sensitivity_db", "{:.1f}".format),
        ),
    ]
    settings = measured["settings"]
    lines = [f"# {measured['environment']['processor']}, {measured['date'][:10]}: eight bits", ""]
    lines += ["Made by `python benchmarks/compare_int8.py`; `README.md` says how."]
    if settings["stopped"]:
        lines += ["", f"Stopped early, after {settings['rounds']} rounds: {settings['stopped']}."]
    facts = {**measured["environment"], **settings, "GFLOP an image": f"{measured['flops'] / 1e9:.3f}"}
    facts["calibration"] = next(
        (one["calibration"] for one in measured["contestants"].values() if one.get("calibration")), "not known"
    )
    lines += ["", *_rows(["fact", "value"], [[key, _fact(value)] for key, value in facts.items()])]
    for title, body in sections:
        lines += ["", f"## {title}", "", *(body or ["Not measured."])]
    return "\n".join(lines) + "\n"


def ratio_cell(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    if found is None:
        return "-"
    middle, lowest, highest = (f"{found[key]:.{digits}f}" for key in ("median", "lowest", "highest"))
    return f"{middle} ({lowest} to {highest})"


def _targets(measured: Measured) -> list[str]:
    return [f"- {verdict_line(verdict)}" for verdict in measured["verdicts"]]


def _contestants(measured: Measured) -> list[str]:
    rows = []
    for name, one in measured["contestants"].items():
        size = "-" if one.get("bytes") is None else f"{one['bytes'] / 1e6:.2f}"
        products = ", ".join(f"{count} {kind}" for kind, count in (one.get("products") or {}).items())
        said = "; ".join(f"{key}: {one[key]}" for key in ("missing", "failed") if one.get(key)) or one.get("how") or ""
        rows.append([name, one.get("backend") or "-", size, products or "-", _kept(one), said])
    return _rows(["", "backend", "MB", "products", "kept in float", ""], rows)


def _kept(one: Mapping[str, Any]) -> str:
    return "-" if one.get("kept_float") is None else ", ".join(one["kept_float"]) or "none"


def _accuracy(measured: Measured) -> list[str]:
    if not measured["accuracy"]:
        return []
    rows = []
    for name, row in measured["accuracy"]["rows"].items():
        gate = {True: "passes", False: f"FAILS: {'; '.join(row['faults'])}", None: "-"}[row["passed"]]
        shares = [f"{row[key]:.2%}" for key in ("accuracy", "accuracy_kept", "agreement", "worst_recall_lost")]
        rows.append([name, *shares, f"{row['sqnr_db']:.1f}", gate])
    head = ["", "accuracy", "kept", "float32's label", "worst recall lost", "SQNR dB", "gate"]
    return [f"{measured['accuracy']['images']} images of {measured['accuracy']['data']}.", "", *_rows(head, rows)]


def _agreement(measured: Measured) -> list[str]:
    shares = measured["accuracy"]["agreement"] if measured["accuracy"] else {}
    rows = [[one, *(f"{shares[one][other]:.2%}" for other in shares)] for one in shares]
    return _rows(["", *shares], rows) if rows else []


def _by_batch(
    measured: Measured, names: Iterable[str], cell: Callable[[str, int], str], label: Callable[[str], str] = str
) -> list[str]:
    batches, timed = measured["settings"]["batches"], measured["speed"] or {}
    named = [name for name in names if name in timed and name != INT_MM]
    rows = [[label(name), *(cell(name, batch) for batch in batches)] for name in named]
    return _rows(["", *(f"batch {batch}" for batch in batches)], rows) if rows else []


def _speed(measured: Measured) -> list[str]:
    return _by_batch(measured, measured["contestants"], lambda n, b: ratio_cell(spread(rounds_of(measured, n, b)), 3))


def _ratios(measured: Measured) -> list[str]:
    def label(name: str) -> str:
        return f"{name} (fails the gate)" if passed(measured, name) is False else name

    others = [name for name in measured["contestants"] if name != AUTO]
    return _by_batch(measured, others, lambda name, batch: ratio_cell(ratio(measured, name, batch)), label)


def _rates(measured: Measured) -> list[str]:
    def cell(name: str, batch: int) -> str:
        rate, share = spread(tops(measured, name, batch)), share_of_int_mm(measured, name, batch)
        return "-" if rate is None else f"{rate['median']:.3f}" + (f" ({share['median']:.0%})" if share else "")

    own = spread(tops(measured, INT_MM, INT_MM_SIZE))
    body = _by_batch(measured, measured["contestants"], cell)
    return [*body, "", f"{INT_MM}: {ratio_cell(own, 3)} TOP/s."] if body and own else body


def _by_layer(measured: Measured, key: str, text: Callable[[Any], str]) -> list[str]:
    known = {name: one[key] for name, one in measured["contestants"].items() if one.get(key)}
    layers = dict.fromkeys(layer for found in known.values() for layer in found)
    rows = [[layer, *(text(f[layer]) if layer in f else "-" for f in known.values())] for layer in layers]
    return _rows(["", *known], rows) if rows else []


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _rows(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
