"""Every engine beside every other: the network alone, host to host, and from JPEG bytes to probabilities.

The races are run when the first test asks for one; each test then shows one engine's samples.
"""

from __future__ import annotations

import pytest

from .engines.race import Heat, run_round
from .engines.subjects import SUBJECTS

# Rounds and seconds per turn.
FULL, QUICK = (5, 0.3), (3, 0.12)
RACES = [("network", 1), ("network", 8), ("network", 32), ("host", 1), ("jpeg", 1), ("jpeg", 8)]
# A large batch takes seconds, and drifts less.
LARGE_ROUNDS = 3
QUICK_RACES = [("network", 1), ("network", 8), ("jpeg", 1)]


@pytest.fixture(scope="session")
def heats(request, field, builds, quick):
    """What came of each race that a test of this run asks for, by (mode, batch)."""
    most, seconds = QUICK if quick else FULL
    asked = {item.callspec.params["race_of"] for item in request.session.items if "race_of" in item.fixturenames}
    races = [one for one in (QUICK_RACES if quick else RACES) if one in asked]
    found = {one: Heat(*one) for one in races}
    # A round of every race, then the next of every race: what disturbs the machine for a minute has one round of each,
    # which the median leaves out, and not all rounds of one.
    for number in range(most):
        for mode, batch in races:
            if batch < 32 or number < LARGE_ROUNDS:
                jpegs = builds.jpegs() if mode == "jpeg" else ()
                run_round(found[mode, batch], field.all(), number, seconds, jpegs)
    return found


@pytest.mark.parametrize("race_of", RACES, ids=lambda r: f"{r[0]}-{r[1]}")
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.id)
def test_engine(benchmark, recorder, field, heats, quick, subject, race_of):
    mode, batch = race_of
    if quick and race_of not in QUICK_RACES:
        pytest.skip("left out by --quick")
    found = heats[race_of]
    samples = [ms / 1e3 for one in found.taken.get(subject.id, []) for ms in one]
    recorder.put(benchmark, f"{mode}, batch {batch}", found.measurement(field.contestant(subject)), samples)
