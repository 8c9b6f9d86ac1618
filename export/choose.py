"""Which of several engines is fastest on this machine.

Each engine is timed in processes of its own, in turn and twice over: the thread pools of two runtimes in one
process disturb each other, and a shared machine's speed drifts.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping

from ..console import progress
from ..errors import BackendError

BATCHES = (1, 8, 32)
ROUNDS = 2
# Samples per batch size and round; a median needs no more.
SAMPLES = 12

# Milliseconds by batch size, by backend.
Timing = dict[str, dict[int, float]]


def time_engines(paths: Mapping[str, str], max_batch: int) -> Timing:
    """Median latency, in milliseconds, of each engine file at each batch size."""
    batches = [b for b in BATCHES if b <= max_batch]
    turns = [name for _ in range(ROUNDS) for name in paths]
    measured: dict[str, list[dict[int, float]]] = {name: [] for name in paths}
    for name in progress(turns, "timing the backends"):
        measured[name].append(_time(name, paths[name], batches))
    return {n: {b: statistics.median(r[b] for r in rounds) for b in batches} for n, rounds in measured.items()}


def _time(name: str, path: str, batches: list[int]) -> dict[int, float]:
    command = [sys.executable, "-m", "tkfnet_engine.bench", path, "--json", "--samples", str(SAMPLES), "--batch"]
    result = subprocess.run([*command, *map(str, batches)], capture_output=True, text=True)
    if result.returncode:
        raise BackendError(f"backend {name} verified but could not be timed: {result.stderr.strip()[-500:]}")
    return {row["batch"]: row["p50_ms"] for row in json.loads(result.stdout)["results"]}


def fastest(timing: Timing) -> str:
    """The backend with the lowest geometric mean over the batch sizes."""
    return min(timing, key=lambda name: math.fsum(map(math.log, timing[name].values())))
