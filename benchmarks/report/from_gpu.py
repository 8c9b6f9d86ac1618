"""What `make gpu` writes (benchmarks/gpu/run.py) as a run, so that one report shows both.

    network-N        suite "engines", mode "device" (and "host": `Engine.logits`, numpy to numpy)
    launches[-..]    suite "kernels", mode "float16 plan" ..: each launch, and the plan as a whole
    cold_start       suite "cold_start"
    native           suites "cold_start" and "engines", subject "libtkfnet"
    build[-..]       suite "build_time" in seconds, and the file's size in suite "cold_start"

The spread of an engine is that of its samples, from the 10 % to the 90 % point: `make gpu` keeps no rounds' medians.
Peaks of the roofline are the data sheet's (`kernels/chips.py`), as launches were judged by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tkfnet_engine.kernels.chips import CHIPS

from ..record import Measurement, Ratio, Run

CUDA, OURS = "cuda", "fused"
PLAN = "whole plan"
# "network-1" etc.; engines' names carry the precision where it is not FP16.
_PRECISIONS = ("int8", "float8")
_OURS = ("fused", "fused_fixed", "fused_call", "tensorrt_call")
_LAUNCHES = {"launches": "float16", "launches-int8": "int8", "launches-float8": "float8"}
_BUILDS = {"build": "float16", "build-int8": "int8", "build-float8": "float8"}
_TENSORRT = {"build-trt": "float16", "build-trt-int8": "int8"}
# Up to this batch the engine of TensorRT that is called small runs (benchmarks/gpu/gpu_state.py).
_SMALL_MOST = 8
_STEPS = {"imports": "import", "load": "load", "first": "first", "context": "context", "second": "second"}
_POINTS = {"spread": "10 % to 90 % of the samples"}
_VERSIONS = ("python", "cuda", "torch", "triton", "numpy", "cuda-bindings", "tensorrt", "tensorrt_rtx")


def is_gpu_results(content: Any) -> bool:
    return isinstance(content, Mapping) and {"environment", "parts", "verdicts"} <= content.keys()


def run_from_gpu(content: Mapping[str, Any], path: str = "") -> Run:
    """KeyError, TypeError, ValueError, AttributeError where it is not as `make gpu` writes it."""
    parts = content["parts"]
    # Each part of launches names the peaks: once is enough.
    found = {m.key: m for name, part in parts.items() for m in _measurements(name, part, parts)}
    return Run(_environment(content), tuple(found.values()), path)


def _environment(content: Mapping[str, Any]) -> dict[str, Any]:
    facts = dict(content["environment"])
    chip = str(facts.pop("chip"))
    versions = {name: facts.pop(name) for name in _VERSIONS if facts.get(name)}
    memory = facts.pop("memory_mib", None)
    known = {
        "machine": re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-"),
        "chip": chip,
        "driver": facts.pop("driver", None),
        "gpu_memory_gib": None if memory is None else round(memory / 1024, 1),
        "versions": versions,
        "commit": facts.pop("commit", None) or "unknown",
        "command": "make gpu",
        "date": content["date"],
    }
    return {key: value for key, value in (known | facts).items() if value is not None}


def _measurements(name: str, part: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[Measurement]:
    result = part.get("result") or {}
    if match := re.fullmatch(r"network-(\d+)", name):
        yield from _network(int(match[1]), part, result, parts)
    elif name in _LAUNCHES:
        yield from _launches(_LAUNCHES[name], part, result)
    elif name == "cold_start":
        yield from _cold_start(part, result)
    elif name == "native":
        yield from _native(part, result)
    elif name in _BUILDS and "seconds" in result:
        yield from _build(OURS, _BUILDS[name], result)
    elif name in _TENSORRT:
        for size, built in result.get("engines", {}).items():
            yield from _build(f"tensorrt {size}", _TENSORRT[name], built, ours=False)


def _why(part: Mapping[str, Any]) -> str:
    return part.get("reason") or f"{part.get('status')}, and nothing was recorded"


def _lasting(
    suite: str, subject: str, us_or_ms: Mapping[str, float] | None, scale: float, **more: Any
) -> list[Measurement]:
    """Of {"median", "lowest", "highest"}; nothing where there is nothing."""
    if not us_or_ms:
        return []
    values = {new: us_or_ms.get(old) for new, old in (("median", "median"), ("low", "lowest"), ("high", "highest"))}
    scaled = {key: None if value is None else value * scale for key, value in values.items()}
    return [Measurement(suite, subject, device=CUDA, **scaled, **more)]


# --- network -----------------------------------------------------------------------------------------------


def _network(batch: int, part: Mapping, result: Mapping, parts: Mapping[str, Any]) -> Iterator[Measurement]:
    engines = result.get("engines")
    if not engines:
        yield Measurement("engines", OURS, True, "float16", CUDA, "device", batch, reason=_why(part))
        return
    for name, one in engines.items():
        subject, precision = _subject(name)
        facts = {"ours": name in _OURS or subject == OURS, "precision": precision, "device": CUDA, "batch": batch}
        if one.get("median_us") is None:
            yield Measurement("engines", subject, mode="device", reason=one.get("reason") or "left out", **facts)
            continue
        p10, p90 = (one.get(key) for key in ("p10_us", "p90_us"))
        yield Measurement(
            "engines", subject, mode="device", **facts, samples=one.get("samples", 0), median=one["median_us"] / 1e3,
            low=None if p10 is None else p10 / 1e3, high=None if p90 is None else p90 / 1e3,
            p90=None if p90 is None else p90 / 1e3, speedup=_speedup(name, result),
            gate=_gate(one, subject, precision, batch, parts),
            more=_POINTS | {key: one[key] for key in ("queueing_us", "library", "how") if key in one},
        )  # fmt: skip
    if host := result.get("host_to_host"):
        yield Measurement(
            "engines", OURS, True, "float16", CUDA, "host", batch, samples=host.get("samples", 0),
            median=host["p50_us"] / 1e3, p90=host["p90_us"] / 1e3,
        )  # fmt: skip
    for name in ("compiled", "compiled_graph"):
        if (seconds := result.get(f"{name}_ready_s")) is not None:
            yield Measurement("build_time", name, False, "float16", CUDA, "compile", batch, unit="s", median=seconds)


def _subject(name: str) -> tuple[str, str]:
    """ "fused_int8" -> "fused", "int8"."""
    subject, _, precision = name.rpartition("_")
    return (subject, precision) if precision in _PRECISIONS else (name, "float16")


def _speedup(name: str, result: Mapping[str, Any]) -> Ratio | None:
    """Of fused over eager, of all others over fused. "ratios" holds how many times as long as fused each takes."""
    ratios = result.get("ratios") or {}
    if name == OURS:
        eager = ratios.get("eager")
        return eager and Ratio("eager", eager["median"], eager["lowest"], eager["highest"])
    if faster := (result.get("speedups") or {}).get(name):
        return Ratio(OURS, faster["median"], faster["lowest"], faster["highest"])
    longer = ratios.get(name)
    return longer and Ratio(OURS, *(1 / longer[key] for key in ("median", "highest", "lowest")))


def _gate(one: Mapping, subject: str, precision: str, batch: int, parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The SQNR before timing, and what the build was judged by."""
    found = {"sqnr_db": one["sqnr_db"]} if one.get("sqnr_db") is not None else {}
    builds = _BUILDS if subject == OURS else _TENSORRT if subject.startswith("tensorrt") else {}
    part = next((name for name, of in builds.items() if of == precision), "")
    built = (parts.get(part) or {}).get("result") or {}
    if builds is _TENSORRT:
        built = built.get("engines", {}).get("small" if batch <= _SMALL_MOST else "large") or {}
    report = built.get("verification") or {}
    judged = report.get("gate") or {}
    if "top1_agreement" in report:
        found["agreement"] = report["top1_agreement"]
    return (
        found | {key: judged[key] for key in ("accuracy", "float32_accuracy", "agreement", "images") if key in judged}
        or None
    )


