"""`export_plan`: the bytes, what is said of them, what is refused, and what a crash may leave."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from tkfnet_engine import export_plan
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import FileError
from tkfnet_engine.spec import LABELS

from .plan_files import FACTS, PLAN, PROFILES, SECTION, SIZE, write_engine

STATIC = [{"min": 4, "opt": 4, "max": 4}]


@pytest.fixture
def path(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_engine(tmp_path / "e.tkf")


def _section(**changes):
    return {**SECTION, **changes}


def _options(**changes):
    return _section(options={**SECTION["options"], **changes})


def _refused(shown, code, *words):
    assert (shown.code, shown.out, shown.err.count("\n")) == (code, "", 1), shown.err
    assert shown.err.startswith("error: ") and all(word in shown.err for word in words), shown.err


def test_the_plan_as_it_is_and_what_its_user_needs(command, path):
    before = path.read_bytes()
    shown = command("export-plan", path, "--out", "model.plan")
    assert (shown.code, shown.out) == (0, "")
    assert Path("model.plan").read_bytes() == PLAN and path.read_bytes() == before
    assert sorted(os.listdir()) == ["e.tkf", "model.plan", "model.plan.json"]
    about = json.loads(Path("model.plan.json").read_text())
    inputs, outputs = about.pop("inputs"), about.pop("outputs")
    assert [(i["name"], i["dtype"], i["shape"]) for i in inputs] == [("images", "uint8", [-1, SIZE, SIZE, 3])]
    assert [(o["name"], o["dtype"], o["shape"]) for o in outputs] == [("logits", "float32", [-1, len(LABELS)])]
    assert "RGB" in inputs[0]["content"] and "softmax" in outputs[0]["content"]
    repeated = {name: value for name, value in FACTS.items() if name != "device"}
    assert about == {
        "plan": {"bytes": len(PLAN), "sha256": hashlib.sha256(PLAN).hexdigest()},
        "engine_sha256": before[-32:].hex(),
        **repeated,
    }
    assert "wrote model.plan, 0.0 MB, and model.plan.json; a plan is a program" in shown.err


def test_json_is_the_description_alone_on_standard_output(command, path):
    shown = command("export_plan", path, "--out", "model.plan", "--json")
    assert shown.code == 0 and shown.out == Path("model.plan.json").read_text()


def test_it_runs_nothing_and_needs_no_trust(command, path, monkeypatch):
    for name in ("tkfnet_engine.engine.open_backend", "tkfnet_engine.engine.why_not_own"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("it was called"))
    assert command("export_plan", path, "--out", "model.plan").code == 0


def test_facts_that_an_engine_may_lack(command, path):
    write_engine(path, versions=..., hardware=..., verification=...)
    assert command("export_plan", path, "--out", "m").code == 0
    assert not {"versions", "hardware", "verification"} & json.loads(Path("m.json").read_text()).keys()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, f"trtexec --loadEngine=my.plan --shapes=images:8x{SIZE}x{SIZE}x3"),
        ({"tensorrt": _section(profiles=STATIC), "max_batch": 4}, "trtexec --loadEngine=my.plan"),
        (
            {"tensorrt": _section(profiles=STATIC * 2), "max_batch": 4},
            f"trtexec --loadEngine=my.plan --shapes=images:4x{SIZE}x{SIZE}x3",
        ),
        ({"backend": "tensorrt-rtx"}, f"tensorrt_rtx --loadEngine=my.plan --shapes=images:8x{SIZE}x{SIZE}x3"),
        (
            {"tensorrt": _options(version_compatible=True)},
            f"trtexec --loadEngine=my.plan --shapes=images:8x{SIZE}x{SIZE}x3 --versionCompatible",
        ),
    ],
)
def test_the_command_that_times_it(command, path, facts, expected):
    write_engine(path, **facts)
    assert command("export_plan", path, "--out", "my.plan").err.splitlines()[-1] == f"to time it: {expected}"


def test_a_path_is_quoted_for_the_shell(command, path):
    assert "trtexec '--loadEngine=my model.plan' " in command("export_plan", path, "--out", "my model.plan").err


# --- Triton ------------------------------------------------------------------------------------------------

COMMENT = f"# Labels by column: {', '.join(json.dumps(name) for name in LABELS)}\n"


def test_triton_dynamic_batch(command, path):
    os.makedirs("repository/tkfnet/1")
    config = "repository/tkfnet/config.pbtxt"
    shown = command("export_plan", path, "--out", "repository/tkfnet/1/model.plan", "--triton", config)
    assert shown.code == 0 and config in shown.err
    assert Path(config).read_text() == (
        COMMENT + 'platform: "tensorrt_plan"\n'
        "max_batch_size: 32\n"
        f'input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ {SIZE}, {SIZE}, 3 ] }} ]\n'
        f'output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ {len(LABELS)} ] }} ]\n'
    )


def test_triton_fixed_batch_and_another_name(command, path):
    write_engine(path, tensorrt=_section(profiles=STATIC), max_batch=4)
    command("export_plan", path, "--out", "other.plan", "--triton", "config.pbtxt")
    assert Path("config.pbtxt").read_text() == (
        COMMENT + 'platform: "tensorrt_plan"\n'
        'default_model_filename: "other.plan"\n'
        "max_batch_size: 0\n"
        f'input [ {{ name: "images" data_type: TYPE_UINT8 dims: [ 4, {SIZE}, {SIZE}, 3 ] }} ]\n'
        f'output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 4, {len(LABELS)} ] }} ]\n'
    )


def test_triton_is_told_what_a_version_compatible_plan_needs(command, path):
    write_engine(path, tensorrt=_options(version_compatible=True))
    command("export_plan", path, "--out", "model.plan", "--triton", "config.pbtxt")
    assert "\n# Needs tritonserver --backend-config=tensorrt,version-compatible=true\n" in (
        Path("config.pbtxt").read_text()
    )


def test_triton_runs_no_plan_for_rtx(command, path):
    write_engine(path, backend="tensorrt-rtx")
    shown = command("export_plan", path, "--out", "model.plan", "--triton", "config.pbtxt")
    _refused(shown, 64, "--triton: Triton runs no plan for tensorrt-rtx", "leave it out")
    assert os.listdir() == ["e.tkf"]


# --- refusals ----------------------------------------------------------------------------------------------


def test_an_engine_without_a_plan(command, path):
    for facts in ({"backend": "onnxruntime", "device": "cpu"}, {"plan": None}, {"backend": "onnxruntime"}):
        write_engine(path, **facts)
        shown = command("export_plan", path, "--out", "model.plan")
        _refused(shown, 64, "holds no plan", "tensorrt or tensorrt-rtx", "tkfnet_engine.build --backend tensorrt")
    assert os.listdir() == ["e.tkf"]


@pytest.mark.parametrize(
    "section",
    [
        ..., None, [], {}, _section(profiles=...), _section(profiles=[]), _section(profiles=[{}]),
        _section(profiles={"min": 1}), _section(profiles=[None]), _section(profiles=[*PROFILES, {"min": 1, "opt": 1}]),
        _section(profiles=[{"min": 0, "opt": 8, "max": 32}]), _section(profiles=[{"min": 9, "opt": 8, "max": 32}]),
        _section(profiles=[{"min": 1, "opt": 33, "max": 32}]), _section(profiles=[{"min": 1, "opt": 8, "max": 16}]),
        _section(profiles=[{"min": True, "opt": 8, "max": 32}]), _section(profiles=[{"min": 1.0, "opt": 8, "max": 32}]),
        _section(profiles=[{"min": "1", "opt": 8, "max": 32}]), _section(options=None), _section(options={}),
        _options(version_compatible=1),
    ],
)  # fmt: skip
def test_facts_that_do_not_say_what_the_plan_is(command, path, section):
    if isinstance(section, dict):
        section = {k: v for k, v in section.items() if v is not ...}
    write_engine(path, tensorrt=section)
    _refused(command("export_plan", path, "--out", "m"), 3, "its facts of TensorRT hold", "build it again")
    assert os.listdir() == ["e.tkf"]


def test_paths_that_cannot_be(command, path):
    for argv in (["--out", "e.tkf"], ["--out", "./e.tkf"], ["--out", "m", "--triton", "m"],
                 ["--out", "m", "--triton", "m.json"], ["--out", "m", "--triton", "e.tkf"]):  # fmt: skip
        _refused(command("export_plan", path, *argv), 64, "expected different files")
    for argv in (["--out", "none/m"], ["--out", "m", "--triton", "none/config.pbtxt"]):
        _refused(command("export_plan", path, *argv), 64, "none is not there; make it first")
    os.mkdir("folder")
    for argv in (["--out", ""], ["--out", "folder/"], ["--out", "m", "--triton", ""]):
        _refused(command("export_plan", path, *argv), 64, "expected a file's name")
    _refused(command("export_plan", path, "--out", "folder"), 8, "folder: a folder, a pipe or a device")
    assert sorted(os.listdir()) == ["e.tkf", "folder"] and read_bundle(path).names()


def test_a_damaged_engine(command, path):
    path.write_bytes(path.read_bytes()[:-1])
    _refused(command("export_plan", path, "--out", "m"), 3, "e.tkf")
    assert os.listdir() == ["e.tkf"]


# --- what a crash leaves -----------------------------------------------------------------------------------


def _beside_each_other() -> bool:
    """Whether there is a plan; what lies beside it has to describe it then."""
    if not os.path.exists("model.plan"):
        return False
    described = json.loads(Path("model.plan.json").read_text())["plan"]["sha256"]
    assert described == hashlib.sha256(Path("model.plan").read_bytes()).hexdigest()
    assert Path("config.pbtxt").read_text().splitlines()[2] == f"max_batch_size: {Path('model.plan').read_bytes()[0]}"
    return True


@pytest.mark.parametrize("first", [False, True])
def test_no_plan_ever_stands_beside_the_description_of_another(command, path, monkeypatch, first):
    """Killed before each call that changes the folder, with and without another plan in place."""
    argv = ("export_plan", path, "--out", "model.plan", "--triton", "config.pbtxt")
    real = {"write_atomically": export_plan.write_atomically, "unlink": os.unlink}
    seen = []
    for survived in range(10):
        for name in {"model.plan", "model.plan.json", "config.pbtxt"} & set(os.listdir()):
            os.unlink(name)
        if not first:
            write_engine(
                path, bytes([16, 1]), tensorrt=_section(profiles=[{"min": 1, "opt": 1, "max": 16}]), max_batch=16
            )
            assert command(*argv).code == 0 and _beside_each_other()
        write_engine(path, bytes([32, 2]))
        left = [survived]

        def dying(name, *arguments, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real[name](*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(export_plan, "write_atomically", lambda *a: dying("write_atomically", *a))
            patch.setattr(export_plan.os, "unlink", lambda *a: dying("unlink", *a))
            code = command(*argv).code
        seen.append(_beside_each_other())
        if code == 0:
            break
        assert code == 130
    # The plan before stays until the first step; the new one comes with the last.
    assert seen == ([False] * 3 if first else [True, False, False, False]) + [True]
    assert Path("model.plan").read_bytes() == bytes([32, 2])


def test_a_full_disk(command, path, monkeypatch):
    assert command("export_plan", path, "--out", "model.plan").code == 0
    real = export_plan.write_atomically

    def full(target, data):
        if str(target) == "model.plan":
            raise FileError("of many words") from OSError(errno.ENOSPC, "No space left on device")
        real(target, data)

    monkeypatch.setattr(export_plan, "write_atomically", full)
    shown = command("export_plan", path, "--out", "model.plan")
    _refused(shown, 8, "model.plan: cannot write it: No space left on device", f"{len(PLAN)} bytes", "is removed")
    assert not os.path.exists("model.plan")
