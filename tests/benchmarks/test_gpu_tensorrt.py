"""TensorRT's engines in `make gpu`: how they are built, and what is said where they cannot be. The library is a
stand-in (fake_trt.py) over host memory."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from .conftest import FAKE_TRT, SCRIPTS

pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

REPORT = {"sqnr_db": 58.2, "images": 256, "top1_agreement": 1.0}
GATE = {"images": 2100, "accuracy_kept": 0.9989}
PROFILES = [{"min": 1, "opt": 1, "max": 8}]
REFUSAL = "TensorRT for RTX 1.7.1.116 builds this network for compute capabilities 8.0, got 9.0"


# --- which library ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "found", "broken"),
    [
        ({}, None, []),
        ({"one": "1.0"}, "one 1.0", []),
        ({"two": "2.0"}, "two 2.0", []),
        ({"one": "1.0", "two": "2.0"}, "one 1.0", []),
        ({"one": None, "two": "2.0"}, "two 2.0", ["one cannot be imported (OSError: libnvinfer.so.10: no such file)"]),
        ({"one": None}, None, ["one cannot be imported (OSError: libnvinfer.so.10: no such file)"]),
    ],
)
def test_the_first_library_that_can_be_imported_is_used(
    there, found, broken, tmp_path, monkeypatch, scripts_importable
):
    import gpu_tensorrt

    monkeypatch.setattr(gpu_tensorrt, "MODULES", {"a": ("one", "One"), "b": ("two", "Two")})
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("one", "two"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, version in there.items():
        broken_one = "raise OSError('libnvinfer.so.10: no such file\\nmore')"
        (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}" if version else broken_one)
    importlib.invalidate_caches()
    library, why = gpu_tensorrt.library()
    assert (library and str(library), why) == (found, broken)
    assert library is None or library.backend == {"one": "a", "two": "b"}[library.module.__name__]


# --- the part --------------------------------------------------------------------------------------------


@pytest.fixture
def part(monkeypatch, tmp_path, scripts_importable, graph, rtx):
    """part(*flags, ..): part_tensorrt's `main`, whose engines are files of `facts`: its exit code, what it asked the
    build for, the sets that it verified on, and its result. fails: size of the batches -> the build's error; one
    without a size is raised while it lowers. library: what is found."""
    import gpu_tensorrt
    import part_tensorrt
    from part_calibrate import write_set

    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export import engine_from_checkpoint
    from tkfnet_engine.export.verify import VerificationSet

    draw = np.random.default_rng(0)
    pixels, logits = draw.integers(0, 256, (3, 4, 4, 3), np.uint8), draw.normal(size=(3, 7)).astype(np.float32)
    np.savez(tmp_path / "faces.npz", pixels=pixels, logits=logits)
    write_set(tmp_path / "labelled.npz", VerificationSet(pixels, "faces", "ab", np.arange(3), logits))

    def run(*flags, backend="tensorrt-rtx", capability="8.6", fails=None, facts=None, layers=("float16",), **library):
        seen, fails = SimpleNamespace(asked=[], drawn=[], logits=logits), fails or {}

        def tensorrt_parts(given, *rest):
            assert given is graph
            if None in fails:
                raise fails[None]

        def build(argv):
            asked = dict(zip(argv[1::2], argv[2::2]))
            seen.asked.append((argv[0], asked))
            seen.drawn.append(engine_from_checkpoint.verification_set("model", "preprocessing", None, "int8"))
            engine_from_checkpoint.tensorrt_parts(graph, {}, {}, None, "log")
            if error := fails.get(asked["--opt-batch"]):
                raise error
            held = {"tensorrt/layers": json.dumps([{"precision": layer} for layer in layers]).encode()}
            about = {"profiles": PROFILES, "options": {"workspace": None}, "not_as_asked": {}}
            made = {"verification": REPORT, "tensorrt": about} | (facts or {})
            write_bundle(asked["--out"], held, made)

        found = gpu_tensorrt.Library(backend, rtx) if backend else None
        monkeypatch.setattr(part_tensorrt, "library", lambda: (found, library.get("broken", [])))
        monkeypatch.setattr(part_tensorrt, "why_unbuildable", lambda backend: library.get("missing"))
        monkeypatch.setattr(part_tensorrt, "this_capability", lambda: capability)
        monkeypatch.setattr(part_tensorrt.build, "main", build)
        monkeypatch.setattr(engine_from_checkpoint, "verification_set", lambda *_, **__: "drawn anew")
        monkeypatch.setattr(engine_from_checkpoint, "tensorrt_parts", tensorrt_parts)
        argv = ["part_tensorrt.py", "--out", str(tmp_path), "--result", str(tmp_path / "result.json"), *flags]
        monkeypatch.setattr(part_tensorrt.sys, "argv", argv)
        code = part_tensorrt.main()
        return code, seen, json.loads((tmp_path / "result.json").read_text())

    return run


def test_two_engines_are_built_each_for_its_batch(part, tmp_path):
    code, seen, result = part("--checkpoint", "net.safetensors", layers=("float16", "float32", "float16"))
    assert code == 0 and [flag for flag, _ in seen.asked] == ["--fp16", "--fp16"]
    small, large = (asked for _, asked in seen.asked)
    assert (small["--opt-batch"], small["--max-batch"]) == ("1", "8")
    assert (large["--opt-batch"], large["--max-batch"]) == ("256", "256")
    for size, asked in (("small", small), ("large", large)):
        assert (asked["--backend"], asked["--device"], asked["--checkpoint"]) == (
            "tensorrt-rtx",
            "cuda",
            "net.safetensors",
        )
        assert asked["--out"] == str(tmp_path / f"trt-float16-{size}.tkf") and 0 < float(asked["--timeout"]) <= 540
        assert Path(asked["--log"]).parent.is_dir() and "--timing-cache" not in asked and "--calibration" not in asked
        found = result["engines"][size]
        assert found["layers"] == {"float16": 2, "float32": 1} and found["not_as_asked"] == {}
        assert found["verification"] == REPORT and found["profiles"] == PROFILES and found["megabytes"] >= 0
    assert result["library"] == "tensorrt_rtx 1.7.1.116" and result["backend"] == "tensorrt-rtx"
    said = "tensorrt_rtx 1.7.1.116: small 0.0 MB in 0 s, SQNR 58.2 dB, 2 float16, 1 float32; large 0.0 MB"
    assert result["summary"].startswith(said), result["summary"]
    # Verified on what `build` has drawn.
    assert all(np.array_equal(drawn.reference, seen.logits) for drawn in seen.drawn)


def test_eight_bits_are_calibrated_and_judged_by_what_calibrate_has_left(part, tmp_path):
    quantised = {"layers": {"stem": "int8"}, "back_to_float": []}
    facts = {"verification": REPORT | {"gate": GATE}, "quantisation": quantised}
    facts["tensorrt"] = {"profiles": PROFILES, "options": {}, "not_as_asked": {"stem": "float16"}}
    code, seen, result = part("--precision", "int8", backend="tensorrt", facts=facts)
    assert code == 0, "what TensorRT chooses is no fault"
    for flag, asked in seen.asked:
        assert flag == "--int8" and asked["--calibration"] == str(tmp_path / "calibration.json")
        assert asked["--timing-cache"] == str(tmp_path / "tensorrt.cache") and asked["--backend"] == "tensorrt"
    assert [list(drawn.labels) for drawn in seen.drawn] == [[0, 1, 2]] * 2
    assert result["engines"]["large"]["quantisation"] == quantised
    assert result["engines"]["large"]["not_as_asked"] == {"stem": "float16"}
    assert "accuracy kept 99.89%" in result["summary"] and "NOT as asked: 1" in result["summary"]


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_the_build_takes_every_flag_that_it_is_given(backend, precision, tmp_path, rtx, scripts_importable):
    from gpu_tensorrt import Library
    from part_tensorrt import SIZES, command

    from tkfnet_engine.build import parser
    from tkfnet_engine.export.tensorrt_options import TensorRtOptions
    from tkfnet_engine.tensorrt_flags import tensorrt_settings

    for size, (best, most, contexts) in SIZES.items():
        args = parser().parse_args(command(Library(backend, rtx), precision, size, tmp_path, "net.safetensors", 60.0))
        options = TensorRtOptions(args.backend, args.max_batch, **tensorrt_settings(args))
        assert options.profiles == [{"min": 1, "opt": best, "max": most}] * contexts
        assert (args.precision, options.timeout_s, options.static) == (precision, 60.0, False)


def test_without_a_library_it_is_skipped_and_says_why(part):
    code, seen, result = part(backend=None)
    assert (code, seen.asked, result) == (77, [], {"reason": "neither tensorrt nor tensorrt_rtx is installed"})
    code, _, result = part(backend=None, broken=["tensorrt cannot be imported (OSError: x)"])
    assert (code, result["reason"]) == (77, "tensorrt cannot be imported (OSError: x)")
    code, seen, result = part(missing="it needs onnxscript, which is not installed")
    assert (code, seen.asked) == (77, []) and result["reason"].endswith("needs onnxscript, which is not installed")


def test_a_build_that_fails_is_wrong_and_what_was_built_before_is_kept(part):
    from tkfnet_engine.errors import BackendError, VerificationError

    code, _, result = part(fails={"256": BackendError("no tactic")})
    assert code == 10 and result["reason"] == "large: no tactic" and set(result["engines"]) == {"small"}
    code, _, result = part(fails={"1": VerificationError("SQNR 3 dB", {"sqnr_db": 3.0})})
    assert code == 10 and result["reason"] == "small: SQNR 3 dB" and result["verification"] == {"sqnr_db": 3.0}
    # The full TensorRT knows every GPU: nothing is tried behind its back.
    code, _, result = part(fails={None: BackendError("no tactic")}, backend="tensorrt", capability="9.0")
    assert code == 10 and "probe" not in result


# --- a GPU that TensorRT for RTX does not name -----------------------------------------------------------


@pytest.fixture
def child_library(tmp_path, monkeypatch):
    """The stand-in, where a child finds it before the real one."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(FAKE_TRT, folder / "tensorrt_rtx.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


