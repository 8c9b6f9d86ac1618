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
        timed: dict[str, dict[int, list[float]]] = {name: {b: [] for b in args.batch} for name in engines}
        for number in range(args.rounds):
            # The order turns, so that no engine always follows the same one.
            order = list(engines)[number % len(engines) :] + list(engines)[: number % len(engines)]
            for name in order:
                print(f"round {number + 1}/{args.rounds}: {name}", file=sys.stderr, flush=True)
                report = json.loads(
                    tkfnet(
                        "bench",
                        engines[name],
                        "--json",
                        "--samples",
                        str(args.samples),
                        "--batch",
                        *map(str, args.batch),
                    )
                )
                for row in report["results"]:
                    timed[name][row["batch"]].append(row["p50_ms"])

    print(f"auto chose {chosen}; p50 in ms: median of {args.rounds} rounds (lowest to highest)")
    for name, by_batch in timed.items():
        cells = [f"batch {b}: {statistics.median(t):8.2f} ({min(t):.2f} to {max(t):.2f})" for b, t in by_batch.items()]
        print(f"  {name:<12} {'   '.join(cells)}")
    print("speed of auto over each other (their time / its time, paired by round): median (lowest to highest)")
    for name in BACKENDS:
        cells = []
        for b in args.batch:
            ratios = [theirs / ours for theirs, ours in zip(timed[name][b], timed["auto"][b])]
            cells.append(f"batch {b}: {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"  {name:<12} {'   '.join(cells)}")


if __name__ == "__main__":
    main()
