"""Packages of the field beside ours, from the bytes of the same JPEGs to probabilities, one face at a time.

They are other networks, trained on other data: this compares what their users wait for, not how right they are. Give an
interpreter that has them with `--peers-python`. Nothing is downloaded: a package whose weights are not there says so.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from .engines.client import Worker, WorkerError
from .engines.race import PAUSE_S, ratio, summary
from .engines.subjects import SUBJECTS
from .machine import ROOT
from .record import Measurement

# By the name to import: how to get it.
PACKAGES = {
    "fer": "pip install fer",
    "emotiefflib": "pip install emotiefflib",
    "hsemotion_onnx": "pip install hsemotion-onnx",
    "deepface": "pip install deepface",
}
OURS = [s for s in SUBJECTS if s.ours and s.opener == "ours" and not s.cuda and s.engine and s.engine[0] == "openvino"]
OVER = "tkfnet-engine, openvino float32"


@pytest.fixture(scope="module")
def timed(request, field, builds, threads, quick) -> tuple[dict, dict]:
    """By name: for each round its milliseconds; and why others have none."""
    python = request.config.getoption("peers_python")
    workers, reasons = {}, {}
    for subject in OURS:
        one = field.contestant(subject)
        if one.worker is None:
            reasons[subject.id] = one.reason
        else:
            workers[subject.id] = one.worker
    made = []
    for name, install in PACKAGES.items():
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
        if subprocess.run([python, "-c", code], cwd="/").returncode:
            reasons[name] = f"not installed in {Path(python).name} of --peers-python; {install}"
            continue
        try:
            script = str(ROOT / "benchmarks" / "peers" / "peer_worker.py")
            workers[name] = Worker.of([python, script, name], threads, timeout=120)
            made.append(workers[name])
        except WorkerError as error:
            reasons[name] = f"it cannot run without a network, or not at all: {error}"
    jpegs, found = builds.jpegs(), {name: [] for name in workers}

    for _ in range(3 if quick else 7):
        for name in list(found):
            time.sleep(PAUSE_S)
            more = {"mode": "jpeg", "batch": 1} if name not in PACKAGES else {}
            try:
                found[name].append(workers[name].ask("time", seconds=0.15 if quick else 0.4, jpegs=jpegs, **more)["ms"])
            except WorkerError as error:
                reasons[name] = str(error)
                del found[name]
    for worker in made:
        worker.close()
    return found, reasons


@pytest.mark.parametrize("name", [*(subject.id for subject in OURS), *PACKAGES])
def test_pipeline(benchmark, recorder, timed, name):
    found, reasons = timed
    subject, _, precision = name.rpartition(" ") if name not in PACKAGES else (name, "", None)
    facts = {"suite": "peers", "subject": subject, "precision": precision, "mode": "jpeg", "batch": 1}
    facts["ours"] = name not in PACKAGES
    if name not in found:
        recorder.put(benchmark, "peers", Measurement(**facts, reason=reasons[name]), [])
    speedup = ratio(OVER, found[OVER], found[name]) if OVER in found else None
    seconds = [ms / 1e3 for one in found[name] for ms in one]
    recorder.put(benchmark, "peers", Measurement(**facts, **summary(found[name]), speedup=speedup), seconds)