# --- launches ----------------------------------------------------------------------------------------------


def _launches(precision: str, part: Mapping, result: Mapping) -> Iterator[Measurement]:
    mode = f"{precision} plan"
    if not result.get("batches"):
        yield Measurement("kernels", PLAN, True, precision, CUDA, mode, reason=_why(part))
        return
    chip = CHIPS.get(result.get("chip", ""))
    kinds = {row.get("precision", precision) for one in result["batches"].values() for row in one["launches"]}
    if chip is not None:
        source = {"from": f"data sheet of {chip.name}, kernels/chips.py"}
        for kind in sorted(kinds):
            yield Measurement(
                "roofline", f"{kind} products", precision=kind, device=CUDA, unit="GFLOP/s",
                median=chip.peak(kind) / 1e9, more=source,
            )  # fmt: skip
        yield Measurement(
            "roofline", "memory bandwidth", device=CUDA, unit="GB/s", median=chip.bandwidth / 1e9, more=source
        )
    for batch, one in result["batches"].items():
        wrong = {line.partition(":")[0].rpartition(".")[0]: line for line in one.get("wrong", ())}
        facts = {"ours": True, "device": CUDA, "mode": mode, "batch": int(batch)}
        for row in one["launches"]:
            of = facts | {"precision": row.get("precision", precision)}
            if row["name"] in wrong:
                yield Measurement("kernels", row["name"], reason=f"wrong: {wrong[row['name']]}", **of)
                continue
            # us * 1e6 of TFLOP/s, us * 1e3 of GB/s.
            more = {"flops": round(row["tflops"] * row["us"] * 1e6), "bytes": round(row["gbs"] * row["us"] * 1e3)}
            more |= {"tflops": row["tflops"], "gflops": row["tflops"] * 1e3, "gbs": row["gbs"]}
            more |= {key: row[key] for key in ("tile", "blocks", "roofline_us", "registers") if key in row}
            median = row["us"] / 1e3
            yield Measurement("kernels", row["name"], median=median, of_peak=row["fraction"], more=more, **of)
        more = {key: one[key] for key in ("sum_us", "roofline_us", "worst") if key in one}
        yield Measurement(
            "kernels", PLAN, precision=precision, median=one["plan_us"] / 1e3,
            of_peak=one["roofline_us"] / one["plan_us"], more=more, **facts,
        )  # fmt: skip


