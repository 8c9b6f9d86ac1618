"""TensorRT over stand-ins for it and for the driver: what is refused, what is checked, what is kept."""

from __future__ import annotations

import importlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine.backends import trt as backend
from tkfnet_engine.errors import BackendError

from .fake_cuda import SIZE, artefacts, freed, runs

# --- before TensorRT is called ---------------------------------------------------------------------------


def test_a_plan_for_another_machine_is_refused_before_tensorrt_is_called(trt):
    log = trt("""
command = "`python -m tkfnet_engine.build --from ENGINE.tkf --out NEW.tkf`"
refused(lambda: trt_opened(version="1.6.0.1"), BackendError, "RTX 1.6.0.1 built it, and 1.7.1.116", command)
refused(lambda: trt_opened(capabilities=["8.9"]), BackendError, "8.9", "Stand-in GPU", "capability 8.6", command)
refused(lambda: trt_opened(driver=13010), BackendError, "CUDA 13.1", "for 13.0", command)
refused(lambda: trt_opened(profiles=[(1, 2, 4)], version=None), BundleError, "does not say")
""")
    assert not [entry for entry in log if "runtime" in entry]


def test_a_gpu_that_rtx_does_not_support_is_refused_with_the_alternatives(trt):
    log = trt(
        'refused(trt_opened, BackendError, "Stand-in GPU", "9.0", "--backend fused", "--backend tensorrt", "12.1")',
        cc=90,
    )
    assert not [entry for entry in log if "runtime" in entry]


def test_the_path_stands_in_the_command_where_it_is_known(trt):
    trt("""
from tkfnet_engine.backends import trt
held = artefacts(trt_tensors(plan_of(FOUR)))
held.path = "an engine.tkf"
opening = lambda: trt.open_runner(trt_facts("tensorrt-rtx", FOUR, version="1"), held, "cuda", 1)
refused(opening, BackendError, "--from 'an engine.tkf' --out NEW.tkf")
""")


def test_what_is_missing_is_named(trt):
    trt("""
from tkfnet_engine.backends import cuda_streams, registry
cuda_streams.importable = lambda name: False
refused(trt_opened, BackendError, "cuda-bindings or PyCUDA", "pip install")
cuda_streams.importable = lambda name: name != "pycuda"
made = trt_tensors(plan_of(FOUR))
del made["golden/logits"]
opening = lambda facts, name: registry.open_backend(name, facts, artefacts(made), "cuda", None)
refused(lambda: opening(trt_facts("tensorrt-rtx", FOUR), "tensorrt-rtx"), BundleError, "lacks golden/pixels")
install("tensorrt")
refused(lambda: opening(trt_facts("tensorrt-rtx", FOUR), "tensorrt"), BackendError, "one of tensorrt-rtx")
""")


# --- by TensorRT, and after it ---------------------------------------------------------------------------


def test_what_tensorrt_refuses_comes_with_its_own_first_error(trt):
    log = trt("""
import contextlib, io
printed = io.StringIO()
with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
    text = refused(lambda: trt_opened(plan=b"\\x01"), BackendError, "TensorRT for RTX does not take this engine's plan")
    assert "deserializeCudaEngine: Error Code 1: Serialization (magic tag); " in text and "later" not in text
    install(no_runtime=True)
    refused(trt_opened, BackendError, "cannot start: CUDA initialization failure with error: 35")
    install(contexts=0)
    refused(trt_opened, BackendError, "cannot make an execution context", "OutOfMemory", "smaller --max-batch")
    install()
    refused(lambda: trt_opened(plan=plan_of(FOUR, fails=True)), BackendError, "cannot run", "an error of the plan's")
assert printed.getvalue() == ""
""")
    assert freed(log) and all(left == [0] * 7 for left in freed(log))


def test_a_plan_with_code_of_its_own_runs_only_where_the_facts_say_so(trt):
    trt("""
install("tensorrt")
host = plan_of(FOUR, host_code=True)
refused(lambda: trt_opened(backend="tensorrt", plan=host), BackendError, "does not take")
options = {"version_compatible": True, "hardware_compatible": False}
assert np.array_equal(trt_opened(backend="tensorrt", plan=host, options=options).run(faces(2)), answers(faces(2)))
""")


