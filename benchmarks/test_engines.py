"""Every engine beside every other: the network alone, host to host, and from JPEG bytes to probabilities.

A race is run when the first of its tests asks for it; each test then shows one engine's samples.
"""

from __future__ import annotations

import functools

import pytest

from .engines.race import Heat, race
from .engines.subjects import SUBJECTS

# Rounds and seconds per turn.
FULL, QUICK = (5, 0.3), (3, 0.12)
RACES = [("network", 1), ("network", 8), ("network", 32), ("host", 1), ("jpeg", 1), ("jpeg", 8)]
# A large batch takes seconds, and drifts less.
LARGE_ROUNDS = 3
QUICK_RACES = [("network", 1), ("network", 8), ("jpeg", 1)]


@pytest.fixture(scope="session")
def heat(field, builds, quick):
    """heat(mode, batch): one race of all engines."""
    most, seconds = QUICK if quick else FULL

    @functools.cache
    def run(mode: str, batch: int) -> Heat:
        rounds = min(most, LARGE_ROUNDS) if batch == 32 else most
        return race(field.all(), mode, batch, rounds, seconds, builds.jpegs() if mode == "jpeg" else ())

    return run


@pytest.mark.parametrize("race_of", RACES, ids=lambda r: f"{r[0]}-{r[1]}")
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.id)
def test_engine(benchmark, recorder, field, heat, quick, subject, race_of):
    mode, batch = race_of
    if quick and race_of not in QUICK_RACES:
        pytest.skip("left out by --quick")
    found = heat(mode, batch)
    samples = [ms / 1e3 for one in found.taken.get(subject.id, []) for ms in one]
    recorder.put(benchmark, f"{mode}, batch {batch}", found.measurement(field.contestant(subject)), samples)
