"""`pytest benchmarks/ --benchmark-only`: flags, what the suites share, and the record that a run leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tkfnet_engine.hardware import usable_cores

from .builds import FACES, Builds
from .engines.field import Field
from .machine import ROOT, environment, finish
from .record import Measurement, Run
from .roofline import with_fractions

WORK = ROOT / "build" / "benchmarks"


def pytest_addoption(parser):
    group = parser.getgroup("tkfnet-engine")
    group.addoption("--quick", action="store_true", help="float32 without compilers, few rounds: under two minutes")
    group.addoption(
        "--record", type=Path, default=WORK / "run.json", help="where the run goes (build/benchmarks/run.json)"
    )
    group.addoption("--checkpoint", help="whose network (default: the shipped reference)")
    group.addoption(
        "--peers-python", default=sys.executable, help="an interpreter that has peers of the field installed"
    )
    group.addoption("--threads", type=int, default=usable_cores(), help="of every engine (default: all cores)")


class Clock:
    """A timer that shows what was measured elsewhere: pytest-benchmark reads it around each call of `replay`."""

    def __init__(self):
        self._now = 0.0

    def now(self) -> float:
        self._now += 1e-12  # a timer that stands still cannot be calibrated
        return self._now

    def replay(self, seconds: list[float]):
        """A function that lets the clock pass the next of `seconds` at each call."""
        left = iter([*seconds, 0.0])  # pytest-benchmark calls once more at the end

        def call() -> None:
            self._now += next(left)

        return call


CLOCK = Clock()


# Set on every test here: what is shown was measured elsewhere, by the suite's own method.
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(ROOT / "benchmarks"):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK.now))


@dataclass
class Recorder:
    """Collects the measurements of a run; shows them to pytest-benchmark as well."""

    measurements: list[Measurement]

    def note(self, measurement: Measurement) -> None:
        """One that is no time, which pytest-benchmark cannot show."""
        self.measurements.append(measurement)

    def put(self, benchmark, group: str, measurement: Measurement, seconds: list[float]) -> None:
        """seconds: the samples. Skips the test where the measurement has a reason instead."""
        if measurement.reason is not None:
            # One line, without this checkout's own place.
            reason = measurement.reason.replace(f"{ROOT}/", "").strip().partition("\n")[0][:300]
            self.measurements.append(replace(measurement, reason=reason))
            pytest.skip(reason)
        self.measurements.append(measurement)
        benchmark.group = group
        benchmark.extra_info["speedup"] = measurement.speedup and measurement.speedup.median
        benchmark.pedantic(CLOCK.replay(seconds), rounds=len(seconds), iterations=1)


@pytest.fixture(scope="session")
def recorder(request, builds, threads) -> Iterator[Recorder]:
    """Writes the record when all suites are done."""
    facts = environment(threads)
    made = Recorder([])
    yield made
    path = request.config.getoption("record")
    found = made.measurements
    if any(m.suite == "roofline" for m in found):
        found = with_fractions(found, builds.flops())
    Run(finish(facts), tuple(found)).write(path)
    print(f"\n{len(made.measurements)} measurements in {path}; python -m benchmarks.report {path}", file=sys.stderr)


@pytest.fixture(scope="session")
def builds(request, threads) -> Builds:
    from tkfnet_engine.build import reference_checkpoint

    checkpoint = request.config.getoption("checkpoint") or reference_checkpoint()
    return Builds(WORK, str(checkpoint), threads)


@pytest.fixture(scope="session")
def field(builds, quick) -> Iterator[Field]:
    """Every engine of `subjects.py`: opened and judged when a suite first asks for it, then kept open."""
    made = Field(builds, builds.faces(40 if quick else FACES), quick)
    yield made
    made.close()


@pytest.fixture(scope="session")
def quick(request) -> bool:
    return request.config.getoption("quick")


@pytest.fixture(scope="session")
def threads(request) -> int:
    return request.config.getoption("threads")
