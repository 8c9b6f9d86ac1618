"""The processor's own peaks, measured in this run: what `of_peak` of the engines is a part of."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .engines.race import summary
from .machine import ROOT
from .record import Measurement

PEAKS = ("float32 products", "bfloat16 products", "int8 products", "memory bandwidth")


@pytest.fixture(scope="module")
def rates(threads, quick) -> dict:
    """In a process of its own: its threads would disturb the engines'."""
    command = [sys.executable, "-m", "benchmarks.cpu_peaks", str(threads), "3" if quick else "9"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.parametrize("name", PEAKS)
def test_peak(benchmark, recorder, rates, name):
    unit, found = rates[name]
    facts = summary([[one] for one in found])
    measurement = Measurement("roofline", name, mode="peak", unit=unit, **facts)
    recorder.put(benchmark, "roofline", measurement, [1 / one for one in found])
