"""The table and the verdicts of `make gpu`, from results as the parts write them."""

from __future__ import annotations

import copy
import json
import re

import pytest

ENVIRONMENT = {"chip": "NVIDIA H200", "driver": "580.159.04", "cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0"}


def engine(us: float, batch: int) -> dict:
    return {"median_us": us, "p10_us": us - 1, "p90_us": us + 1, "samples": 56, "images_per_s": batch / us * 1e6}


def network(batch: int, us: float, times: float) -> dict:
    engines = {"fused": engine(us, batch), "eager": engine(9 * us, batch), "compiled": engine(times * us, batch)}
    engines["fused_int8"] = engine(us / 1.75, batch)
    engines["fused_float8"] = {"median_us": None, "reason": "left out: build-float8 is not done"}
    engines["compiled_graph"] = {"median_us": None, "reason": "left out: no time was left"}
    engines["tensorrt"] = engine(1.25 * us, batch) | {"library": "tensorrt 10.13.2", "how": "one CUDA graph"}
    engines["tensorrt_int8"] = {"median_us": None, "reason": "left out: build-trt-int8 is not done"}
    ratios = {"tensorrt": {"median": 1.25, "lowest": 1.2, "highest": 1.3}}
    ratios |= {"compiled": {"median": times, "lowest": times - 0.1, "highest": times + 0.1}}
    ratios["fused_int8"] = {"median": 0.571, "lowest": 0.56, "highest": 0.58}
    speedups = {"fused_int8": {"median": 1.75, "lowest": 1.72, "highest": 1.79}}
    return {"summary": f"{us} us", "engines": engines, "ratios": ratios, "speedups": speedups}


def launch(number: int) -> dict:
    numbers = {"us": 2.0, "roofline_us": 1.0, "fraction": 0.5, "tflops": 400.0, "gbs": 1000.0, "blocks": 132}
    return {"name": f"layer{number}", "tile": "64x32x64/8, 4w 3s", **numbers}


def launches() -> dict:
    one = {"launches": [launch(i) for i in range(22)], "sum_us": 44.0, "plan_us": 40.0, "roofline_us": 22.0}
    return {"summary": "all right", "batches": {str(b): one | {"worst": 0.7, "wrong": []} for b in (1, 3, 8, 32, 256)}}


GATE = {"images": 2100, "float32_accuracy": 0.912, "accuracy": 0.905, "agreement": 0.9876, "recall_lost": [0.0, 0.0133]}


def build_int8() -> dict:
    layers = {"stem": "int8", "layer1.0.conv1": "int8", "tafe.merge": "float16"}
    steps = [{"unit": "tafe.merge", "sqnr_db": 21.0, "slower": 0.02}]
    quantised = {"layers": layers, "back_to_float": steps, "not_as_asked": {}}
    return {"summary": "190 kernels", "verification": {"gate": GATE}, "quantisation": quantised}


def record(result: dict, status: str = "done", reason: str | None = None) -> dict:
    clocks = {"before": {"sm_mhz": 345.0}, "after": None}
    return {"status": status, "seconds": 12.3, "clocks": clocks, "reason": reason, "result": result}


@pytest.fixture
def results(scripts_importable):
    """Everything done, every target met."""
    from gpu_report import BATCHES, verdicts

    cold = {"summary": "first logits", "context_to_first_ms": {"median": 120.0, "lowest": 110.0, "highest": 130.0}}
    parts = {"build": record({"summary": "120 kernels"}), "launches": record(launches()), "cold_start": record(cold)}
    parts |= {f"network-{b}": record(network(b, {1: 38.0, 256: 2100.0}.get(b, 50.0 + b), 1.8)) for b in BATCHES}
    clean = {"found": 0, "summary": "clean"}
    parts |= {f"sanitizer-{tool}": record(dict(clean)) for tool in ("memcheck", "racecheck", "synccheck")}
    parts |= {"build-int8": record(build_int8()), "launches-int8": record(launches())}
    of_tensorrt = {"small": build_int8(), "large": build_int8() | {"verification": {"gate": GATE | {"images": 2099}}}}
    parts["build-trt-int8"] = record({"summary": "tensorrt 10.13.2: small 30.1 MB", "engines": of_tensorrt})
    native = {"first_ms": {"median": 140.0}, "beyond_replay_us": {"median": 2.5}, "process_mib": {"median": 120.0}}
    parts["native"] = record({"summary": "first answer 140.0 ms", "same_bits": True} | native)
    parts |= {"tests": record({"summary": "50 passed"}), "soak": record({"summary": "1000 runs"})}
    return {
        "date": "2026-11-22T10:00:00Z",
        "environment": ENVIRONMENT,
        "parts": parts,
        "verdicts": verdicts(parts),
    }


