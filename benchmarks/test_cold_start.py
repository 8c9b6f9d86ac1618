"""From the start of a process to its first answer, what of it is import and loading, peak memory, and the file's size.

Each engine is started in new processes, in turn; the file system's cache is warm, as in a service that restarts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from .engines.client import Worker, WorkerError
from .engines.race import ratio, summary
from .engines.subjects import BASELINE, SUBJECTS
from .record import Measurement

TIMES = ("start_to_first", "load", "first")
SIZES = ("peak_memory", "file")
# What a compiler does in its first call is the build's time (test_build_time.py).
STARTED = [subject for subject in SUBJECTS if subject.opener != "compiled"]
IMPORTS = {"tkfnet-engine": "tkfnet_engine", "PyTorch": "torch", "ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}


def _start(settings: dict, opener: str) -> dict[str, float]:
    begin = time.perf_counter()
    worker = Worker(opener, **settings)
    try:
        said = worker.ask("first", batch=1)
        whole = time.perf_counter() - begin
        return {
            "start_to_first": whole * 1e3,
            "load": worker.open_s * 1e3,
            "first": said["seconds"] * 1e3,
            "peak_memory": said["rss_mib"],
        }
    finally:
        worker.close()


@pytest.fixture(scope="module")
def starts(field, builds, quick) -> dict[str, list[dict[str, float]]]:
    """By subject, what each of its processes took. Rounds over all subjects."""
    able = [subject for subject in STARTED if field.contestant(subject).reason is None]
    found: dict[str, list[dict[str, float]]] = {subject.id: [] for subject in able}
    for _ in range(1 if quick else 3):
        for subject in able:
            settings = builds.settings(subject)
            found[subject.id].append(_start(settings, subject.opener))
            if path := settings.get("engine") or settings.get("graph"):
                # An export may keep its weights in a file beside it.
                files = [Path(path), *Path(path).parent.glob(Path(path).name + ".data")]
                found[subject.id][-1]["file"] = sum(file.stat().st_size for file in files) / 2**20
    return found


def _facts(subject, mode: str, unit: str) -> dict:
    facts = {"suite": "cold_start", "subject": subject.name, "precision": subject.precision, "mode": mode}
    return facts | {"ours": subject.ours, "unit": unit, "device": subject.device}


@pytest.mark.parametrize("mode", TIMES)
@pytest.mark.parametrize("subject", STARTED, ids=lambda s: s.id)
def test_start(benchmark, recorder, field, starts, subject, mode):
    facts, runs = _facts(subject, mode, "ms"), [[one[mode]] for one in starts.get(subject.id, [])]
    if not runs:
        recorder.put(benchmark, mode, Measurement(**facts, reason=field.contestant(subject).reason or "not run"), [])
    baseline = [[one[mode]] for one in starts.get(BASELINE, [])]
    speedup = ratio(BASELINE, baseline, runs) if baseline else None
    found = Measurement(**facts, **summary(runs), speedup=speedup)
    if mode == TIMES[0]:
        for size in SIZES:
            if sizes := [[one[size]] for one in starts[subject.id] if size in one]:
                recorder.note(Measurement(**_facts(subject, size, "MiB"), **summary(sizes)))
    recorder.put(benchmark, f"cold start, {mode}", found, [one[0] / 1e3 for one in runs])


@pytest.mark.parametrize("name", IMPORTS)
def test_import(benchmark, recorder, quick, name):
    """What `import` alone takes in a new process, less what an empty process takes."""
    facts = {"suite": "cold_start", "subject": name, "mode": "import", "ours": name == "tkfnet-engine"}
    pairs = []
    for _ in range(2 if quick else 5):
        empty = _python("pass")
        pairs.append(_python(f"import {IMPORTS[name]}") - empty)
    seconds = [max(pair, 0.0) for pair in pairs]
    found = summary([[one * 1e3] for one in seconds])
    recorder.put(benchmark, "cold start, import", Measurement(**facts, **found), seconds)


def _python(code: str) -> float:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise WorkerError(done.stderr.strip().splitlines()[-1])
    return time.perf_counter() - begin
