"""The build: equal bytes, true reports, no file unless it verifies, nothing torn by a kill."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tkfnet_engine import Engine
from tkfnet_engine import build as build_command
from tkfnet_engine.backends.registry import BACKENDS
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.compare import compare
from tkfnet_engine.data import open_data
from tkfnet_engine.errors import BackendError, FileError, TkfnetError, UsageError, VerificationError
from tkfnet_engine.export import choose
from tkfnet_engine.export import engine_from_checkpoint as builder
from tkfnet_engine.export.choose import fastest
from tkfnet_engine.export.engine_from_onnx import Here
from tkfnet_engine.export.verify import DEFAULT_DATA, MIN_IMAGES, verification_set, verify
from tkfnet_engine.model.checkpoint import load_checkpoint

FACTS = {
    "format", "format_version", "model", "labels", "preprocessing", "precision", "backend", "device", "max_batch",
    "versions", "hardware", "checkpoint", "verification",
}  # fmt: skip
REQUEST = "tkfnet_engine.export.request"
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


def _times(openvino=1.0, onnxruntime=2.0):
    """`time_engines` that measures nothing."""
    ms = {"openvino": openvino, "onnxruntime": onnxruntime}
    return lambda paths, max_batch: ({n: {b: ms[n] * b for b in (1, 8, 32) if b <= max_batch} for n in paths}, {})


@pytest.fixture
def wrong_lowering(monkeypatch):
    """wrong_lowering("openvino", ..): what is lowered for these backends has one wrong parameter."""

    def spoil(*backends):
        lower = builder._lower

        def lowered(network, name, *rest):
            if name in backends:
                network = copy.deepcopy(network)
                network.head[2].bias[0] += 1
            return lower(network, name, *rest)

        monkeypatch.setattr(builder, "_lower", lowered)

    return spoil


@pytest.fixture
def quick_command(quick_build, monkeypatch, remembered_data, command):
    """The commands; faces are drawn and one network is exported once per session."""
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
    return command


# --- what is in the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_an_explicit_backend_gives_the_same_bytes_twice(backend, build, small_checkpoint_path, tmp_path):
    for name in ("a.tkf", "b.tkf"):
        build(small_checkpoint_path, tmp_path / name, backend=backend)
    assert (tmp_path / "a.tkf").read_bytes() == (tmp_path / "b.tkf").read_bytes()


def test_another_process_builds_the_same_bytes(small_checkpoint_path, small_engine_path, tmp_path):
    """The command as a user runs it: nothing replaced, another folder, another hash seed."""
    done = subprocess.run(
        [sys.executable, "-m", "tkfnet_engine.build", "--checkpoint", small_checkpoint_path, "--backend", "onnxruntime",
         "--device", "cpu", "--out", "engine.tkf"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "wrote engine.tkf: onnxruntime on cpu, float32" in done.stderr.splitlines()[-1]
    assert (tmp_path / "engine.tkf").read_bytes() == small_engine_path.read_bytes()
    assert os.listdir(tmp_path) == ["engine.tkf"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager", "compiled"])
def test_the_file_holds_what_its_backend_needs_and_no_more(backend, quick_build, small_checkpoint_path, tmp_path):
    if backend == "compiled":  # the same tensors as eager; compiling takes long
        checkpoint = load_checkpoint(small_checkpoint_path)
        network = builder.fold(checkpoint.model, checkpoint.preprocessing)
        draft = builder._lower(network, backend, checkpoint, builder.Request("float32", backend, "cpu", 32), None)
        names, network = draft.names(), network.state_dict()
    else:
        facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend=backend)
        bundle = read_bundle(tmp_path / "e.tkf")
        checkpoint = load_checkpoint(small_checkpoint_path)
        names, network = bundle.names(), builder.fold(checkpoint.model, checkpoint.preprocessing).state_dict()
        assert facts == bundle.facts and set(facts) == FACTS
        assert facts["backend"] == backend and facts["device"] == "cpu" and facts["max_batch"] == 32
        assert facts["checkpoint"] == {"sha256": checkpoint.sha256, "test": None}
        info = BACKENDS[backend]
        assert {"tkfnet-engine", "torch", *info.build_requires, *info.requires} == set(facts["versions"])
        assert set(facts["hardware"]) == {"machine", "processor"} and all(facts["hardware"].values())
        # Other users need not know where this was built.
        assert str(tmp_path) not in json.dumps(facts) and str(Path.home()) not in json.dumps(facts)
    if BACKENDS[backend].artefact == "graph.onnx":
        assert names == ["graph.onnx"]
    else:
        assert sorted(names) == sorted(f"weights/{name}" for name in network)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("precision", "required"), [("float32", 60.0), ("float16", 40.0)])
def test_each_precision_keeps_its_decibels(backend, precision, required, quick_build, small_checkpoint_path, tmp_path):
    facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend=backend, precision=precision)
    report = facts["verification"]
    assert facts["precision"] == precision
    assert report["required_sqnr_db"] == required and report["sqnr_db"] >= required
    assert report["images"] == MIN_IMAGES and report["data"] == open_data(DEFAULT_DATA, "test").name
    assert report["disagreements"] <= report["near_ties"]
    # FP16 that costs nothing would be float32.
    assert precision == "float32" or report["sqnr_db"] < 70


def test_the_reports_numbers_are_true(engine_path, checkpoint_path, remembered_data, monkeypatch):
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
    checkpoint, report = load_checkpoint(checkpoint_path), read_bundle(engine_path).facts["verification"]
    expected = verification_set(checkpoint.model, checkpoint.preprocessing)
    assert expected.images.shape == (256, 224, 224, 3) and expected.images.dtype == np.uint8
    assert report["data_fingerprint"] == expected.fingerprint
    assert len(set(expected.reference.argmax(1))) == 7, "a network that says one thing verifies nothing"
    with Engine.load(engine_path) as engine:
        got = np.concatenate([engine.logits(expected.images[i : i + 32]) for i in range(0, 256, 32)])
    error = got.astype(np.float64) - expected.reference
    signal = expected.reference - expected.reference.astype(np.float64).mean(0)
    assert report["max_error"] == pytest.approx(np.abs(error).max(), rel=1e-3)
    assert report["rms_error"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-3)
    assert report["sqnr_db"] == pytest.approx(10 * np.log10((signal**2).mean() / (error**2).mean()), rel=1e-3)
    assert report["top1_agreement"] == (got.argmax(1) == expected.reference.argmax(1)).mean()
    assert compare(expected.reference, got, 60.0).disagreements == report["disagreements"]


def _expected(reference):
    return builder.VerificationSet(
        np.zeros((len(reference), 4, 4, 3), np.uint8), "data", "fingerprint", reference.argmax(1), reference
    )


def _logits(count):
    return np.random.default_rng(0).normal(size=(count, 7)).astype(np.float32)


def _replay(answers, seen):
    """A runner that gives `answers` in order, and notes the size of each batch in `seen`."""

    def run(images):
        seen.append(len(images))
        return answers[sum(seen) - len(images) : sum(seen)]

    return SimpleNamespace(run=run)


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, [1] * 40), (25, [1, 7, 25, 7]), (64, [1, 7, 32])])
def test_verification_runs_no_batch_above_the_engines_own(max_batch, sizes):
    reference, seen = _logits(40), []
    report = verify(_replay(reference, seen), _expected(reference), "float32", max_batch)
    assert seen == sizes and report["max_error"] == 0 and report["sqnr_db"] == 200


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_answer_that_is_not_finite_fails_verification(bad):
    answer = _logits(8)
    answer[3, 2] = bad
    with pytest.raises(VerificationError) as caught:
        verify(_replay(answer, []), _expected(_logits(8)), "float32", 32)
    # The report is printed as JSON, which has no infinity.
    assert json.dumps(caught.value.report, allow_nan=False) and caught.value.report["sqnr_db"] == -200


def test_too_few_images_to_verify_on(small_checkpoint_path):
    checkpoint = load_checkpoint(small_checkpoint_path)
    with pytest.raises(UsageError, match="got 7 test images, expected at least 256 for float32; name"):
        verification_set(checkpoint.model, checkpoint.preprocessing, "synthetic:n=35")


# --- auto --------------------------------------------------------------------------------------------------


def test_auto_times_the_candidates_and_records_it(quick_build, small_checkpoint_path, tmp_path, capsys):
    """The only build here that times: with a max_batch of 1 it takes one batch size."""
    facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto", max_batch=1)
    choice = facts["choice"]
    assert set(facts) == FACTS | {"choice"}
    assert choice["setting"] == "backend" and choice["left_out"] == {} and "geometric mean" in choice["by"]
    assert set(choice["p50_ms"]) == {"onnxruntime", "openvino"}
    times = {name: by_batch["1"] for name, by_batch in choice["p50_ms"].items()}
    assert choice["p50_ms"] == {name: {"1": ms} for name, ms in times.items()} and min(times.values()) > 0
    assert facts["backend"] == choice["chosen"] == min(times, key=times.get)
    assert f"auto: {facts['backend']} is the fastest here" in capsys.readouterr().err
    with Engine.load(tmp_path / "e.tkf", threads=1) as engine:
        assert engine.backend == facts["backend"]


@pytest.mark.parametrize("winner", ["openvino", "onnxruntime"])
def test_auto_takes_the_fastest(winner, quick_build, small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "time_engines", _times(**{"openvino": 2, "onnxruntime": 2, winner: 1}))
    facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto")
    assert facts["backend"] == facts["choice"]["chosen"] == winner
    assert facts["choice"]["p50_ms"][winner] == {"1": 1, "8": 8, "32": 32}
    assert winner in facts["versions"]


def test_the_fastest_over_all_batch_sizes():
    assert fastest({"a": {1: 1.0, 8: 8.0}, "b": {1: 2.0, 8: 3.0}}) == "b"
    assert fastest({"a": {1: 1.0, 8: 8.0}, "b": {1: 2.0, 8: 4.1}}) == "a"


def test_auto_leaves_out_what_fails_and_says_so(
    quick_build, small_checkpoint_path, tmp_path, monkeypatch, wrong_lowering, capsys
):
    monkeypatch.setattr(builder, "time_engines", _times(openvino=1, onnxruntime=9))
    wrong_lowering("openvino")
    facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto")
    assert facts["backend"] == "onnxruntime" and set(facts["choice"]["p50_ms"]) == {"onnxruntime"}
    assert set(facts["choice"]["left_out"]) == {"openvino"}
    assert "does not answer as the network" in facts["choice"]["left_out"]["openvino"]
    assert "openvino: left out: the engine does not answer as the network" in capsys.readouterr().err


def test_auto_raises_if_none_is_left(quick_build, small_checkpoint_path, tmp_path, wrong_lowering, capsys):
    wrong_lowering("openvino", "onnxruntime")
    with pytest.raises(VerificationError, match="does not answer as the network"):
        quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto")
    assert capsys.readouterr().err.count(": left out: ") == 2
    assert os.listdir(tmp_path) == []


def test_auto_tries_what_is_installed_and_runs_without_torch(monkeypatch):
    def candidates(device, precision, ahead=False, archs=("sm_90",)):
        return builder.candidates(builder.Request(precision, "auto", device, 32, archs=archs, ahead=ahead))

    assert candidates("cpu", "float32") == candidates("cpu", "float16") == ["onnxruntime", "openvino"]
    assert candidates("cuda", "float32") == ["eager", "compiled", "tensorrt-rtx"]
    assert candidates("cuda", "float16") == ["eager", "compiled", "fused", "tensorrt-rtx"]
    assert candidates("cuda", "float16", archs=()) == ["eager", "compiled", "tensorrt-rtx"]
    assert candidates("cuda", "float16", ahead=True) == ["fused"] and candidates("cuda", "float32", ahead=True) == []
    # A GPU that TensorRT for RTX does not build for takes nothing from the others.
    monkeypatch.setattr("tkfnet_engine.export.engine_from_onnx.gpu_here", lambda: Here("NVIDIA H200", "9.0", 13000))
    assert candidates("cuda", "float16") == ["eager", "compiled", "fused"]
    monkeypatch.setattr(f"{REQUEST}.why_unavailable", lambda name: "gone" if name == "openvino" else None)
    assert candidates("cpu", "float32") == ["onnxruntime"]


def test_auto_without_any_candidate(quick_build, small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{REQUEST}.why_unavailable", lambda name: "gone")
    with pytest.raises(BackendError, match="builds float32 for cpu: onnxruntime: gone; openvino: gone"):
        quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto")


def test_a_backend_that_cannot_be_timed_is_left_out(
    quick_build, small_checkpoint_path, tmp_path, monkeypatch, engine_path
):
    there, gone = {"onnxruntime": str(engine_path)}, {"openvino": str(tmp_path / "none.tkf")}
    timing, failed = choose.time_engines(gone | there, 1)
    assert list(timing) == ["onnxruntime"] and timing["onnxruntime"][1] > 0
    assert list(failed) == ["openvino"] and "verified but ended with 3 when timed: error: " in failed["openvino"]

    monkeypatch.setattr(builder, "time_engines", lambda *_: ({"onnxruntime": {1: 1.0}}, {"openvino": "it crashed"}))
    facts = quick_build(small_checkpoint_path, tmp_path / "e.tkf", backend="auto")
    assert facts["backend"] == "onnxruntime" and facts["choice"]["left_out"] == {"openvino": "it crashed"}
    monkeypatch.setattr(builder, "time_engines", lambda *_: ({}, {"openvino": "it crashed", "onnxruntime": "it too"}))
    with pytest.raises(BackendError, match="it crashed; it too"):
        quick_build(small_checkpoint_path, tmp_path / "f.tkf", backend="auto")
    assert os.listdir(tmp_path) == ["e.tkf"]


def test_a_slow_round_does_not_decide(monkeypatch):
    rounds = {"steady": iter([11.0, 11.0, 12.0, 11.0]), "disturbed": iter([30.0, 10.0, 40.0, 25.0])}
    monkeypatch.setattr(choose, "_time", lambda name, path, batches: {1: next(rounds[name])})
    timing, failed = choose.time_engines(dict.fromkeys(rounds, "e.tkf"), 1)
    assert timing == {"steady": {1: 11.0}, "disturbed": {1: 10.0}} and failed == {}
    assert fastest(timing) == "disturbed"


def test_timing_ends_at_its_limit(tmp_path, engine_path, monkeypatch):
    monkeypatch.setattr(choose, "TIMEOUT_S", 0.01)
    timing, failed = choose.time_engines({"onnxruntime": str(engine_path)}, 1)
    assert timing == {} and "did not finish being timed" in failed["onnxruntime"]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (("float32", "openvino", "cuda", 32), UsageError, "--backend openvino --device cuda: .*runs on cpu only"),
        (
            ("int8", "eager", "cpu", 32),
            UsageError,
            "--backend eager: got precision int8, expected float32 or float16",
        ),
        (("float32", "tensorflow", "cpu", 32), UsageError, "backend: got 'tensorflow'"),
    ],
)
def test_a_request_that_makes_no_sense(request_, error, message, small_checkpoint_path, tmp_path):
    with pytest.raises(error, match=message):
        builder.build_engine(load_checkpoint(small_checkpoint_path), builder.Request(*request_), tmp_path / "e.tkf")


def test_a_backend_that_is_not_installed(small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{REQUEST}.why_unavailable", lambda name: "it needs openvino; pip install openvino")
    request = builder.Request("float32", "openvino", "cpu", 32)
    with pytest.raises(BackendError, match="backend openvino: it needs openvino; pip install openvino"):
        builder.build_engine(load_checkpoint(small_checkpoint_path), request, tmp_path / "e.tkf")


# --- an engine that is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
@pytest.mark.parametrize("old", [None, b"an older file"])
def test_a_wrong_engine_leaves_no_file(backend, old, small_checkpoint_path, tmp_path, wrong_lowering, quick_command):
    out = tmp_path / "e.tkf"
    if old:
        out.write_bytes(old)
    wrong_lowering(backend)
    shown = quick_command(
        "build", "--checkpoint", small_checkpoint_path, "--backend", backend, "--device", "cpu", "--out", out
    )
    assert shown.code == 2 and shown.out == "" and "Traceback" not in shown.err
    assert shown.err.splitlines()[-1].startswith("error: the engine does not answer as the network: SQNR ")
    report = json.loads(shown.err[shown.err.index("{\n") : shown.err.rindex("}") + 1])
    assert report["sqnr_db"] < report["required_sqnr_db"] == 60 and report["images"] == 256
    assert os.listdir(tmp_path) == (["e.tkf"] if old else [])
    assert not old or out.read_bytes() == old


@pytest.mark.parametrize(("second", "wrong"), [(1.99, True), (1.999, False)])
def test_a_label_that_differs_fails_unless_rounding_decides_it(second, wrong):
    """Both answers keep more than 60 dB; a gap of 0.01 is far above what 60 dB leave to rounding, 0.001 is not."""
    reference = _logits(64)
    reference[5] = [2, second, 0, 0, 0, 0, 0]
    got = reference.copy()
    got[5, 1] = 2.001
    assert compare(reference, got, 60).sqnr_db > 60
    if wrong:
        message = "1 images get another label, expected none outside near-ties"
        with pytest.raises(VerificationError, match=message) as caught:
            verify(_replay(got, []), _expected(reference), "float32", 64)
        assert caught.value.report["near_ties"] == 0
    else:
        report = verify(_replay(got, []), _expected(reference), "float32", 64)
        assert report["disagreements"] == report["near_ties"] == 1


# --- where it is written -----------------------------------------------------------------------------------


def test_a_folder_that_takes_no_file(quick_build, small_checkpoint_path, tmp_path):
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a folder in which even root writes nothing")
    with pytest.raises(FileError, match=r"/proc/e\.tkf"):
        quick_build(small_checkpoint_path, "/proc/e.tkf")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_read_only(quick_build, small_checkpoint_path, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(FileError):
        quick_build(small_checkpoint_path, tmp_path / "locked" / "e.tkf")


def test_out_is_a_folder(small_checkpoint_path, tmp_path, quick_command):
    (tmp_path / "e.tkf").mkdir()
    (tmp_path / "e.tkf" / "kept").write_text("x")
    shown = quick_command(
        "build", "--checkpoint", small_checkpoint_path, "--backend", "onnxruntime", "--out", tmp_path / "e.tkf"
    )
    assert shown.code == FileError.exit_code and shown.err.splitlines()[-1].startswith("error: ")
    assert (
        "Traceback" not in shown.err
        and os.listdir(tmp_path / "e.tkf") == ["kept"]
        and os.listdir(tmp_path) == ["e.tkf"]
    )


def test_a_link_is_replaced_and_its_target_kept(quick_build, small_checkpoint_path, tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "e.tkf").symlink_to("target")
    quick_build(small_checkpoint_path, tmp_path / "e.tkf")
    assert not (tmp_path / "e.tkf").is_symlink() and (tmp_path / "target").read_bytes() == b"mine"


# --- killed, and several at once ---------------------------------------------------------------------------

# One process imports, draws and exports once, then forks a build per trial. No thread runs before a fork.
DRIVER = """
import copy, os, random, select, signal, sys, time
import onnxruntime, torch
torch.set_num_threads(1)
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.export import engine_from_checkpoint as builder, verify
from tkfnet_engine.model.checkpoint import load_checkpoint
checkpoint_path, out, what, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
checkpoint = load_checkpoint(checkpoint_path)
expected = verify.verification_set(checkpoint.model, checkpoint.preprocessing)
builder.verification_set = lambda *_: expected
exported, export = [], builder.onnx_from_folded
def export_once(*arguments):
    if not exported:
        exported.append(export(*arguments))
    return copy.deepcopy(exported[0])
