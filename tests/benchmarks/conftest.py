"""The scripts of `benchmarks/gpu` as modules, and parts that need no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
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
    elif name == "import":
        write(result, json.dumps({"summary": __import__(value).where}))
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


# --- TensorRT --------------------------------------------------------------------------------------------

FAKE_TRT = Path(__file__).with_name("fake_trt.py")


@pytest.fixture(scope="session")
def graph():
    """uint8 images [N, 16, 16, 3] -> logits [N, 7], as ONNX."""
    onnx = pytest.importorskip("onnx")
    weights = np.random.default_rng(1).normal(size=(16 * 16 * 3, 7)).astype(np.float32) / 1000
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=types.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", types.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["N", 7])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def _fake(name):
    spec = importlib.util.spec_from_file_location(name, FAKE_TRT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rtx():
    """A stand-in for TensorRT for RTX."""
    return _fake("tensorrt_rtx")


@pytest.fixture(scope="session")
def full():
    """The full TensorRT, which has no settings for contexts."""
    module = _fake("tensorrt")
    del module.DynamicShapesKernelSpecializationStrategy
    module.Engine.create_execution_context = lambda self: module.Context(self._held, self._session, self._log)
    del module.Context.is_stream_capturable
    return module
