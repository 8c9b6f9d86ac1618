"""The results of the GPU parts: against the targets, as a short table, as Markdown. Standard library."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from gpu_state import PARTS, TENSORRT_BUILDS, TENSORRT_SIZES

# Targets on an H200. Latency: microseconds of a batch of 1. Times: against PyTorch's compiler, by batch. All are of
# FP16 but those of INT8, which are against FP16.
LATENCIES_US = (60.0, 40.0)
IMAGES_PER_S = 116_000
INT8_IMAGES_PER_S = 200_000
INT8_TIMES = {1: 1.0, 256: 1.5}
TIMES_COMPILED = {1: 1.5, 2: 1.5, 4: 1.5, 8: 1.5, 256: 1.2}
# By batch: what is compared with TensorRT's FP16 engine that was tuned for it.
AGAINST_TENSORRT = {1: "batch 1: not slower than TensorRT", 256: "batch 256: images/s against TensorRT"}
COLD_START_MS = 300.0
# Of libtkfnet: milliseconds from the context to the first answer, microseconds beyond the bare graph, MiB of the host.
NATIVE_FIRST_MS, NATIVE_BEYOND_US, NATIVE_MIB = 150.0, 3.0, 150.0
CHIP = "H200"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# What `network` times, in the order of the table.
OURS = ("fused", "fused_fixed", "fused_call", "fused_int8", "fused_float8")
TENSORRT = ("tensorrt", "tensorrt_int8", "tensorrt_call")
ENGINES = (*OURS, "eager", "eager_graph", "compiled", "compiled_graph", *TENSORRT)
# The parts that measure launches.
LAUNCHES = {"FP16": "launches", "INT8": "launches-int8", "FP8": "launches-float8"}

Parts = dict[str, dict[str, Any]]


def date_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def record_name(results: dict[str, Any]) -> str:
    """Chip and date: "nvidia-h200-2026-11-22"."""
    chip = re.sub(r"[^a-z0-9]+", "-", results["environment"]["chip"].lower()).strip("-")
    return f"{chip}-{results['date'][:10]}"


def _result(parts: Parts, name: str, *path: str) -> Any:
    """What stands at `path` in the part's result, or None."""
    found: Any = parts.get(name, {}).get("result")
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


# --- against the targets ---------------------------------------------------------------------------------


def verdicts(parts: Parts) -> list[dict[str, Any]]:
    """For each target {"target", "value", "met"}; met is None where it was not measured."""
    found = []

    def add(target: str, value: float | None, text: str, met: Callable[[float], bool]) -> None:
        """text: of the value, as a format."""
        known = value is not None
        shown = text.format(value) if known else "not measured"
        found.append({"target": target, "value": shown, "met": met(value) if known else None})

    us = _result(parts, "network-1", "engines", "fused", "median_us")
    for limit in LATENCIES_US:
        add(f"batch 1 in at most {limit:.0f} us", us, "{:,.1f} us", lambda value, limit=limit: value <= limit)
    rate = _result(parts, "network-256", "engines", "fused", "images_per_s")
    add(f"batch 256 at {IMAGES_PER_S:,} images/s", rate, "{:,.0f} images/s", lambda value: value >= IMAGES_PER_S)

    def times(target: str, ratio: dict[str, float] | None, least: float, of: str = "") -> None:
        """of: what it is compared with, where its name says too little."""
        ratio = ratio or {}
        text = "{:.2f} x" + (f" ({ratio['lowest']:.2f} to {ratio['highest']:.2f})" if ratio else "") + of
        add(target, ratio.get("median"), text, lambda value: value >= least)

    for batch, least in TIMES_COMPILED.items():
        ratio = _result(parts, f"network-{batch}", "ratios", "compiled")
        times(f"batch {batch}: {least} x as fast as torch.compile max-autotune", ratio, least)
    for batch, target in AGAINST_TENSORRT.items():
        ratio = _result(parts, f"network-{batch}", "ratios", "tensorrt")
        library = _result(parts, f"network-{batch}", "engines", "tensorrt", "library")
        times(target, ratio, 1.0, f", {library}" if library else "")
    rate = _result(parts, "network-256", "engines", "fused_int8", "images_per_s")
    target = f"INT8, batch 256 at {INT8_IMAGES_PER_S:,} images/s"
    add(target, rate, "{:,.0f} images/s", lambda value: value >= INT8_IMAGES_PER_S)
    for batch, least in INT8_TIMES.items():
        what = "not slower than our FP16" if least == 1 else f"{least} x as fast as our FP16"
        times(f"INT8, batch {batch}: {what}", _result(parts, f"network-{batch}", "speedups", "fused_int8"), least)
    ms = _result(parts, "cold_start", "context_to_first_ms", "median")
    target = f"first logits {COLD_START_MS:.0f} ms after the context"
    add(target, ms, "{:,.0f} ms", lambda value: value <= COLD_START_MS)
    same = _result(parts, "native", "same_bits")
    add("libtkfnet gives the Python engine's bits", same, "{}", bool)
    for target, key, limit, unit in (
        ("libtkfnet: first answer {:.0f} ms after the context", "first_ms", NATIVE_FIRST_MS, "ms"),
        ("libtkfnet: batch 1 within {:.0f} us of the bare graph", "beyond_replay_us", NATIVE_BEYOND_US, "us"),
        ("libtkfnet: at most {:.0f} MiB of host memory", "process_mib", NATIVE_MIB, "MiB"),
    ):
        value = _result(parts, "native", key, "median")
        add(target.format(limit), value, f"{{:,.1f}} {unit}", lambda value, limit=limit: value <= limit)
    for tool in ("memcheck", "racecheck"):
        count = _result(parts, f"sanitizer-{tool}", "found")
        add(f"compute-sanitizer {tool} is clean", count, "{} found", lambda value: value == 0)
    return found


