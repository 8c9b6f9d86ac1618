"""Which of several engines is fastest on this machine.

Each engine is timed in processes of its own, in turn and several times over: the thread pools of two runtimes in one
process disturb each other, and a shared machine's speed drifts. What else runs there only ever adds time, so of the
rounds the lowest counts.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping

from ..console import progress
from ..errors import BackendError

BATCHES = (1, 8, 32)
ROUNDS = 4
# Samples per batch size and round; a median needs no more.
SAMPLES = 8
TIMEOUT_S = 600.0

# Milliseconds by batch size, by backend.
Timing = dict[str, dict[int, float]]


def time_engines(paths: Mapping[str, str], max_batch: int) -> tuple[Timing, dict[str, str]]:
    """Latency in milliseconds of each engine file at each batch size, the median of its best round; and why others have
    none."""
    batches = [b for b in BATCHES if b <= max_batch]
    turns = [name for _ in range(ROUNDS) for name in paths]
    measured: dict[str, list[dict[int, float]]] = {name: [] for name in paths}
    failed: dict[str, str] = {}
    for name in progress(turns, "timing the backends"):
        if name in failed:
            continue
        try:
            measured[name].append(_time(name, paths[name], batches))
        except BackendError as error:
            failed[name] = str(error)
            del measured[name]
    timing = {n: {b: min(r[b] for r in rounds) for b in batches} for n, rounds in measured.items()}
    return timing, failed


def _time(name: str, path: str, batches: list[int]) -> dict[int, float]:
    # What is timed was built by this very process.
    command = [
        sys.executable,
        "-m",
        "tkfnet_engine.bench",
        path,
        "--trust",
        "--json",
        "--samples",
        str(SAMPLES),
        "--batch",
    ]
    try:
        result = subprocess.run([*command, *map(str, batches)], capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BackendError(f"backend {name} verified but did not finish being timed in {TIMEOUT_S:.0f} s") from None
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise BackendError(f"backend {name} verified but ended with {result.returncode} when timed: {last[0]}")
    return {row["batch"]: row["p50_ms"] for row in json.loads(result.stdout)["results"]}


def fastest(timing: Timing) -> str:
    """The backend with the lowest geometric mean over the batch sizes."""
    return min(timing, key=lambda name: math.fsum(map(math.log, timing[name].values())))
