"""What a TensorRT build refuses, and what it survives: wrong options, wrong GPUs, crashes, limits, builds at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from tkfnet_engine.errors import BackendError, FileError, UsageError
from tkfnet_engine.export import engine_from_onnx, timing_cache
from tkfnet_engine.export.engine_from_onnx import Here, examined, plan_from_onnx
from tkfnet_engine.export.tensorrt_layers import layers_from_inspector, layers_from_log
from tkfnet_engine.export.tensorrt_options import RTX, TensorRtOptions
from tkfnet_engine.export.timing_cache import add_to_cache, read_cache, timing_cache_path

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs flock and signals")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_batch": 0}, "--min-batch 0, --opt-batch 8, --max-batch 32"),
        ({"min_batch": 9, "opt_batch": 8}, "--min-batch 9, --opt-batch 8"),
        ({"opt_batch": 33}, "--opt-batch 33, --max-batch 32"),
        ({"contexts": 0}, "--contexts: got 0, expected 1 to 16"),
        ({"optimization_level": 6}, "--optimization-level: got 6, expected 0 to 5"),
        ({"workspace": 1000}, "--workspace: got 0.000954 MiB, expected 1 or more"),
        ({"timeout_s": 0.0}, "--timeout: got 0 seconds"),
        ({"timeout_s": float("nan")}, "--timeout: got nan seconds"),
        ({"version_compatible": True}, "--version-compatible: TensorRT for RTX has no such thing"),
        ({"hardware_compatible": True}, "--hardware-compatible: TensorRT for RTX has no such thing"),
        ({"timing_cache": "x.cache"}, "--timing-cache: TensorRT for RTX has no such thing"),
        ({"backend": "tensorrt", "capabilities": ("8.6",)}, "--arch: a TensorRT engine is for the GPU that builds it"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        TensorRtOptions(**{"backend": RTX, "max_batch": 32} | options)


def test_batches_and_contexts_make_profiles():
    assert TensorRtOptions(RTX, 32).profiles == [{"min": 1, "opt": 8, "max": 32}] * 2
    assert TensorRtOptions(RTX, 4, contexts=3).profiles == [{"min": 1, "opt": 4, "max": 4}] * 3
    assert TensorRtOptions(RTX, 64, min_batch=16).profiles[0]["opt"] == 16
    static = TensorRtOptions(RTX, 8, min_batch=8)
    assert static.static and static.profiles == [{"min": 8, "opt": 8, "max": 8}]


def test_options_come_back_from_an_engine_file():
    given = TensorRtOptions(RTX, 64, 2, 16, contexts=3, workspace=1 << 30, optimization_level=4)
    assert TensorRtOptions.from_facts(RTX, given.facts()) == given
    changed = TensorRtOptions.from_facts(RTX, given.facts(), capabilities=("8.9",), timeout_s=5.0)
    assert (changed.capabilities, changed.timeout_s, changed.workspace) == (("8.9",), 5.0, 1 << 30)
    for damaged in ({}, {"profiles": []}, given.facts() | {"options": {"colour": "red"}}):
        with pytest.raises(BackendError, match="does not say how its TensorRT engine was built"):
            TensorRtOptions.from_facts(RTX, damaged)


@pytest.mark.parametrize("capability", ["9.0", "10.0", "7.5", "4.2"])
def test_a_gpu_that_tensorrt_for_rtx_does_not_build_for(capability, tmp_path, monkeypatch):
    """Named by --arch, or because it is the GPU that is here."""
    named = TensorRtOptions(RTX, 8, capabilities=("8.6", capability))
    expected = rf"builds this network for compute capabilities 8.0, .*got {capability}; build with --backend fused"
    with pytest.raises(BackendError, match=expected):
        plan_from_onnx(b"", 64, "float32", named, [], str(tmp_path / "log"))
    monkeypatch.setattr(engine_from_onnx, "gpu_here", lambda: Here("NVIDIA Something", capability, 13000))
    with pytest.raises(BackendError, match=expected):
        plan_from_onnx(b"", 64, "float32", TensorRtOptions(RTX, 8), [], str(tmp_path / "log"))


def test_tensorrt_itself_needs_the_gpu_it_builds_for(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_from_onnx, "gpu_here", lambda: None)
    with pytest.raises(BackendError, match=r"TensorRT builds on the GPU .* or with --backend tensorrt-rtx"):
        plan_from_onnx(b"", 64, "float32", TensorRtOptions("tensorrt", 8), [], str(tmp_path / "log"))


# --- its process -------------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(code): that is what `import tensorrt_rtx` runs in the process that builds."""

    def install(code: str) -> None:
        folder = tmp_path / "libraries"
        folder.mkdir()
        (folder / "tensorrt_rtx.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


def test_a_library_that_ends_its_process_ends_no_more(stand_in, tmp_path):
    stand_in("import os; os._exit(3)")
    log = str(tmp_path / "log")
    with pytest.raises(BackendError, match=rf"tensorrt-rtx ended its process \(3\) while it built; see {log}"):
        examined(b"", 64, "float32", TensorRtOptions(RTX, 8), [], log)


def test_a_library_that_hangs_is_ended_at_the_limit(stand_in, tmp_path, monkeypatch):
    stand_in("import time; time.sleep(600)")
    monkeypatch.setattr(engine_from_onnx, "GRACE_S", 0.1)
    started = time.monotonic()
    with pytest.raises(BackendError, match=r"building took longer than --timeout 0\.2 s"):
        examined(b"", 64, "float32", TensorRtOptions(RTX, 8, timeout_s=0.2), [], str(tmp_path / "log"))
    assert time.monotonic() - started < 60 and not multiprocessing.active_children()


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match=r"nowhere/log: TensorRT's log cannot be written: .*; give --log"):
        examined(b"", 64, "float32", TensorRtOptions(RTX, 8), [], str(tmp_path / "nowhere" / "log"))


