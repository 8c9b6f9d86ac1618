"""`make gpu`: what is done stays done, what fails or is cut off is done again, nothing runs without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"


@pytest.fixture
def go(gpu_run, out):
    """go(parts, key="a", seconds=60): runs what is not done, as run.py does; gives each part's record."""
    from gpu_state import State

    def run(parts, key="a", seconds=60.0, part_timeout=30.0, publish=lambda: None):
        state = State(out, key)
        gpu_run.run_parts(parts, parts, state, out, time.monotonic() + seconds, part_timeout, publish)
        return {part.name: state.record(part) for part in parts}

    return run


def status_of(records):
    return {name: record and record["status"] for name, record in records.items()}


def gone(pid: int) -> bool:
    """Whether the process has ended, or will within two seconds."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


# --- what is done ----------------------------------------------------------------------------------------


def test_a_part_that_is_right_runs_once(go, fake, begun):
    parts = [fake("one"), fake("two")]
    assert status_of(go(parts)) == {"one": "done", "two": "done"}
    assert go(parts)["one"]["result"]["summary"] == "fine"
    assert begun() == ["one", "two"]


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("reason=3 outputs are wrong,exit=10", "wrong", "3 outputs are wrong"),
        ("reason=no such tool,exit=77", "skipped", "no such tool"),
        ("raise=no more memory", "crashed", "ended with 1: RuntimeError: no more memory"),
        ("result=early,exit=3", "crashed", "ended with 3: it said nothing"),
        ("exit=0", "crashed", "ended with 0"),  # right, but without a result
    ],
)
def test_a_part_that_is_not_right_says_why_and_runs_again(do, status, reason, go, fake, begun):
    for _ in range(2):
        record = go([fake("part", do)])["part"]
        assert record["status"] == status
        assert record["reason"].startswith(reason)
    assert begun() == ["part", "part"]


def test_what_follows_a_failure_still_runs(go, fake, begun):
    records = go([fake("bad", "raise=x"), fake("good")])
    assert status_of(records) == {"bad": "crashed", "good": "done"}


def test_results_count_for_the_sources_they_were_made_from(go, fake, begun):
    parts = [fake("part")]
    go(parts, key="a")
    assert go(parts, key="b")["part"]["status"] == "done"
    assert begun() == ["part", "part"]


def test_a_part_whose_products_are_gone_is_not_done(go, fake, begun, out):
    parts = [fake("maker", "make=engine.tkf,result=made", products=("engine.tkf",))]
    go(parts)
    go(parts)
    (out / "engine.tkf").unlink()
    go(parts)
    assert begun() == ["maker", "maker"]


def test_a_part_waits_for_what_it_needs(go, fake, begun, out):
    broken = [fake("maker", "exit=10", products=("engine.tkf",)), fake("user", needs=("maker",))]
    assert status_of(go(broken)) == {"maker": "wrong", "user": None}
    mended = [fake("maker", "make=engine.tkf,result=made", products=("engine.tkf",)), fake("user", needs=("maker",))]
    assert status_of(go(mended)) == {"maker": "done", "user": "done"}
    assert begun() == ["maker", "maker", "user"]


def test_a_part_takes_what_is_done_and_is_done_again_when_there_is_more(go, fake, begun):
    user = fake("user", takes=("a", "b"))
    first = go([fake("a"), fake("b", "reason=x,exit=10"), user])
    assert first["user"]["status"] == "done" and first["user"]["took"] == ["a"]
    assert first["user"]["result"]["took"] == "a", "the part is told"
    go([fake("a"), fake("b", "reason=x,exit=10"), user])
    assert begun() == ["a", "b", "user", "b"], "without anything new it is done"
    records = go([fake("a"), fake("b"), user])
    assert records["user"]["result"]["took"] == "a,b"
    go([fake("a"), fake("b"), user])
    assert begun() == ["a", "b", "user", "b", "b", "user"]


@pytest.mark.parametrize("do", ["reason=no such thing,exit=77", "raise=x", "result=half,sleep=600"])
def test_a_part_waits_until_what_it_takes_was_tried(do, go, fake, begun):
    user = fake("user", takes=("maker",))
    assert status_of(go([fake("maker", least_s=100), user]))["user"] is None
    assert begun() == []
    records = go([fake("maker", do), user], part_timeout=1.5)
    assert records["user"]["status"] == "done" and records["user"]["took"] == []
    assert records["user"]["result"]["took"] == ""


@pytest.mark.parametrize("content", [b"", b'{"part": ', b"[1]", b'{"part": 3}', b"\xff"])
def test_a_damaged_state_is_begun_anew(content, go, fake, out):
    (out / "state.json").write_bytes(content)
    assert go([fake("part")])["part"]["status"] == "done"


# --- time ------------------------------------------------------------------------------------------------


def test_a_part_that_runs_past_its_limit_is_ended_with_its_children(go, fake, out):
    start = time.monotonic()
    record = go([fake("slow", "child=pid,result=half,sleep=600"), fake("next")], part_timeout=1.5)
    assert time.monotonic() - start < 20
    assert record["slow"]["status"] == "stopped" and "ran past its 2 s" in record["slow"]["reason"]
    assert record["slow"]["result"]["summary"] == "half", "what it had written before is kept"
    assert record["next"]["status"] == "done"
    assert gone(int((out / "pid").read_text()))


def test_children_that_a_part_leaves_behind_are_ended(go, fake, out):
    assert go([fake("part", "child=pid,result=fine")])["part"]["status"] == "done"
    assert gone(int((out / "pid").read_text()))


def test_a_part_is_told_its_limit_and_is_not_begun_without_the_time_it_wants(go, fake, begun):
    records = go([fake("long", least_s=100), fake("short")], seconds=60)
    assert status_of(records) == {"long": None, "short": "done"}
    assert records["short"]["result"]["seconds"] == 30, "the lesser of what is left and the limit of a part"
    assert 15 <= go([fake("short2")], seconds=20)["short2"]["result"]["seconds"] <= 20


DRIVER = """
import importlib.util, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
spec = importlib.util.spec_from_file_location("gpu_run", sys.argv[1] + "/run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
from gpu_state import Part, State
signal.signal(signal.SIGTERM, run._stop)
out, script = Path(sys.argv[2]), sys.argv[3]
parts = [Part("first", script, ("--name", "first", "--do", "result=fine"), 0),
         Part("second", script, ("--name", "second", "--do", "child=pid,sleep=600"), 0)]
run.run_parts(parts, parts, State(out, "a"), out, time.monotonic() + 60, 60, lambda: None)
"""


def test_a_run_that_is_ended_loses_the_part_that_ran_and_no_other(fake, out, begun):
    from gpu_state import Part, State

    script = fake("any").script
    command = [sys.executable, "-c", DRIVER, str(SCRIPT.parent), str(out), script]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (out / "pid").exists() or not (out / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert gone(int((out / "pid").read_text())), "the part that ran goes on"
    state = State(out, "a")
    assert state.done(Part("first", script)) and state.record(Part("second", script)) is None


# --- the command -----------------------------------------------------------------------------------------


def command(*arguments, **environment):
    run = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, env=os.environ | environment, timeout=120, cwd="/")


def test_without_a_gpu_it_says_so_and_ends_with_seven(tmp_path):
    done = command("--out", tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 7, done.stderr
    assert "NVIDIA GPU" in done.stderr and "GPU_PYTHON" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_parts_are_listed_without_a_gpu(tmp_path):
    from gpu_state import PARTS

    (tmp_path / "state.json").write_text(json.dumps({"launches": {"status": "wrong"}}))
    done = command("--out", tmp_path, "--list", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == [part.name for part in PARTS]
    assert lines["launches"] == "wrong" and lines["build"] == "not begun"


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--minutes", "soon"], ["--fast"]])
def test_a_wrong_flag_ends_with_64(wrong):
    assert command(*wrong).returncode == 64


@pytest.fixture
def machine(gpu_run, monkeypatch, tmp_path, out):
    """machine(parts, flags) -> exit code: run.py's `main` on a machine that has a GPU, in a tree of its own."""
    tree = tmp_path / "tree"
    tree.mkdir()

    def run(parts, *flags, chip="NVIDIA H200"):
        monkeypatch.setattr(gpu_run, "ROOT", tree)
        monkeypatch.setattr(gpu_run, "PARTS", tuple(parts))
        monkeypatch.setattr(gpu_run, "make_importable", lambda: None)
        found = {"chip": chip, "torch": "2.11.0", "driver": "580.1", "cuda": "13.0", "triton": "3.6.0"}
        monkeypatch.setattr(gpu_run, "probe", lambda variables: dict(found))
        monkeypatch.setattr(gpu_run, "clocks", lambda: {"sm_mhz": 1980.0})
        monkeypatch.setattr(gpu_run, "date_now", lambda: "2026-11-22T10:00:00Z")
        return gpu_run.main(["--out", str(out), *flags])

    run.results = tree / "benchmarks" / "results"
    return run


def test_all_right_ends_with_zero_and_is_recorded(machine, fake, out, capsys):
    parts = [fake("build"), fake("soak", "reason=no tool,exit=77")]
    assert machine(parts) == 0, "what this machine cannot do is no failure"
    recorded = json.loads((machine.results / "nvidia-h200-2026-11-22.json").read_text())
    assert recorded == json.loads((out / "results.json").read_text())
    assert recorded["parts"]["build"]["status"] == "done" and recorded["parts"]["soak"]["reason"] == "no tool"
    assert recorded["environment"]["chip"] == "NVIDIA H200" and recorded["environment"]["sources"]
    assert recorded["parts"]["build"]["clocks"] == {"before": {"sm_mhz": 1980.0}, "after": {"sm_mhz": 1980.0}}
    assert "| build | done |" in (machine.results / "nvidia-h200-2026-11-22.md").read_text()
    assert "build" in capsys.readouterr().out


@pytest.mark.parametrize("do", ["reason=x,exit=10", "raise=x", "exit=0"])
def test_one_failure_ends_with_one(do, machine, fake, capsys):
    assert machine([fake("build"), fake("soak", do)]) == 1
    assert "not done: soak" in capsys.readouterr().out


def test_a_part_alone_and_again(machine, fake, begun):
    parts = [fake("build"), fake("soak")]
    assert machine(parts, "--only", "soak") == 0
    assert begun() == ["soak"]
    assert machine(parts) == 0
    assert machine(parts) == 0
    assert begun() == ["soak", "build"]
    assert machine(parts, "--again") == 0
    assert begun() == ["soak", "build", "build", "soak"]


def test_another_gpu_begins_anew(machine, fake, begun):
    machine([fake("build")])
    machine([fake("build")], chip="NVIDIA A100-SXM4-80GB")
    assert begun() == ["build", "build"]


def test_no_record_where_none_is_wanted(machine, fake, out):
    assert machine([fake("build")], "--no-record") == 0
    assert not machine.results.exists() and (out / "results.json").exists()


def test_wheels_are_unpacked_once_and_found_first_from_then_on(machine, fake, out, tmp_path, begun, capsys):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("carried/__init__.py", "where = 'here'")
    parts = [fake("build", "import=carried")]
    assert machine(parts) == 1, "the part imports what is not there"
    assert machine(parts, "--wheels", str(wheels)) == 0
    assert "carried-1.0: unpacked into" in capsys.readouterr().err
    assert machine(parts, "--again") == 0, "a later run has lost it"
    assert begun() == ["build"] * 3


def test_a_folder_without_wheels_is_a_wrong_flag(machine, fake, begun, tmp_path, capsys):
    assert machine([fake("build")], "--wheels", str(tmp_path)) == 64
    assert "--wheels" in capsys.readouterr().err and begun() == []


def test_the_probe_sees_the_wheels_too(tmp_path, gpu_run, monkeypatch):
    import gpu_machine

    (tmp_path / "wheels" / "tensorrt_rtx").mkdir(parents=True)
    about = tmp_path / "wheels" / "tensorrt_rtx_cu99-9.8.7.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_rtx_cu99\nVersion: 9.8.7\n")
    (about / "top_level.txt").write_text("tensorrt_rtx\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpu_machine.probe(gpu_run._environment(tmp_path))
    assert found["tensorrt_rtx"] == "9.8.7" and found["no_gpu"]


def test_the_time_of_a_run_is_bounded(machine, fake, begun):
    assert machine([fake("build", least_s=100), fake("soak")], "--minutes", "1") == 1
    assert begun() == ["soak"]
