"""Engines in eight bits in the race of `part_network`, and in the GPU tests."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)


@pytest.fixture
def race(monkeypatch, scripts_importable):
    """A race in which an engine's call gives its SQNR, and takes as many microseconds as `us` says."""
    import gpu_race

    us = {"fused": 30.0, "fused_int8": 20.0, "fused_float8": 24.0, "eager": 90.0}
    us |= {"tensorrt": 45.0, "tensorrt_int8": 24.0, "tensorrt_call": 48.0}
    monkeypatch.setattr(gpu_race, "sqnr_db", lambda call, faces, batch, required: call(None))
    monkeypatch.setattr(gpu_race, "queueing_us", lambda call, inputs: 3.0)
    monkeypatch.setattr(
        gpu_race, "interleaved", lambda calls, inputs, r, s: {n: [[us[n]] * s for _ in range(r)] for n in calls}
    )
    faces = gpu_race.Faces(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 7)))
    race = gpu_race.Race(4, faces, [None])
    race.enter("fused", lambda: lambda pixels: 70.0)
    return race


def ours(sqnr, same=True):
    return SimpleNamespace(
        replay=lambda pixels: sqnr, same=lambda pixels: same, engine=SimpleNamespace(close=lambda: None)
    )


def test_engines_in_eight_bits_race_with_ours_in_fp16(race):
    from part_network import enter_eight_bits

    made = {"int8": ours(32.0), "float8": ours(25.0)}
    enter_eight_bits(race, ["build-int8", "build-float8"], made.__getitem__, None)
    found = race.run(7, 2)
    assert not race.wrong and found["engines"]["fused_int8"] == found["engines"]["fused_int8"] | {
        "median_us": 20.0,
        "images_per_s": 200_000.0,
        "sqnr_db": 32.0,
    }
    assert found["speedups"]["fused_int8"] == {"median": 1.5, "lowest": 1.5, "highest": 1.5}
    assert found["speedups"].keys() == {"fused_int8", "fused_float8"}
    assert found["ratios"]["fused_int8"]["median"] == 0.667


def test_what_was_not_built_is_left_out_and_is_no_fault(race):
    from part_network import enter_eight_bits

    enter_eight_bits(race, ["build-float8"], {"float8": ours(25.0)}.__getitem__, None)
    found = race.run(5, 2)
    assert not race.wrong and found["speedups"].keys() == {"fused_float8"}
    assert found["engines"]["fused_int8"] == {"median_us": None, "reason": "left out: build-int8 is not done"}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (ours(19.9), "fused_int8: wrong: SQNR 19.9 dB"),
        (ours(32.0, same=False), "fused_int8: wrong: RuntimeError: logits_on_device and the graph's replay differ"),
        (None, "fused_int8: wrong: TypeError: .*"),
    ],
    ids=["it errs", "two answers", "it fails"],
)
def test_an_engine_in_eight_bits_that_is_wrong_makes_the_part_wrong_and_the_others_are_timed(made, reason, race):
    from part_network import enter_eight_bits

    def make(precision):
        if made is None:
            raise TypeError("no such plan")
        return made

    enter_eight_bits(race, ["build-int8"], make, None)
    (wrong,) = race.wrong
    assert wrong == reason or (reason.endswith(".*") and wrong.startswith(reason[:-2]))
    found = race.run(5, 2)
    assert found["engines"]["fused"]["median_us"] == 30.0 and found["engines"]["fused_int8"]["median_us"] is None


@pytest.mark.parametrize("other", [None, "call", "replay"])
def test_an_engine_must_give_equal_bits_twice_however_it_is_called(other, scripts_importable):
    from part_network import Ours

    asked = []

    def answer(name):
        asked.append(name)
        return torch.tensor([1.0, 2.0 if name != other or asked.count(name) < 2 else 3.0])

    engine = SimpleNamespace(replay=lambda pixels: answer("replay"), call=lambda pixels: answer("call"))
    assert Ours.same(engine, None) == (other is None)


# --- TensorRT --------------------------------------------------------------------------------------------

BOTH = ["build-trt", "build-trt-int8"]


def rival(sqnr=60.0, how="one CUDA graph"):
    return SimpleNamespace(call=lambda pixels: sqnr, how=how, library="tensorrt 10.13.2")


@pytest.fixture
def equal(monkeypatch, scripts_importable):
    """Ours and TensorRT's own calls give equal bits, or differ as `equal.why` says."""
    import part_network

    said = SimpleNamespace(why=None, asked=[])
    monkeypatch.setattr(part_network, "unlike", lambda *asked: said.asked.append(asked) or said.why)
    return said


