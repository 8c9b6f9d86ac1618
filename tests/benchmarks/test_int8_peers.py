"""The peers of the INT8 report: made by their own flows, run and timed as engines are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tkfnet_engine.errors import BackendError, UsageError

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
PEERS = ("ort static", "ort static u8s8", "nncf", "nncf mixed")


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def small(small_checkpoint_path, noise, tmp_path_factory):
    """Of the small network: float32 graph, engine file, calibration images, other images, the answers to these."""
    import torch

    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded
    from tkfnet_engine.model.checkpoint import load_checkpoint
    from tkfnet_engine.model.fold import fold

    folder = tmp_path_factory.mktemp("peers")
    checkpoint = load_checkpoint(small_checkpoint_path)
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    graph = bytes_from_onnx(onnx_from_folded(folded, {}))
    (folder / "graph.onnx").write_bytes(graph)
    facts = {"model": folded.config.to_dict(), "preprocessing": folded.preprocessing.to_dict(), "max_batch": 32}
    facts |= {"labels": list(checkpoint.labels), "precision": "float32", "backend": "onnxruntime", "device": "cpu"}
    write_bundle(folder / "engine.tkf", {"graph.onnx": graph}, facts)
    np.save(folder / "calibration.npy", noise(40, 64, 1))
    np.save(folder / "test.npy", noise(33, 64, 2))
    with torch.inference_mode():
        reference = folded(torch.from_numpy(noise(33, 64, 2))).numpy()
    names = ("graph.onnx", "engine.tkf", "calibration.npy", "test.npy")
    return SimpleNamespace(**{name.partition(".")[0]: folder / name for name in names}, reference=reference)


def test_peers_are_made_of_our_graph_and_run_as_engines_do(small, tmp_path, monkeypatch):
    """ONNX Runtime's flow for real; the step in NNCF's Python is taken by OpenVINO alone, in float."""
    import int8_peers
    import openvino
    from int8_run import main

    from tkfnet_engine.compare import compare

    asked = []

    def output(what: str, command: list) -> str:
        asked.append(command)
        model = openvino.Core().read_model(command[2])
        for name in ("default", "mixed"):
            openvino.save_model(model, Path(command[4]) / f"{name}.xml")
        (Path(command[4]) / "versions.json").write_text('{"nncf": "9.9"}')
        return ""

    monkeypatch.setattr(int8_peers, "output", output)
    found = int8_peers.peers(small.graph, small.calibration, tmp_path, "/another/python")
    assert tuple(found) == PEERS
    assert asked == [["/another/python", int8_peers.NNCF_SCRIPT, small.graph, small.calibration, tmp_path]]
    assert int8_peers.NNCF_SCRIPT.is_file()
    assert not [one.record for one in found.values() if "failed" in one.record or one.record["kind"] != "peer"]
    for name, path in {"engine": small.engine, **{name: one.path for name, one in found.items()}}.items():
        out = tmp_path / "answers.npy"
        assert main([str(path), "--like", str(small.engine), "--answer", str(small.test), str(out)]) == 0
        sqnr = compare(small.reference, np.load(out), 20.0).sqnr_db
        # Random weights lose more to eight bits than trained ones.
        assert 5.0 < sqnr < 45.0 if name.startswith("ort") else sqnr > 40.0, (name, sqnr)
    ort, nncf = found["ort static u8s8"], found["nncf"]
    assert ort.record["products"]["int8"] > 20 and ort.record["bytes"] == ort.path.stat().st_size
    assert nncf.record["bytes"] == nncf.path.stat().st_size + nncf.path.with_suffix(".bin").stat().st_size
    assert "int8" not in nncf.record["products"] and nncf.record["how"].endswith("nncf 9.9")
    # As far as their own preparation works on this graph.
    assert "quant_pre_process" in ort.record["how"] and "not pre-processed" not in ort.record["how"]


def test_a_peer_is_timed_as_bench_times_an_engine(small, capsys, monkeypatch):
    import int8_run

    from tkfnet_engine import bench

    monkeypatch.setattr(bench, "WARM_UP_S", 0.0)
    graph = str(small.graph)
    assert int8_run.main([graph, "--like", str(small.engine), "--batch", "1", "2", "--samples", "3"]) == 0
    times = json.loads(capsys.readouterr().out)["p50_ms"]
    assert set(times) == {"1", "2"} and all(ms > 0 for ms in times.values())
    asked = []
    monkeypatch.setattr(int8_run, "time_batch", lambda engine, *rest: asked.append((engine, *rest)) or {"p50_ms": 1.5})
    monkeypatch.setattr(int8_run, "INT_MM_SIZE", 32)
    assert int8_run.main(["torch._int_mm", "--samples", "7"]) == 0
    assert json.loads(capsys.readouterr().out) == {"p50_ms": {"32": 1.5}}
    ((product, batch, samples),) = asked
    assert product.logits(None).shape == (32, 32) and (batch, samples) == (1, 7)
    with pytest.raises(UsageError, match="--like ENGINE"):
        int8_run.opened(graph, None)
    with pytest.raises(UsageError, match=r"got graph\.txt"):
        int8_run.opened("graph.txt", str(small.engine))


def test_their_failure_is_theirs_alone(small, tmp_path, monkeypatch):
    import int8_peers

    def broken(graph, images, out, maps, reduce_range):
        raise ValueError("no\nranges")

    monkeypatch.setattr(int8_peers, "quantised_by_ort", broken)
    found = int8_peers.peers(small.graph, small.calibration, tmp_path, None)
    assert found["ort static"].record["failed"] == "ValueError: no ranges" and found["ort static"].path is None
    for name in ("nncf", "nncf mixed"):
        assert "pip install nncf openvino" in found[name].record["missing"] and found[name].path is None
    monkeypatch.setattr(int8_peers, "output", lambda *rest: (_ for _ in ()).throw(BackendError("it ended with 1")))
    assert (
        int8_peers.peers(small.graph, small.calibration, tmp_path, "python")["nncf"]
        .record["failed"]
        .endswith("it ended with 1")
    )


def test_a_python_without_nncf_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    import compare_int8
    import int8_peers

    (tmp_path / "bare").write_text("#!/bin/sh\necho \"No module named 'nncf'\" >&2\nexit 1\n")
    (tmp_path / "bare").chmod(0o755)
    with pytest.raises(UsageError, match="No module named 'nncf'"):
        int8_peers.check_nncf_python(str(tmp_path / "bare"))
    with pytest.raises(UsageError, match="expected a Python that imports nncf"):
        compare_int8.main(["--nncf-python", str(tmp_path / "nowhere")])
    with pytest.raises(UsageError, match="--batch"):
        compare_int8.main(["--batch", "0"])
    monkeypatch.setattr(int8_peers, "find_spec", lambda name: None if name == "nncf" else name)
    assert int8_peers.check_nncf_python(None) is None
    monkeypatch.setattr(int8_peers, "find_spec", str)
    assert int8_peers.check_nncf_python(None) == sys.executable
