"""Two runs compared: a slower engine and a lost number fail, noise does not; and the command around it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.record import Measurement, Run
from benchmarks.report.__main__ import main
from benchmarks.report.compare import FASTER, FOUND, LOST, NOISE, SLOWER, compared, summary, table
from tkfnet_engine.errors import UsageError

from .records import ENVIRONMENT, cpu_run, on, only, times_as_long, written

SLOW = "tkfnet-engine, openvino"


def one(median: float | None = 10.0, low: float | None = 9.5, high: float | None = 10.5, unit="ms", **more) -> Run:
    if median is None:
        low = high = None
        more |= {"reason": "wrong: 3 dB"}
    found = Measurement("engines", "x", True, "int8", unit=unit, median=median, low=low, high=high, **more)
    return Run(ENVIRONMENT, (found,))


@pytest.mark.parametrize(
    ("new", "unit", "verdict", "failed"),
    [
        ((10.4, 10.0, 10.6), "ms", NOISE, False),
        # Beyond the threshold, but not beyond the noise.
        ((14.0, 10.4, 15.0), "ms", NOISE, False),
        ((14.0, 10.51, 15.0), "ms", SLOWER, True),
        # Beyond the noise, but not beyond the threshold.
        ((10.9, 10.6, 11.0), "ms", SLOWER, False),
        ((11.0, 10.6, 11.2), "ms", SLOWER, False),
        ((11.1, 10.6, 11.2), "ms", SLOWER, True),
        ((9.0, 8.9, 9.4), "ms", FASTER, False),
        ((9.0, 8.9, 9.5), "ms", NOISE, False),
        ((14.0, 13.0, 15.0), "images/s", FASTER, False),
        ((8.0, 7.0, 9.4), "images/s", SLOWER, True),
        ((9.3, 9.2, 9.4), "images/s", SLOWER, False),
        ((12.0, None, None), "MiB", SLOWER, True),
        ((10.2, None, None), "ms", NOISE, False),
        ((None, None, None), "ms", LOST, True),
    ],
)
def test_a_measurement_is_judged_against_both_spreads_and_the_threshold(new, unit, verdict, failed):
    (found,) = compared(one(unit=unit), one(*new, unit=unit))
    assert (found.verdict, found.failed) == (verdict, failed)


def test_a_number_that_is_new_is_no_failure():
    (found,) = compared(one(None), one())
    assert (found.verdict, found.failed, found.cost) == (FOUND, False, None)
    assert compared(one(None), one(None)) == []


def test_zero_has_no_ratio_but_can_be_worse():
    (found,) = compared(one(0.0, 0.0, 0.0), one(1.0, 0.9, 1.1))
    assert found.cost is None and found.failed
    assert compared(one(0.0, 0.0, 0.0), one(0.0, 0.0, 0.0))[0].verdict == NOISE


def test_another_batch_is_another_thing():
    old, new = one(batch=1), one(99.0, 98.0, 100.0, batch=8)
    assert compared(old, new) == []
    said = "\n".join(summary(old, new, [], 0.1))
    assert "nothing stands in both" in said and "only in old: 1, only in new: 1" in said


def test_two_runs_of_the_same_are_within_noise():
    found = compared(cpu_run(), cpu_run(1))
    assert len(found) > 130 and not any(v.failed for v in found)
    assert {v.verdict for v in found} <= {NOISE, SLOWER, FASTER}, "spreads of one per cent may part"


def test_a_slow_engine_is_caught_wherever_it_was_timed():
    old = cpu_run()
    found = compared(old, times_as_long(cpu_run(1), 1.3, SLOW))
    caught = {(v.old.suite, v.old.mode, v.old.batch, v.old.precision) for v in found if v.failed}
    assert {("engines", "network", batch, p) for batch in (1, 8, 32) for p in ("float32", "int8")} <= caught
    assert {v.old.subject for v in found if v.failed} == {SLOW}
    first = table(found).rows[0]
    assert first[1] == SLOWER and first[-1] == "1.30×", "what failed stands first"


# --- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """files(new, old=..): paths of both, as text."""

    def make(new: Run, old: Run | None = None) -> list[str]:
        paths = written(old or cpu_run(), tmp_path / "old.json"), written(new, tmp_path / "new.json")
        return ["--compare", *map(str, paths)]

    return make


def test_the_exit_code_tells(files, capsys, tmp_path):
    assert main(files(cpu_run(1))) == 0
    assert "0 failed: worse by more than 10%" in capsys.readouterr().out
    slower = times_as_long(cpu_run(1), 1.3, SLOW)
    assert main([*files(slower), "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "slower" in out and "1.30×" in out
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| engines, tkfnet-engine, openvino float32, network alone, 1 image | slower | ms | 14.5" in text
    assert main([*files(slower), "--threshold", "0.5"]) == 0


def test_a_lost_number_fails(files, capsys):
    def lost(m: Measurement) -> Measurement:
        if (m.suite, m.subject, m.batch) != ("engines", "OpenVINO", 8):
            return m
        return Measurement(m.suite, m.subject, m.ours, m.precision, mode=m.mode, batch=m.batch, reason="wrong: 3 dB")

    run = cpu_run(1)
    assert main(files(replace(run, measurements=tuple(map(lost, run.measurements))))) == 1
    assert "lost its number: wrong: 3 dB" in capsys.readouterr().out
    assert main(files(only(run, "engines"))) == 0, "a suite that was not run is none"


def test_two_machines_are_compared_only_when_asked(files, capsys):
    other = on(cpu_run(1), machine="other", chip="Another CPU")
    with pytest.raises(UsageError, match=r"Made-up CPU .* Another CPU.*--across-machines") as error:
        main(files(other))
    assert error.value.exit_code == 64
    assert main([*files(other), "--across-machines"]) == 0


def test_each_side_is_one_run(files, tmp_path):
    arguments = files(cpu_run())
    written(on(cpu_run(), machine="other"), tmp_path / "both" / "a.json")
    written(cpu_run(), tmp_path / "both" / "b.json")
    with pytest.raises(UsageError, match="got 2 runs"):
        main(["--compare", arguments[1], str(tmp_path / "both")])
