"""The INT8 report from made-up measurements: ratios by round, verdicts, Markdown."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
ENGINES = ("float32 auto", "float16 onnxruntime", "int8 onnxruntime", "int8 openvino", "int8 auto")
PEERS = ("ort static", "ort static u8s8", "nncf", "nncf mixed")
FUSED = ("int8 fused", "float8 fused")
AGREEING = ("int8 onnxruntime", "int8 openvino", "int8 fused")


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def row(passes: bool | None = True, kept: float = 0.998) -> dict:
    faults = ["accuracy 90.00%, expected at least 99.0% of float32's 92.00%"] if passes is False else []
    shares = {"accuracy": 0.92 * kept, "accuracy_kept": kept, "agreement": 0.991, "recall_lost": [0.01, 0.0]}
    return shares | {"worst_recall_lost": 0.01, "sqnr_db": 31.25, "gate": "int8", "passed": passes, "faults": faults}


@pytest.fixture
def measured() -> dict:
    """Three rounds on a machine whose speed drifts; every target is met. nncf is the fastest peer that is right."""
    drift = (1.0, 2.0, 1.5)
    ms = {"float32 auto": 10.0, "float16 onnxruntime": 11.0, "int8 onnxruntime": 6.0, "int8 openvino": 4.0,
          "int8 auto": 4.0, "ort static": 7.0, "ort static u8s8": 6.5, "nncf": 4.2, "nncf mixed": 4.4}  # fmt: skip
    speed = {name: {str(b): [b * t * d for d in drift] for b in (1, 8, 32)} for name, t in ms.items()}
    # 17.18 G operations in 16 ms are 1.07 TOP/s; 3.86 G in 4 ms are 0.965.
    speed["torch._int_mm"] = {"2048": [16.0 * d for d in drift]}
    made = {name: {"kind": "engine", "backend": "openvino", "bytes": 14_500_000, "how": "build"} for name in ENGINES}
    for name in ("int8 onnxruntime", "int8 openvino", "int8 auto"):
        made[name] |= {"kept_float": [], "layers": {"stem": "int8", "layer1.0.conv1": "int8"}, "products": {"int8": 2}}
        made[name] |= {"sensitivity_db": {"stem": 41.26, "layer1.0.conv1": 38.0}, "calibration": {"images": 512}}
    made |= {name: {"kind": "peer", "backend": "x", "bytes": 14_600_000, "how": "their flow"} for name in PEERS}
    made |= {name: {"kind": "emulated", "backend": "fused", "kept_float": ["stem"]} for name in FUSED}
    made["torch._int_mm"] = {"kind": "rate"}
    shares = {a: {b: 1.0 if a == b else 0.992 for b in AGREEING} for a in AGREEING}
    rows = {"float32 reference": row(None, 1.0)} | {name: row() for name in (*ENGINES[1:], *PEERS, *FUSED)}
    return {
        "date": "2026-11-22T10:00:00Z",
        "environment": {"processor": "Maker(R) Fast CPU", "versions": {"torch": "2.13.0"}},
        "settings": {"rounds": 3, "samples": 20, "batches": [1, 8, 32], "only": None, "stopped": None},
        "flops": 3_860_291_204,
        "contestants": made,
        "accuracy": {"data": "synthetic:n=10500,seed=977", "images": 2100, "rows": rows, "agreement": shares},
        "speed": speed,
    }


def judged(measured: dict) -> dict[str, dict]:
    from int8_tables import verdicts

    return {one["target"]: one for one in verdicts(measured)}


def matching(measured: dict, start: str) -> dict:
    (found,) = [one for target, one in judged(measured).items() if target.startswith(start)]
    return found


# --- from the rounds ---------------------------------------------------------------------------------------


def test_a_ratio_is_taken_within_a_round():
    from int8_tables import paired, spread

    assert paired([2.0, 40.0, 6.0], [1.0, 20.0, 2.0]) == [2.0, 2.0, 3.0]
    assert spread(paired([2.0, 40.0, 6.0], [1.0, 20.0, 2.0])) == {
        "median": 2.0, "lowest": 2.0, "highest": 3.0, "rounds": 3
    }  # fmt: skip


def test_a_round_that_one_of_them_lacks_is_no_pair():
    from int8_tables import paired, spread

    assert paired([2.0, None, 9.0], [1.0, 1.0, None]) == [2.0, None, None]
    assert spread([2.0, None])["rounds"] == 1
    assert spread([None]) is None and spread([]) is None


def test_the_rate_counts_a_multiply_accumulate_as_two(measured):
    from int8_tables import share_of_int_mm, tops

    assert tops(measured, "int8 auto", 8)[0] == pytest.approx(8 * 3.860291204e9 / 32e-3 / 1e12)
    assert tops(measured, "torch._int_mm", 2048)[0] == pytest.approx(2 * 2048**3 / 16e-3 / 1e12)
    # The drift of the machine touches both sides.
    share = share_of_int_mm(measured, "int8 auto", 8)
    assert share["lowest"] == pytest.approx(share["highest"]) and share["median"] == pytest.approx(0.8988, abs=1e-4)


# --- against the targets -----------------------------------------------------------------------------------


def test_every_target_is_judged(measured):
    found = judged(measured)
    # 2 x float32, 3 x peers, 2 x rate, 5 gates, 3 pairs, 3 sizes.
    assert len(found) == 18 and {one["met"] for one in found.values()} == {True}
    assert {one["short"] for one in found.values()} == {None}
    nothing = measured | {"accuracy": None, "speed": None, "contestants": {}}
    assert {one["met"] for one in judged(nothing).values()} == {None}


@pytest.mark.parametrize(
    ("start", "name", "batch", "fine", "missed", "short"),
    [
        ("batch 1: int8 auto is 2.0 times", "float32 auto", 1, 8.0, 7.6, "0.1"),
        ("batch 8: int8 auto is 2.2 times", "float32 auto", 8, 8.8 * 8, 8.0 * 8, "0.2"),
        ("batch 32: int8 auto has 0.97", "nncf", 32, 3.88 * 32, 3.6 * 32, "0.07"),
        ("batch 8: int8 auto computes at 70%", "torch._int_mm", 2048, 12.47, 12.4, "0.0034"),
    ],
)
def test_a_slow_engine_falls_short_by_what_is_missing(start, name, batch, fine, missed, short, measured):
    # One round of three is on the other side: it is the median that counts.
    for ms, odd, met in ((fine, 0.9 * missed, True), (missed, 1.1 * fine, False)):
        measured["speed"][name][str(batch)] = [ms, 2.0 * ms, 1.5 * odd]
        verdict = matching(measured, start)
        assert verdict["met"] is met, verdict
        assert verdict["short"] is None if met else verdict["short"].startswith(short)


def test_a_size_an_agreement_and_a_gate_are_missed(measured):
    from int8_tables import verdict_line

    measured["contestants"]["int8 auto"]["bytes"] = 16_250_000
    measured["accuracy"]["agreement"]["int8 onnxruntime"]["int8 fused"] = 0.985
    measured["accuracy"]["rows"]["float8 fused"] = row(False, 0.978)
    lines = [verdict_line(one) for one in judged(measured).values() if one["met"] is False]
    assert len(lines) == 3
    assert "falls short by 0.250 MB: int8 auto is a file under 16 MB: 16.25 MB" in lines
    assert any(line.startswith("falls short by 0.5 points: int8 onnxruntime and int8 fused agree") for line in lines)
    assert any("accuracy 90.00%, expected" in line and "float8 fused passes" in line for line in lines)
    measured["contestants"]["int8 auto"]["bytes"] = 16_000_000
    assert matching(measured, "int8 auto is a file")["met"] is False, "under, not up to"


def test_what_was_not_measured_is_neither(measured):
    from int8_tables import verdict_line

    only_speed = measured | {"accuracy": None}
    assert matching(only_speed, "int8 fused passes")["met"] is None
    verdict = matching(only_speed, "batch 8: int8 auto has 0.97")
    assert verdict["met"] is True and "whose accuracy was not measured" in verdict["value"]
    assert verdict_line(matching(measured | {"speed": None}, "batch 1: int8 auto is 2.0")).startswith("not measured: ")
    one_batch = copy.deepcopy(measured)
    one_batch["settings"]["batches"] = [8]
    assert not [target for target in judged(one_batch) if target.startswith(("batch 1:", "batch 32:"))]


def test_the_best_peer_is_the_fastest_even_if_it_fails_the_gate(measured):
    from int8_tables import best_peer

    assert best_peer(measured, 8) == "nncf"
    measured["speed"]["ort static"]["8"] = [3.0 * 8 * d for d in (1.0, 2.0, 1.5)]
    assert best_peer(measured, 8) == "ort static"
    measured["accuracy"]["rows"]["ort static"] = row(False)
    verdict = matching(measured, "batch 8: int8 auto has 0.97")
    assert verdict["met"] is False and verdict["value"].endswith("of ort static, which fails the gate")
    # One that is slower is not worth a word there.
    assert "ort static" not in matching(measured, "batch 1: int8 auto has 0.97")["value"]


def test_an_absent_peer_is_shown_and_not_counted(measured):
    from int8_tables import best_peer, markdown, verdicts

    for name in ("nncf", "nncf mixed"):
        measured["contestants"][name] = {"kind": "peer", "backend": "openvino", "missing": "nncf is not installed"}
        del measured["speed"][name], measured["accuracy"]["rows"][name]
    assert best_peer(measured, 1) == "ort static u8s8"
    text = markdown(measured | {"verdicts": verdicts(measured)})
    assert "missing: nncf is not installed" in text
    for name in ("ort static", "ort static u8s8"):
        del measured["speed"][name]
    assert best_peer(measured, 1) is None
    assert matching(measured, "batch 1: int8 auto has 0.97")["met"] is None


# --- Markdown ----------------------------------------------------------------------------------------------


def test_the_markdown_follows_from_the_json(measured):
    from int8_tables import markdown, record_name, verdicts

    measured["contestants"]["ort static"]["how"] = "a | b\nc"
    measured["accuracy"]["rows"]["ort static"] = row(False)
    report = measured | {"verdicts": verdicts(measured)}
    text = markdown(json.loads(json.dumps(report)))
    assert text == markdown(report) and record_name(report) == "maker-r-fast-cpu-int8-2026-11-22"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows) and "a \\| b c" in text
    assert "| float32 auto | 15.000 (10.000 to 20.000) | 120.000 (" in text
    assert "| float32 auto | 2.50 (2.50 to 2.50) | 2.50" in text
    assert "| ort static (fails the gate) | 1.75 (1.75 to 1.75)" in text and "FAILS: accuracy 90.00%" in text
    assert "| int8 auto | 0.643 (90%) |" in text and "torch._int_mm: 0.716 (0.537 to 1.074) TOP/s." in text
    assert "| stem | 41.3 | 41.3 | 41.3 |" in text and "| layer1.0.conv1 | int8 | int8 | int8 |" in text
    assert "| int8 fused | 99.20% | 99.20% | 100.00% |" in text and "images 512" in text
    assert text.count("- holds: ") == 18 and "Not measured." not in text and "Stopped" not in text


def test_of_half_a_report_there_is_markdown_too(measured):
    from int8_tables import markdown, verdicts

    half = measured | {"accuracy": None, "speed": None}
    half["settings"] = half["settings"] | {"rounds": 0, "stopped": "Ctrl-C"}
    text = markdown(half | {"verdicts": verdicts(half)})
    assert text.count("Not measured.") == 5 and "Stopped early, after 0 rounds: Ctrl-C." in text