# --- the table -------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """At most 66 lines."""
    parts = results["parts"]
    lines = [_machine_line(results["environment"]), ""]
    names = [part.name for part in PARTS if not part.name.startswith("network-")]
    for name in names:
        lines.append(f"{name:<27} {_status_cell(parts.get(name)):<10} {_said(parts.get(name))}"[:150].rstrip())
    lines += ["", *_launch_lines(parts), "", *_network_lines(parts), ""]
    marks = {True: "met", False: "MISSED", None: "?"}
    lines += [f"{marks[v['met']]:<7} {v['target']}: {v['value']}" for v in results["verdicts"]]
    if CHIP not in results["environment"].get("chip", ""):
        lines.append(f"(the targets are of an {CHIP})")
    return "\n".join(lines)


def _machine_line(environment: dict[str, Any]) -> str:
    keys = ("driver", "cuda", "torch", "triton", "tensorrt", "tensorrt_rtx")
    versions = ", ".join(f"{k} {environment[k]}" for k in keys if environment.get(k))
    return f"{environment.get('chip')}: {versions}; sources {str(environment.get('sources'))[:12]}"


def _status_cell(record: dict[str, Any] | None) -> str:
    return "-" if record is None else f"{record['status']}"


def _said(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return f"{record['seconds']:6.1f} s  {record['reason'] or (record['result'] or {}).get('summary', '')}"


def _launch_lines(parts: Parts) -> list[str]:
    """Of each precision: the sum of the launches, the plan, and the roofline in microseconds, which part of the plan
    this is, and the largest error beside the one allowed."""
    found = {kind: _result(parts, name, "batches") or {} for kind, name in LAUNCHES.items()}
    batches = list(dict.fromkeys(batch for by_batch in found.values() for batch in by_batch))
    if not batches:
        return ["launches: not measured"]
    heads = [f"{kind + ' sum':>10} {'plan':>8} {'roofline':>8} {'part':>5} {'error':>6}" for kind in found]
    lines = [" ".join([f"{'launches, batch':>16}", *heads])]
    for batch in batches:
        cells, wrong = [], []
        for kind, by_batch in found.items():
            one = by_batch.get(batch)
            cells.append(_launch_cell(one))
            wrong += [f"{kind} {line}" for line in one["wrong"]] if one else []
        lines.append(" ".join([f"{batch:>16}", *cells]))
        lines += [f"{'WRONG:':>16} {', '.join(wrong)}"[:150]] if wrong else []
    return [*lines, "us; error: of the allowed one"]


def _launch_cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return f"{'-':>10} {'-':>8} {'-':>8} {'-':>5} {'-':>6}"
    part = found["roofline_us"] / found["plan_us"]
    times = f"{found['sum_us']:>10.1f} {found['plan_us']:>8.1f} {found['roofline_us']:>8.1f}"
    return f"{times} {part:>5.0%} {found['worst']:>6.2f}"


def _network_lines(parts: Parts) -> list[str]:
    """Microseconds of a batch by engine, images/s of ours in FP16, how many times as long torch.compile's program,
    TensorRT's engine, and FP16 beside INT8 take. Columns are headed in two lines: so they fit."""
    heads = [*(name.partition("_")[::2] for name in ENGINES), ("images/s", "")]
    heads += [("compiled", "/ours"), ("tensorrt", "/ours"), ("fp16", "/int8")]
    lines = [
        " ".join([f"{'batch' if first else '':>5}", *(f"{text:>8}" for text in row)]).rstrip()
        for first, row in zip((True, False), zip(*heads))
    ]
    for batch in BATCHES:
        engines = _result(parts, f"network-{batch}", "engines")
        if not engines:
            lines.append(f"{batch:>5} {_status_cell(parts.get(f'network-{batch}')):>8}")
            continue
        cells = [_us(engines.get(name)) for name in ENGINES]
        rate = engines.get("fused", {}).get("images_per_s")
        ratios = [_result(parts, f"network-{batch}", "ratios", of, "median") for of in ("compiled", "tensorrt")]
        ratios.append(_result(parts, f"network-{batch}", "speedups", "fused_int8", "median"))
        cells.append("-" if rate is None else f"{rate:,.0f}")
        cells += ["-" if times is None else f"{times:.2f} x" for times in ratios]
        lines.append(" ".join([f"{batch:>5}", *(f"{cell:>8}" for cell in cells)]))
    return [*lines, "us per batch, median"]


def _us(engine: dict[str, Any] | None) -> str:
    value = (engine or {}).get("median_us")
    return ("-" if engine is None else "left out") if value is None else f"{value:.1f}"


# --- Markdown --------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    """The same and every launch, for `benchmarks/results/`."""
    environment, parts = results["environment"], results["parts"]
    title = f"# {environment.get('chip')}, {results['date'][:10]}"
    lines = [title, "", "Made by `make gpu`; `README.md` says how.", ""]
    lines += _rows(["fact", "value"], [[k, str(v)] for k, v in environment.items()])
    lines += ["", "## Targets", ""]
    marks = {True: "met", False: "missed", None: "not measured"}
    rows = [[v["target"], v["value"], marks[v["met"]]] for v in results["verdicts"]]
    lines += _rows(["target", "measured", ""], rows)
    lines += ["", "## Parts", ""]
    rows = []
    for name, record in parts.items():
        rows.append([name, record["status"], f"{record['seconds']:.1f}", _clock_cell(record), _said(record).strip()])
    lines += _rows(["part", "", "s", "SM MHz before, after", ""], rows)
    lines += ["", "## Eight bits: as built, and judged on this GPU", "", *_gate_lines(parts)]
    for title, key, names, cell in (
        ("microseconds per batch, median (10 % to 90 %)", "engines", ENGINES, _spread),
        ("microseconds that the CPU takes to queue a batch", "engines", ENGINES, _queueing),
        ("times as long as fused, paired by round, median (lowest to highest)", "ratios", ENGINES[1:], _ratio),
    ):
        lines += ["", f"## Network: {title}", ""]
        rows = []
        for batch in BATCHES:
            if held := _result(parts, f"network-{batch}", key):
                rows.append([str(batch), *(cell(held.get(name)) for name in names)])
        lines += _rows(["batch", *names], rows)
    for kind, name in LAUNCHES.items():
        for batch, found in (_result(parts, name, "batches") or {}).items():
            lines += ["", f"## Launches, {kind}, batch {batch}", ""]
            rows = []
            for one in found["launches"]:
                numbers = [f"{one[k]:.{d}f}" for k, d in (("us", 2), ("roofline_us", 2), ("tflops", 1), ("gbs", 0))]
                rows.append([one["name"], one["tile"], str(one["blocks"]), *numbers, f"{one['fraction']:.0%}"])
            lines += _rows(["launch", "tile", "blocks", "us", "roofline us", "TFLOP/s", "GB/s", "of roofline"], rows)
    return "\n".join(lines) + "\n"


def _gate_lines(parts: Parts) -> list[str]:
    """The accuracy gate of each engine in eight bits, and in what its products really run."""
    builds = {name: _result(parts, name) for name in ("build-int8", "build-float8")}
    name = TENSORRT_BUILDS["int8"]
    builds |= {f"{name}, {size}": _result(parts, name, "engines", size) for size in TENSORRT_SIZES}
    rows = []
    for name, found in builds.items():
        gate = (found or {}).get("verification", {}).get("gate")
        if gate is None:
            continue
        quantised = found.get("quantisation", {})
        kinds = list(quantised.get("layers", {}).values())
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        back = ", ".join(step["unit"] for step in quantised.get("back_to_float", [])) or "none"
        shares = [f"{gate[key]:.2%}" for key in ("float32_accuracy", "accuracy", "agreement")]
        rows.append([name, str(gate["images"]), *shares, f"{max(gate['recall_lost']):.2%}", counts or "-", back])
    head = ["part", "images", "float32", "accuracy", "same label", "most recall lost", "products", "back to FP16"]
    return _rows(head, rows)


def _rows(head: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _clock_cell(record: dict[str, Any]) -> str:
    seen = [(record["clocks"] or {}).get(when) for when in ("before", "after")]
    return ", ".join("?" if one is None else f"{one['sm_mhz']}" for one in seen)


def _queueing(engine: dict[str, Any] | None) -> str:
    return str((engine or {}).get("queueing_us", "-"))


def _ratio(ratio: dict[str, float] | None) -> str:
    return "-" if not ratio else f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def _spread(engine: dict[str, Any] | None) -> str:
    if not engine or engine.get("median_us") is None:
        return "-" if not engine else engine.get("reason", "left out")
    return f"{engine['median_us']:.1f} ({engine['p10_us']:.1f} to {engine['p90_us']:.1f})"
