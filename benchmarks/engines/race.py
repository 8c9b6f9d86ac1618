"""Engines that take turns: each is opened, answers correctly or gets no number, and is timed in rounds with the others.

All stay open, each in its own process, and all but one wait: two runtimes in one process, or two that run, disturb
each other. In a round each has its turn, the order turns with the rounds, and a ratio is taken within a round, so that
a drift of the machine touches both sides.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tkfnet_engine.compare import compare

from ..record import Measurement, Ratio
from .client import KEEPS_MEMORY, Worker, WorkerError
from .subjects import BASELINE, REQUIRED_AGREEMENT, REQUIRED_SQNR_DB, Subject

# Between two turns: thread pools spin for a while after their work.
PAUSE_S = 0.05
# Fewer samples say nothing of such a percentile.
NEEDED = {"p90": 100, "p99": 1000}


@dataclass(frozen=True)
class Faces:
    """pixels: uint8 [N, S, S, 3]; labels: int [N]; logits: the float32 reference's, [N, classes]."""

    pixels: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclass
class Contestant:
    """worker: None where there is a reason. gate: what was compared before any timing."""

    subject: Subject
    worker: Worker | None = None
    reason: str | None = None
    gate: dict[str, Any] | None = None

    def fail(self, reason: str) -> None:
        self.reason = reason
        if self.worker is not None:
            self.worker.close()
            self.worker = None


@dataclass
class Heat:
    """What came of one race. taken: by subject, for each round its milliseconds."""

    mode: str
    batch: int
    taken: dict[str, list[list[float]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def measurement(self, contestant: Contestant) -> Measurement:
        subject = contestant.subject
        facts: dict[str, Any] = {
            "suite": "engines", "subject": subject.name, "ours": subject.ours, "precision": subject.precision,
            "device": subject.device, "mode": self.mode, "batch": self.batch,
        }  # fmt: skip
        rounds = self.taken.get(subject.id)
        if rounds is None:
            reason = self.reasons.get(subject.id) or contestant.reason or "not run"
            return Measurement(**facts, gate=contestant.gate, reason=reason)
        speedup = ratio(BASELINE, self.taken[BASELINE], rounds) if BASELINE in self.taken else None
        return Measurement(**facts, **summary(rounds), speedup=speedup, gate=contestant.gate)


def summary(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of all samples: how many, median, p90 and p99 where there are enough; low and high of the rounds' medians."""
    values = [value for one in rounds for value in one]
    medians = [statistics.median(one) for one in rounds]
    found: dict[str, Any] = {"samples": len(values), "median": statistics.median(values)}
    found |= {"low": min(medians), "high": max(medians)}
    for name, needed in NEEDED.items():
        found[name] = float(np.percentile(values, int(name[1:]))) if len(values) >= needed else None
    return {name: value if value is None or name == "samples" else round(value, 4) for name, value in found.items()}


def ratio(over: str, theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Ratio:
    """How many times as fast `ours` is, round by round."""
    found = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs)]
    return Ratio(over, round(statistics.median(found), 4), round(min(found), 4), round(max(found), 4))


def enter(subject: Subject, faces: Faces, settings: Mapping[str, Any], timeout: float = 300.0) -> Contestant:
    """Opens the engine and asks it the faces. settings: of its opener, as `client.Worker` takes them."""
    contestant = Contestant(subject)
    print(f"opening {subject.id}", file=sys.stderr, flush=True)
    try:
        contestant.worker = Worker(subject.opener, timeout=timeout, environment=KEEPS_MEMORY, **settings)
        with tempfile.TemporaryDirectory() as name:
            pixels, logits = Path(name, "pixels.npy"), Path(name, "logits.npy")
            np.save(pixels, faces.pixels)
            contestant.worker.ask("answer", timeout, pixels=str(pixels), logits=str(logits))
            answer = np.load(logits)
    except WorkerError as error:
        contestant.fail(f"cannot be run: {error}")
        return contestant
    contestant.gate, wrong = judged(faces, answer, subject.precision)
    if wrong:
        contestant.fail(f"wrong, so not timed: {wrong}")
    return contestant


def judged(faces: Faces, answer: np.ndarray, precision: str) -> tuple[dict[str, Any], str | None]:
    """How near the answer is to the reference's, and what is wrong with it."""
    if answer.shape != faces.logits.shape:
        return {}, f"logits {list(answer.shape)}, expected {list(faces.logits.shape)}"
    found = compare(faces.logits, answer, REQUIRED_SQNR_DB[precision])
    gate = {
        "images": found.images,
        "sqnr_db": round(found.sqnr_db, 2),
        "agreement": round(found.top1_agreement, 5),
        "accuracy": round(float((answer.argmax(1) == faces.labels).mean()), 5),
    }
    if found.sqnr_db < REQUIRED_SQNR_DB[precision]:
        return gate, f"{found.sqnr_db:.1f} dB of signal over error, expected {REQUIRED_SQNR_DB[precision]:.0f}"
    kept = 1 - (found.disagreements - found.near_ties) / found.images
    if kept < REQUIRED_AGREEMENT[precision]:
        return gate, f"{kept:.1%} of the labels, expected {REQUIRED_AGREEMENT[precision]:.0%}"
    return gate, None


def race(
    contestants: Iterable[Contestant], mode: str, batch: int, rounds: int, seconds: float, jpegs: Sequence[str] = ()
) -> Heat:
    """seconds: about how long one turn lasts. One that fails is out of this race, with the reason."""
    heat = Heat(mode, batch)
    for number in range(rounds):
        run_round(heat, contestants, number, seconds, jpegs)
    return heat


def run_round(
    heat: Heat, contestants: Iterable[Contestant], number: int, seconds: float, jpegs: Sequence[str] = ()
) -> None:
    """Each has its turn; number: of the round, from 0."""
    running = [c for c in contestants if c.worker is not None]
    turn = number % max(len(running), 1)
    for one in running[turn:] + running[:turn]:
        if one.subject.id in heat.reasons:
            continue
        time.sleep(PAUSE_S)
        try:
            said = one.worker.ask("time", mode=heat.mode, batch=heat.batch, seconds=seconds, jpegs=list(jpegs))
        except WorkerError as error:
            heat.reasons[one.subject.id] = str(error)
            heat.taken.pop(one.subject.id, None)
            continue
        heat.taken.setdefault(one.subject.id, []).append(said["ms"])