def met(parts: dict) -> dict:
    from gpu_report import verdicts

    return {one["target"]: one["met"] for one in verdicts(parts)}


def test_every_target_is_judged(results):
    found = met(results["parts"])
    assert len(found) == 20 and set(found.values()) == {True}
    assert set(met({}).values()) == {None}


@pytest.mark.parametrize(
    ("part", "path", "fine", "missed", "target"),
    [
        ("network-1", ("engines", "fused", "median_us"), 60.0, 60.1, "batch 1 in at most 60 us"),
        ("network-1", ("engines", "fused", "median_us"), 40.0, 40.1, "batch 1 in at most 40 us"),
        ("network-256", ("engines", "fused", "images_per_s"), 116_000, 115_999, "batch 256 at 116,000 images/s"),
        ("network-4", ("ratios", "compiled", "median"), 1.5, 1.49, "batch 4: 1.5 x as fast"),
        ("network-256", ("ratios", "compiled", "median"), 1.2, 1.19, "batch 256: 1.2 x as fast"),
        ("network-1", ("ratios", "tensorrt", "median"), 1.0, 0.999, "batch 1: not slower than TensorRT"),
        ("network-256", ("ratios", "tensorrt", "median"), 1.0, 0.999, "batch 256: images/s against TensorRT"),
        (
            "network-256",
            ("engines", "fused_int8", "images_per_s"),
            200_000,
            199_999,
            "INT8, batch 256 at 200,000 images",
        ),
        ("network-256", ("speedups", "fused_int8", "median"), 1.5, 1.499, "INT8, batch 256: 1.5 x as fast as our FP16"),
        ("network-1", ("speedups", "fused_int8", "median"), 1.0, 0.999, "INT8, batch 1: not slower than our FP16"),
        ("cold_start", ("context_to_first_ms", "median"), 300.0, 300.1, "first logits 300 ms"),
        ("native", ("first_ms", "median"), 150.0, 150.1, "libtkfnet: first answer 150 ms"),
        ("native", ("beyond_replay_us", "median"), 3.0, 3.1, "libtkfnet: batch 1 within 3 us"),
        ("native", ("process_mib", "median"), 150.0, 150.1, "libtkfnet: at most 150 MiB"),
        ("native", ("same_bits",), True, False, "libtkfnet gives the Python engine's bits"),
        ("sanitizer-racecheck", ("found",), 0, 1, "compute-sanitizer racecheck"),
    ],
)
def test_a_target_is_met_up_to_its_number(part, path, fine, missed, target, results):
    for value, expected in ((fine, True), (missed, False)):
        parts = copy.deepcopy(results["parts"])
        place = parts[part]["result"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        found = [is_met for name, is_met in met(parts).items() if name.startswith(target)]
        assert found == [expected]


def test_what_was_left_out_is_not_measured(results):
    parts = copy.deepcopy(results["parts"])
    parts["sanitizer-memcheck"] = record({"reason": "not installed"}, "skipped", "not installed")
    parts["network-8"]["result"]["ratios"] = {}
    del parts["network-256"]["result"]["ratios"]["tensorrt"]
    parts["network-1"]["result"]["engines"]["fused"] = {"median_us": None, "reason": "wrong: SQNR 3 dB"}
    found = met(parts)
    unknown = {name for name, is_met in found.items() if is_met is None}
    expected = ("compute-sanitizer mem", "batch 8:", "batch 1 in", "batch 256: images/s against")
    assert len(unknown) == 5 and all(name.startswith(expected) for name in unknown)


def test_the_table_is_short_and_says_it_all(results):
    from gpu_report import table

    text = table(results)
    assert len(text.splitlines()) <= 66
    for wanted in ("NVIDIA H200", "580.159.04", "120 kernels", "38.0", "121,905", "1.80 x", "50 passed", "0.70", "55%"):
        assert wanted in text, wanted
    assert max(map(len, text.splitlines())) <= 150
    assert "MISSED" not in text and text.count("met ") == 20 and "left out" in text
    assert "1.75 x (1.72 to 1.79)" in text and "213,333 images/s" in text
    assert "batch 1: not slower than TensorRT: 1.25 x (1.20 to 1.30), tensorrt 10.13.2" in text
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("batch    fused    fused    fused"))
    assert lines[first + 1].split()[:4] == ["fixed", "call", "int8", "float8"] and "tensorrt" in lines[first]
    assert lines[first + 2].startswith("    1     38.0") and " 47.5 left out        - " in lines[first + 2]
    assert lines[first + 2].endswith("1.80 x   1.25 x   1.75 x")


