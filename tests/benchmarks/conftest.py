"""The scripts of `benchmarks/gpu` as modules, and parts that need no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "benchmarks" / "gpu"

# A part that does what its arguments say, one after another, and counts how often it was begun.
FAKE_PART = """
import json, os, subprocess, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out, result = flags["--out"], flags["--result"]
def write(path, text, mode="w"):
    with open(path, mode) as file:
        file.write(text)
write(os.path.join(out, "begun"), flags["--name"] + "\\n", "a")
for step in flags["--do"].split(","):
    name, _, value = step.partition("=")
    if name == "result":
        write(result, json.dumps({"summary": value, "seconds": float(flags["--seconds"]), "took": flags.get("--took")}))
    elif name == "reason":
        write(result, json.dumps({"reason": value}))
    elif name == "make":
        write(os.path.join(out, value), "made")
    elif name == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        write(os.path.join(out, value), str(child.pid))
    elif name == "sleep":
        time.sleep(float(value))
    elif name == "raise":
        raise RuntimeError(value)
    elif name == "exit":
        sys.exit(int(value))
"""


@pytest.fixture(scope="session", autouse=True)
def scripts_importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="session")
def gpu_run(scripts_importable):
    """`run.py`, under a name that is nobody else's."""
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPTS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path):
    """fake(name, "result=fine,exit=10", ..): such a part, as `gpu_state.Part` takes them."""
    from gpu_state import Part

    script = tmp_path / "fake_part.py"
    script.write_text(FAKE_PART)

    def make(name: str, do: str = "result=fine", least_s: float = 0.0, **more) -> Part:
        return Part(name, str(script), ("--name", name, "--do", do), least_s, **more)

    return make


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def begun(out):
    """begun(): the parts that were begun, in order."""
    return lambda: (out / "begun").read_text().split() if (out / "begun").exists() else []
