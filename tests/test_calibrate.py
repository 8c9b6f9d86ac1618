"""`calibrate`: the command as a user runs it, what it prints and writes, what it refuses before it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tkfnet_engine.data import open_data
from tkfnet_engine.export.calibration_table import read_table
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import fold


@pytest.fixture(scope="module")
def rendered():
    """128 rendered faces, drawn once."""
    faces = open_data("synthetic:n=128,seed=5", "train")
    images = [faces.image(i) for i in range(len(faces))]
    faces.image = lambda i: images[i]
    # All of them are taken, in their order.
    faces.subset = lambda indices: faces if (indices == np.arange(128)).all() else pytest.fail("another draw")
    return faces


@pytest.fixture
def quick(rendered, monkeypatch, command, tmp_path):
    monkeypatch.setattr("tkfnet_engine.export.calibration_images.open_data", lambda text, split: rendered)
    monkeypatch.chdir(tmp_path)
    return command


def test_another_process_writes_the_same_bytes(quick, small_checkpoint_path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tkfnet_engine.calibrate", "--checkpoint", small_checkpoint_path, "--data",
         "synthetic:n=128,seed=5", "--images", "128", "--out", "there.json"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = quick("calibrate", "--checkpoint", small_checkpoint_path, "--images", "128", "--out", "here.json")
    assert shown.code == 0 and shown.out == done.stdout
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["here.json", "there.json"]


def test_the_table_is_printed_and_written(quick, small_checkpoint_path, tmp_path):
    shown = quick("calibrate", "--checkpoint", small_checkpoint_path, "--images", "128")
    assert shown.code == 0
    table = read_table(tmp_path / "small.calibration.json")
    checkpoint = load_checkpoint(small_checkpoint_path)
    network = network_of(fold(checkpoint.model, checkpoint.preprocessing))
    table.check(checkpoint.sha256, checkpoint.preprocessing, network)
    first, _, head, *rows = shown.out.splitlines()
    assert first.startswith("synthetic-train-n128-seed5: 128 images (19 surprise, 19 fear, ")
    assert head.split() == [word for kind in ("int8", "uint8", "float8") for word in (kind, "scale", "dB", "method")]
    assert [row.split()[0] for row in rows] == list(table.points)
    for row, found in zip(rows, table.points.values()):
        for kind, at in (("int8", 1), ("uint8", 4), ("float8", 7)):
            one = found.scales[kind]
            assert row.split()[at : at + 3] == [f"{one.scale:.4g}", f"{one.sqnr_db[one.method]:.1f}", one.method]
    assert "warning: 128 images: the scales are steadier from 512" in shown.err
    assert shown.err.splitlines()[-1] == f"wrote small.calibration.json: {len(rows)} maps, 128 images"
    assert shown.err.isascii() and max(map(len, shown.out.splitlines())) < 160


def test_json_is_the_table_alone_of_the_shipped_checkpoint(quick, small_checkpoint_path, tmp_path, monkeypatch):
    monkeypatch.setattr("tkfnet_engine.calibrate.reference_checkpoint", lambda: str(small_checkpoint_path))
    shown = quick("calibrate", "--images", "128", "--json")
    assert shown.code == 0 and "no --checkpoint: using the shipped reference" in shown.err
    assert os.listdir(tmp_path) == ["small.calibration.json"]
    assert json.loads(shown.out) == read_table("small.calibration.json").to_dict()


def test_it_refuses_before_it_works(quick, small_checkpoint_path, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "here.txt").write_text("text")
    for argv, code, words in (
        (["--images", "100"], 64, "--images: got 100, expected at least 128"),
        (["--images", "many"], 64, "invalid int value"),
        (["--out", "no/t.json"], 64, "is not there; make it first"),
        (["--out", "folder"], 64, "--out: got folder, which is a folder"),
        (["--out", small_checkpoint_path], 64, "which is the checkpoint, expected a file to write"),
        (["--checkpoint", "none.safetensors"], 6, "none.safetensors: cannot be read"),
        (["--checkpoint", "here.txt"], 6, "is not a tkfnet-engine checkpoint"),
        (["extra"], 64, "unrecognized arguments: extra"),
    ):
        shown = quick("calibrate", "--checkpoint", small_checkpoint_path, *argv)
        assert (shown.code, shown.out) == (code, "") and words in shown.err and "Traceback" not in shown.err
    assert sorted(os.listdir(tmp_path)) == ["folder", "here.txt"] and not os.listdir("folder")


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ("synthetic:n=127,seed=5", 5, "got 127 training images, expected at least 128"),
        ("faces:x", 64, "unknown data set 'faces'"),
        ("folder:none", 5, "nothing there"),
    ],
)
def test_data_that_will_not_do(command, small_checkpoint_path, tmp_path, monkeypatch, data, code, words):
    monkeypatch.chdir(tmp_path)
    shown = command("calibrate", "--checkpoint", small_checkpoint_path, "--data", data)
    assert shown.code == code and words in shown.err and shown.err.splitlines()[-1].startswith("error: ")
    assert os.listdir(tmp_path) == []


def test_it_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    shown = command("calibrate")
    assert shown.code == 64 and "calibrating needs torch" in shown.err and "tkfnet-engine[build]" in shown.err