def test_tensorrts_engines_race_as_they_are_and_as_we_run_them(race, equal):
    from part_network import enter_tensorrt

    made = {"float16": rival(), "int8": rival(30.0, "queued: capturing failed")}
    enter_tensorrt(race, BOTH, made.__getitem__, lambda: lambda pixels: 60.0, "pixels")
    found = race.run(5, 2)
    engines = found["engines"]
    assert not race.wrong and equal.asked[0][0] is made["float16"].call and equal.asked[0][2] == "pixels"
    assert (engines["tensorrt"]["how"], engines["tensorrt"]["library"]) == ("one CUDA graph", "tensorrt 10.13.2")
    assert engines["tensorrt_int8"]["how"] == "queued: capturing failed" and "how" not in engines["fused"]
    assert found["ratios"]["tensorrt"]["median"] == 1.5 and found["ratios"]["tensorrt_call"]["median"] == 1.6
    assert not found["speedups"], "they are no engines of ours"


def test_tensorrt_is_left_out_where_it_was_not_built(race, equal):
    from part_network import enter_tensorrt

    def never(*_):
        raise AssertionError("it was made")

    enter_tensorrt(race, [], never, never, None)
    assert not race.wrong and race.left_out == {
        "tensorrt": "left out: build-trt is not done",
        "tensorrt_int8": "left out: build-trt-int8 is not done",
        "tensorrt_call": "left out: build-trt is not done",
    }


def test_what_fails_of_tensorrt_is_a_fact_and_what_fails_of_ours_is_wrong(race, equal):
    from part_network import enter_tensorrt

    def broken(precision):
        raise RuntimeError("no memory\nmore")

    enter_tensorrt(race, BOTH, broken, lambda: lambda pixels: 60.0, None)
    assert not race.wrong and race.left_out["tensorrt"] == "left out: RuntimeError: no memory" and not equal.asked
    assert race.run(5, 2)["engines"]["tensorrt_call"]["median_us"] == 48.0

    def refused():
        raise ValueError("no such plan")

    enter_tensorrt(race, ["build-trt"], lambda of: rival(), refused, None)
    assert race.wrong == ["tensorrt_call: wrong: ValueError: no such plan"]


@pytest.mark.parametrize(("precision", "fine"), [("float16", 40.0), ("int8", 20.0)])
def test_tensorrt_must_answer_as_near_as_its_precision_asks(precision, fine, race, equal):
    from part_network import enter_tensorrt

    name = {"float16": "tensorrt", "int8": "tensorrt_int8"}[precision]
    for sqnr, reason in ((fine - 0.1, f"wrong: SQNR {fine - 0.1} dB"), (fine, None)):
        race.left_out.clear()
        made = {"float16": rival(), "int8": rival()} | {precision: rival(sqnr)}
        enter_tensorrt(race, BOTH, made.__getitem__, lambda: lambda pixels: 60.0, None)
        assert race.left_out.get(name) == reason and not race.wrong


@pytest.mark.parametrize(
    ("why", "sqnr", "reason"), [("differ by 0.1", 60.0, "RuntimeError: differ by 0.1"), (None, 39.9, "SQNR 39.9 dB")]
)
def test_a_wrong_answer_of_ours_is_wrong(why, sqnr, reason, race, equal):
    from part_network import enter_tensorrt

    equal.why = why
    enter_tensorrt(race, ["build-trt"], lambda of: rival(), lambda: lambda pixels: sqnr, None)
    assert race.wrong == [f"tensorrt_call: wrong: {reason}"]


def test_equal_bits_are_asked_for_where_tensorrt_gives_them_itself(scripts_importable):
    from gpu_tensorrt import unlike

    def answers(*values):
        left = iter(values)
        return lambda pixels: torch.tensor([next(left)])

    assert unlike(answers(1.0, 1.0), answers(1.0), None) is None
    assert "differ by up to 0.5" in unlike(answers(1.0, 1.0), answers(1.5), None)
    assert unlike(answers(1.0, 2.0), answers(1.5), None) is None, "TensorRT does not repeat itself either"


def test_the_gpu_tests_are_told_which_engines_there_are(tmp_path, scripts_importable):
    from part_tests import engines_of

    assert engines_of(tmp_path, []) == {"TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf")}
    assert engines_of(tmp_path, ["build-float8"]) == {
        "TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf"),
        "TKFNET_GPU_ENGINE_FLOAT8": str(tmp_path / "engine-float8.tkf"),
    }
    told = engines_of(tmp_path, ["build-trt", "build-trt-int8"])
    assert told["TKFNET_GPU_TENSORRT"] == str(tmp_path / "trt-float16-small.tkf")
    assert told["TKFNET_GPU_TENSORRT_INT8"] == str(tmp_path / "trt-int8-small.tkf")