def test_where_our_build_refuses_the_gpu_it_is_tried_all_the_same(part, child_library, monkeypatch, tmp_path):
    import part_tensorrt

    from tkfnet_engine.errors import BackendError

    monkeypatch.setenv("FAKE_TENSORRT", json.dumps({"default": "crash"}))
    on_host = tmp_path / "on_host.py"
    on_host.write_text(
        f"import runpy, sys\nsys.argv += ['--device', 'cpu']\nsys.path.insert(0, {str(SCRIPTS)!r})\n"
        f"runpy.run_path({str(part_tensorrt.PROBE)!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(part_tensorrt, "PROBE", on_host)
    code, _, result = part(fails={None: BackendError(REFUSAL)}, capability="9.0")
    assert code == 77 and result["refusal"] == REFUSAL
    crashed, fine = result["probes"]
    assert crashed == {
        "built": True,
        "deserialized": False,
        "ran": False,
        "sqnr_db": None,
        "error": "its process ended with 134",
        "capability": "default",
    }
    assert fine["capability"] == "current" and fine["error"] is None and fine["sqnr_db"] > 100
    assert result["probe"] == fine and all(fine[stage] for stage in ("built", "deserialized", "ran"))
    assert result["reason"].startswith(
        "tensorrt_rtx 1.7.1.116 does not name compute capability 9.0; tried all the same, "
    )
    assert f"it runs here, SQNR {fine['sqnr_db']} dB" in result["reason"]


def test_a_gpu_that_is_named_is_not_tried(part):
    from tkfnet_engine.errors import BackendError

    code, _, result = part(fails={None: BackendError("no tactic")}, capability="8.6")
    assert code == 10 and result["reason"] == "small: no tactic" and "probe" not in result


def test_a_trial_that_takes_too_long_is_ended(part, monkeypatch, tmp_path):
    import part_tensorrt

    from tkfnet_engine.errors import BackendError

    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(600)")
    monkeypatch.setattr(part_tensorrt, "PROBE", script)
    monkeypatch.setattr(part_tensorrt, "PROBE_S", 0.5)
    code, _, result = part(fails={None: BackendError(REFUSAL)}, capability="9.0")
    assert code == 77 and [one["error"] for one in result["probes"]] == ["it took longer than 0.5 s"] * 2
    assert result["reason"].endswith("tried all the same, it was not built: it took longer than 0.5 s")


@pytest.fixture
def tried(monkeypatch, tmp_path, graph, rtx, scripts_importable):
    """tried(wrong, capability): what the probe finds where `wrong` goes wrong."""
    import probe_tensorrt

    def run(wrong, capability="default", module="tensorrt_rtx"):
        (tmp_path / "graph.onnx").write_bytes(graph)
        result = tmp_path / "probe.json"
        flags = ["--graph", str(tmp_path / "graph.onnx"), "--capability", capability, "--result", str(result)]
        monkeypatch.setattr(probe_tensorrt.sys, "argv", ["p", *flags, "--device", "cpu", "--module", module])
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
        monkeypatch.setenv("FAKE_TENSORRT", json.dumps({capability: wrong}))
        assert probe_tensorrt.main() == 0
        return json.loads(result.read_text())

    return run


@pytest.mark.parametrize(
    ("wrong", "reached", "error"),
    [
        ("build", (), "Error Code 9: no such GPU"),
        ("deserialise", ("built",), "does not take the plan: Error Code 6: the device is not supported"),
        ("context", ("built", "deserialized"), "makes no execution context: it gives no reason"),
        ("run", ("built", "deserialized"), "does not run: Error Code 1: Cuda Runtime (no kernel image is available)"),
    ],
)
def test_a_trial_says_how_far_it_came(wrong, reached, error, tried):
    for capability in ("default", "current"):
        found = tried(wrong, capability)
        stages = {stage: stage in reached for stage in ("built", "deserialized", "ran")}
        assert {name: found[name] for name in stages} == stages and found["sqnr_db"] is None
        assert found["error"].startswith("RuntimeError: ") and found["error"].endswith(error), found


def test_a_trial_that_runs_is_compared_with_the_graph(tried):
    found = tried(None)
    assert found == {"built": True, "deserialized": True, "ran": True, "sqnr_db": found["sqnr_db"], "error": None}
    assert found["sqnr_db"] > 100
    noisy = tried("noise")
    assert noisy["ran"] and noisy["sqnr_db"] < 20, "a wrong answer must show"
    absent = tried(None, module="no_such_module")
    assert not absent["built"] and absent["error"].startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "it was not built: why"),
        ({"built": True}, "it was not deserialised: why"),
        ({"built": True, "deserialized": True}, "it was not run: why"),
        ({"built": True, "deserialized": True, "ran": True}, "it was not compared: why"),
        ({"built": True, "deserialized": True, "ran": True, "sqnr_db": 55.5}, "it runs here, SQNR 55.5 dB"),
    ],
)
def test_the_reason_tells_what_came_of_trying(found, said, scripts_importable, rtx):
    from gpu_tensorrt import Library
    from part_tensorrt import left_out

    nothing = {"built": False, "deserialized": False, "ran": False, "sqnr_db": None, "error": "why"}
    result = left_out(Library("tensorrt-rtx", rtx), "9.0", REFUSAL, [nothing, nothing | found])
    assert result["reason"].endswith(f"tried all the same, {said}") and result["probe"] == nothing | found
