"""Engines that take turns: a wrong one gets no number, a slow one is caught, a dead one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines.client import Worker, WorkerError
from benchmarks.engines.concurrency import serve
from benchmarks.engines.race import Contestant, Faces, Heat, enter, judged, race, ratio, summary
from benchmarks.engines.subjects import BASELINE, SUBJECTS, Subject, why_absent
from benchmarks.record import Measurement, Run
from tkfnet_engine.spec import Preprocessing

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64
EAGER = Subject("PyTorch eager, channels-last", "eager", options=(("layout", "channels-last"),))


@pytest.fixture(scope="module")
def faces(small_reference, noise) -> Faces:
    pixels = noise(40, SIZE, seed=7)
    logits = small_reference(pixels)
    return Faces(pixels, logits.argmax(1), logits)


@pytest.fixture(scope="module")
def entered(faces, small_checkpoint_path):
    """entered(subject, ..settings): the contestant, whose process ends with the tests."""
    made = []

    def run(subject: Subject, **settings) -> Contestant:
        facts = {"checkpoint": str(small_checkpoint_path), "preprocessing": Preprocessing(size=SIZE).to_dict()}
        facts |= {"threads": 1, "size": SIZE, "precision": subject.precision, **dict(subject.options), **settings}
        made.append(enter(subject, faces, facts))
        return made[-1]

    yield run
    for one in made:
        if one.worker is not None:
            one.worker.close()


def test_a_right_engine_is_timed_and_compared(entered):
    heat = race([entered(EAGER)], "network", 2, rounds=2, seconds=0.01)
    found = heat.measurement(Contestant(EAGER))
    assert found.reason is None and found.median > 0 and found.low <= found.median <= found.high
    assert found.samples >= 6 and found.p90 is None and found.speedup.median == 1.0
    assert EAGER.id == BASELINE


@pytest.mark.parametrize("mode", ["network", "host"])
def test_a_wrong_engine_gets_no_number(entered, mode):
    """Every weight off by two per cent: too little to be seen in most labels."""
    wrong = entered(Subject("perturbed", "eager", options=EAGER.options), perturb="0.02")
    assert wrong.worker is None and wrong.reason.startswith("wrong, so not timed") and wrong.gate["sqnr_db"] < 60
    found = race([wrong], mode, 1, rounds=1, seconds=0.01).measurement(wrong)
    assert found.median is None and found.reason == wrong.reason and found.gate == wrong.gate


def test_a_slow_engine_is_caught_by_the_comparison(entered, tmp_path):
    """The same engine and one that sleeps three times as long as it works, in the place of the same name."""
    slow = Subject(EAGER.name, "sleepy", options=EAGER.options)
    runs = []
    for number, one in enumerate([entered(EAGER), entered(slow, of="eager", slow="4")]):
        found = race([one], "host", 1, rounds=3, seconds=0.05).measurement(one)
        assert found.reason is None
        runs.append(tmp_path / f"{number}.json")
        Run({"machine": "here", "commit": str(number)}, (found,)).write(runs[-1])
    assert compared(runs[0], runs[0]).returncode == 0
    told = compared(*runs)
    assert told.returncode == 1 and "slower" in told.stdout and EAGER.name in told.stdout


def compared(old: Path, new: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.report", "--compare", str(old), str(new)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_an_engine_that_cannot_be_opened_or_dies_says_so(entered):
    broken = entered(Subject("no file", "ours"), engine="/no/such/file.tkf")
    assert broken.worker is None and "BundleError" in broken.reason and "no such file" in broken.reason
    dying = entered(EAGER)
    dying.worker._process.kill()
    heat = race([dying], "network", 1, rounds=2, seconds=0.01)
    assert "ended" in heat.measurement(dying).reason and not heat.taken


def test_a_worker_tells_what_its_engine_raises():
    with pytest.raises(WorkerError, match="no_such_opener"):
        Worker("no_such_opener", threads=1, size=SIZE)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda logits: logits, None),
        (lambda logits: logits + 1e-2 * logits.std(), "dB"),
        (lambda logits: logits[:, ::-1], "dB"),
        (lambda logits: logits * np.nan, "dB"),
        (lambda logits: logits[:-1], "expected"),
    ],
)
def test_what_is_right(faces, change, wrong):
    gate, found = judged(faces, change(faces.logits), "float32")
    assert (found is None) == (wrong is None) and (wrong is None or wrong in found)
    assert wrong == "expected" or set(gate) == {"images", "sqnr_db", "agreement", "accuracy"}


def test_percentiles_need_samples():
    assert summary([[1.0, 3.0], [2.0, 4.0]]) == {
        "samples": 4, "median": 2.5, "low": 2.0, "high": 3.0, "p90": None, "p99": None
    }  # fmt: skip
    assert summary([[1.0] * 99])["p90"] is None and summary([[1.0] * 100])["p90"] == 1.0
    assert summary([[1.0] * 999])["p99"] is None and summary([[1.0] * 1000])["p99"] == 1.0


def test_ratios_are_taken_within_a_round():
    """The machine is half as fast in the second round; the ratio is not touched."""
    found = ratio("them", [[2.0, 2.0, 9.0], [4.0]], [[1.0], [2.0]])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)


def test_each_engine_is_there_or_says_why_not():
    reasons = {subject.id: why_absent(subject) for subject in SUBJECTS}
    assert len(reasons) == len(SUBJECTS) and reasons[BASELINE] is None
    assert all(reason is None or len(reason) > 10 for reason in reasons.values())
    assert "GPU" in reasons["tkfnet-engine, fused float16"] or "cuda" in reasons["tkfnet-engine, fused float16"]
    left_out = [s.id for s in SUBJECTS if why_absent(s, quick=True) == "left out by --quick"]
    assert "torch.compile float32" in left_out


# --- many at once ----------------------------------------------------------------------------------------


def test_clients_ask_as_soon_as_they_are_answered():
    seen = []
    said = serve(lambda images: seen.append(images.shape), 8, clients=3, seconds=0.2, rate=None)
    assert len(said["ms"]) == len(seen) - 1 and set(seen) == {(1, 8, 8, 3)}  # one is for warming up
    assert said["seconds"] >= 0.2


def test_waiting_in_the_queue_is_part_of_the_latency():
    """Five times as many requests come as one client can take."""
    import time

    said = serve(lambda images: time.sleep(0.02), 8, clients=1, seconds=0.3, rate=250)
    assert len(said["ms"]) == 75 and max(said["ms"]) > 10 * 20


def test_a_failing_client_is_no_number():
    def fail(images):
        if fail.calls:
            raise RuntimeError("lost")
        fail.calls = 1

    fail.calls = 0
    with pytest.raises(RuntimeError, match="lost"):
        serve(fail, 8, clients=2, seconds=0.05, rate=None)


# --- a whole suite ---------------------------------------------------------------------------------------


def test_a_suite_leaves_a_record_and_says_why_each_is_skipped(tmp_path):
    path = tmp_path / "run.json"
    flags = ["--benchmark-only", "--record", str(path), "-rs", "-p", "no:cacheprovider", "-q"]
    command = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "make gpu" in done.stdout, done.stdout + done.stderr
    from benchmarks.record import read_run

    run = read_run(path)
    assert run.environment["cores"] >= 1 and run.environment["versions"]["tkfnet-engine"]
    assert len(run.measurements) == 5 and all(m.reason and m.median is None for m in run.measurements)


def test_heats_know_what_was_not_run():
    found = Heat("network", 1).measurement(Contestant(EAGER, reason="not here"))
    assert isinstance(found, Measurement) and found.reason == "not here"
