"""How engines in eight bits are built on a GPU, and what is said of them; the build itself is a fake here."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

CUBIN = {"code": b"", "entry": "k", "registers": 90, "spilled_bytes": 0, "shared_bytes": 1024, "tensor_core": {}}
GATE = {"images": 2100, "float32_accuracy": 0.9, "accuracy": 0.899, "accuracy_kept": 0.9989, "agreement": 0.991}
GATE |= {"recall_lost": [0.0, 0.004, -0.001]}
REPORT = {"sqnr_db": 32.7, "images": 2100, "top1_agreement": 0.991, "gate": GATE}
QUANTISED = {"layers": {"stem": "int8"}, "not_as_asked": {}, "back_to_float": [], "kept_float": [], "weight_bits": 8}
FACTS = {"precision": "int8", "verification": REPORT, "quantisation": QUANTISED}


def test_what_was_built_is_recorded(scripts_importable):
    from part_build import result_of

    found = result_of(FACTS, {"a": CUBIN, "b": CUBIN | {"spilled_bytes": 8}}, 17.25, 88.8)
    assert "reason" not in found and found["quantisation"] == QUANTISED and found["verification"]["gate"] == GATE
    assert (found["kernels"], found["kernels_that_spill"], found["megabytes"]) == (2, 1, 17.25)
    for said in ("2 kernels, 1 spill", "32.7 dB", "accuracy kept 99.89%", "labels kept 99.10%", "back to FP16: none"):
        assert said in found["summary"], said
    half = result_of({"precision": "float16", "verification": REPORT}, {"a": CUBIN}, 30.0, 60.0)
    assert half["summary"].endswith("top-1 99.10%") and "quantisation" not in half


def test_units_that_went_back_to_float_are_named_and_are_no_fault(scripts_importable):
    from part_build import result_of

    steps = [{"unit": "tafe.merge", "sqnr_db": 20.0, "slower": 0.01}]
    found = result_of(FACTS | {"quantisation": QUANTISED | {"back_to_float": steps}}, {"a": CUBIN}, 1.0, 1.0)
    assert "reason" not in found and found["summary"].endswith("back to FP16: tafe.merge")


def test_a_product_that_is_silently_float_is_wrong(scripts_importable):
    from part_build import result_of

    astray = {"layer1.0.conv1": "float16", "tafe.gate": "absent"}
    found = result_of(FACTS | {"quantisation": QUANTISED | {"not_as_asked": astray}}, {"a": CUBIN}, 1.0, 1.0)
    assert found["reason"] == "not in int8, though asked for: layer1.0.conv1 in float16, tafe.gate in absent"


@pytest.fixture
def labelled(tmp_path, scripts_importable):
    """What `calibrate` has left in the output folder."""
    from part_calibrate import write_set

    from tkfnet_engine.export.verify import VerificationSet

    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (5, 4, 4, 3), np.uint8), draw.integers(0, 7, 5)
    drawn = VerificationSet(images, "faces", "ab12", labels, draw.normal(size=(5, 7)).astype(np.float32))
    write_set(tmp_path / "labelled.npz", drawn)
    return drawn


def test_labelled_faces_are_read_as_they_were_written(labelled, tmp_path):
    from part_calibrate import read_set

    found = read_set(tmp_path / "labelled.npz")
    assert (found.data, found.fingerprint) == ("faces", "ab12") and type(found.fingerprint) is type(found.data) is str
    for name in ("images", "labels", "reference"):
        a, b = getattr(found, name), getattr(labelled, name)
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.fixture
def built(monkeypatch, tmp_path, scripts_importable):
    """built(*flags, arch=.., fails=..): part_build's `main`, whose engine is a file of `FACTS`: its exit code, what it
    asked the build for, the set that the build verified on, and its result."""
    import part_build

    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export import engine_from_checkpoint

    def run(*flags, arch="sm_90", facts=FACTS, fails=None):
        seen = SimpleNamespace(argv=None, drawn=None)

        def build(argv):
            seen.argv = argv
            if fails is not None:
                raise fails
            seen.drawn = engine_from_checkpoint.verification_set("model", "preprocessing", None, "int8")
            index = {"driver": 12000, "cubins": {"a": {k: v for k, v in CUBIN.items() if k != "code"}}}
            tensors = {f"cubins/{arch}/index": json.dumps(index).encode()}
            write_bundle(argv[argv.index("--out") + 1], tensors, facts)

        monkeypatch.setattr(part_build.build, "main", build)
        monkeypatch.setattr(part_build, "this_arch", lambda: arch)
        monkeypatch.setattr(engine_from_checkpoint, "verification_set", lambda *_, **__: "drawn anew")
        argv = ["part_build.py", "--out", str(tmp_path), "--result", str(tmp_path / "result.json"), *flags]
        monkeypatch.setattr(part_build.sys, "argv", argv)
        code = part_build.main()
        return code, seen, json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.mark.parametrize(("precision", "flag"), [("int8", "--int8"), ("float8", "--fp8")])
def test_eight_bits_are_built_for_this_gpu_from_what_calibrate_has_left(precision, flag, built, labelled, tmp_path):
    code, seen, result = built("--precision", precision)
    assert code == 0 and result["verification"]["gate"] == GATE
    assert seen.argv[0] == flag and "--calibration" in seen.argv and str(tmp_path / "calibration.json") in seen.argv
    asked = dict(zip(seen.argv[1::2], seen.argv[2::2]))
    assert (asked["--device"], asked["--backend"], asked["--max-batch"]) == ("cuda", "fused", "256")
    assert asked["--out"].endswith(f"engine-{precision}.tkf")
    assert np.array_equal(seen.drawn.labels, labelled.labels), "the build is judged on faces of its own"


def test_a_build_that_is_not_as_asked_or_fails_its_gate_is_wrong(built, labelled):
    from tkfnet_engine.errors import VerificationError

    astray = FACTS | {"quantisation": QUANTISED | {"not_as_asked": {"stem": "float16"}}}
    code, _, result = built("--precision", "int8", facts=astray)
    assert code == 10 and "stem in float16" in result["reason"]
    code, _, result = built("--precision", "int8", fails=VerificationError("accuracy 80%", {"gate": GATE}))
    assert code == 10 and result == {"reason": "accuracy 80%", "verification": {"gate": GATE}}


def test_a_gpu_without_fp8_leaves_it_out(built):
    code, seen, result = built("--precision", "float8", arch="sm_86")
    assert (code, seen.argv, result) == (77, None, {"reason": "sm_86 has no FP8"})


def test_calibrate_keeps_a_table_and_what_the_builds_are_judged_on(labelled, monkeypatch, tmp_path):
    import part_calibrate

    asked = []
    table = SimpleNamespace(points=range(21), data=SimpleNamespace(images=512, warnings=("odd",)), digest="d1")
    monkeypatch.setattr(part_calibrate.calibrate, "main", asked.append)
    monkeypatch.setattr(part_calibrate, "read_table", lambda path: table)
    monkeypatch.setattr(part_calibrate, "load_checkpoint", lambda path: SimpleNamespace(model=1, preprocessing=2))
    drawn = replace(labelled, reference=np.eye(7, dtype=np.float32)[labelled.labels])
    monkeypatch.setattr(
        part_calibrate, "verification_set", lambda *a, precision: drawn if precision == "int8" else None
    )
    result = tmp_path / "result.json"
    monkeypatch.setattr(part_calibrate.sys, "argv", ["p", "--out", str(tmp_path), "--result", str(result)])
    assert part_calibrate.main() == 0
    assert asked[0][asked[0].index("--out") + 1] == str(tmp_path / "calibration.json")
    assert np.array_equal(part_calibrate.read_set(tmp_path / "labelled.npz").reference, drawn.reference)
    found = json.loads(result.read_text())
    assert (found["float32_accuracy"], found["digest"], found["warnings"]) == (1.0, "d1", ["odd"])
