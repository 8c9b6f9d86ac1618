"""A TensorRT plan is a program: without trust it reaches no library, whoever wrote the file around it."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine import Engine, engine, evaluate
from tkfnet_engine.__main__ import COMMANDS
from tkfnet_engine.backends.registry import BACKENDS, TENSORRT_PLAN
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import BackendError, TrustError, UsageError
from tkfnet_engine.spec import LABELS
from tkfnet_engine.trust import remember

from .plan_files import PLAN, SIZE, Backend, write_engine

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is noted")


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def backend(monkeypatch) -> Backend:
    return Backend(monkeypatch, "tensorrt", "tensorrt-rtx", "onnxruntime")


@pytest.fixture
def path(tmp_path) -> Path:
    return write_engine(tmp_path / "an engine.tkf")


def _refused(standin, path, **arguments) -> str:
    with pytest.raises(TrustError) as caught:
        Engine.load(path, **arguments)
    assert standin.opened == []
    return str(caught.value)


def test_the_programs_are_marked():
    assert {name for name, info in BACKENDS.items() if info.executable} == {"tensorrt", "tensorrt-rtx"}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_from_elsewhere_is_refused(backend, tmp_path, name):
    path = write_engine(tmp_path / "an engine.tkf", backend=name)
    text = _refused(backend, path)
    assert text.startswith(f"{path}: its tensorrt/plan runs as a program on this machine")
    assert "this user has not built it on this machine" in text and "trusted=True (--trust)" in text
    assert f"python -m tkfnet_engine.build --from '{path}' --out NEW.tkf" in text


def test_the_refusal_comes_before_anything_of_the_library(path, monkeypatch):
    """No stand-in: the real module of the backend stays unimported, and so does the library."""
    for name in [m for m in sys.modules if m.startswith(("tensorrt", "tkfnet_engine.backends.trt"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(engine, "open_backend", lambda *_: pytest.fail("the backend was opened"))
    with pytest.raises(TrustError):
        Engine.load(path)
    assert not [m for m in sys.modules if m.startswith(("tensorrt", "tkfnet_engine.backends.trt"))]


def test_an_own_plan_opens(backend, path):
    assert remember(PLAN) is None
    with Engine.load(path) as opened:
        assert (opened.backend, opened.device) == ("tensorrt", "cuda")
        assert opened.logits(np.full((2, SIZE, SIZE, 3), 7, np.uint8))[:, 0].tolist() == [7, 7]
    assert backend.opened == [(TENSORRT_PLAN, PLAN)]


def test_trusted_opens_it_and_notes_nothing(backend, path, state):
    with Engine.load(path, trusted=True):
        assert backend.opened == [(TENSORRT_PLAN, PLAN)]
    assert not state.exists()
    backend.opened.clear()
    _refused(backend, path)


@pytest.mark.parametrize("trusted", [1, 0, "yes", "", None, np.bool_(True)])
def test_trusted_is_a_bool(backend, path, trusted):
    with pytest.raises(UsageError, match=r"trusted: got .*, expected True or False"):
        Engine.load(path, trusted=trusted)
    assert backend.opened == []


def test_trust_is_in_the_bytes_of_the_plan_and_nothing_around_it(backend, path, tmp_path):
    assert remember(PLAN) is None
    shutil.copy(path, tmp_path / "copy.tkf")
    for own in (tmp_path / "copy.tkf", write_engine(tmp_path / "facts.tkf", max_batch=8)):
        Engine.load(own).close()
    backend.opened.clear()
    changed = bytearray(PLAN)
    changed[len(PLAN) // 2] ^= 1
    for other in (bytes(changed), PLAN + b"\0", PLAN[:-1]):
        # In the place of the own file, as whoever may write it would put it.
        _refused(backend, write_engine(path, other))


def test_all_that_the_backend_could_take_is_looked_at(backend, tmp_path):
    assert remember(PLAN) is None
    more = write_engine(tmp_path / "more.tkf", tensors={f"{TENSORRT_PLAN}.2": b"another program"})
    assert f"{TENSORRT_PLAN}.2 runs as a program" in _refused(backend, more)
    alone = write_engine(tmp_path / "alone.tkf", plan=None, tensors={f"{TENSORRT_PLAN}.2": b"another program"})
    _refused(backend, alone)


def test_the_bytes_that_are_judged_are_those_that_run(backend, path, monkeypatch):
    """The very object, so there is neither a second read nor a copy; the file is exchanged in between."""
    judged = []

    def judge(plan):
        judged.append(plan)
        write_engine(path, b"another program")

    monkeypatch.setattr(engine, "why_not_own", judge)
    Engine.load(path).close()
    assert len(judged) == 1 and backend.opened[0][1] is judged[0] and judged[0] == PLAN
    assert read_bundle(path).bytes(TENSORRT_PLAN) == b"another program"


def test_what_the_caller_asks_for_counts_not_what_the_file_says(backend, path, tmp_path):
    disguised = write_engine(tmp_path / "disguised.tkf", backend="onnxruntime")
    _refused(backend, disguised, backend="tensorrt")
    _refused(backend, path, backend="tensorrt-rtx")
    # A graph is data.
    Engine.load(path, backend="onnxruntime", device="cpu").close()
    Engine.load(disguised).close()
    assert [name for name, _ in backend.opened] == ["graph.onnx", "graph.onnx"]


def test_an_engine_without_a_plan_is_refused_as_that(backend, tmp_path):
    graph = write_engine(tmp_path / "graph.tkf", plan=None, backend="onnxruntime", device="cpu")
    with pytest.raises(BackendError, match="was built for onnxruntime and lacks 'tensorrt/plan'") as caught:
        Engine.load(graph, backend="tensorrt")
    assert not isinstance(caught.value, TrustError)


# --- commands ----------------------------------------------------------------------------------------------


class _Faces:
    name, skipped, labels = "faces", (), np.arange(7) % len(LABELS)

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        return np.full((SIZE, SIZE, 3), index, np.uint8)


@pytest.mark.parametrize(
    "argv",
    [
        ["predict", "a.png", "--detector", "none"],
        ["bench", "--batch", "1", "--samples", "1"],
        ["evaluate", "--data", "synthetic"],
    ],
    ids=lambda argv: argv[0],
)
def test_commands_need_the_flag(command, backend, path, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tkfnet_engine.bench.WARM_UP_S", 0)
    monkeypatch.setattr(evaluate, "open_data", lambda *_: _Faces())
    Image.new("RGB", (SIZE, SIZE)).save("a.png")
    shown = command(argv[0], path, *argv[1:])
    assert (shown.code, shown.out, shown.err.count("\n")) == (9, "", 1) and "--trust" in shown.err
    assert backend.opened == []
    shown = command(argv[0], path, *argv[1:], "--trust")
    assert shown.code == 0 and shown.out and len(backend.opened) == 1
    remember(PLAN)
    assert command(argv[0], path, *argv[1:]).code == 0


def test_every_command_that_loads_an_engine_has_the_flag_and_passes_it_on():
    loading = set()
    for name in COMMANDS:
        module = importlib.import_module(f"tkfnet_engine.{name}")
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Engine.load", "Pipeline"):
                loading.add(name)
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}["trusted"] == "args.trust", name
                assert "--trust" in module.parser()._option_string_actions
    assert loading == {"predict", "bench", "evaluate"}
