"""`make soak`: the build command itself, killed at 50 random moments, and eight of it at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.trust import why_not_own

KILLS = 50
AT_ONCE, TIMES = 8, 20
FLAGS = {
    "onnxruntime": ["--device", "cpu"],
    "tensorrt-rtx": ["--device", "cuda", "--fp16", "--max-batch", "2", "--contexts", "1"],
}


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def _command(backend: str, checkpoint, out) -> list[str]:
    command = [sys.executable, "-m", "tkfnet_engine.build", "--backend", backend, *FLAGS[backend]]
    return [*command, "--checkpoint", str(checkpoint), "--out", str(out)]


def _content(path) -> tuple:
    """Facts and tensors. TensorRT gives another plan each time, and its own names to layers."""
    bundle = read_bundle(path)
    return bundle.facts, {n: bytes(bundle.bytes(n)) for n in bundle.names() if not n.startswith("tensorrt/")}


def _left(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".log"]


@pytest.mark.soak
@pytest.mark.parametrize("backend", FLAGS)
def test_fifty_killed_builds_leave_nothing_or_an_engine(backend, small_checkpoint_path, tmp_path):
    out = tmp_path / "killed.tkf"
    command = _command(backend, small_checkpoint_path, out)
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole, good = time.monotonic() - started, _content(out)
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
            assert _content(out) == good, f"trial {trial}: another file than the build's"
            ends["valid"] += 1
        else:
            ends["nothing"] += 1
    print(ends)
    assert ends["nothing"] and ends["valid"]
    subprocess.run(command, check=True, capture_output=True)
    assert _left(tmp_path) == [out.name], "a stale temporary file stayed"


@pytest.mark.soak
def test_eight_builds_at_once_twenty_times_end_in_one_engine_each_time(small_checkpoint_path, tmp_path):
    out = tmp_path / "shared.tkf"
    for _ in range(TIMES):
        command = _command("tensorrt-rtx", small_checkpoint_path, out)
        builds = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(AT_ONCE)]
        errors = [build.communicate()[1] for build in builds]
        assert [build.returncode for build in builds] == [0] * AT_ONCE, errors
        bundle = read_bundle(out)
        assert bundle.facts["backend"] == "tensorrt-rtx" and why_not_own(bundle.bytes("tensorrt/plan")) is None
        assert _left(tmp_path) == [out.name]