def test_the_table_is_short_wherever_everything_is_done(results):
    from gpu_report import table
    from gpu_state import PARTS

    results["parts"] = {part.name: record({"summary": "done"}) for part in PARTS} | results["parts"]
    results["parts"]["launches-float8"] = record(launches())
    results["environment"] = ENVIRONMENT | {"chip": "NVIDIA L4", "tensorrt": "10.13.2"}
    text = table(results)
    assert len(text.splitlines()) <= 66 and "tensorrt 10.13.2;" in text


def test_the_table_shows_what_failed_and_what_is_missing(results):
    from gpu_report import table, verdicts

    parts = results["parts"]
    parts["tests"] = record({"summary": "x"}, "wrong", "2 failed; test_launches.test_it")
    parts["launches"]["result"]["batches"]["8"] |= {"wrong": ["layer1.y_ptr: error 3"]}
    parts["launches-int8"]["result"]["batches"]["32"] |= {"wrong": ["tafe.h_ptr: error 2"]}
    del parts["launches-int8"]["result"]["batches"]["3"]
    parts["network-1"]["result"]["engines"]["fused"]["median_us"] = 41.0
    parts["network-64"] = record(None, "stopped", "ran past its 90 s")
    del parts["soak"], parts["network-256"]
    results["verdicts"] = verdicts(parts)
    text = table(results)
    assert re.search(r"^tests +wrong +12\.3 s  2 failed; test_launches\.test_it$", text, re.MULTILINE)
    assert re.search(r"^ +WRONG: FP16 layer1\.y_ptr: error 3$", text, re.MULTILINE)
    assert re.search(r"^ +WRONG: INT8 tafe\.h_ptr: error 2$", text, re.MULTILINE)
    assert re.search(r"^ +3 +44\.0 +40\.0 +22\.0 +55% +0\.70 +- +- +- +- +- +- +- +- +- +-$", text, re.MULTILINE)
    assert "MISSED  batch 1 in at most 40 us: 41.0 us" in text
    assert "?       batch 256 at 116,000 images/s: not measured" in text
    assert "stopped" in text
    results["environment"] = ENVIRONMENT | {"chip": "NVIDIA L4"}
    assert "(the targets are of an H200)" in table(results)


def test_of_nothing_there_is_a_table_too(scripts_importable):
    from gpu_report import markdown, table, verdicts

    nothing = {"date": "2026-11-22", "environment": ENVIRONMENT, "parts": {}, "verdicts": verdicts({})}
    assert "launches: not measured" in table(nothing)
    assert "## Targets" in markdown(nothing)


def test_markdown_has_every_launch_and_whole_rows(results):
    from gpu_report import markdown

    results["parts"]["build"]["reason"] = "a | b\nc"
    text = markdown(results)
    assert text.count("| layer7 |") == 10 and "| 256 | 2100.0 (2099.0 to 2101.0)" in text
    assert "## Launches, FP16, batch 8" in text and "## Launches, INT8, batch 8" in text
    assert "| build-int8 | 2100 | 91.20% | 90.50% | 98.76% | 1.33% | 2 int8, 1 float16 | tafe.merge |" in text
    for size, images in (("small", 2100), ("large", 2099)):
        gate = f"{images} | 91.20% | 90.50% | 98.76% | 1.33% | 2 int8, 1 float16 | tafe.merge |"
        assert f"| build-trt-int8, {size} | {gate}" in text
    assert "0.57 (0.56 to 0.58)" in text and "left out: build-float8 is not done" in text
    assert "| 8 | 58.0 (57.0 to 59.0) |" in text and "1.80 (1.70 to 1.90)" in text
    assert "a \\| b c" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(row.endswith("|") for row in rows)


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        ("NVIDIA H200", "nvidia-h200-2026-11-22"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090-2026-11-22"),
        ("a/b..c", "a-b-c-2026-11-22"),
    ],
)
def test_a_record_is_named_by_chip_and_date(chip, name, results):
    from gpu_report import record_name

    assert record_name(results | {"environment": {"chip": chip}}) == name


def test_results_are_strict_json_and_never_half_written(results, tmp_path, monkeypatch):
    import gpu_state
    from gpu_state import read_json, write_json

    write_json(tmp_path / "a" / "results.json", results)
    assert read_json(tmp_path / "a" / "results.json") == json.loads(json.dumps(results))
    with pytest.raises(ValueError):
        write_json(tmp_path / "a" / "results.json", {"x": float("nan")})
    assert read_json(tmp_path / "a" / "results.json") == json.loads(json.dumps(results)), "the old file stays"
    monkeypatch.setattr(gpu_state.os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a" / "results.json", {"x": 1})
    assert read_json(tmp_path / "a" / "results.json") == json.loads(json.dumps(results))
