"""Made-up records of runs, as the benchmarks write them: a CPU on which every suite ran."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import Measurement, Ratio, Run

ENVIRONMENT: dict[str, Any] = {
    "machine": "made-up-cpu",
    "chip": "Made-up CPU 4200 @ 2.0 GHz",
    "cores": 4,
    "memory_gib": 31.4,
    "system": "Linux 6.1",
    "threads": 4,
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "command": "pytest benchmarks/ --benchmark-only",
    "date": "2026-11-20T10:00:00Z",
    "load_average": [0.1, 0.2, 0.1],
}
BATCHES = (1, 8, 32)
# subject, precision, ours: ms of one image, and how much of it a further image costs.
EAGER = "PyTorch eager, channels-last"
# subject, precision, ours: ms of one image, and how much of it a further image costs.
ENGINES = {
    ("tkfnet-engine, openvino", "float32", True): (14.5, 0.90),
    ("tkfnet-engine, onnxruntime", "float32", True): (16.1, 0.93),
    ("libtkfnet", "float32", True): (14.2, 0.90),
    (EAGER, "float32", False): (33.4, 0.72),
    ("torch.compile, max-autotune", "float32", False): (24.2, 0.78),
    ("OpenVINO", "float32", False): (14.9, 0.90),
    ("PyTorch eager, channels-last, autocast", "bfloat16", False): (21.7, 0.61),
    ("tkfnet-engine, openvino", "int8", True): (6.05, 0.93),
    ("tkfnet-engine, onnxruntime", "int8", True): (7.4, 0.95),
    ("libtkfnet", "int8", True): (5.97, 0.93),
}
GATES = {
    "float32": {"sqnr_db": 128.79, "accuracy": 0.91619, "agreement": 1.0},
    "bfloat16": {"sqnr_db": 44.1, "accuracy": 0.915238, "agreement": 0.997143},
    "int8": {"sqnr_db": 35.82, "accuracy": 0.914762, "agreement": 0.993333},
}
ABSENT = "no NVIDIA GPU here; on one, `make gpu` measures it"
KERNELS = {
    "stem conv 7x7": (1.90, 236e6, 1.9e6),
    "layer1 conv 3x3": (1.10, 231e6, 1.8e6),
    "layer2 conv 3x3": (0.98, 231e6, 1.4e6),
    "layer3 conv 3x3": (0.91, 231e6, 2.9e6),
    "layer4 conv 3x3": (1.30, 231e6, 9.6e6),
    "tafe depthwise": (0.22, 4.6e6, 2.2e6),
    "dcif pooling": (0.11, 0.4e6, 0.8e6),
    "head": (0.031, 0.9e6, 0.9e6),
}


def _spread(draw: random.Random, value: float, share: float = 0.02) -> dict[str, float]:
    low, high = value * (1 - share * draw.random()), value * (1 + 1.5 * share * draw.random())
    return {"median": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def _engines(draw: random.Random) -> Iterable[Measurement]:
    first, each = ENGINES[EAGER, "float32", False]
    for mode, batches, more_ms in (("network", BATCHES, 0.0), ("jpeg", BATCHES[:1], 3.1)):
        for batch in batches:
            slow = first * (1 + each * (batch - 1)) + more_ms * batch
            for (subject, precision, ours), (one, another) in ENGINES.items():
                ms = one * (1 + another * (batch - 1)) + more_ms * batch
                yield Measurement(
                    "engines", subject, ours, precision, mode=mode, batch=batch, samples=105, p90=round(ms * 1.06, 4),
                    p99=round(ms * 1.31, 4), **_spread(draw, ms), gate=GATES[precision],
                    of_peak=round(batch * 3.86 / ms / 0.78, 4) if mode == "network" else None,
                    speedup=Ratio(f"{EAGER} float32", *(round(slow / ms * part, 4) for part in (1.0, 0.97, 1.04))),
                )  # fmt: skip
            yield Measurement("engines", "fused", True, "int8", "cuda", mode, batch, reason=ABSENT)


def _load(draw: random.Random) -> Iterable[Measurement]:
    for precision, capacity in (("int8", 165.0), ("float32", 69.0)):
        facts = {"subject": "tkfnet-engine, openvino", "ours": True, "precision": precision, "batch": 1}
        for load in (0.5, 0.8, 0.95):
            ms = 1000 / capacity / (1.02 - load)
            yield Measurement(
                "concurrency", mode=f"open loop, {load:.0%} load", clients=8, **facts, samples=400,
                p90=round(ms * 2.1, 3), p99=round(ms * 4.4, 3), **_spread(draw, ms),
                more={"throughput": round(load * capacity - 0.3, 2), "offered": round(load * capacity, 2)},
            )  # fmt: skip
        for clients in (1, 2, 4, 8, 16, 32):
            ms = 1000 / capacity * max(1.0, clients / 2.6)
            yield Measurement(
                "concurrency", mode="closed loop", clients=clients, **facts, samples=900, p90=round(ms * 1.2, 3),
                p99=round(ms * 1.9, 3) if clients > 1 else None, **_spread(draw, ms),
                more={"throughput": round(1000 * clients / ms, 2)},
            )  # fmt: skip
    why = "cannot be run: it ended with 1"
    yield Measurement("concurrency", "ONNX Runtime", precision="float32", mode="closed loop", clients=1, reason=why)


def _kernels(draw: random.Random) -> Iterable[Measurement]:
    peaks = (("float32", 412.0), ("bfloat16", 780.0), ("int8", 1630.0))
    for precision, peak in peaks:
        yield Measurement("roofline", f"{precision} products", unit="GFLOP/s", samples=7, **_spread(draw, peak))
    yield Measurement("roofline", "memory bandwidth", unit="GB/s", samples=7, **_spread(draw, 38.4))
    for name, (ms, flops, nbytes) in KERNELS.items():
        for precision, faster in (("float32", 1.0), ("int8", 3.1)):
            for ours in (True, False):
                took = ms / faster * (1.0 if ours else 1.14)
                more = {"flops": flops, "bytes": nbytes, "gflops": flops / took / 1e6, "gbs": nbytes / took / 1e6}
                roof = min(dict(peaks)[precision], 38.4 * flops / nbytes)
                yield Measurement(
                    "kernels", f"{name}{'' if ours else ', oneDNN'}", ours, precision, batch=1, samples=70, more=more,
                    of_peak=round(more["gflops"] / roof, 4), **_spread(draw, took),
                )  # fmt: skip
    yield Measurement("kernels", "dcif attention", True, "int8", batch=1, reason="stays in float32")


def _processes(draw: random.Random) -> Iterable[Measurement]:
    for (subject, precision, ours), scale in zip(ENGINES, (1.0, 0.8, 0.3, 3.2, 9.5, 1.1, 3.3, 1.2, 0.9, 0.35)):
        facts = {"ours": ours, "precision": precision, "samples": 4}
        steps = {"load": 210 * scale, "first": 31 * scale}
        for mode, ms in (steps | {"start_to_first": 350 * scale + 24}).items():
            yield Measurement("cold_start", subject, mode=mode, **facts, **_spread(draw, ms, 0.06))
        memory = 190 + 90 * scale
        yield Measurement("cold_start", subject, mode="peak_memory", unit="MiB", **facts, **_spread(draw, memory, 0.01))
        if ours:
            mib = 57.3 if precision == "float32" else 14.9
            yield Measurement("cold_start", subject, mode="file", unit="MiB", **facts, **_spread(draw, mib, 0.0))
        else:
            why = "it has no file: the checkpoint is loaded"
            yield Measurement("cold_start", subject, ours, precision, mode="file", unit="MiB", reason=why)
    for name, ms in (("tkfnet-engine", 140.0), ("PyTorch", 1660.0), ("ONNX Runtime", 133.0), ("OpenVINO", 190.0)):
        ours = name == "tkfnet-engine"
        yield Measurement("cold_start", name, ours, mode="import", samples=5, **_spread(draw, ms, 0.1))
    for subject, seconds in (("tkfnet-engine, openvino", 12.4), ("tkfnet-engine, onnxruntime", 9.7)):
        for precision, mode, factor in (("float32", "cold", 1.0), ("int8", "cold", 6.3), ("int8", "cached", 2.2)):
            took = round(seconds * factor, 2)
            yield Measurement("build_time", subject, True, precision, mode=mode, unit="s", samples=1, median=took)


def _peers(draw: random.Random) -> Iterable[Measurement]:
    for subject, ours, ms in (("tkfnet-engine, openvino", True, 9.2), ("hsemotion_onnx", False, 41.0)):
        facts = {"mode": "jpeg", "batch": 1, "samples": 70}
        yield Measurement("peers", subject, ours, "float32" if ours else None, **facts, **_spread(draw, ms))
    yield Measurement("peers", "deepface", mode="jpeg", batch=1, reason="not installed; pip install deepface")


def cpu_run(seed: int = 0) -> Run:
    """Every suite."""
    draw = random.Random(seed)
    parts = (_engines, _load, _kernels, _processes, _peers)
    return Run(ENVIRONMENT, tuple(m for part in parts for m in part(draw)))


def only(run: Run, *suites: str) -> Run:
    return replace(run, measurements=tuple(m for m in run.measurements if m.suite in suites))


def on(run: Run, **facts: Any) -> Run:
    """With other facts of its environment."""
    return replace(run, environment={**run.environment, **facts})


def times_as_long(run: Run, factor: float, subject: str) -> Run:
    """`subject`'s times, all of them."""

    def slower(m: Measurement) -> Measurement:
        if m.subject != subject or m.median is None or not m.lower_is_better:
            return m
        longer = {
            k: None if (v := getattr(m, k)) is None else v * factor for k in ("median", "low", "high", "p90", "p99")
        }
        return replace(m, **longer)

    return replace(run, measurements=tuple(map(slower, run.measurements)))


def written(run: Run, path: Path) -> Path:
    run.write(path)
    return path


def raw(run: Run, path: Path) -> dict[str, Any]:
    """What stands in the file, to be broken."""
    return json.loads(written(run, path).read_text())
