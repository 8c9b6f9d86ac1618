"""Requests of one image from 1 to 32 threads at once: throughput, and latency percentiles against the load offered."""

from __future__ import annotations

import pytest

from .engines.client import WorkerError
from .engines.race import summary
from .engines.subjects import SUBJECTS
from .record import Measurement

CLIENTS = (1, 2, 4, 8, 16, 32)
QUICK_CLIENTS = (1, 8)
# Of the highest rate that the closed loops reached.
LOADS = (0.5, 0.8, 0.95)
OPEN_CLIENTS = 8
SERVED = [
    subject
    for subject in SUBJECTS
    if (subject.ours and not subject.cuda) or subject.id in ("ONNX Runtime float32", "OpenVINO float32")
]


@pytest.fixture(scope="module")
def served(field, quick) -> dict[str, dict]:
    """By subject: {("closed", clients): answer, ("open", load): answer}, or a reason."""
    found: dict[str, dict] = {}
    seconds = 0.5 if quick else 0.8
    for subject in SERVED:
        one = field.contestant(subject)
        if one.worker is None:
            continue
        answers: dict = {}
        try:
            for clients in QUICK_CLIENTS if quick else CLIENTS:
                answers["closed", clients] = one.worker.ask("serve", clients=clients, seconds=seconds, rate=None)
            most = max(len(answer["ms"]) / answer["seconds"] for answer in answers.values())
            for load in () if quick else LOADS:
                rate = load * most
                said = one.worker.ask("serve", clients=OPEN_CLIENTS, seconds=2 * seconds, rate=rate)
                answers["open", load] = {**said, "offered": rate}
        except WorkerError as error:
            answers = {"reason": str(error)}
        found[subject.id] = answers
    return found


def _facts(subject, mode: str, clients: int) -> dict:
    facts = {"suite": "concurrency", "subject": subject.name, "precision": subject.precision, "mode": mode}
    return facts | {"ours": subject.ours, "batch": 1, "clients": clients}


@pytest.mark.parametrize("clients", CLIENTS)
@pytest.mark.parametrize("subject", SERVED, ids=lambda s: s.id)
def test_closed_loop(benchmark, recorder, field, served, quick, subject, clients):
    """Each client asks anew as soon as it is answered."""
    if quick and clients not in QUICK_CLIENTS:
        pytest.skip("left out by --quick")
    facts = _facts(subject, "closed loop", clients)
    _put(benchmark, recorder, facts, field.contestant(subject), served, subject, ("closed", clients))


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("subject", SERVED, ids=lambda s: s.id)
def test_offered_load(benchmark, recorder, field, served, quick, subject, load):
    """Requests come at random moments, at a part of the highest rate; waiting counts."""
    if quick:
        pytest.skip("left out by --quick")
    facts = _facts(subject, f"open loop, {load:.0%} load", OPEN_CLIENTS)
    _put(benchmark, recorder, facts, field.contestant(subject), served, subject, ("open", load))


def _put(benchmark, recorder, facts, contestant, served, subject, key) -> None:
    answers = served.get(subject.id, {"reason": contestant.reason or "not run"})
    if "reason" in answers:
        recorder.put(benchmark, facts["mode"], Measurement(**facts, reason=answers["reason"]), [])
    said = answers[key]
    more = {"throughput": round(len(said["ms"]) / said["seconds"], 2)}
    if "offered" in said:
        more["offered"] = round(said["offered"], 2)
    found = Measurement(**facts, **summary([said["ms"]]), gate=contestant.gate, more=more)
    recorder.put(benchmark, f"{facts['mode']}, {facts['clients']} clients", found, [ms / 1e3 for ms in said["ms"]])
