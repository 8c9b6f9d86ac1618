"""The engine that `build` chooses, beside every other way to run the same network on this CPU, float32.

    python benchmarks/compare_backends.py [--rounds 5] [--samples 20] [--batch 1 8 32] [--checkpoint P]

Every engine runs in a process of its own, in turn, `--rounds` times over; a ratio is taken within a round, so
that a drift of the machine's speed touches both sides. Each engine was verified when it was built: a wrong one
gets no number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from tkfnet_engine.hardware import processor_name, usable_cores

BACKENDS = ("onnxruntime", "openvino", "eager", "compiled")


def tkfnet(command: str, *arguments: str) -> str:
    process = subprocess.run([sys.executable, "-m", f"tkfnet_engine.{command}", *arguments], stdout=subprocess.PIPE)
    if process.returncode:
        sys.exit(f"{command} {' '.join(arguments)} failed")
    return process.stdout.decode()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--samples", type=int, default=20, help="timed runs per batch size and round")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    p.add_argument("--checkpoint", help="default: the shipped reference")
    args = p.parse_args()
    checkpoint = ["--checkpoint", args.checkpoint] if args.checkpoint else []

    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for name in ("auto", *BACKENDS):
            engines[name] = os.path.join(folder, f"{name}.tkf")
            tkfnet("build", "--device", "cpu", "--backend", name, "--out", engines[name], *checkpoint)
        chosen = json.loads(tkfnet("info", engines["auto"], "--json"))["backend"]
        environment: dict[str, str] = {}
        timed: dict[str, dict[int, list[float]]] = {name: {b: [] for b in args.batch} for name in engines}
        for number in range(args.rounds):
            # The order turns, so that no engine always follows the same one.
            order = list(engines)[number % len(engines) :] + list(engines)[: number % len(engines)]
            for name in order:
                print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
                samples = ["--samples", str(args.samples), "--batch", *map(str, args.batch)]
                report = json.loads(tkfnet("bench", engines[name], "--json", *samples))
                environment = environment | report["environment"]["versions"]
                for row in report["results"]:
                    timed[name][row["batch"]].append(row["p50_ms"])

    print(f"{processor_name()}, {usable_cores()} cores; " + ", ".join(f"{k} {v}" for k, v in environment.items()))
    print(f"auto chose {chosen}; p50 in ms: median of {args.rounds} rounds (lowest to highest)")
    for name, by_batch in timed.items():
        print(f"  {name:<12} {cells(by_batch)}")
    print("their time / auto's time, paired by round: median (lowest to highest); above 1 auto is faster")
    ratios = {
        name: {b: [t / a for t, a in zip(timed[name][b], timed["auto"][b])] for b in args.batch} for name in BACKENDS
    }
    for name in BACKENDS:
        print(f"  {name:<12} {cells(ratios[name])}")
    best = {b: min(BACKENDS, key=lambda name: statistics.median(timed[name][b])) for b in args.batch}
    print(f"  {'the best':<12} {cells({b: ratios[name][b] for b, name in best.items()})}")


def cells(by_batch: dict[int, list[float]]) -> str:
    return "   ".join(
        f"batch {b}: {statistics.median(values):8.3f} ({min(values):.3f} to {max(values):.3f})"
        for b, values in by_batch.items()
    )


if __name__ == "__main__":
    main()
