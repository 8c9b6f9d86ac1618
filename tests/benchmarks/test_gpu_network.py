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
    import part_network

    us = {"fused": 30.0, "fused_int8": 20.0, "fused_float8": 24.0, "eager": 90.0}
    monkeypatch.setattr(part_network, "sqnr_db", lambda call, faces, batch, required: call(None))
    monkeypatch.setattr(part_network, "queueing_us", lambda call, inputs: 3.0)
    monkeypatch.setattr(
        part_network, "interleaved", lambda calls, inputs, r, s: {n: [[us[n]] * s for _ in range(r)] for n in calls}
    )
    faces = part_network.Faces(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 7)))
    race = part_network.Race(4, faces, [None])
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


def test_the_gpu_tests_are_told_which_engines_there_are(tmp_path, scripts_importable):
    from part_tests import engines_of

    assert engines_of(tmp_path, []) == {"TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf")}
    assert engines_of(tmp_path, ["build-float8"]) == {
        "TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf"),
        "TKFNET_GPU_ENGINE_FLOAT8": str(tmp_path / "engine-float8.tkf"),
    }
