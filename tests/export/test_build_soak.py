"""`make soak`: the build command itself, killed at 50 random moments."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tkfnet_engine.bundle import read_bundle

KILLS = 50


@pytest.mark.soak
def test_fifty_killed_builds_leave_nothing_or_an_engine(small_checkpoint_path, tmp_path):
    out = tmp_path / "killed.tkf"
    command = [sys.executable, "-m", "tkfnet_engine.build", "--backend", "onnxruntime", "--device", "cpu"]
    command += ["--checkpoint", str(small_checkpoint_path), "--out", str(out)]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, good = time.monotonic() - started, read_bundle(out).sha256
    draw, ends = random.Random(50), {"nothing": 0, "valid": 0, "finished before": 0}
    for trial in range(KILLS):
        out.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Every other kill is aimed at the end, where the file is written.
        moment = draw.uniform(0.85, 1.1) if trial % 2 else draw.uniform(0, 1)
        try:
            process.wait(moment * whole)
            ends["finished before"] += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if out.exists():
            assert read_bundle(out).sha256 == good, f"trial {trial}: another file than the build's"
            ends["valid"] += 1
        else:
            ends["nothing"] += 1
    print(ends)
    assert ends["nothing"] and ends["valid"]
    subprocess.run(command, check=True, capture_output=True)
    assert [p.name for p in tmp_path.iterdir()] == [out.name], "a stale temporary file stayed"
