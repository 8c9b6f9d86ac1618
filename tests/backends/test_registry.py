"""Which backends there are, and what opening one refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tkfnet_engine import Engine
from tkfnet_engine.backends import registry
from tkfnet_engine.backends.registry import (
    BACKENDS,
    GRAPH,
    PACKED_WEIGHTS,
    TENSORRT_PLAN,
    WEIGHTS,
    backend_info,
    open_backend,
    why_unavailable,
)
from tkfnet_engine.errors import BackendError, UsageError
from tkfnet_engine.hardware import usable_cores
from tkfnet_engine.spec import PRECISIONS

FACTS = {"backend": "onnxruntime"}


def _artefacts(*names):
    return SimpleNamespace(names=lambda: list(names), pop=lambda name: b"", array=lambda name: np.zeros(1))


@pytest.fixture
def without(monkeypatch):
    """without("openvino", ..): these libraries are not installed."""

    def hide(*names):
        real = importlib.util.find_spec
        monkeypatch.setattr(
            registry.importlib.util, "find_spec", lambda name, *more: None if name in names else real(name, *more)
        )

    return hide


@pytest.fixture
def with_tensorrt(monkeypatch):
    """As if both were installed: the full one comes from its vendor's own index only."""
    real = importlib.util.find_spec
    ours = ("tensorrt", "tensorrt_rtx")
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name, *more: name in ours or real(name, *more))


def test_the_table_is_sound():
    for name, info in BACKENDS.items():
        assert info.name == name and info.requires and info.install.startswith("pip install")
        assert set(info.devices) <= {"cpu", "cuda"} and set(info.precisions) <= set(PRECISIONS)
        assert info.artefact in (GRAPH, WEIGHTS, PACKED_WEIGHTS, TENSORRT_PLAN)
        # PyTorch is what an engine file is meant to do without.
        assert info.standalone == ("torch" not in info.requires)
        assert importlib.util.find_spec(f"tkfnet_engine.backends.{info.module}")


@pytest.mark.parametrize("name", ["tensorflow", "", "OnnxRuntime", "ort"])
def test_an_unknown_backend_is_named_beside_the_known(name):
    for call in (backend_info, why_unavailable, lambda n: open_backend(n, FACTS, _artefacts(GRAPH), "cpu", 1)):
        with pytest.raises(UsageError, match=f"backend: got '{name}', expected one of {', '.join(BACKENDS)}"):
            call(name)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_missing_library_comes_with_how_to_get_it(name, with_tensorrt, without):
    assert why_unavailable(name) is None
    without(*BACKENDS[name].requires)
    reason = why_unavailable(name)
    assert reason == f"it needs {BACKENDS[name].requires[0]}, which is not installed; {BACKENDS[name].install}"
    with pytest.raises(BackendError, match=f"backend {name}: it needs") as caught:
        open_backend(name, FACTS, _artefacts(BACKENDS[name].artefact + "x"), "cpu", 1)
    assert BACKENDS[name].install in str(caught.value)


def test_every_missing_library_is_listed(monkeypatch):
    several = registry.BackendInfo("both", "both", ("no_such_a", "no_such_b"), "pip install both", GRAPH, (), (), True)
    monkeypatch.setitem(BACKENDS, "both", several)
    assert why_unavailable("both") == "it needs no_such_a, no_such_b, which is not installed; pip install both"


def test_an_engine_whose_library_is_missing_says_so(without, engine_path):
    without("onnxruntime")
    with pytest.raises(BackendError, match=r"backend onnxruntime: it needs onnxruntime.*pip install onnxruntime"):
        Engine.load(engine_path)
    with Engine.load(engine_path, backend="openvino", threads=1) as engine:
        assert engine.backend == "openvino"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_device_it_does_not_run_on_is_refused(name, with_tensorrt):
    with pytest.raises(
        BackendError, match=f"backend {name}: got device 'tpu', expected {' or '.join(BACKENDS[name].devices)}"
    ):
        open_backend(name, FACTS, _artefacts(BACKENDS[name].artefact + "x"), "tpu", 1)


@pytest.mark.parametrize("name", ["eager", "compiled"])
def test_cuda_without_a_gpu_is_refused(name, build, small_checkpoint_path, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    build(small_checkpoint_path, tmp_path / "w.tkf", backend=name if name == "eager" else "eager")
    with pytest.raises(BackendError, match="none is usable here; build one for this machine"):
        Engine.load(tmp_path / "w.tkf", backend=name, device="cuda")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("held", [(), ("other", "graph", "weight"), None])
def test_an_artefact_that_is_missing_is_named(name, held, with_tensorrt):
    artefact = BACKENDS[name].artefact
    if held is None:
        held = (GRAPH if artefact == WEIGHTS else WEIGHTS + "stem.weight",)
    with pytest.raises(BackendError) as caught:
        open_backend(name, {"backend": "another"}, _artefacts(*held), BACKENDS[name].devices[0], 1)
    assert str(caught.value) == (
        f"backend {name}: this engine was built for another and lacks {artefact!r}; build one with "
        f"`python -m tkfnet_engine.build --backend {name}`"
    )


@pytest.mark.parametrize("threads", [0, -3, 1025])
def test_a_number_of_threads_out_of_range_is_named(threads):
    with pytest.raises(UsageError, match=f"threads: got {threads}, expected 1 to 1024"):
        open_backend("onnxruntime", FACTS, _artefacts(GRAPH), "cpu", threads)


@pytest.mark.parametrize(("threads", "passed"), [(None, usable_cores()), (3, 3)])
def test_threads_reach_the_runner(threads, passed, monkeypatch):
    opened = []
    module = SimpleNamespace(open_runner=lambda facts, artefacts, *settings: opened.append(settings))
    monkeypatch.setattr(registry.importlib, "import_module", lambda *name: module)
    open_backend("onnxruntime", FACTS, _artefacts(GRAPH), "cpu", threads)
    assert opened == [("cpu", passed)]


@pytest.mark.parametrize("where", ["open", "run"])
def test_a_librarys_own_failure_names_the_backend(where, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("first line\nsecond line")

    runner = SimpleNamespace(run=fail, close=lambda: None)
    module = SimpleNamespace(open_runner=fail if where == "open" else lambda *_: runner)
    monkeypatch.setattr(registry.importlib, "import_module", lambda *name: module)
    with pytest.raises(BackendError, match=r"backend onnxruntime .*ZeroDivisionError: first line[^\n]*$"):
        open_backend("onnxruntime", FACTS, _artefacts(GRAPH), "cpu", 1).run(np.zeros((2, 8, 8, 3), np.uint8))


def test_a_containers_quota_counts(tmp_path, monkeypatch):
    from tkfnet_engine import hardware

    for text, expected in (("100000 100000\n", 1), ("max 100000\n", None), ("1 100000\n", 1), ("nonsense", None)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(hardware, "_CGROUP_LIMIT", str(tmp_path / "cpu.max"))
        assert hardware.usable_cores() == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(__import__("os"), "sched_setaffinity"), reason="needs Linux's affinity")
def test_cores_are_those_of_this_process():
    code = (
        "import os; from tkfnet_engine.hardware import usable_cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
    assert usable_cores() >= 1
