"""What `make gpu` writes, in the same report: each part as the measurements it is."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import ReportError, page, read_results
from benchmarks.report.from_gpu import is_gpu_results, run_from_gpu
from benchmarks.report.readme import readme_table
from benchmarks.report.sections import sections

from . import test_gpu_report as gpu
from .test_gpu_report import results  # noqa: F401 - a fixture

NATIVE = {
    "same_bits": True,
    "first_ms": {"median": 140.0, "lowest": 130.0, "highest": 150.0},
    "load_ms": {"median": 60.0, "lowest": 55.0, "highest": 70.0},
    "process_mib": {"median": 120.0, "lowest": 119.0, "highest": 121.0},
    "device_us": {"median": 41.0, "lowest": 40.5, "highest": 41.5},
    "host_us": {"median": 55.0, "lowest": 54.0, "highest": 56.0},
    "replay_us": {"median": 39.0, "lowest": 38.5, "highest": 39.5},
    "beyond_replay_us": {"median": 2.0, "lowest": 1.5, "highest": 2.5},
}


@pytest.fixture
def measured(results):  # noqa: F811
    """All parts, as an H200 would leave them."""
    results["environment"] = gpu.ENVIRONMENT | {"memory_mib": 143771, "commit": None, "sources": "abc", "changed": True}
    parts = results["parts"]
    parts["network-1"]["result"]["ratios"]["eager"] = {"median": 9.0, "lowest": 8.9, "highest": 9.2}
    parts["network-1"]["result"]["host_to_host"] = {"p50_us": 61.0, "p90_us": 64.0, "samples": 60}
    parts["network-1"]["result"]["engines"]["fused_int8"]["sqnr_db"] = 33.0
    parts["network-8"]["result"]["compiled_ready_s"] = 71.5
    parts["network-2"] = gpu.record(None, "stopped", "ran past its 90 s")
    for name in ("launches", "launches-int8"):
        parts[name]["result"]["chip"] = "H200"
    parts["launches"]["result"]["batches"]["8"] |= {"wrong": ["layer3.y_ptr: error 3 of 1"]}
    parts["build"]["result"] |= {"seconds": 12.5, "megabytes": 28.31}
    parts["cold_start"]["result"]["steps_ms"] = {"imports": {"median": 80.0, "lowest": 79.0, "highest": 82.0}}
    parts["native"]["result"] = NATIVE
    return results


def found(results_, **facts):
    """The one measurement with these facts."""
    run = run_from_gpu(results_)
    same = [m for m in run.measurements if all(getattr(m, key) == value for key, value in facts.items())]
    assert len(same) == 1, (facts, same)
    return same[0]


def test_the_environment_is_that_of_a_run(measured):
    facts = run_from_gpu(measured).environment
    assert facts["machine"] == "nvidia-h200" and facts["chip"] == "NVIDIA H200" and facts["driver"] == "580.159.04"
    assert facts["versions"] == {"cuda": "13.0", "torch": "2.11.0", "triton": "3.6.0"}
    assert facts["gpu_memory_gib"] == 140.4 and facts["commit"] == "unknown" and facts["date"].startswith("2026-11-22")
    assert facts["sources"] == "abc" and facts["command"] == "make gpu"


def test_networks_are_engines_in_gpu_memory(measured):
    fused = found(measured, suite="engines", subject="fused", precision="float16", mode="device", batch=1)
    assert (fused.median, fused.low, fused.high, fused.samples) == (0.038, 0.037, 0.039, 56)
    assert fused.ours and fused.device == "cuda" and fused.unit == "ms"
    assert (fused.speedup.over, fused.speedup.median, fused.speedup.low) == ("eager", 9.0, 8.9)
    assert fused.more["spread"] == "10 % to 90 % of the samples"
    tensorrt = found(measured, suite="engines", subject="tensorrt", precision="float16", batch=1)
    assert not tensorrt.ours and tensorrt.more["library"] == "tensorrt 10.13.2"
    # 1.25 (1.2 to 1.3) times as long as fused.
    assert (tensorrt.speedup.over, tensorrt.speedup.median) == ("fused", 0.8)
    assert (tensorrt.speedup.low, tensorrt.speedup.high) == (pytest.approx(1 / 1.3), pytest.approx(1 / 1.2))
    host = found(measured, suite="engines", subject="fused", mode="host", batch=1)
    assert (host.median, host.p90, host.samples) == (0.061, 0.064, 60)


def test_eight_bits_carry_what_they_were_judged_by(measured):
    int8 = found(measured, suite="engines", subject="fused", precision="int8", mode="device", batch=1)
    assert int8.ours and int8.speedup.over == "fused" and int8.speedup.median == 1.75
    assert int8.gate == {
        "sqnr_db": 33.0,
        "accuracy": 0.905,
        "float32_accuracy": 0.912,
        "agreement": 0.9876,
        "images": 2100,
    }
    parts = measured["parts"]
    parts["network-256"]["result"]["engines"]["tensorrt_int8"] = gpu.engine(1000.0, 256)
    large = found(measured, suite="engines", subject="tensorrt", precision="int8", batch=256)
    assert large.gate["images"] == 2099, "the large engine's gate"
    eager = found(measured, suite="engines", subject="eager", batch=1)
    assert eager.gate is None


def test_what_has_no_number_has_its_reason(measured):
    assert found(measured, suite="engines", precision="float8", batch=1).reason == "left out: build-float8 is not done"
    assert found(measured, suite="engines", batch=2).reason == "ran past its 90 s"
    measured["parts"]["launches-int8"] = gpu.record(None, "crashed", "ended with 1")
    assert found(measured, suite="kernels", mode="int8 plan").reason == "ended with 1"
    measured["parts"]["native"] = gpu.record(
        {"reason": "there is no C++ compiler"}, "skipped", "there is no C++ compiler"
    )
    assert found(measured, suite="cold_start", subject="libtkfnet").reason == "there is no C++ compiler"
    measured["parts"]["cold_start"] = gpu.record(None, "crashed", None)
    assert found(measured, suite="cold_start", mode="start_to_first").reason == "crashed, and nothing was recorded"


def test_launches_are_kernels_under_the_data_sheets_roof(measured):
    one = found(measured, suite="kernels", subject="layer3", mode="float16 plan", batch=1)
    assert one.median == 0.002 and one.of_peak == 0.5 and one.precision == "float16" and one.ours
    # 2 us at 400 TFLOP/s and 1000 GB/s.
    assert (one.more["flops"], one.more["bytes"]) == (800_000_000, 2_000_000)
    assert (one.more["tflops"], one.more["gbs"], one.more["tile"]) == (400.0, 1000.0, "64x32x64/8, 4w 3s")
    wrong = found(measured, suite="kernels", subject="layer3", mode="float16 plan", batch=8)
    assert wrong.median is None and wrong.reason == "wrong: layer3.y_ptr: error 3 of 1"
    plan = found(measured, suite="kernels", subject="whole plan", mode="int8 plan", batch=256)
    assert plan.median == 0.04 and plan.of_peak == pytest.approx(22 / 40)
    peak = found(measured, suite="roofline", subject="float16 products")
    assert (peak.median, peak.unit, peak.low) == (989_400, "GFLOP/s", None) and "data sheet of H200" in peak.more[
        "from"
    ]
    assert found(measured, suite="roofline", subject="memory bandwidth").median == 4800
    measured["parts"]["launches"]["result"]["chip"] = "none that is known"
    assert found(measured, suite="roofline", subject="int8 products").precision == "int8"
    with pytest.raises(AssertionError):
        found(measured, suite="roofline", subject="float16 products")


def test_processes_builds_and_the_native_library(measured):
    assert found(measured, suite="cold_start", subject="fused", mode="context_to_first").high == 130.0
    assert found(measured, suite="cold_start", subject="fused", mode="import").median == 80.0
    assert found(measured, suite="cold_start", subject="libtkfnet", mode="peak_memory").unit == "MiB"
    assert found(measured, suite="cold_start", subject="libtkfnet", mode="load").low == 55.0
    queued = found(measured, suite="engines", subject="libtkfnet", mode="queued from C++")
    assert queued.median == pytest.approx(0.041) and queued.more["beyond_replay_us"]["median"] == 2.0
    assert found(measured, suite="engines", subject="bare graph").median == pytest.approx(0.039)
    assert found(measured, suite="build_time", subject="fused").median == 12.5
    assert found(measured, suite="build_time", subject="compiled", batch=8).median == 71.5
    assert found(measured, suite="cold_start", subject="fused", mode="file").median == pytest.approx(27.0, abs=0.01)


def test_every_part_with_numbers_is_shown(measured, tmp_path):
    path = tmp_path / "nvidia-h200-2026-11-22.json"
    path.write_text(json.dumps(measured))
    (run,) = read_results([tmp_path])
    assert len({m.key for m in run.measurements}) == len(run.measurements)
    assert {s.key for s in sections([run]) if s.blocks} == {
        "latency", "throughput", "speedups", "accuracy", "roofline", "cold_start", "build_time",
    }  # fmt: skip
    text = page.page([run])
    assert "The spread here: 10 % to 90 % of the samples." in text and "NVIDIA H200" in text
    assert "| **fused** | float16 | 38.0 (37.0–39.0) |" in readme_table(run)


def test_the_report_takes_results_as_they_come(results):  # noqa: F811
    """Without what only some runs hold."""
    assert is_gpu_results(results) and not is_gpu_results({"format": 1, "measurements": []}) and not is_gpu_results([])
    assert len(run_from_gpu(results).measurements) > 250
    nothing = {"date": "2026-11-22", "environment": gpu.ENVIRONMENT, "parts": {}, "verdicts": []}
    assert run_from_gpu(nothing).measurements == ()


@pytest.mark.parametrize("broken", ["environment", "part", "engine", "launch"])
def test_results_that_are_not_as_they_were_written_are_refused(broken, measured, tmp_path):
    if broken == "environment":
        del measured["environment"]["chip"]
    elif broken == "part":
        measured["parts"]["network-1"] = 5
    elif broken == "engine":
        measured["parts"]["network-1"]["result"]["engines"]["fused"]["median_us"] = "fast"
    else:
        del measured["parts"]["launches"]["result"]["batches"]["1"]["launches"][0]["us"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(measured))
    with pytest.raises(ReportError, match=r"results\.json: no results of `make gpu`"):
        read_results([path])