# --- what it says of its layers ----------------------------------------------------------------------------


def test_a_log_in_an_unknown_form_is_not_guessed_at():
    with pytest.raises(BackendError, match="lists no layers, expected them at detailed verbosity"):
        layers_from_log(["Building", "Done"])
    with pytest.raises(BackendError, match="lists a layer in an unknown form: 'Name: a, LayerType: b, Tensors"):
        layers_from_log(["Layers:\nName: a, LayerType: b, Tensors: none"])


_LINE = (
    "Name: {name}, LayerType: correlation, Inputs: [ {{ Name: x, Dimensions: [-1,8,4,4], Strides: [1], Datatype: Half, "
    "Format: (NHWC) Channel major format }}], Constants: [ {{ Name: w, Dimensions: [8,8,3,3], Datatype: Int8, "
    "Format: f }}], Outputs: [ {{ Name: y, Dimensions: [-1,8,4,4], Datatype: Float, Format: (NHWC) f }}], "
    "TacticName: fast_one, StreamId: 0, Metadata: [ONNX Layer: a.b][ONNX Layer: a.c]"
)


def test_layers_of_the_first_profile_are_read_from_a_log():
    names = ["a.b_U7_myl0_4", "a.b_U7 [profile 1]_myl0_9", "tail_myl1_3"]
    wait = (
        "Name: w_myl0_5, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
    )
    listing = "Layers:\n" + "\n".join([_LINE.format(name=name) for name in names] + [wait])
    (layer,) = layers_from_log(["Layers:\nof an earlier build", "noise", listing])
    shape = (-1, 8, 4, 4)
    assert layer.to_dict() == {
        "name": "a.b",
        "kind": "correlation",
        "precision": "float16",
        "reads": [{"shape": list(shape), "type": "float16"}],
        "writes": [{"shape": list(shape), "type": "float32"}],
        "weights": ["int8"],
        "tactic": "fast_one",
        "origin": ["a.b", "a.c"],
    }


