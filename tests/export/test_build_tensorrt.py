"""`build --backend tensorrt-rtx` as a user gives it, on a machine without a GPU, and what can be done with the file."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tkfnet_engine import Engine
from tkfnet_engine.bundle import read_bundle, write_bundle
from tkfnet_engine.errors import BackendError, TrustError, UsageError, VerificationError
from tkfnet_engine.export import engine_from_checkpoint as builder
from tkfnet_engine.export.engine_from_checkpoint import build_engine
from tkfnet_engine.export.request import Request, candidates
from tkfnet_engine.export.tensorrt_layers import precisions_of_products
from tkfnet_engine.export.verify import VerificationSet
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.trust import why_not_own

from .quantised_network import small_network

pytest.importorskip("tensorrt_rtx")
RTX = "tensorrt-rtx"


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def tensorrt(quick_build, remembered_data, command, small_checkpoint_path, monkeypatch, tmp_path):
    """tensorrt("--fp16", ..) -> the finished build command of a small network, into tmp_path / "e.tkf"."""
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)

    def run(*flags, out=tmp_path / "e.tkf"):
        given = ["--checkpoint", small_checkpoint_path, "--backend", RTX, "--out", out]
        return command("build", *flags, *given)

    return run


@pytest.mark.parametrize(("flag", "precision"), [("--fp32", "float32"), ("--fp16", "float16")])
def test_the_command_builds_without_a_gpu_and_says_so(flag, precision, tensorrt, command, tmp_path):
    done = tensorrt(flag)
    assert done.code == 0 and done.out == "", done.err
    assert "unverified: no GPU; the graph it is built from is verified in ONNX Runtime" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.tensorrt.log", "e.tkf"]
    bundle = read_bundle(tmp_path / "e.tkf")
    facts, report = bundle.facts, bundle.facts["verification"]
    assert (facts["backend"], facts["device"], facts["precision"]) == (RTX, "cuda", precision)
    assert report["state"] == "unverified: no GPU" and report["graph"]["images"] == 256
    assert report["graph"]["sqnr_db"] >= report["graph"]["required_sqnr_db"]
    assert facts["tensorrt"]["asked"] == dict.fromkeys(facts["tensorrt"]["asked"], precision)
    assert facts["tensorrt"]["not_as_asked"] == {} and len(facts["tensorrt"]["asked"]) == 24
    assert set(bundle.names()) == {"graph.onnx", "tensorrt/plan", "tensorrt/layers", "golden/pixels", "golden/logits"}
    assert bundle.array("golden/pixels").shape == (16, 64, 64, 3) and bundle.array("golden/logits").shape == (16, 7)
    assert str(tmp_path) not in json.dumps(facts)
    # This user built it here, so it needs no word of trust; another's does.
    assert why_not_own(bundle.bytes("tensorrt/plan")) is None
    shown = command("info", tmp_path / "e.tkf")
    assert shown.code == 0 and "unverified: no GPU" in shown.out and "for compute capability 8.0, 8.6" in shown.out


def test_layers_are_shown_as_table_and_as_json(tensorrt, command, tmp_path):
    assert tensorrt("--fp16").code == 0
    shown = command("info", tmp_path / "e.tkf", "--layers")
    assert shown.code == 0 and "not in the precision asked for: none" in shown.out
    row = next(line for line in shown.out.splitlines() if line.startswith("layer1.0.conv2 "))
    assert "float16[Nx8x16x16]" in row and "layer1.0.add" in row
    found = json.loads(command("info", tmp_path / "e.tkf", "--layers", "--json").out)
    assert found["precisions"]["float16"] > 24 and sum(found["precisions"].values()) == len(found["layers"])
    assert {"name", "kind", "precision", "reads", "writes", "weights", "tactic", "origin"} == set(found["layers"][0])
    assert found["source"] == "the build"


def test_layers_that_did_not_become_what_was_asked_for_are_listed(tensorrt, command, tmp_path, monkeypatch):

    def worse(layers, products):
        return precisions_of_products(layers, products) | {"tafe.merge": "float32"}

    monkeypatch.setattr("tkfnet_engine.export.tensorrt_from_graph.precisions_of_products", worse)
    done = tensorrt("--fp16")
    assert done.code == 0 and "NOT as asked for: tafe.merge in float32" in done.err
    assert read_bundle(tmp_path / "e.tkf").facts["tensorrt"]["not_as_asked"] == {"tafe.merge": "float32"}
    assert "tafe.merge in float32" in command("info", tmp_path / "e.tkf", "--layers").out
    assert "tafe.merge in float32" in command("info", tmp_path / "e.tkf").out


def test_int8_is_built_from_the_one_calibration_and_gated(small_checkpoint_path, noise, tmp_path, monkeypatch):
    small = small_network(str(small_checkpoint_path), noise)
    seen = dataclasses.replace(small.table.data, classes=small.table.data.classes | {"fear": 128})
    table = dataclasses.replace(small.table, data=seen)
    (tmp_path / "table.json").write_text(table.to_json())
    images = noise(160, 64, 9)
    expected = VerificationSet(images, "noise", "f" * 64, np.zeros(len(images), np.int64), _logits(small, images))
    monkeypatch.setattr(builder, "verification_set", lambda *_: expected)
    monkeypatch.setattr("tkfnet_engine.export.quantisation.SENSITIVITY_IMAGES", 4)
    # The gate wants a trained network, and its figures are tested where there is one.
    monkeypatch.setattr("tkfnet_engine.export.verify.gate_report", lambda *_: ({"images": len(images)}, []))
    request = Request("int8", RTX, "cuda", 4, ahead=True, calibration=str(tmp_path / "table.json"))
    facts = build_engine(load_checkpoint(small_checkpoint_path), request, tmp_path / "e.tkf")
    layers = facts["quantisation"]["layers"]
    assert set(layers.values()) == {"int8"} and len(layers) == 24 and facts["quantisation"]["not_as_asked"] == {}
    assert facts["quantisation"]["calibration"]["digest"] == table.digest
    assert facts["verification"]["graph"]["gate"] == {"images": len(images)}
    bundle = read_bundle(tmp_path / "e.tkf")
    # What a GPU is asked for is the graph's answer in eight bits, near float32's and not equal to it.
    error = np.abs(bundle.array("golden/logits") - expected.reference[:16]).max()
    assert 1e-6 < error < np.abs(expected.reference).max()


def _logits(small, images):
    import torch

    from tkfnet_engine.model.fold import fold

    return fold(small.checkpoint.model, small.checkpoint.preprocessing)(torch.from_numpy(images)).numpy()


def test_a_wrong_graph_leaves_no_file(small_checkpoint_path, tmp_path, quick_build, remembered_data, monkeypatch):
    lowered = builder.lowered_graph

    def wrong(network, *rest):
        network.head[2].bias.data[0] += 1
        return lowered(network, *rest)

    monkeypatch.setattr(builder, "lowered_graph", wrong)
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
    with pytest.raises(VerificationError, match="does not answer as the network"):
        build_engine(
            load_checkpoint(small_checkpoint_path), Request("float32", RTX, "cuda", 4, ahead=True), tmp_path / "e.tkf"
        )
    assert not (tmp_path / "e.tkf").exists()


# --- what can be done with the file ------------------------------------------------------------------------


def test_the_plan_of_another_is_refused_before_tensorrt_is_called(tensorrt, tmp_path, monkeypatch):
    assert tensorrt("--fp16").code == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    path = tmp_path / "e.tkf"
    with pytest.raises(TrustError, match=rf"python -m tkfnet_engine.build --from {path} --out NEW.tkf"):
        Engine.load(path)


def test_without_a_gpu_it_says_that_there_is_none(tensorrt, tmp_path):
    assert tensorrt("--fp16").code == 0
    with pytest.raises(BackendError, match="no NVIDIA driver answers here"):
        Engine.load(tmp_path / "e.tkf")


def test_it_is_built_anew_from_the_graph_inside_without_pytorch(tensorrt, tmp_path):
    assert tensorrt("--fp16", "--min-batch", "2", "--opt-batch", "4", "--max-batch", "8", "--contexts", "1").code == 0
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from tkfnet_engine.build import main\n"
        "sys.exit(main(['--from', 'e.tkf', '--out', 'new.tkf', '--arch', 'sm_89']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    old, new = read_bundle(tmp_path / "e.tkf"), read_bundle(tmp_path / "new.tkf")
    assert new.facts["tensorrt"]["capabilities"] == ["8.9"] != old.facts["tensorrt"]["capabilities"]
    for kept in ("profiles", "options", "asked"):
        assert new.facts["tensorrt"][kept] == old.facts["tensorrt"][kept]
    assert new.facts["tensorrt"]["profiles"] == [{"min": 2, "opt": 4, "max": 8}]
    assert new.facts["verification"] == old.facts["verification"]
    assert bytes(new.bytes("graph.onnx")) == bytes(old.bytes("graph.onnx"))
    assert why_not_own(new.bytes("tensorrt/plan")) is None and set(new.names()) == set(old.names())


def test_a_file_that_does_not_say_how_it_was_built(tensorrt, command, tmp_path):
    assert tensorrt("--fp16").code == 0
    bundle = read_bundle(tmp_path / "e.tkf")
    facts = bundle.facts | {"tensorrt": {"version": "1"}}
    write_bundle(tmp_path / "odd.tkf", {name: bundle.array(name) for name in bundle.names()}, facts)
    done = command("build", "--from", tmp_path / "odd.tkf", "--out", tmp_path / "new.tkf")
    assert done.code != 0 and "does not say how its TensorRT engine was built" in done.err


# --- what the command refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--backend", RTX, "--version-compatible"], 64, "TensorRT for RTX has no such thing"),
        (["--backend", RTX, "--timing-cache", "c"], 64, "TensorRT for RTX has no such thing"),
        (["--backend", RTX, "--arch", "sm_90"], 7, "builds this network for compute capabilities 8.0"),
        (["--backend", RTX, "--arch", "ampere"], 64, "--arch: got 'ampere', expected a GPU architecture such as sm_86"),
        (["--backend", RTX, "--max-batch", "4", "--opt-batch", "8"], 64, "--opt-batch 8, --max-batch 4"),
        (["--backend", RTX, "--device", "cpu"], 64, "this backend runs on cuda only"),
        (["--backend", RTX, "--fp8"], 64, "got precision float8, expected float32 or float16 or int8"),
        (
            ["--backend", "onnxruntime", "--workspace", "64"],
            64,
            "--workspace: got --backend onnxruntime, expected tensorrt",
        ),
        (["--dry-run"], 64, "--dry-run: got --backend auto, expected tensorrt or tensorrt-rtx; name one"),
        (["--no-timing-cache", "--log", "x"], 64, "--log, --no-timing-cache: got --backend auto"),
        (["--timeout", "5"], 64, "--timeout: got --backend auto"),
        (["--from", "e.tkf", "--fp16"], 64, "--fp32 or its like: --from takes that from the engine file"),
        (["--from", "e.tkf", "--max-batch", "4"], 64, "--max-batch: --from takes that from the engine file"),
    ],
)
def test_flags_that_do_not_go_together(flags, code, message, command, small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [] if "--from" in flags else ["--checkpoint", small_checkpoint_path]
    done = command("build", *flags, *given, "--out", "new.tkf")
    assert (done.code, done.out) == (code, "") and message in done.err, done.err
    assert not (tmp_path / "new.tkf").exists()


def test_an_engine_without_tensorrt_has_no_layers_to_show_or_rebuild(command, small_engine_path, tmp_path):
    done = command("info", small_engine_path, "--layers")
    assert done.code == 64 and "--layers: got an engine of backend onnxruntime, expected one of TensorRT" in done.err
    done = command("build", "--from", small_engine_path, "--out", tmp_path / "n.tkf")
    assert done.code == 64 and "got an engine of backend onnxruntime, expected one of TensorRT" in done.err


def test_a_dry_run_writes_no_engine(tensorrt, tmp_path):
    done = tensorrt("--fp16", "--dry-run")
    found = json.loads(done.out)
    assert done.code == 0 and found["unexpected"] == {} and found["layers_by_type"].keys() == {"FLOAT", "HALF"}
    assert "nothing was written" in done.err and not (tmp_path / "e.tkf").exists()


def test_auto_does_not_build_it_ahead():
    half, full = (Request(p, "auto", "cuda", 4, archs=("sm_90",), ahead=True) for p in ("float16", "float32"))
    assert candidates(half) == ["fused"] and candidates(full) == []


@pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
def test_builds_of_one_path_at_once_end_in_one_engine(small_checkpoint_path, tmp_path):
    """`make soak` does it with eight, twenty times."""
    command = [sys.executable, "-m", "tkfnet_engine.build", "--backend", RTX, "--fp16", "--max-batch", "2"]
    command += ["--contexts", "1", "--checkpoint", str(small_checkpoint_path), "--out", "e.tkf"]
    builds = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], errors
    bundle = read_bundle(tmp_path / "e.tkf")
    assert bundle.facts["verification"]["state"] == "unverified: no GPU"
    assert why_not_own(bundle.bytes("tensorrt/plan")) is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".log") == ["e.tkf"]


def test_a_request_for_another_batch_than_the_flags_is_refused(small_checkpoint_path, tmp_path):
    request = Request("float16", RTX, "cuda", 4, ahead=True, tensorrt={"min_batch": 5})
    with pytest.raises(UsageError, match="--min-batch 5, --opt-batch 4"):
        build_engine(load_checkpoint(small_checkpoint_path), request, tmp_path / "e.tkf")