def test_a_plan_of_another_build_is_refused(trt):
    log = trt("""
def other(expected, profiles=FOUR, **tensors):
    plan = json.loads(plan_of(profiles))
    plan["tensors"] = {k: v for k, v in (plan["tensors"] | tensors).items() if v}
    refused(lambda: trt_opened(plan=json.dumps(plan).encode()), BundleError, expected, "1 to 4")
other("it has images", logits=None)
other("it has images, logits, more", more=["OUTPUT", "FLOAT", [-1]])
other("images is half", images=["INPUT", "HALF", [-1, 32, 32, 3]])
other("images is uint8 [-1, 3, 32, 32]", images=["INPUT", "UINT8", [-1, 3, 32, 32]])
other("logits is float [-1, 8]", logits=["OUTPUT", "FLOAT", [-1, 8]])
other("logits is half", logits=["OUTPUT", "HALF", [-1, 7]])
other("logits is float", logits=["INPUT", "FLOAT", [-1, 7]])
other("images is for 4 images", profiles=[(4, 4, 4)])
other("its profiles are 1 to 8", profiles=[(1, 2, 8)])
other("its profiles are 1 to 4, 1 to 4", profiles=FOUR * 2)
other("its profiles are 1 to 4", profiles=[(1, 3, 4)])
""")
    assert not runs(log) and all(left == [0] * 7 for left in freed(log))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_wrong_answer_is_refused_before_the_first_is_given(backend, trt):
    log = trt(f"""
install({backend!r})
opening = lambda: trt_opened(backend={backend!r}, plan=plan_of(FOUR, wrong=2000))
refused(opening, BackendError, "does not answer as the network", "SQNR", "at least 40 dB")
""")
    assert [entry["args"][2] for entry in runs(log, "classify_kernel")] == [4, 1]
    assert freed(log) == [[0] * 7]


def test_each_precision_has_its_own_demand(trt):
    """Errors of 0.02 %, 0.2 %, 2 % and 20 % of the answer's spread: some 74, 54, 34 and 14 dB."""
    trt("""
from tkfnet_engine.backends.registry import open_backend
cases = [("float32", 60, 2e-4, True), ("float32", 60, 2e-3, False), ("float16", 40, 2e-3, True)]
cases += [("float16", 40, 2e-2, False), ("int8", 20, 2e-2, True), ("int8", 20, 0.2, False)]
for precision, demand, error, fine in cases:
    made = trt_tensors(plan_of(FOUR))
    noise = np.random.default_rng(1).standard_normal(made["golden/logits"].shape)
    made["golden/logits"] = made["golden/logits"] + (error * made["golden/logits"].std() * noise).astype(np.float32)
    known = trt_facts("tensorrt-rtx", FOUR) | {"precision": precision}
    opening = lambda: open_backend("tensorrt-rtx", known, artefacts(made), "cuda", None)
    opening().close() if fine else refused(opening, BackendError, "SQNR", f"at least {demand} dB")
""")


def test_an_engine_file_runs(trt, tmp_path):
    log = trt("""
from tkfnet_engine.bundle import write_bundle
write_bundle("trt.tkf", trt_tensors(plan_of(FOUR)), trt_facts("tensorrt-rtx", FOUR))
with Engine.load("trt.tkf", trusted=True) as engine:
    assert (engine.backend, engine.device) == ("tensorrt-rtx", "cuda")
    assert np.array_equal(engine.logits(faces(9)), answers(faces(9)))
    x = OnGpu(faces(3))
    answer = engine.logits_on_device(x)
    synchronise(1)
    assert np.array_equal(at(answer), answers(faces(3)))
assert not {"torch", "triton", "pycuda"} & set(sys.modules)
""")
    assert [entry["args"][2] for entry in runs(log, "pack_pixels_kernel")] == [4, 1, 4, 4, 1, 3]


# --- what it tells of itself -----------------------------------------------------------------------------


def test_layers_and_their_times_are_told(trt):
    log = trt("""
runner = trt_opened()
assert runner.layers() == [{"Name": "conv", "LayerType": "Convolution"}, {"Name": "classify"}]
# The run that does not count took 100, those that do 2, 3 and 4.
assert runner.profile(3, 3) == [("conv", 3.0), ("classify", 0.5)]
assert np.array_equal(runner.run(faces(3)), answers(faces(3)))
for wrong in (0, 5, True, 2.0):
    refused(lambda: runner.profile(wrong, 3), UsageError, "batch: got", "1 to 4")
for wrong in (0, True, 10_001):
    refused(lambda: runner.profile(1, wrong), UsageError, "runs: got")
install(layers="no JSON")
refused(runner.layers, BackendError, "does not tell the engine's layers")
runner.close()
refused(runner.layers, BackendError, "closed")
refused(lambda: runner.profile(1, 1), BackendError, "closed")
""")
    assert [entry["args"][2] for entry in runs(log, "pack_pixels_kernel")] == [4, 1, 3, 3, 3, 3, 3]
    assert freed(log) == [[0] * 7]


def test_other_backends_tell_nothing_of_their_layers(gpu):
    gpu("""
runner = opened()
for call in (runner.layers, lambda: runner.profile(1, 1)):
    refused(call, BackendError, "backend fused tells nothing of its layers", "tensorrt or tensorrt-rtx")
""")


