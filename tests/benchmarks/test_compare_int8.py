"""The INT8 report as a command: processes, rounds, builds that fail, accuracy, what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tkfnet_engine.errors import BackendError, VerificationError

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"
ENGINES = ("float32 auto", "float16 onnxruntime", "int8 onnxruntime", "int8 openvino", "int8 auto")


@pytest.fixture(scope="module", autouse=True)
def importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


# --- running -----------------------------------------------------------------------------------------------


def test_a_process_gives_its_output_or_its_last_message(capfd):
    from int8_process import output

    code = "import sys; print('x' * 100_000); print('words', file=sys.stderr); print('', file=sys.stderr)"
    assert output("talking", [sys.executable, "-c", code]) == "x" * 100_000 + "\n"
    assert "talking" in (err := capfd.readouterr().err) and "    words" in err
    with pytest.raises(BackendError, match="failing: ended with 3: the reason"):
        output("failing", [sys.executable, "-c", "import sys; print('the reason\\n', file=sys.stderr); sys.exit(3)"])


def test_stopping_leaves_no_process_running(monkeypatch, tmp_path):
    import int8_process

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(int8_process, "print", stop, raising=False)
    # It is waited for in any case: it lives long enough to leave its mark, or it is ended.
    code = "import sys, time; print('up', file=sys.stderr, flush=True); time.sleep(20); open(sys.argv[1], 'w')"
    with pytest.raises(KeyboardInterrupt):
        int8_process.output("waiting", [sys.executable, "-c", code, tmp_path / "mark"])
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def timed(monkeypatch):
    """timed(answer) -> what `speed_of` finds with `answer(name, round)` in the place of processes, and the calls."""
    import compare_int8
    from int8_peers import Contestant

    def run(answer, rounds: int = 3, until: float | None = None):
        field = {name: Contestant({}, Path(f"{name}.tkf")) for name in ("float32 auto", "int8 auto")}
        field["nncf"] = Contestant({"missing": "it is not here"})
        field["ort static"] = Contestant({"failed": "it answered nothing"}, Path("ort.onnx"))
        calls = []

        def output(what: str, command: list) -> str:
            number, name = int(what.split()[1].partition("/")[0]), what.partition(": ")[2]
            calls.append((number, name))
            batches = ["2048"] if name == "torch._int_mm" else ["1", "8"]
            return json.dumps({"p50_ms": {b: answer(name, number) for b in batches}})

        monkeypatch.setattr(compare_int8, "output", output)
        return *compare_int8.speed_of(field, rounds, 20, [1, 8], until), field, calls

    return run


def test_rounds_are_interleaved_and_their_order_turns(timed):
    speed, rounds, stopped, field, calls = timed(lambda name, number: 1.0 * number)
    assert (rounds, stopped) == (3, None)
    assert speed["int8 auto"] == {"1": [1.0, 2.0, 3.0], "8": [1.0, 2.0, 3.0]}
    assert speed["torch._int_mm"] == {"2048": [1.0, 2.0, 3.0]} and set(field) == {*speed, "nncf", "ort static"}
    orders = [[name for number, name in calls if number == r] for r in (1, 2, 3)]
    assert [order[0] for order in orders] == ["float32 auto", "int8 auto", "torch._int_mm"]
    assert all(sorted(order) == sorted(speed) for order in orders)


@pytest.mark.parametrize("first", [1, 2])
def test_who_fails_once_is_out_and_leaves_its_rounds_empty(first, timed):
    def answer(name: str, number: int) -> float:
        if name == "int8 auto" and number == first:
            raise BackendError("it broke")
        return 1.0

    speed, rounds, _, field, calls = timed(answer)
    assert rounds == 3 and field["int8 auto"].record["failed"] == "it broke" and "failed" not in field["nncf"].record
    assert (3, "int8 auto") not in calls and speed["float32 auto"]["8"] == [1.0] * 3
    assert speed["int8 auto"] == ({} if first == 1 else {"1": [1.0, None, None], "8": [1.0, None, None]})


def test_ctrl_c_keeps_the_whole_rounds(timed):
    def answer(name: str, number: int) -> float:
        if number == 2 and name == "torch._int_mm":
            raise KeyboardInterrupt
        return 1.0

    speed, rounds, stopped, _, _ = timed(answer)
    assert (rounds, stopped) == (1, "Ctrl-C") and {len(r) for by in speed.values() for r in by.values()} == {1}


def test_no_round_begins_after_the_minutes(timed):
    speed, rounds, stopped, _, _ = timed(lambda name, number: 1.0, until=-1.0)
    assert (rounds, stopped) == (1, "--minutes") and speed["int8 auto"]["1"] == [1.0]


def test_an_engine_that_cannot_be_built_says_why(monkeypatch, tmp_path):
    import compare_int8

    facts = {"backend": "openvino", "quantisation": {"layers": {"stem": "int8", "gate": "float32"}, "kept_float": []}}

    def output(what: str, command: list) -> str:
        if what == "building int8 onnxruntime":
            raise BackendError("no such thing")
        Path(command[command.index("--out") + 1]).write_bytes(b"12345")
        return ""

    monkeypatch.setattr(compare_int8, "output", output)
    monkeypatch.setattr(compare_int8, "read_facts", lambda path: facts)
    monkeypatch.setattr(compare_int8, "why_unavailable", lambda n: "get it" if n == "openvino" else None)
    found = compare_int8.engines("c.safetensors", tmp_path, 32)
    assert list(found) == list(ENGINES)
    assert found["int8 auto"].record["products"] == {"int8": 1, "float32": 1}
    assert found["int8 auto"].record["bytes"] == 5 and found["int8 auto"].path.read_bytes() == b"12345"
    assert found["int8 onnxruntime"].record["failed"] == "no such thing" and found["int8 onnxruntime"].path is None
    assert found["int8 openvino"].record["missing"] == "get it"
    monkeypatch.setattr(compare_int8, "ENGINES", {"int8 onnxruntime": ("--int8", "onnxruntime")})
    monkeypatch.setattr(compare_int8, "FLOAT", "int8 onnxruntime")
    with pytest.raises(BackendError, match="no such thing"):
        compare_int8.engines("c.safetensors", tmp_path, 32)


# --- accuracy ----------------------------------------------------------------------------------------------


def labelled(count: int = 2100) -> tuple:
    """A verification set without images whose reference is right on nine of ten."""
    from tkfnet_engine.export.verify import VerificationSet

    draw = np.random.default_rng(7)
    labels = np.arange(count) % 7
    logits = draw.normal(size=(count, 7)).astype(np.float32) + 9 * np.eye(7, dtype=np.float32)[labels]
    logits[::10] = np.roll(logits[::10], 1, 1)
    return VerificationSet(np.zeros((count, 0), np.uint8), "drawn", "0" * 64, labels, logits)


def test_a_row_holds_what_was_kept_and_the_gate():
    from int8_accuracy import agreement, row

    expected = labelled()
    own = row(expected, expected.reference, "float32")
    assert own["passed"] is None and own["accuracy"] == pytest.approx(0.9) and own["accuracy_kept"] == 1.0
    assert row(expected, expected.reference, "int8")["passed"] is True
    wrong = expected.reference.copy()
    wrong[1::20] = np.roll(wrong[1::20], 1, 1)
    found = row(expected, wrong, "int8")
    assert found["passed"] is False and found["agreement"] == pytest.approx(0.95) and len(found["faults"]) == 3
    assert found["worst_recall_lost"] == max(found["recall_lost"]) and 0.04 < found["worst_recall_lost"] < 0.08
    assert row(expected, wrong, "float32")["faults"] == []
    # float16 is asked for no agreement.
    assert len(row(expected, wrong, "float16")["faults"]) == 1
    assert agreement({"a": expected.reference, "b": wrong}) == {"a": {"a": 1.0, "b": 0.95}, "b": {"a": 0.95, "b": 1.0}}


def test_an_emulated_engine_is_what_a_build_would_make(small_checkpoint_path, noise, monkeypatch):
    import int8_accuracy

    from tkfnet_engine.export.quantisation import Quantisation
    from tkfnet_engine.export.verify import VerificationSet
    from tkfnet_engine.kernels.network import network_of
    from tkfnet_engine.kernels.placement import placement_of
    from tkfnet_engine.model.checkpoint import load_checkpoint
    from tkfnet_engine.model.fold import fold

    checkpoint = load_checkpoint(small_checkpoint_path)
    folded, images = fold(checkpoint.model, checkpoint.preprocessing), noise(4, 64, 5)
    network = network_of(folded)
    scales = {point.name: 0.05 for point in placement_of(network).points}
    seen = SimpleNamespace(name="noise", fingerprint="0" * 64, images=128)
    table = SimpleNamespace(scales=lambda precision: scales, digest="1" * 64, data=seen)
    costs = dict.fromkeys(placement_of(network).units, 40.0) | {"layer3.0": 12.5}
    made = Quantisation("int8", folded, network, table, 127, costs)
    reports = []

    def judged(expected, logits, precision):
        reports.append(logits)
        if len(reports) == 1:
            raise VerificationError("too much was lost")
        return {"images": len(logits)}

    monkeypatch.setattr(int8_accuracy, "quantisation_of", lambda *rest: made)
    monkeypatch.setattr(int8_accuracy, "judged", judged)
    expected = VerificationSet(images, "noise", "0" * 64, np.zeros(4, np.int64), np.zeros((4, 7), np.float32))
    one, logits = int8_accuracy.emulated(checkpoint, "int8", expected)
    assert one.record["kept_float"] == ["layer3.0"] and one.record["back_to_float"][0]["sqnr_db"] == 12.5
    assert one.record["calibration"]["digest"] == table.digest and "layers" not in one.record
    assert one.path is None and json.dumps(one.record)
    assert logits.shape == (4, 7) and np.array_equal(logits, reports[1]) and not np.array_equal(*reports)


# --- the whole command -------------------------------------------------------------------------------------


@pytest.fixture
def whole(small_checkpoint_path, tmp_path, monkeypatch):
    """whole(flags ..) -> (exit code, the report); what takes long is replaced: builds, rendered faces, processes."""
    import compare_int8
    import int8_accuracy
    from int8_peers import Contestant
    from int8_tables import markdown

    from tkfnet_engine.export import verify

    expected = labelled()

    def engines(checkpoint, folder, max_batch):
        assert (checkpoint, max_batch) == (str(small_checkpoint_path), 64)
        return {name: Contestant({"kind": "engine", "bytes": 10}, Path(f"{name}.tkf")) for name in ENGINES}

    def answers(name, path, like, images, folder):
        assert np.load(images).shape == expected.images.shape and like == Path("float32 auto.tkf")
        if name == "nncf":
            raise BackendError("it answered nothing")
        return expected.reference

    def emulated(checkpoint, precision, found):
        if precision == "float8":
            raise VerificationError("it kept nothing")
        return Contestant({"kind": "emulated"}), expected.reference

    def output(what, command):
        return json.dumps({"p50_ms": {"2048": 9.0} if what.endswith("_int_mm") else {"8": 4.0, "64": 30.0}})

    peers = {name: Contestant({"kind": "peer"}, Path(f"{name}.onnx")) for name in ("ort static", "nncf")}
    monkeypatch.setattr(compare_int8, "engines", engines)
    monkeypatch.setattr(compare_int8, "graph_and_images", lambda *rest: (Path("g.onnx"), Path("i.npy")))
    monkeypatch.setattr(compare_int8, "peers", lambda *rest: peers)
    monkeypatch.setattr(compare_int8, "output", output)
    monkeypatch.setattr(int8_accuracy, "answers", answers)
    monkeypatch.setattr(int8_accuracy, "emulated", emulated)
    monkeypatch.setattr(verify, "verification_set", lambda *rest: expected)

    def run(*flags):
        out = tmp_path / "-".join(["results", *flags])
        always = ["--checkpoint", str(small_checkpoint_path), "--out", str(out), "--batch", "8", "64", "--rounds", "2"]
        code = compare_int8.main([*always, *flags])
        (path,) = out.glob("*-int8-*.json")
        report = json.loads(path.read_text())
        assert path.with_suffix(".md").read_text() == markdown(report) and len(list(out.iterdir())) == 2
        return code, report

    return run


def test_the_command_reports_what_was_wrong_beside_what_was_right(whole, capsys):
    from int8_tables import verdict_line

    code, report = whole()
    assert code == 1
    failed = {name: one["failed"] for name, one in report["contestants"].items() if "failed" in one}
    assert failed == {"nncf": "it answered nothing", "float8 fused": "it kept nothing"}
    rows, speed = report["accuracy"]["rows"], report["speed"]
    assert set(rows) == {"float32 reference", *ENGINES, "ort static", "int8 fused"}
    gates = {name: one["gate"] for name, one in rows.items()}
    assert gates["float32 auto"] is None and gates["float16 onnxruntime"] == "float16"
    assert {gates[name] for name in ("int8 auto", "int8 fused", "ort static")} == {"int8"}
    assert speed["int8 auto"] == {"8": [4.0, 4.0], "64": [30.0, 30.0]} and speed["torch._int_mm"] == {"2048": [9.0] * 2}
    assert not {"nncf", "int8 fused"} & speed.keys(), "one was wrong, the other is not run"
    assert report["settings"]["rounds"] == 2 and report["environment"]["cores"] >= 1
    assert capsys.readouterr().out.splitlines() == [verdict_line(one) for one in report["verdicts"]]
    # Of this network, an eighth as wide and at 64 pixels: far from the published one's 3.86 GFLOP.
    assert 1e6 < report["flops"] < 2e7


def test_the_command_measures_one_of_the_two(whole):
    code, report = whole("--only", "speed")
    assert code == 0 and report["accuracy"] is None and report["speed"]["nncf"]["8"] == [4.0, 4.0]
    assert "int8 fused" not in report["contestants"]
    code, report = whole("--only", "accuracy")
    assert report["speed"] is None and report["settings"]["rounds"] == 0 and "int8 fused" in report["contestants"]


def test_the_command_reports_after_ctrl_c(whole, monkeypatch):
    import compare_int8

    monkeypatch.setattr(compare_int8, "output", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    code, report = whole("--only", "speed")
    assert code == 130 and report["settings"]["stopped"] == "Ctrl-C" and report["settings"]["rounds"] == 0
