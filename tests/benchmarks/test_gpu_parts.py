"""What the GPU parts make of what they see, as far as it needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import stat

import pytest

pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)


# --- compute-sanitizer -----------------------------------------------------------------------------------

CLEAN = "========= COMPUTE-SANITIZER\nsanitized: all runs done\n========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACES = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
RACE = "========= Error: Race reported between Write access at conv_kernel+0x1a0\n=========\n"


@pytest.mark.parametrize(
    ("output", "code", "found"),
    [
        (CLEAN, 0, 0),
        (CLEAN_RACES, 0, 0),
        (CLEAN.replace("0 errors", "1 error"), 10, 1),
        (RACE + CLEAN_RACES.replace("0 hazards displayed (0 errors, 0", "1 hazard displayed (0 errors, 1"), 10, 1),
        (CLEAN + "========= ERROR SUMMARY: 12 errors\n", 10, 12),
        ("========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to ..\n", 77, None),
        ("========= Error: Target application returned an error\nerror: no memory\n", 10, None),
        ("sanitized: all runs done\n", 10, None),  # no summary: the tool did not come to its end
        ("========= ERROR SUMMARY: 0 errors\n", 10, None),  # the script did not
        ("", 10, None),
    ],
)
def test_only_a_whole_run_without_findings_is_clean(output, code, found, scripts_importable):
    from part_sanitizer import judged

    got, result = judged(output, 1)
    assert (got, result.get("found")) == (code, found)
    assert (got == 0) == ("reason" not in result)


def test_what_was_found_is_named(scripts_importable):
    from part_sanitizer import judged

    _, result = judged(RACE + CLEAN.replace("0 errors", "1 error"), 1)
    assert "conv_kernel" in result["reason"]


def test_the_tool_is_found_where_cuda_puts_it(monkeypatch, tmp_path, scripts_importable):
    from part_sanitizer import tool_path

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    tool = tmp_path / "cuda" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    assert tool_path() != str(tool), "it is no program"
    tool.chmod(stat.S_IRWXU)
    assert tool_path() == str(tool)
    on_path = tmp_path / "compute-sanitizer"
    on_path.write_text("")
    on_path.chmod(stat.S_IRWXU)
    assert tool_path() == os.fspath(on_path)


# --- tests -----------------------------------------------------------------------------------------------


def test_pytests_report_is_counted(tmp_path, scripts_importable):
    from part_tests import counted

    report = tmp_path / "tests.xml"
    report.write_text(
        """<testsuites><testsuite>