@pytest.mark.parametrize(
    ("operand", "kind"),
    [
        ({"Datatype": "Int8"}, "int8"),
        ({"Format/Datatype": "Half"}, "float16"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "float16"),
        ({"Format/Datatype": "Row major linear FP32"}, "float32"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
    ],
)
def test_layers_are_read_from_the_inspector_of_either_version(operand, kind):
    operand = {"Name": "x", "Dimensions": [-1, 8]} | operand
    entry = {
        "LayerType": "gemm",
        "Inputs": [operand],
        "Outputs": [operand],
        "TacticName": "t",
        "Metadata": "[ONNX Layer: a]",
    }
    names = ["a_myl0_1", "a [profile 1]_myl1_1"]
    (layer,) = layers_from_inspector([entry | {"Name": name} for name in names])
    assert (layer.name, layer.precision, layer.origin) == ("a", kind, ("a",))
    with pytest.raises(BackendError, match="names of layers only"):
        layers_from_inspector([{"Name": "a"}])


# --- the timing cache --------------------------------------------------------------------------------------


def _merge_one(path: str, entry: str) -> None:
    """A stand-in for TensorRT's cache: lines, which combine to their union."""
    lines = {*read_cache(path).decode().split(), entry}

    def merged(content: bytes) -> bytes:
        return "\n".join(sorted(lines | set(content.decode().split()))).encode()

    add_to_cache(path, merged)


def _merge_many(path: str, name: str, count: int) -> None:
    for i in range(count):
        _merge_one(path, f"{name}-{i}")


@POSIX
def test_builds_at_once_lose_nothing_of_each_others_cache(tmp_path):
    path = str(tmp_path / "t.cache")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_merge_many, args=(path, f"p{i}", 20)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert set(read_cache(path).decode().split()) == {f"p{i}-{k}" for i in range(8) for k in range(20)}
    assert sorted(os.listdir(tmp_path)) == ["t.cache", "t.cache.lock"]


@POSIX
def test_a_killed_build_breaks_neither_cache_nor_lock(tmp_path):
    path = str(tmp_path / "t.cache")
    _merge_one(path, "first")
    context = multiprocessing.get_context("spawn")
    for moment in (0.0, 0.02, 0.05, 0.1):
        worker = context.Process(target=_merge_many, args=(path, f"k{moment}", 100_000))
        worker.start()
        while f"k{moment}-" not in read_cache(path).decode():
            assert worker.is_alive()
            time.sleep(0.005)
        time.sleep(moment)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        lines = read_cache(path).decode().split()
        assert "first" in lines and len(lines) == len(set(lines)) > 1
        # In order, and none cut in two: a file is one build's whole.
        numbers = sorted(int(line.rpartition("-")[2]) for line in lines if line.startswith(f"k{moment}-"))
        assert numbers == list(range(len(numbers)))
    _merge_one(path, "last")
    assert "last" in read_cache(path).decode().split()


def test_a_cache_that_cannot_be_kept_is_said_and_no_failure(tmp_path, capsys):
    (tmp_path / "file").touch()
    add_to_cache(str(tmp_path / "file" / "t.cache"), lambda content: b"x")
    assert "cannot be kept" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert read_cache(str(tmp_path / "folder")) == b"" and "building without it" in capsys.readouterr().err


def test_a_cache_belongs_to_one_version_and_one_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = timing_cache_path("10.16.1", "NVIDIA H200", "9.0")
    assert path == str(tmp_path / "tkfnet-engine" / "tensorrt-timing-10.16.1-nvidia_h200-9.0.cache")
    others = {timing_cache_path(*facts) for facts in (("11.4", "NVIDIA H200", "9.0"), ("10.16.1", "L4", "8.9"))}
    assert path not in others and len(others) == 2
    monkeypatch.setattr(timing_cache, "cache_folder", lambda: None)
    assert timing_cache_path("1", "2", "3") is None