# --- processes, builds -------------------------------------------------------------------------------------


def _cold_start(part: Mapping, result: Mapping) -> Iterator[Measurement]:
    facts = {"ours": True, "precision": "float16", "samples": result.get("processes", 0)}
    if not result.get("context_to_first_ms") and not result.get("start_to_first_ms"):
        yield Measurement("cold_start", OURS, True, "float16", CUDA, "start_to_first", reason=_why(part))
    for mode in ("start_to_first", "context_to_first"):
        yield from _lasting("cold_start", OURS, result.get(f"{mode}_ms"), 1.0, mode=mode, **facts)
    for step, mode in _STEPS.items():
        yield from _lasting("cold_start", OURS, result.get("steps_ms", {}).get(step), 1.0, mode=mode, **facts)


def _native(part: Mapping, result: Mapping) -> Iterator[Measurement]:
    name, facts = "libtkfnet", {"ours": True, "precision": "float16"}
    if not result.get("first_ms"):
        yield Measurement("cold_start", name, True, "float16", CUDA, "context_to_first", reason=_why(part))
    yield from _lasting("cold_start", name, result.get("first_ms"), 1.0, mode="context_to_first", **facts)
    yield from _lasting("cold_start", name, result.get("load_ms"), 1.0, mode="load", **facts)
    yield from _lasting("cold_start", name, result.get("process_mib"), 1.0, mode="peak_memory", unit="MiB", **facts)
    mode = "beyond_context"
    yield from _lasting("cold_start", name, result.get("resident_mib"), 1.0, mode=mode, unit="MiB", **facts)
    # Queued one after another from C++, which is no time of `network-N`.
    queued = facts | {"mode": "queued from C++", "batch": 1}
    beyond = {key: result[key] for key in ("beyond_replay_us",) if key in result}
    yield from _lasting("engines", name, result.get("device_us"), 1e-3, **queued, more=beyond)
    yield from _lasting("engines", "bare graph", result.get("replay_us"), 1e-3, **queued)
    yield from _lasting("engines", name, result.get("host_us"), 1e-3, mode="host", batch=1, **facts)


def _build(subject: str, precision: str, built: Mapping[str, Any], ours: bool = True) -> Iterator[Measurement]:
    facts = {"ours": ours, "precision": precision, "device": CUDA}
    if (seconds := built.get("seconds")) is not None:
        yield Measurement("build_time", subject, unit="s", median=seconds, mode="engine file", **facts)
    if (megabytes := built.get("megabytes")) is not None:
        size = megabytes * 1e6 / 2**20
        yield Measurement("cold_start", subject, unit="MiB", median=size, mode="file", **facts)