builder.onnx_from_folded = export_once
request = builder.Request("float32", "onnxruntime", "cpu", 32)
builder._lower(builder.fold(checkpoint.model, checkpoint.preprocessing), "onnxruntime", checkpoint, request, None)
write = builder.write_bundle

def start(path):
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, told
    status = 1
    try:
        def announced(*arguments):
            os.write(tell, b"w")
            return write(*arguments)
        builder.write_bundle = announced
        builder.build_engine(checkpoint, request, path)
        status = 0
    finally:
        os._exit(status)

if what == "together":
    children = [start(out) for _ in range(3)]
    assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0, 0, 0]
    print(read_bundle(out).sha256)
    sys.exit()

began = time.monotonic()
pid, _ = start(out)
assert os.waitpid(pid, 0)[1] == 0
took, good = time.monotonic() - began, read_bundle(out).sha256
os.unlink(out)
draw, seen = random.Random(seed), []
for trial in range(6):
    pid, told = start(out)
    if trial < 3:
        time.sleep(draw.uniform(0, took))
    else:
        # The last moments are the dangerous ones: the file is being written.
        select.select([told], [], [], 600)
        time.sleep(draw.uniform(0, 0.02))
    os.kill(pid, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    there = os.path.exists(out)
    if there:
        assert read_bundle(out).sha256 == good, trial
    seen.append((killed, there))
    if there and trial != 4:  # one trial starts with the old file in place
        os.unlink(out)
print(seen)
pid, _ = start(out)
assert os.waitpid(pid, 0)[1] == 0 and read_bundle(out).sha256 == good
print(sorted(os.listdir(os.path.dirname(out))))
"""


def _drive(what, checkpoint, out, seed=0):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, checkpoint, out, what, str(seed)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@POSIX
def test_a_killed_build_leaves_nothing_or_an_engine(small_checkpoint_path, tmp_path):
    seen, left = _drive("kill", small_checkpoint_path, tmp_path / "e.tkf", seed=int.from_bytes(os.urandom(4)))
    assert "(True, " in seen, "no build was killed"
    # The next build tidies up after the killed ones.
    assert left == "['e.tkf']"


@POSIX
def test_builds_of_one_path_at_once_end_in_one_engine(small_checkpoint_path, small_engine_path, tmp_path):
    (digest,) = _drive("together", small_checkpoint_path, tmp_path / "e.tkf")
    assert digest == read_bundle(small_engine_path).sha256
    assert os.listdir(tmp_path) == ["e.tkf"]


# --- the command's own checks ------------------------------------------------------------------------------


def test_the_command_refuses_before_it_works(small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "build_engine", lambda *_: pytest.fail("it started to build"))
    for argv, message in (
        (["--out", "engine.bin"], "--out: got 'engine.bin', expected a name that ends in .tkf"),
        (["--out", str(tmp_path / "no" / "e.tkf")], "--out: the folder .*no is not there; make it first"),
        (["--max-batch", "0"], "--max-batch: got 0, expected 1 to 4096"),
        (["--max-batch", "5000"], "--max-batch: got 5000, expected 1 to 4096"),
        (["--strict-int8", "--fp16"], "--strict-int8: got it with float16; leave one of them out"),
        (["--calibration", "t.json"], "--calibration: float32 needs none; give --int8 or --fp8 as well"),
        (
            ["--fp8", "--device", "cuda", "--arch", "sm_80"],
            "--fp8 --arch sm_80: got no FP8 there, expected sm_89, sm_90",
        ),
        (["--fp8", "--device", "cpu"], "--fp8: got --device cpu, expected an NVIDIA GPU"),
    ):
        with pytest.raises(UsageError, match=message):
            build_command.main(["--checkpoint", str(small_checkpoint_path), *argv])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(small_checkpoint_path, tmp_path):
    with pytest.raises(UsageError, match="--device cuda: got no usable NVIDIA GPU"):
        build_command.main(
            ["--checkpoint", str(small_checkpoint_path), "--device", "cuda", "--out", str(tmp_path / "e.tkf")]
        )


def test_an_engine_is_no_checkpoint(small_engine_path, tmp_path):
    with pytest.raises(TkfnetError, match="is not a tkfnet-engine checkpoint"):
        build_command.main(["--checkpoint", str(small_engine_path), "--out", str(tmp_path / "e.tkf")])
    assert os.listdir(tmp_path) == []
