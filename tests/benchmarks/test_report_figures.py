"""How numbers are written, where labels go, which files are read and which are refused."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from benchmarks.record import Measurement
from benchmarks.report.charts import shortened, spread_out, width_of, wrapped
from benchmarks.report.figures import images_per_s, number, plain, scale_of, span, times
from benchmarks.report.plots import short, ticks
from benchmarks.report.reading import ReportError, read_results

from .records import cpu_run, on, only, raw, written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0381234, "0.0381"), (14.54, "14.5"), (9.996, "10.0"), (104.43, "104"), (999.4, "999"), (999.6, "1,000"),
        (121_905.4, "121,905"), (0, "0"), (-2.5, "-2.50"), (1e-9, "1.00e-09"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_spreads_and_ratios():
    assert span(14.36, 14.71) == "14.4–14.7" and span(None, 1.0) == "–" and span(0.0361, 0.0372, 1000) == "36.1–37.2"
    assert times(2.306) == "2.31×" and times(None) == "–"
    assert plain({"a": 1, "b": [True, None, 2.5]}) == "a 1, b yes, –, 2.5"


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("ms", [0.2, 0.99], "µs"), ("ms", [0.2, 1.0], "ms"), ("ms", [10_000, 70_000], "s"),
        ("ms", [9_999, 70_000], "ms"),
        ("GB/s", [12_000], "TB/s"), ("MiB", [0.1], "MiB"), ("ms", [None], "ms"),
    ],
)  # fmt: skip
def test_a_unit_in_which_values_are_read_together(unit, values, expected):
    scale = scale_of(unit, values)
    assert scale.unit == expected
    if expected == "µs":
        assert scale(0.2) == pytest.approx(200)


def test_images_per_second_turn_low_and_high():
    m = Measurement("engines", "x", batch=8, median=4.0, low=2.0, high=8.0)
    assert images_per_s(m) == (2000.0, 1000.0, 4000.0)
    assert images_per_s(Measurement("engines", "x", batch=8, unit="images/s", median=5.0)) == (5.0, None, None)
    assert images_per_s(Measurement("engines", "x", batch=8, unit="MiB", median=4.0)) is None
    assert images_per_s(Measurement("engines", "x", batch=8, reason="no")) is None


def test_names_fit_their_place():
    long = "PyTorch eager, channels-last, autocast"
    for most in (20, 60, 112, 500):
        assert width_of(shortened(long, most)) <= most or shortened(long, most) == "…"
        assert all(width_of(line) <= most for line in wrapped(long, most)) or most == 20
    assert shortened(long, 500) == long and wrapped(long, 500) == (long,)
    assert wrapped("tkfnet-engine, openvino", 112) == ("tkfnet-engine,", "openvino")
    assert shortened(long, 112).startswith("PyTor") and shortened(long, 112).endswith("cast")


def test_labels_are_moved_apart_and_stay_inside():
    placed = spread_out([50, 50, 51, 90], [15, 15, 15, 15], 0, 100)
    order = sorted(placed)
    assert all(b - a >= 14.999 for a, b in pairwise(order)) and order[0] >= 7.5 and order[-1] <= 92.5
    assert placed[:3] == sorted(placed[:3]), "in the order of what they name"
    assert spread_out([10, 80], [15, 15], 0, 100) == [10, 80], "what is apart stays"
    crowded = spread_out([5] * 20, [15] * 20, 0, 100)
    assert min(crowded) >= 0 and max(crowded) <= 100


def test_ticks_are_round_and_few():
    assert ticks(0, 79, False) == [0, 20, 40, 60] and ticks(0, 81, False) == [0, 25, 50, 75]
    assert ticks(3, 350, True) == [5, 10, 20, 50, 100, 200] and ticks(0.001, 1e9, True)[0] == 0.001
    assert len(ticks(1e-12, 1e12, True)) <= 6
    assert [short(v) for v in (0.5, 20.0, 1000.0, 0.25)] == ["0.5", "20", "1,000", "0.25"]


# --- reading -------------------------------------------------------------------------------------------------


def test_folders_are_searched_and_other_files_named(tmp_path):
    run = cpu_run()
    written(only(run, "engines"), tmp_path / "a" / "one.json")
    written(only(run, "peers"), tmp_path / "a" / "two.json")
    written(on(only(run, "peers"), machine="other"), tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{"speed": {}}')
    (tmp_path / "notes.md").write_text("no JSON")
    told = []
    found = read_results([tmp_path], told.append)
    assert told == [f"{tmp_path / 'c.json'}: no record of a run; left out"]
    counts = {run.environment["machine"]: {m.suite for m in run.measurements} for run in found}
    assert counts == {"made-up-cpu": {"engines", "peers"}, "other": {"peers"}}


def test_what_was_written_is_read(tmp_path):
    run = cpu_run()
    (found,) = read_results([written(run, tmp_path / "run.json")])
    assert found.measurements == run.measurements and dict(found.environment) == dict(run.environment)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "measurements": [NaN]}', "\x00"])
def test_what_is_no_record_is_refused(content, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=r"bad\.json") as error:
        read_results([path])
    assert error.value.exit_code == 3 and "\n" not in str(error.value)


def test_damaged_files_of_a_folder_are_not_passed_over(tmp_path):
    written(cpu_run(), tmp_path / "good.json")
    (tmp_path / "half.json").write_text((tmp_path / "good.json").read_text()[:5000])
    with pytest.raises(ReportError, match=r"half\.json"):
        read_results([tmp_path])


def test_a_folder_without_records_and_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ReportError):
            read_results([path])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("median", "<b>"), ("median", True), ("low", []), ("subject", 7), ("device", None), ("unit", 3), ("mode", {}),
        ("batch", 0), ("batch", 1.5), ("batch", "8"), ("clients", -1), ("samples", "many"), ("ours", "yes"),
        ("speedup", {"over": "x", "median": "y", "low": 1, "high": 2}), ("speedup", {"over": "x"}), ("gate", []),
        ("more", 5), ("suite", "none"), ("unknown", 1), ("reason", "both"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused(name, value, tmp_path):
    path = tmp_path / "run.json"
    content = raw(cpu_run(), path)
    content["measurements"][0][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError):
        read_results([path])


@pytest.mark.parametrize("name", ["machine", "commit"])
def test_a_run_says_where_and_of_what_it_is(name, tmp_path):
    path = tmp_path / "run.json"
    content = raw(cpu_run(), path)
    del content["environment"][name]
    path.write_text(json.dumps(content))
    with pytest.raises(ReportError, match=name):
        read_results([path])
