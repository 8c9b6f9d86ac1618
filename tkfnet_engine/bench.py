"""`python -m tkfnet_engine.bench ENGINE`: times an engine on this machine."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import __version__
from .console import Parser, emit_json, progress, run_command
from .engine import Engine
from .errors import UsageError
from .hardware import processor_name, usable_cores
from .trust import TRUST_HELP

MAX_BATCH = 4096
WARM_UP_S = 0.5
WARM_UP_RUNS = 3
# A percentile needs samples beyond it: with fewer than these it is left out.
NEEDED = {50: 1, 90: 10, 99: 100}


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.bench", description=__doc__.partition(": ")[2])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf)")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="batch sizes (default 1 8 32)")
    p.add_argument("--samples", type=int, default=100, metavar="N", help="timed runs per batch size (default 100)")
    p.add_argument("--backend", help="another than the file's own")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    p.add_argument("--layers", action="store_true", help="the time of each layer of a TensorRT engine instead")
    p.add_argument("--chart", metavar="FILE", help="for --layers of one batch: a chart as .svg, .png or .pdf")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    return p


def time_batch(engine: Engine, batch: int, samples: int) -> dict[str, Any]:
    """Latency of `engine.logits` on random pixels, host to host, in milliseconds; four batches in turn."""
    size = engine.input_size
    draw = np.random.default_rng(batch)
    inputs = [draw.integers(0, 256, (batch, size, size, 3), np.uint8) for _ in range(4)]
    start, runs = time.perf_counter(), 0
    while runs < WARM_UP_RUNS or time.perf_counter() - start < WARM_UP_S:
        engine.logits(inputs[runs % len(inputs)])
        runs += 1
    taken = []
    for run in progress(range(samples), f"batch {batch}"):
        begin = time.perf_counter()
        engine.logits(inputs[run % len(inputs)])
        taken.append((time.perf_counter() - begin) * 1e3)
    row: dict[str, Any] = {"batch": batch, "samples": samples}
    for percentile, needed in NEEDED.items():
        enough = samples >= needed
        row[f"p{percentile}_ms"] = round(float(np.percentile(taken, percentile)), 4) if enough else None
    row["images_per_s"] = round(batch / (row["p50_ms"] / 1e3), 2)
    return row


def environment(engine: Engine) -> dict[str, Any]:
    """What the numbers depend on."""
    facts = engine.info
    return {
        "tkfnet-engine": __version__,
        "backend": engine.backend,
        "device": engine.device,
        "precision": facts["precision"],
        "versions": facts.get("versions"),
        "built_on": facts.get("hardware"),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not 1 <= min(args.batch) <= max(args.batch) <= MAX_BATCH or args.samples < 1:
        raise UsageError(
            f"--batch {args.batch} --samples {args.samples}: expected 1 to {MAX_BATCH}, and samples from 1"
        )
    if args.chart and not (args.layers and len(args.batch) == 1):
        raise UsageError("--chart: got it without --layers and one --batch, expected both; add them")
    with Engine.load(args.engine, backend=args.backend, threads=args.threads, trusted=args.trust) as engine:
        if args.layers:
            return _layers(engine, args)
        facts = environment(engine) | {"threads": args.threads or usable_cores()}
        results = [time_batch(engine, batch, args.samples) for batch in args.batch]
    if args.json:
        emit_json({"environment": facts, "results": results})
        return 0
    print(f"{args.engine}: {facts['backend']} on {facts['device']}, {facts['precision']}, {facts['threads']} threads")
    print(f"{'batch':>6} {'p50 ms':>10} {'p90 ms':>10} {'p99 ms':>10} {'images/s':>10}")
    for row in results:
        cells = [f"{row[k]:>10.2f}" if row[k] is not None else f"{'-':>10}" for k in ("p50_ms", "p90_ms", "p99_ms")]
        print(f"{row['batch']:>6} {' '.join(cells)} {row['images_per_s']:>10.1f}")
    return 0


def _layers(engine: Engine, args: argparse.Namespace) -> int:
    from .layer_profile import draw_profile, profile_layers, text_of_profile

    found = [profile_layers(engine, args.engine, batch, args.samples) for batch in args.batch]
    if args.chart:
        draw_profile(found[0], args.chart)
    if args.json:
        emit_json({"environment": environment(engine), "profiles": found})
    else:
        print("\n\n".join(map(text_of_profile, found)))
    return 0


if __name__ == "__main__":
    run_command(main)
