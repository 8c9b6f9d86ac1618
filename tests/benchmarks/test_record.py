"""Records of runs: written, read back, refused; and each engine's part of the measured peak."""

from __future__ import annotations

import json

import pytest

from benchmarks.record import Measurement, Ratio, RecordError, Run, merged, read_run
from benchmarks.roofline import with_fractions

TIMED = Measurement(
    "engines", "x", True, "int8", mode="network", batch=8, samples=5, median=2.0, low=1.5, high=0.0,
    speedup=Ratio("y", 3.0, 2.5, 3.5), gate={"sqnr_db": 31.0}, more={"throughput": 5.0},
)  # fmt: skip
ABSENT = Measurement("engines", "z", reason="not installed")


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    run = Run({"machine": "m", "commit": "c"}, (TIMED, ABSENT))
    run.write(tmp_path / "deep" / "run.json")
    found = read_run(tmp_path / "deep" / "run.json")
    assert found.measurements == run.measurements and found.environment == run.environment
    rows = json.loads((tmp_path / "deep" / "run.json").read_text())["measurements"]
    assert rows[1] == {"suite": "engines", "subject": "z", "reason": "not installed"} and rows[0]["high"] == 0.0


@pytest.mark.parametrize(
    "row",
    [
        {"suite": "engines", "subject": "x"},
        {"suite": "engines", "subject": "x", "median": 1.0, "reason": "both"},
        {"suite": "other", "subject": "x", "median": 1.0},
        {"suite": "engines", "subject": "x", "median": 1.0, "mean": 1.0},
        {"suite": "engines", "subject": "x", "median": 1.0, "speedup": {"median": 1.0}},
    ],
)
def test_what_is_no_record_is_refused(tmp_path, row):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"format": 1, "environment": {}, "measurements": [row]}))
    with pytest.raises(RecordError, match=r"run\.json"):
        read_run(path)
    path.write_text(json.dumps({"format": 2, "environment": {}, "measurements": []}))
    with pytest.raises(RecordError, match="format 2"):
        read_run(path)


def test_later_measurements_of_one_machine_and_commit_take_the_place_of_earlier_ones():
    old, new = Measurement("engines", "x", median=1.0), Measurement("engines", "x", median=2.0)
    other = Measurement("engines", "y", median=3.0)
    same = {"machine": "m", "commit": "c"}
    first, second = merged([Run(same, (old, other)), Run(same, (new,)), Run({**same, "commit": "d"}, (old,))])
    assert first.measurements == (new, other) and second.measurements == (old,)


def test_a_part_of_the_peak():
    """8 images of 3 GFLOP in 2 ms are 12,000 GFLOP/s, half of the peak of their precision."""
    peak = Measurement("roofline", "int8 products", unit="GFLOP/s", median=24_000.0)
    host = Measurement("engines", "x", precision="int8", mode="host", batch=8, median=2.0)
    found = with_fractions([TIMED, ABSENT, peak, host], 3_000_000_000)
    assert found[0].of_peak == 0.5 and found[1:] == [ABSENT, peak, host]
    assert with_fractions([TIMED], 3_000_000_000) == [TIMED]
