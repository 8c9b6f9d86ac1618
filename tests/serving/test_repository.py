"""The folders that are written, and that protobuf itself and the real server read them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tkfnet_engine import Engine
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import BundleError, FileError, UsageError
from tkfnet_engine.preprocess import decode_image
from tkfnet_engine.serving import repository
from tkfnet_engine.serving.config import Options
from tkfnet_engine.serving.limits import Limits
from tkfnet_engine.serving.pbtxt import Enum, pbtxt
from tkfnet_engine.serving.repository import write_repository
from tkfnet_engine.spec import LABELS

from ..plan_files import PLAN, SECTION
from ..plan_files import write_engine as write_plan_engine

READ = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), ModelConfig()), preserving_proto_field_name=True))
"""


@pytest.fixture(scope="session")
def parsed(serve_python):
    """parsed(text) -> the config as protobuf's own reader and Triton's own message type have it."""

    def read(text: str) -> dict:
        done = subprocess.run([serve_python, "-c", READ], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _config(folder: Path, model: str) -> str:
    return (folder / model / "config.pbtxt").read_text()


@pytest.fixture
def plan_path(tmp_path) -> Path:
    return write_plan_engine(tmp_path / "plan.tkf")


def test_python(small_engine_path, tmp_path, parsed):
    folder = tmp_path / "models"
    limits = Limits(max_queue=7, queue_seconds=1.5, max_images=16, max_pixels=1000, delay_us=123)
    options = Options(instances=3, threads=2, trusted=True, limits=limits)
    assert write_repository(folder, [str(small_engine_path)], options) == ["small"]
    assert _files(folder) == [
        "small/1/engine.tkf", "small/1/model.py", "small/config.pbtxt", "small/labels.txt",
        "small_decode/1/model.py", "small_decode/config.pbtxt", "small_decode/warmup/picture",
        "small_jpeg/config.pbtxt", "small_jpeg/labels.txt",
    ]  # fmt: skip
    assert (folder / "small_jpeg" / "1").is_dir()
    assert (folder / "small/1/engine.tkf").read_bytes() == small_engine_path.read_bytes()
    assert (folder / "small/labels.txt").read_text().split() == list(LABELS)
    engine = parsed(_config(folder, "small"))
    assert engine["backend"] == "python" and engine["max_batch_size"] == 16
    assert engine["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["64", "64", "3"]}]
    assert engine["output"] == [
        {"name": "probabilities", "data_type": "TYPE_FP32", "dims": ["7"], "label_filename": "labels.txt"},
        {"name": "class", "data_type": "TYPE_INT32", "dims": ["1"]},
    ]
    policy = {"default_timeout_microseconds": "1500000", "allow_timeout_override": True, "max_queue_size": 7}
    assert engine["dynamic_batching"] == {
        "preferred_batch_size": [16], "max_queue_delay_microseconds": "123", "priority_levels": "2",
        "default_priority_level": "2", "default_queue_policy": policy,  # REJECT is the type's first, which is not shown
    }  # fmt: skip
    assert engine["instance_group"] == [{"count": 3, "kind": "KIND_CPU"}]
    assert {key: value["string_value"] for key, value in engine["parameters"].items()} == {
        "threads": "2", "instances": "3", "trusted": "true"
    }  # fmt: skip
    assert [w["batch_size"] for w in engine["model_warmup"]] == [1, 16]
    decode = parsed(_config(folder, "small_decode"))
    assert decode["dynamic_batching"]["default_queue_policy"] == policy
    assert decode["parameters"]["max_pixels"]["string_value"] == "1000"
    length, picture = struct.unpack_from("<I", data := (folder / "small_decode/warmup/picture").read_bytes()), data[4:]
    assert length == (len(picture),) and decode_image(picture).shape == (64, 64, 3)
    jpeg = parsed(_config(folder, "small_jpeg"))
    assert jpeg["platform"] == "ensemble" and jpeg["output"] == engine["output"]
    assert [step["model_name"] for step in jpeg["ensemble_scheduling"]["step"]] == ["small_decode", "small"]


def _check_ensemble(folder: Path, name: str, parsed) -> None:
    """Clients see the same two models, whatever runs the network."""
    whole = parsed(_config(folder, name))
    assert whole["platform"] == "ensemble" and whole["input"][0]["name"] == "images"
    assert [o["name"] for o in whole["output"]] == ["probabilities", "class"]
    assert [s["model_name"] for s in whole["ensemble_scheduling"]["step"]] == [f"{name}_network", f"{name}_answer"]
    for model in (f"{name}_answer", f"{name}_decode"):
        assert parsed(_config(folder, model))["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 256


def test_onnxruntime(small_engine_path, tmp_path, parsed):
    folder = tmp_path / "models"
    write_repository(folder, [str(small_engine_path)], Options("onnxruntime", threads=4, instances=2))
    assert (folder / "small_network/1/model.onnx").read_bytes() == read_bundle(small_engine_path).bytes("graph.onnx")
    assert "small/1/engine.tkf" not in _files(folder)
    network = parsed(_config(folder, "small_network"))
    assert network["backend"] == "onnxruntime" and network["max_batch_size"] == 32
    assert network["parameters"] == {"intra_op_thread_count": {"string_value": "4"}}
    assert network["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["7"]}]
    assert network["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    _check_ensemble(folder, "small", parsed)


def test_tensorrt(plan_path, tmp_path, parsed):
    folder = tmp_path / "models"
    write_repository(folder, [str(plan_path)], Options("tensorrt", limits=Limits(max_images=8)))
    assert (folder / "plan_network/1/model.plan").read_bytes() == PLAN
    network = parsed(_config(folder, "plan_network"))
    assert network["platform"] == "tensorrt_plan" and network["max_batch_size"] == 8
    assert network["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert network["dynamic_batching"]["preferred_batch_size"] == [8]
    _check_ensemble(folder, "plan", parsed)


def test_the_server_reads_the_other_kinds_too(serve_python, small_engine_path, plan_path, tmp_path):
    """It lacks their backends, and says that alone: what stands before, it has taken."""
    from tkfnet_engine.serving.environment import find_environment

    environment = find_environment(serve_python)
    for kind, path, backend in (("onnxruntime", small_engine_path, "onnxruntime"), ("tensorrt", plan_path, "tensorrt")):
        folder = tmp_path / kind
        write_repository(folder, [str(path)], Options(kind))
        done = subprocess.run(
            [environment.server, f"--model-repository={folder}", "--disable-auto-complete-config", "--allow-http=false",
             "--allow-grpc=false", "--allow-metrics=false"],
            env={**os.environ, **environment.variables}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert f"unable to find backend library for backend '{backend}'" in done.stderr, done.stderr[-3000:]


def test_several_engines(small_engine_path, tmp_path):
    other = tmp_path / "other-1.0.tkf"
    other.write_bytes(small_engine_path.read_bytes())
    folder = tmp_path / "models"
    assert write_repository(folder, [str(small_engine_path), str(other)], Options()) == ["small", "other-1.0"]
    assert {p.name for p in folder.iterdir()} == {
        f"{name}{end}" for name in ("small", "other-1.0") for end in ("", "_decode", "_jpeg")
    }


# --- refusals ----------------------------------------------------------------------------------------------


def _refused(error, words, *arguments):
    with pytest.raises(error) as raised:
        write_repository(*arguments)
    assert all(word in str(raised.value) for word in words), raised.value


def test_engines_that_a_kind_cannot_serve(small_engine_path, plan_path, tmp_path, tampered):
    folder = tmp_path / "models"
    small = str(small_engine_path)
    _refused(UsageError, ("onnxruntime", "expected one for tensorrt"), folder, [small], Options("tensorrt"))
    fixed = write_plan_engine(
        tmp_path / "f.tkf", max_batch=4, tensorrt={**SECTION, "profiles": [dict.fromkeys(("min", "opt", "max"), 4)]}
    )
    _refused(UsageError, ("batches of 4 alone", "--min-batch 1"), folder, [str(fixed)], Options("tensorrt"))
    late = write_plan_engine(tmp_path / "l.tkf", tensorrt={**SECTION, "profiles": [{"min": 2, "opt": 8, "max": 32}]})
    _refused(UsageError, ("batches from 2 on", "--min-batch 1"), folder, [str(late)], Options("tensorrt"))
    int8 = tampered(small_engine_path, precision="int8", backend="openvino", quantisation={"weight_bits": 7})
    _refused(UsageError, ("INT8 engine for openvino",), folder, [str(int8)], Options("onnxruntime"))
    assert not folder.exists() and not [p for p in os.listdir(tmp_path) if p.endswith(".tmp")]


def test_names_that_cannot_be(small_engine_path, tmp_path):
    for name in ("a b.tkf", "é.tkf", "a\n.tkf", "x_jpeg.tkf", "x_decode.tkf", ".tkf", "-a.tkf", "a" * 101 + ".tkf"):
        path = tmp_path / name
        path.write_bytes(small_engine_path.read_bytes())
        _refused(UsageError, ("expected a model's name", "rename the file"), tmp_path / "m", [str(path)], Options())
    _refused(UsageError, ("small twice",), tmp_path / "m", [str(small_engine_path)] * 2, Options())


def test_folders_that_cannot_be(small_engine_path, tmp_path):
    path = str(small_engine_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("full", "file", "link"):
        _refused(FileError, ("it is there already",), tmp_path / name, [path], Options())
    _refused(FileError, ("no such folder",), tmp_path / "none" / "m", [path], Options())
    (tmp_path / "empty").mkdir()
    write_repository(tmp_path / "empty", [path], Options())
    assert _files(tmp_path / "empty")


def test_a_damaged_engine(small_engine_path, tmp_path):
    path = tmp_path / "damaged.tkf"
    path.write_bytes(small_engine_path.read_bytes()[:-1])
    _refused(BundleError, ("damaged.tkf",), tmp_path / "m", [str(path)], Options())


def test_all_of_it_or_nothing(small_engine_path, tmp_path, monkeypatch):
    """Stopped before each of its writes."""
    real, left = repository._write, [0]

    def dying(*arguments):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(repository, "_write", dying)
    for survived in range(50):
        left[0] = survived
        try:
            write_repository(tmp_path / "m", [str(small_engine_path)], Options())
            break
        except KeyboardInterrupt:
            assert os.listdir(tmp_path) == []
    assert survived > 5 and os.listdir(tmp_path) == ["m"]


def test_the_command(command, small_engine_path, tmp_path):
    shown = command("serve", small_engine_path, "--repository", tmp_path / "m", "--json")
    assert shown.code == 0 and json.loads(shown.out) == {"repository": str(tmp_path / "m"), "models": ["small"]}
    assert f"tritonserver --model-repository={tmp_path}/m" in shown.err
    for flags, words in (
        (["--repository", "x", "--host", "127.0.0.1", "--http-port", "1"], "--host, --http-port: got --repository"),
        (["--kind", "onnxruntime"], "expected python: the package's server has that backend alone"),
        (["--host", "localhost"], "expected an IP address"),
        (["--direct", "--host", "0.0.0.0"], "--direct: got --host 0.0.0.0"),
        (["--max-queue", "0"], "max_queue: got 0, expected 1 to 65536"),
        (["--instances", "0"], "instances: got 0"),
        (["--threads", "0"], "threads: got 0"),
    ):
        shown = command("serve", small_engine_path, *flags)
        assert shown.code == 64 and words in shown.err, shown.err


def test_text_format(parsed):
    name = 'a"b\\c\n\té\x7f\0'
    text = pbtxt(
        {"name": name, "backend": "x", "input": [], "instance_group": [{"kind": Enum("KIND_CPU"), "gpus": [1, 2]}]}
    )
    found = parsed(text)
    assert found["name"] == name and found["instance_group"] == [{"kind": "KIND_CPU", "gpus": [1, 2]}]


def test_the_graph_gives_the_engine_answers(small_engine_path, tmp_path, crops, known):
    """What the other backend gets, run by the runtime that it uses."""
    import onnxruntime

    from tkfnet_engine.engine import softmax

    write_repository(tmp_path / "m", [str(small_engine_path)], Options("onnxruntime"))
    session = onnxruntime.InferenceSession(tmp_path / "m/small_network/1/model.onnx")
    found = softmax(session.run(["logits"], {"images": crops})[0])
    with Engine.load(small_engine_path) as engine:
        assert found.shape == engine.predict(crops).probabilities.shape
    assert abs(found - known).max() < 1e-5
