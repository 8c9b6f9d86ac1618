"""`info --layers` and `bench --layers`: what they show of a TensorRT engine, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import TrustError

from .plan_files import SECTION, Backend, write_engine

LAYERS = [
    {
        "name": name,
        "kind": kind,
        "precision": precision,
        "reads": [{"shape": [-1, 8, 16, 16], "type": precision}],
        "writes": [{"shape": [-1, 8, 8, 8], "type": "float16"}],
        "weights": [precision],
        "tactic": "__myl_a_tactic_with_a_name_that_is_far_too_long_for_any_table",
        "origin": [name, f"{name}.relu"],
    }
    for name, kind, precision in (
        ("stem", "correlation", "int8"),
        ("layer1.0.conv1", "correlation", "int8"),
        ("__myl_MeanMul", "kgen", "float32"),
    )
]
TIMES = [("stem_U7_myl0_4", 0.25), ("layer1.0.conv1", 0.5), ("__myl_MeanMul_myl0_9", 0.125), ("Reformat", 0.125)]
# As TensorRT's inspector says it.
INSPECTED = {
    "Name": "stem_U7_myl0_4",
    "LayerType": "correlation",
    "Inputs": [{"Name": "x", "Dimensions": [-1, 8, 16, 16], "Format/Datatype": "Int8"}],
    "Outputs": [{"Name": "y", "Dimensions": [-1, 8, 8, 8], "Format/Datatype": "Half"}],
    "TacticName": "chosen_here",
    "Metadata": "[ONNX Layer: stem][ONNX Layer: stem.relu]",
}


class _Told(Backend):
    """A stand-in that tells of its layers."""

    def layers(self):
        return [INSPECTED]

    def profile(self, batch, runs):
        self.asked = (batch, runs)
        return TIMES


@pytest.fixture
def engine(tmp_path):
    kept = {"tensorrt/layers": json.dumps(LAYERS).encode()}
    return write_engine(tmp_path / "e.tkf", tensors=kept, tensorrt=SECTION | {"not_as_asked": {"stem": "float16"}})


@pytest.fixture
def told(monkeypatch):
    return _Told(monkeypatch, "tensorrt")


def test_the_layers_of_the_build_are_a_table(engine, command):
    shown = command("info", engine, "--layers")
    lines = shown.out.splitlines()
    assert shown.code == 0 and lines[0].split() == ["layer", "kind", "reads", "writes", "tactic", "of"]
    assert lines[1].split()[:4] == ["stem", "correlation", "int8[Nx8x16x16]", "float16[Nx8x8x8]"]
    assert lines[3].startswith("MeanMul ") and all(len(line) < 200 for line in lines)
    assert lines[-2] == "3 layers by what they compute on: 1 float32, 2 int8 (read back from the build)"
    assert lines[-1] == "not in the precision asked for: stem in float16"


def test_the_layers_of_the_build_as_json(engine, command):
    found = json.loads(command("info", engine, "--layers", "--json").out)
    assert found["layers"] == LAYERS and found["precisions"] == {"float32": 1, "int8": 2}
    assert found["not_as_asked"] == {"stem": "float16"}


def test_live_asks_the_inspector_and_wants_trust(engine, command, told):
    refused = command("info", engine, "--layers", "--live")
    assert refused.code == TrustError.exit_code and told.opened == []
    found = json.loads(command("info", engine, "--layers", "--live", "--trust", "--json").out)
    assert found["layers"] == [LAYERS[0] | {"tactic": "chosen_here", "weights": []}]
    assert found["source"] == "TensorRT's inspector on this GPU"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--live"], "--live: got no --layers"),
        (["--trust"], "--trust: got no --layers"),
        (["--plan", "--layers"], "--plan: got --layers as well"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, engine, command):
    shown = command("info", engine, *flags)
    assert shown.code == 64 and message in shown.err


@pytest.mark.parametrize("content", [b"[", b'[{"name": "stem"}]', b'{"a": 1}', b"[1]", b'[{"name": NaN}]'])
def test_a_damaged_list_of_layers_is_refused(content, tmp_path, command):
    path = write_engine(tmp_path / "e.tkf", tensors={"tensorrt/layers": content})
    shown = command("info", path, "--layers")
    assert shown.code == 3 and "its list of layers cannot be read" in shown.err and "Traceback" not in shown.err


def test_times_of_layers_as_table_and_json(engine, command, told):
    shown = command("bench", engine, "--layers", "--batch", "4", "--samples", "7", "--trust")
    assert shown.code == 0 and told.asked == (4, 7)
    lines = shown.out.splitlines()
    longest = next(line for line in lines if line.startswith("layer1.0.conv1"))
    assert longest.split()[1:4] == ["int8", "0.5000", "50.0%"] and longest.endswith("#" * 30)
    assert next(line for line in lines if line.startswith("Reformat")).split()[1:3] == ["-", "0.1250"]
    assert any(line.startswith("__myl_MeanMul (MeanMul)") for line in lines)
    assert lines[-1] == "batch 4: 1.000 ms in all, while every layer is watched"
    found = json.loads(command("bench", engine, "--layers", "--batch", "1", "2", "--trust", "--json").out)
    assert [profile["batch"] for profile in found["profiles"]] == [1, 2]
    assert found["profiles"][0]["layers"][0] == {
        "name": "stem",
        "ms": 0.25,
        "precision": "int8",
        "of": ["stem", "stem.relu"],
        "share": 0.25,
    }


@pytest.mark.parametrize("name", ["chart.png", "chart.svg"])
def test_times_of_layers_as_a_chart(name, engine, command, told, tmp_path):
    shown = command("bench", engine, "--layers", "--batch", "1", "--chart", tmp_path / name, "--trust")
    assert shown.code == 0, shown.err
    if name.endswith(".svg"):
        # A path for each bar, and more for the text.
        assert (tmp_path / name).read_text().count("<path") > len(TIMES)
        return
    pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 10  # bars in colours, and text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--chart", "c.png"], "--chart: got it without --layers and one --batch"),
        (["--layers", "--chart", "c.png", "--batch", "1", "8"], "--chart: got it without --layers and one --batch"),
        (["--layers", "--chart", "c.gif", "--batch", "1"], "--chart: got 'c.gif', expected a name that ends in .svg"),
        (["--layers", "--batch", "64"], "profile: got batch 64 and 100 runs, expected 1 to 32"),
    ],
)
def test_what_the_bench_refuses(flags, message, engine, command, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = command("bench", engine, *flags, "--trust")
    assert shown.code == 64 and message in shown.err


def test_other_backends_tell_nothing_of_their_layers(small_engine_path, command):
    shown = command("bench", small_engine_path, "--layers", "--batch", "1")
    assert shown.code == 64 and "got an engine of backend onnxruntime, expected one of TensorRT" in shown.err