# --- the runtime cache -----------------------------------------------------------------------------------

OPEN = "runner = trt_opened()\nrunner.run(faces(1))\n"


def compiled(log: list[dict]) -> int:
    return sum("compiled" in entry for entry in log)


def test_what_rtx_compiles_is_kept(trt, tmp_path):
    assert compiled(trt(OPEN)) == 1  # kept without a close, after the check
    (file,) = (tmp_path / "cache" / "tkfnet-engine").iterdir()
    assert file.name.startswith("tensorrt-rtx-") and file.read_bytes() == b"compiled"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert compiled(trt(OPEN)) == 0
    before = file.stat().st_mtime_ns
    trt(f"{OPEN}runner.close()")
    assert file.stat().st_mtime_ns == before, "what is there already is not written again"


def test_a_cache_of_no_use_is_ignored_and_replaced(trt, tmp_path):
    trt(OPEN)
    (file,) = (tmp_path / "cache" / "tkfnet-engine").iterdir()
    file.write_bytes(b"compi\0ed")
    assert compiled(trt(OPEN)) == 1 and file.read_bytes() == b"compiled"
    file.chmod(0o622)
    assert compiled(trt(OPEN)) == 1 and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.unlink()
    file.mkdir()
    assert compiled(trt(OPEN)) == 1 and file.is_dir()


def test_another_plan_driver_or_gpu_has_a_cache_of_its_own(trt, tmp_path):
    trt(OPEN)
    assert compiled(trt(OPEN, driver=13010)) == 1
    assert compiled(trt('runner = trt_opened(capabilities=["8.6", "8.9"])', cc=89)) == 1
    assert compiled(trt("runner = trt_opened([(1, 3, 4)])")) == 1
    assert len(list((tmp_path / "cache" / "tkfnet-engine").iterdir())) == 4


def test_a_place_that_cannot_be_written_is_no_error(trt, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    trt(f"{OPEN}runner.close()")


def test_the_full_tensorrt_has_no_runtime_cache(trt, tmp_path):
    trt('install("tensorrt")\ntrt_opened(backend="tensorrt").close()')
    assert not (tmp_path / "cache").exists()


def test_the_real_library_refuses_nothing_before_there_is_a_gpu(tmp_path):
    """Without a driver the refusal is ours, and TensorRT for RTX itself is never asked."""
    pytest.importorskip("tensorrt_rtx")
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("needs a machine without a GPU")

    known = {
        "backend": "tensorrt-rtx",
        "max_batch": 1,
        "hardware": {"machine": "x86_64"},
        "tensorrt": {
            "version": "1.7.1.116",
            "driver": None,
            "gpu": None,
            "capabilities": ["8.6"],
            "profiles": [{"min": 1, "opt": 1, "max": 1}],
            "options": {"version_compatible": False, "hardware_compatible": False},
        },
    }
    held = {"tensorrt/plan": b"x", "golden/pixels": np.zeros((1, SIZE, SIZE, 3), np.uint8), "golden/logits": b""}
    with pytest.raises(BackendError, match=r"no NVIDIA driver answers here|no GPU is visible"):
        backend.open_runner(known, artefacts(held), "cuda", 1)


def test_the_stand_in_has_nothing_that_the_real_library_lacks(monkeypatch):
    real = pytest.importorskip("tensorrt_rtx")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    fake = importlib.import_module("fake_tensorrt")
    classes = {
        "Runtime": (fake.Runtime, "engine_host_code_allowed"),
        "ICudaEngine": (fake.CudaEngine,),
        "IExecutionContext": (fake.Context, "profiler", "enqueue_emits_profile", *public(fake.RtxContext)),
        "IRuntimeConfig": (
            fake.RuntimeConfig,
            "cuda_graph_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ),
        "IRuntimeCache": (fake.RuntimeCache,),
        "EngineInspector": (type("Inspector", (), {}), "get_engine_information"),
        "ILogger": (fake.ILogger, "log"),
        "IProfiler": (fake.IProfiler, "report_layer_time"),
    }
    for name, (ours, *attributes) in classes.items():
        assert {*public(ours), *attributes} <= set(dir(getattr(real, name))), name
    kinds = [value for value in vars(fake).values() if isinstance(value, type) and issubclass(value, fake.Enum)]
    for kind in (kind for kind in kinds if kind is not fake.Enum and kind is not fake.Severity):
        assert kind.__members__.keys() <= getattr(real, kind.__name__).__members__.keys(), kind
    assert fake.Severity.__members__.keys() <= real.ILogger.Severity.__members__.keys()


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")} - {"Severity"}