<testcase classname="tests.gpu.test_launches" name="test_a[1]"/>
<testcase classname="tests.gpu.test_launches" name="test_b"><failure message="assert 1&#10;more">..</failure></testcase>
<testcase classname="tests.gpu.test_launches" name="test_c"><error message="failed on setup">..</error></testcase>
<testcase classname="tests.gpu.test_device_arrays" name="test_d"><skipped message="no cupy"/></testcase>
</testsuite></testsuites>"""
    )
    assert counted(report) == {
        "passed": 1,
        "failed": ["test_launches.test_b: assert 1", "test_launches.test_c: failed on setup"],
        "skipped": ["test_device_arrays.test_d: no cupy"],
    }


# --- timing ----------------------------------------------------------------------------------------------


def test_engines_take_turns_and_the_first_block_of_a_turn_is_not_counted(monkeypatch, scripts_importable):
    import gpu_common

    ran = []

    def block(call, inputs, count):
        ran.append((call, count))
        return {"slow": 500.0, "fast": 10.0}[call] + len(ran) / 1000

    monkeypatch.setattr(gpu_common, "block_us", block)
    calls, inputs = {"fast": "fast", "slow": "slow"}, {"fast": [0], "slow": [0, 1]}
    taken = gpu_common.interleaved(calls, inputs, rounds=3, samples=2)
    timed = [call for call, _ in ran[-3 * 2 * 3 :]]
    assert timed == [*["fast"] * 3, *["slow"] * 3, *["slow"] * 3, *["fast"] * 3, *["fast"] * 3, *["slow"] * 3]
    assert {name: [len(blocks) for blocks in rounds] for name, rounds in taken.items()} == {
        "fast": [2, 2, 2],
        "slow": [2, 2, 2],
    }
    assert dict(ran[-6:]) == {"fast": 200, "slow": 8}, "a block is some four milliseconds"


def test_figures_of_an_engine(scripts_importable):
    from gpu_common import spread, times_as_long

    rounds = [[40.0, 41.0, 39.0], [42.0, 40.0, 40.0]]
    found = spread(rounds, batch=8)
    assert (found["median_us"], found["samples"], found["images_per_s"]) == (40.0, 6, 200_000.0)
    assert 39 <= found["p10_us"] <= 40 <= found["p90_us"] <= 42
    ours, other = [[10.0, 12.0, 11.0], [20.0, 20.0, 20.0]], [[22.0, 22.0, 99.0], [30.0, 30.0, 30.0]]
    assert times_as_long(other, ours) == {"median": 1.75, "lowest": 1.5, "highest": 2.0}


@pytest.fixture
def race(monkeypatch, scripts_importable):
    import gpu_race
    import numpy as np

    monkeypatch.setattr(gpu_race, "sqnr_db", lambda call, faces, batch, required: call(None))
    monkeypatch.setattr(gpu_race, "interleaved", lambda calls, inputs, r, s: {n: [[5.0, 5.0]] * r for n in calls})
    monkeypatch.setattr(gpu_race, "queueing_us", lambda call, inputs: 3.0)
    faces = gpu_race.Faces(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 7)))
    return gpu_race.Race(4, faces, [None, None])


def test_an_engine_that_errs_gets_no_time(race):
    race.enter("fused", lambda: lambda pixels: 55.0)
    race.enter("eager", lambda: lambda pixels: 39.9)
    found = race.run(5, 2)
    assert found["engines"]["fused"]["median_us"] == 5.0 and found["engines"]["fused"]["sqnr_db"] == 55.0
    assert found["engines"]["eager"] == {"median_us": None, "reason": "wrong: SQNR 39.9 dB"}
    assert found["ratios"] == {}


def test_another_engine_may_fail_and_ours_may_not(race):
    def broken():
        raise RuntimeError("no C compiler\nhere is why")

    race.enter("fused", lambda: lambda pixels: 55.0)
    race.enter("compiled", broken)
    found = race.run(5, 2)
    assert found["engines"]["compiled"] == {"median_us": None, "reason": "left out: RuntimeError: no C compiler"}
    with pytest.raises(RuntimeError):
        race.enter("fused_call", broken)


def test_ratios_are_of_ours(race):
    for name in ("fused", "compiled"):
        race.enter(name, lambda: lambda pixels: 55.0)
    assert race.run(5, 2)["ratios"] == {"compiled": {"median": 1.0, "lowest": 1.0, "highest": 1.0}}


# --- launches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arch", "chip"),
    [
        ("NVIDIA H200", "sm_90", "H200"),
        ("NVIDIA GeForce RTX 4090", "sm_89", "RTX-4090"),
        ("NVIDIA L4", "sm_89", "L4"),
        ("NVIDIA L40S", "sm_89", "L4"),  # not in the table: the chip that stands for the architecture
        ("NVIDIA B200", "sm_100", "B200"),
    ],
)
def test_a_gpu_is_found_in_the_table_of_chips(name, arch, chip, scripts_importable):
    from part_launches import chip_of

    assert chip_of(name, arch).name == chip


def test_a_launchs_tile_is_told_in_a_few_letters(scripts_importable):
    from part_launches import tile_cell

    from tkfnet_engine.kernels.plan import Launch

    def launch(**constexprs):
        return Launch("a", "k", (1, 1, 1), (), tuple(constexprs.items()), 4, 3, 0, 0, 0, 0)

    assert tile_cell(launch(H=7, BLOCK_M=64, BLOCK_N=32, BLOCK_K=16, SPLIT=8)) == "64x32x16/8, 4w 3s"
    assert tile_cell(launch(BLOCK_M=64, BLOCK_N=32)) == "64x32, 4w 3s"
    assert tile_cell(launch(SPLIT=1)) == "4w 3s"
