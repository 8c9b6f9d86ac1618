"""Every command: what it prints, as text and as JSON, its exit codes, its refusals in one line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine import __version__
from tkfnet_engine.__main__ import COMMANDS
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.data import open_data
from tkfnet_engine.metrics import Scores, confusion_matrix
from tkfnet_engine.preprocess import stack_crops
from tkfnet_engine.spec import LABELS

TKFNET = Path(sys.executable).with_name("tkfnet")


def _refused(shown, code, *words):
    assert shown.code == code, shown.err
    assert shown.out == "" and "Traceback" not in shown.err
    *_, last = shown.err.splitlines()
    assert last.startswith("error: ") and all(word in last for word in words), shown.err
    return shown.err.count("\n") == 1


def _process(*argv, cwd=None, code=0):
    done = subprocess.run([*map(os.fspath, argv)], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done


# --- engines ----------------------------------------------------------------------------------------------


def test_an_engine_that_is_none(command, pictures, tmp_path, checkpoint_path):
    for path, word in (
        (tmp_path / "none.tkf", "no such file"),
        (checkpoint_path, "is it a checkpoint?"),
        (tmp_path, "folder"),
    ):
        for argv in (["predict", path, pictures / "a.png", "--detector", "none"], ["info", path], ["bench", path]):
            assert _refused(command(*argv), 3, str(path), word)
        assert _refused(command("evaluate", path, "--data", "synthetic:n=35"), 3, str(path), word)


# --- evaluate ----------------------------------------------------------------------------------------------

SCORES = {"accuracy", "mean_class_accuracy", "macro_f1", "confusion"}


def _expected(reference, faces):
    images = stack_crops([faces.image(i) for i in range(len(faces))], 64)
    matrix = confusion_matrix(faces.labels, reference(images).argmax(1), 7)
    return Scores.from_confusion(matrix).to_dict()


@pytest.mark.parametrize(("split", "count"), [("test", 35), ("val", 35)])
def test_evaluate_on_rendered_faces(command, small_engine_path, small_reference, split, count):
    data = "synthetic:n=175,seed=8"
    more = [] if split == "test" else ["--split", split]
    shown = command("evaluate", small_engine_path, "--data", data, *more, "--json", "--threads", "1")
    assert shown.code == 0
    scores = json.loads(shown.out)
    assert set(scores) == SCORES | {"data", "split", "images", "labels"}
    assert (scores["data"], scores["split"], scores["images"], scores["labels"]) == (data, split, count, list(LABELS))
    assert {k: scores[k] for k in SCORES} == _expected(small_reference, open_data(data, split))
    assert np.sum(scores["confusion"]) == count and [sum(row) for row in scores["confusion"]] == [count // 7] * 7


@pytest.fixture
def tree(tmp_path, noise):
    for number, label in enumerate(LABELS):
        folder = tmp_path / "faces" / "test" / label
        folder.mkdir(parents=True)
        for i, image in enumerate(noise(1 + number % 3, 64, seed=number)):
            Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "faces"


def test_evaluate_on_a_folder(command, small_engine_path, small_reference, tree):
    shown = command("evaluate", small_engine_path, "--data", f"folder:{tree}", "--json")
    scores = json.loads(shown.out)
    assert {k: scores[k] for k in SCORES} == _expected(small_reference, open_data(f"folder:{tree}", "test"))
    assert scores["images"] == 13 and [sum(row) for row in scores["confusion"]] == [1, 2, 3, 1, 2, 3, 1]
    text = command("evaluate", small_engine_path, "--data", f"folder:{tree}")
    assert text.code == 0
    lines = text.out.splitlines()
    assert lines[0].endswith("13 images") and f"accuracy {scores['accuracy']:.2%}" in lines[1]
    assert [[int(n) for n in line.split()[1:]] for line in lines[-7:]] == scores["confusion"]


def test_evaluate_refuses(command, small_engine_path, tree, tampered):
    run = lambda *argv: command("evaluate", small_engine_path, *argv)  # noqa: E731
    assert _refused(run("--data", "photos"), 64, "data: got 'photos'", "synthetic")
    assert _refused(run("--data", f"folder:{tree}/none"), 5, "none")
    assert _refused(run("--data", f"folder:{tree}", "--split", "train"), 5, "train")
    (tree / "test" / "fear" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    shown = run("--data", f"folder:{tree}", "--json")
    assert shown.code in (4, 5) and shown.out == "" and "bad.png" in shown.err.splitlines()[-1]
    other = tampered(small_engine_path, labels=[*LABELS[:6], "contempt"])
    assert _refused(command("evaluate", other, "--data", "synthetic:n=35"), 5, "contempt", "expected the data's")


# --- info --------------------------------------------------------------------------------------------------


def test_info_json_is_the_facts(command, engine_path):
    shown = command("info", engine_path, "--json")
    assert shown.code == 0 and shown.err == ""
    assert json.loads(shown.out) == read_bundle(engine_path).facts


def test_info_text(command, engine_path):
    shown, facts = command("info", engine_path), read_bundle(engine_path).facts
    assert shown.code == 0 and shown.err == ""
    rows = {line[:11].strip(): line[12:] for line in shown.out.splitlines()}
    assert rows["file"].startswith(f"{engine_path}, {os.path.getsize(engine_path) / 1e6:.1f} MB")
    assert rows["runs on"] == "onnxruntime, cpu, float32, batches up to 32"
    assert "width 0.125" in rows["network"] and rows["input"].startswith("224x224 RGB uint8")
    assert rows["labels"] == ", ".join(LABELS) and rows["checkpoint"] == facts["checkpoint"]["sha256"]
    assert (
        f"torch {facts['versions']['torch']}" in rows["built with"]
        and facts["hardware"]["processor"] in rows["built on"]
    )
    assert f"256 images: SQNR {facts['verification']['sqnr_db']} dB (needs 60.0)" in rows["verified"]
    assert "chosen by" not in rows


def test_info_shows_how_auto_chose(command, engine_path, tampered):
    choice = {"setting": "backend", "chosen": "onnxruntime", "by": "geometric mean of p50 over batches", "left_out": {}}
    path = tampered(
        engine_path, choice={**choice, "p50_ms": {"onnxruntime": {"1": 1.5, "8": 9.0}, "openvino": {"1": 2.5}}}
    )
    line = next(line for line in command("info", path).out.splitlines() if line.startswith("chosen by"))
    assert "geometric mean" in line and "onnxruntime 1.5 ms at 1, 9.0 ms at 8; openvino 2.5 ms at 1" in line


@pytest.mark.parametrize(
    "facts",
    [
        {"versions": ...},
        {"hardware": ["x"]},
        {"checkpoint": "x"},
        {"checkpoint": {}},
        {"verification": {"images": 256}},
        {"verification": {"top1_agreement": "all", "images": 1, "sqnr_db": 1, "required_sqnr_db": 1, "max_error": 1}},
        {"choice": {"by": "luck"}},
        {"choice": 7},
    ],
)
def test_info_on_facts_of_another_form(command, engine_path, tampered, facts):
    path = tampered(engine_path, **facts)
    assert _refused(command("info", path), 3, str(path), "facts")
    assert command("info", path, "--json").code == 0


# --- bench -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_warm_up(monkeypatch):
    monkeypatch.setattr("tkfnet_engine.bench.WARM_UP_S", 0)


def test_bench_json(command, small_engine_path, no_warm_up):
    shown = command("bench", small_engine_path, "--json", "--batch", "2", "1", "--samples", "100", "--threads", "1")
    assert shown.code == 0
    value = json.loads(shown.out)
    assert set(value) == {"environment", "results"} and [row["batch"] for row in value["results"]] == [2, 1]
    for row in value["results"]:
        assert set(row) == {"batch", "samples", "p50_ms", "p90_ms", "p99_ms", "images_per_s"}
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["samples"] == 100
        assert row["images_per_s"] == pytest.approx(row["batch"] * 1e3 / row["p50_ms"], rel=1e-3, abs=0.01)
    about = value["environment"]
    assert (about["backend"], about["device"], about["precision"], about["threads"]) == (
        "onnxruntime",
        "cpu",
        "float32",
        1,
    )
    assert (
        about["tkfnet-engine"] == __version__ and about["versions"] == read_bundle(small_engine_path).facts["versions"]
    )


def test_bench_leaves_out_a_percentile_without_samples(command, small_engine_path, no_warm_up):
    for samples, known in ((1, 1), (9, 1), (10, 2), (99, 2)):
        shown = command("bench", small_engine_path, "--json", "--batch", "1", "--samples", str(samples))
        (row,) = json.loads(shown.out)["results"]
        given = [row[key] is not None for key in ("p50_ms", "p90_ms", "p99_ms")]
        assert given == [True] * known + [False] * (3 - known)


def test_bench_text_and_another_backend(command, small_engine_path, no_warm_up):
    shown = command(
        "bench", small_engine_path, "--batch", "1", "3", "--samples", "10", "--backend", "openvino", "--threads", "1"
    )
    first, head, *rows = shown.out.splitlines()
    assert first == f"{small_engine_path}: openvino on cpu, float32, 1 threads"
    assert head.split() == ["batch", "p50", "ms", "p90", "ms", "p99", "ms", "images/s"]
    assert [row.split()[0] for row in rows] == ["1", "3"] and [row.split()[3] for row in rows] == ["-", "-"]


def test_bench_refuses(command, small_engine_path):
    for argv in (["--batch", "0"], ["--batch", "1", "-2"], ["--samples", "0"]):
        assert _refused(command("bench", small_engine_path, *argv), 64, "expected 1 to 4096, and samples from 1")
    assert _refused(command("bench", small_engine_path, "--backend", "tensorrt9"), 64, "backend: got 'tensorrt9'")
    assert _refused(command("bench", small_engine_path, "--backend", "eager"), 7, "backend eager", "lacks 'weights/'")
    assert _refused(command("bench", small_engine_path, "--threads", "0"), 64, "threads: got 0")


@pytest.mark.parametrize(
    "argv", [["bench", "--json", "--batch", "1", "--samples", "10"], ["evaluate", "--json", "--data", "synthetic:n=35"]]
)
def test_json_is_alone_on_standard_output(command, small_engine_path, monkeypatch, no_warm_up, argv):
    ticks = itertools.count(step=11.0)
    monkeypatch.setattr("tkfnet_engine.console.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    shown = command(argv[0], small_engine_path, *argv[1:])
    assert shown.code == 0 and json.loads(shown.out)
    assert "/s, " in shown.err and " s left" in shown.err


# --- build -------------------------------------------------------------------------------------------------


def test_build_without_a_checkpoint_takes_the_shipped_one(
    command, small_checkpoint_path, small_engine_path, tmp_path, monkeypatch, quick_build, remembered_data
):
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
    monkeypatch.setattr("tkfnet_engine.build.reference_checkpoint", lambda: str(small_checkpoint_path))
    monkeypatch.chdir(tmp_path)
    shown = command("build", "--backend", "onnxruntime", "--device", "cpu")
    assert shown.code == 0 and shown.out == ""
    assert (
        "using the shipped reference" in shown.err
        and "wrote tkfnet-float32.tkf: onnxruntime on cpu, float32" in shown.err
    )
    assert os.listdir(tmp_path) == ["tkfnet-float32.tkf"]
    assert Path("tkfnet-float32.tkf").read_bytes() == small_engine_path.read_bytes()


def test_build_in_float16(command, small_checkpoint_path, tmp_path, monkeypatch, quick_build, remembered_data):
    monkeypatch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
    monkeypatch.chdir(tmp_path)
    argv = ["--checkpoint", small_checkpoint_path, "--fp16", "--backend", "openvino", "--max-batch", "4"]
    shown = command("build", *argv)
    assert shown.code == 0 and "building for the " in shown.err and "float16 on a CPU" in shown.err
    facts = read_bundle("tkfnet-float16.tkf").facts
    assert (facts["precision"], facts["backend"], facts["device"], facts["max_batch"]) == (
        "float16",
        "openvino",
        "cpu",
        4,
    )


def test_the_shipped_reference_stands_in_the_package():
    from tkfnet_engine import build

    path = Path(build.reference_checkpoint())
    assert path.parent == Path(build.__file__).parent / "assets" and path.suffix == ".safetensors"


def test_build_refuses(command, tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    assert _refused(command("build", "--strict-int8", "--fp16"), 64, "--strict-int8: got it with float16")
    assert _refused(command("build", "--out", "x.onnx"), 64, "expected a name that ends in .tkf")
    assert _refused(command("build", "--out", "no/x.tkf"), 64, "is not there; make it first")
    assert _refused(command("build", "--max-batch", "0"), 64, "--max-batch: got 0")
    _refused(command("build", "--checkpoint", "none.safetensors"), 6, "none.safetensors: cannot be read")
    _refused(command("build", "--checkpoint", pictures / "a.png"), 6, "is not a tkfnet-engine checkpoint")
    assert os.listdir(tmp_path) == []


def test_build_says_what_to_install(command, small_checkpoint_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    shown = command("build", "--checkpoint", small_checkpoint_path)
    _refused(shown, 7, "it needs onnx, which is not installed", "pip install 'tkfnet-engine[build]'")


# --- all of them -------------------------------------------------------------------------------------------


def test_version_and_help(command):
    for flag in ("--version", "-V"):
        shown = command(flag)
        assert (shown.code, shown.out, shown.err) == (0, f"tkfnet-engine {__version__}\n", "")
    for flag in ("--help", "-h"):
        shown = command(flag)
        assert (
            shown.code == 0
            and shown.err == ""
            and all(f"  {name.replace('_', '-')} " in shown.out for name in COMMANDS)
        )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each(command, name):
    shown = command(name, "--help")
    assert shown.code == 0 and shown.err == ""
    assert shown.out.startswith(f"usage: python -m tkfnet_engine.{name} ") and len(shown.out.splitlines()) > 6


@pytest.mark.parametrize("argv", [[], ["predictt"], ["--verbose"], ["Predict"], [""], ["__main__"], ["..os"]])
def test_an_unknown_command(command, argv):
    shown = command(*argv)
    _refused(shown, 64, f"got {argv[0] if argv else 'none'!r}, expected predict, build, evaluate, info, bench, train")
    assert shown.err.startswith("usage: tkfnet COMMAND")


@pytest.mark.parametrize(
    "argv",
    [
        ["predict"], ["predict", "e.tkf"], ["predict", "e.tkf", "a.png", "--threads", "two"],
        ["predict", "--no", "e", "a"], ["build", "--fp16", "--fp32"], ["build", "--backend", "tensorflow"],
        ["build", "--max-batch", "x"], ["build", "x"], ["build", "--device", "tpu"], ["evaluate", "e.tkf"],
        ["evaluate", "e.tkf", "--data", "synthetic", "--split", "all"], ["info"], ["info", "a.tkf", "b.tkf"],
        ["bench", "e.tkf", "--batch"], ["bench", "e.tkf", "--samples", "1.5"], ["train"], ["export_plan", "e.tkf"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_flag(command, argv):
    shown = command(*argv)
    assert shown.code == 64 and shown.out == "" and "Traceback" not in shown.err
    assert shown.err.startswith(f"usage: python -m tkfnet_engine.{argv[0]}") and shown.err.endswith("; see --help\n")
    # The message itself is one line; argparse may wrap the usage before it.
    assert shown.err.splitlines()[-1].startswith(f"python -m tkfnet_engine.{argv[0]}: ")


def test_threads_out_of_range(command, small_engine_path, pictures):
    shown = command("predict", small_engine_path, pictures / "a.png", "--detector", "none", "--threads", "0")
    assert _refused(shown, 64, "threads: got 0")


def test_an_error_of_several_lines_is_shown_as_one(command, small_engine_path, pictures, tmp_path):
    from tkfnet_engine.bundle import write_bundle

    facts = {**read_bundle(small_engine_path).facts, "backend": "openvino"}
    write_bundle(tmp_path / "junk.tkf", {"graph.onnx": b"\x08\x07junk" * 40}, facts)
    assert _refused(command("predict", tmp_path / "junk.tkf", pictures / "a.png"), 7, "refuses the engine's graph")


def test_every_way_to_start_is_the_same(small_engine_path, pictures):
    argv = [small_engine_path, "a.png", "b.jpg", "--detector", "none", "--json", "--threads", "1"]
    package, script = [sys.executable, "-m", "tkfnet_engine", "predict"], [TKFNET, "predict"]
    module = [sys.executable, "-m", "tkfnet_engine.predict"]
    done = [_process(*start, *argv, cwd=pictures) for start in (package, script, module)]
    assert done[0].stdout == done[1].stdout == done[2].stdout and len(json.loads(done[0].stdout)) == 2
    assert {d.stderr for d in done} == {""}
    wrong = [
        _process(*start, small_engine_path, "none.png", cwd=pictures, code=4) for start in (package, script, module)
    ]
    assert len({d.stderr for d in wrong}) == 1 and wrong[0].stderr.count("\n") == 1 and wrong[0].stdout == ""


def test_a_bare_start_is_a_usage_error():
    for start in ([sys.executable, "-m", "tkfnet_engine"], [TKFNET]):
        done = _process(*start, code=64)
        assert done.stdout == "" and done.stderr.splitlines()[-1].startswith("error: command: got 'none'")
