"""A fused engine built for a GPU that is not here: compiled, verified in the interpreter, written; or refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from tkfnet_engine.backends.registry import BACKENDS
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.engine import Engine
from tkfnet_engine.errors import BackendError, UsageError, VerificationError
from tkfnet_engine.kernels.plan import Plan

pytest.importorskip("triton")
ARCH = "sm_90"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def build_ahead(checkpoint, out, data, max_batch=2):
    from tkfnet_engine.export.engine_from_checkpoint import Request, build_engine
    from tkfnet_engine.model.checkpoint import load_checkpoint

    request = Request("float16", "auto", "cuda", max_batch, archs=(ARCH,), ahead=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tkfnet_engine.export.verify.open_data", data)
        return build_engine(load_checkpoint(checkpoint), request, out)


@pytest.fixture(scope="module")
def fused(small_checkpoint_path, tmp_path_factory, remembered_data):
    path = tmp_path_factory.mktemp("ahead") / "fused.tkf"
    build_ahead(small_checkpoint_path, path, remembered_data)
    return path


def test_the_file_holds_plans_kernels_weights_and_a_golden_answer(fused, small_reference):
    bundle = read_bundle(fused)
    facts = bundle.facts
    assert (facts["backend"], facts["device"], facts["precision"]) == ("fused", "cuda", "float16")
    assert facts["archs"] == [ARCH] and facts["max_batch"] == 2 and "accelerator" not in facts["hardware"]
    index = json.loads(bytes(bundle.bytes(f"cubins/{ARCH}/index")))
    needed = set()
    for batch in (1, 2):
        plan = Plan.from_json(bundle.bytes(f"plans/{ARCH}/{batch}"))
        assert (plan.batch, plan.arch, plan.size) == (batch, ARCH, 64)
        assert plan.weight_bytes == len(bundle.bytes("weights.packed"))
        needed |= {launch.variant for launch in plan.launches}
    assert needed == index["cubins"].keys()
    for variant, about in index["cubins"].items():
        assert bytes(bundle.bytes(f"cubins/{ARCH}/{variant}"))[:4] == b"\x7fELF" and about["spilled_bytes"] == 0
    golden = bundle.array("golden/pixels")
    assert np.allclose(bundle.array("golden/logits"), small_reference(golden), atol=1e-4)


def test_it_was_verified_in_the_interpreter_and_says_so(fused, command):
    report = read_bundle(fused).facts["verification"]
    assert report["executor"] == "interpreter" and report["images"] == 8
    assert 40 <= report["sqnr_db"] < 120 and report["top1_agreement"] == 1
    shown = command("info", fused)
    assert shown.code == 0 and "in Triton's interpreter" in shown.out and ARCH in shown.out


def test_equal_inputs_give_equal_bytes(fused, small_checkpoint_path, tmp_path, remembered_data):
    build_ahead(small_checkpoint_path, tmp_path / "again.tkf", remembered_data)
    assert (tmp_path / "again.tkf").read_bytes() == fused.read_bytes()


def test_it_does_not_run_here_and_never_on_the_cpu_instead(fused):
    with pytest.raises(BackendError, match="GPU"):
        Engine.load(fused)
    with pytest.raises(BackendError, match="device"):
        Engine.load(fused, device="cpu")


def test_wrong_kernels_leave_no_file(small_checkpoint_path, tmp_path, remembered_data, monkeypatch):
    """The interpreter runs what was packed: spoil that, and nothing may be written."""
    from tkfnet_engine.export import fused_from_folded

    def spoiled(folded, network, *rest):
        with np.errstate(all="ignore"):
            folded.head[2].weight.data.neg_()
        return pack(folded, network, *rest)

    pack = fused_from_folded.packed_weights
    monkeypatch.setattr(fused_from_folded, "packed_weights", spoiled)
    with pytest.raises(VerificationError):
        build_ahead(small_checkpoint_path, tmp_path / "bad.tkf", remembered_data, max_batch=1)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_fp16_cannot_hold_are_refused(small_checkpoint_path, tmp_path, remembered_data, monkeypatch):
    from tkfnet_engine.model import fold

    def huge(model, preprocessing):
        network = original(model, preprocessing)
        network.blocks[0].convs[0].weight.data[0, 0, 0, 0] = 1e6
        return network

    original = fold.fold
    monkeypatch.setattr("tkfnet_engine.export.engine_from_checkpoint.fold", huge)
    with pytest.raises(UsageError, match=r"layer1\.0\.conv1\.w.*1e\+06"):
        build_ahead(small_checkpoint_path, tmp_path / "bad.tkf", remembered_data, max_batch=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--fp32", "--device", "cuda"], 64, "add --fp16"),
        (["--fp16", "--device", "cuda", "--backend", "eager"], 64, "got no usable NVIDIA GPU"),
        (["--fp16", "--device", "cuda", "--arch", "sm_70"], 64, "sm_80, sm_86"),
        (["--fp16", "--device", "cpu", "--arch", ARCH], 64, "--arch sm_90"),
        (["--fp32", "--device", "cuda", "--backend", "fused"], 64, "expected float16"),
        (["--fp16", "--device", "cpu", "--backend", "fused"], 64, "runs on cuda only"),
    ],
)
def test_requests_that_make_no_sense_are_refused(command, tmp_path, flags, code, said, small_checkpoint_path):
    done = command("build", "--checkpoint", small_checkpoint_path, *flags, "--out", tmp_path / "no.tkf")
    assert done.code == code and said in done.err
    assert list(tmp_path.iterdir()) == []


def test_without_triton_the_build_says_what_to_install(command, tmp_path, small_checkpoint_path, monkeypatch):
    from tkfnet_engine.backends import registry

    present = registry._importable
    monkeypatch.setattr(registry, "_importable", lambda name: name != "triton" and present(name))
    done = command(
        "build", "--checkpoint", small_checkpoint_path, "--fp16", "--device", "cuda", "--backend", "fused",
        "--out", tmp_path / "no.tkf",
    )  # fmt: skip
    assert done.code == 7 and "triton" in done.err and BACKENDS["fused"].build_install in done.err


@pytest.mark.parametrize(
    ("capability", "flags", "archs", "ahead"),
    [
        ((9, 0), [], ("sm_90",), False),
        ((8, 7), [], ("sm_86",), False),
        ((9, 0), ["--arch", "sm_90", "--arch", "sm_80"], ("sm_90", "sm_80"), False),
        ((9, 0), ["--arch", "sm_80"], ("sm_80",), True),
        ((7, 5), [], (), False),
        ((7, 5), ["--backend", "eager"], (), False),
        ((7, 5), ["--backend", "fused"], None, False),
    ],
)
def test_architectures_where_a_gpu_is(capability, flags, archs, ahead, small_checkpoint_path, monkeypatch, command):
    """A GPU that is too old for the fused kernels still builds the others; other architectures are built ahead."""
    import torch

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def build_engine(checkpoint, request, out):
        asked.append(request)
        raise UsageError("enough")

    monkeypatch.setattr("tkfnet_engine.export.engine_from_checkpoint.build_engine", build_engine)
    done = command("build", "--checkpoint", small_checkpoint_path, "--fp16", "--device", "cuda", *flags)
    if archs is None:
        assert done.code == 7 and "compute capability 7.5" in done.err and not asked
    else:
        assert done.code == 64 and [(r.archs, r.ahead) for r in asked] == [(archs, ahead)]


def test_other_builds_need_no_triton():
    """Nor does anything else of `export` that they import."""
    code = "import sys; sys.modules['triton'] = None; import tkfnet_engine.export.engine_from_checkpoint"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
