"""The committed results: they are records, they give away no place, and the README's table is made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.machine import typed
from benchmarks.record import read_run
from benchmarks.report.readme import BEGIN, END, rewritten

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.parent.name)
def test_committed_results_are_records_of_their_machine(path):
    run = read_run(path)
    assert run.environment["machine"] == path.parent.name and path.stat().st_size < 250_000
    assert {m.suite for m in run.measurements} >= {"engines", "cold_start", "concurrency", "build_time", "roofline"}
    assert not re.search(r'"[^"]*/(home|root|tmp|work)/', path.read_text())


def test_the_readmes_table_is_made_of_them():
    text = (ROOT / "README.md").read_text()
    assert rewritten(text, [read_run(path) for path in RESULTS]) == text
    assert len(text.partition(BEGIN)[2].partition(END)[0].splitlines()) > 10


def test_a_command_tells_no_places():
    assert typed(["benchmarks/", "--record", "/some/where/run.json"]) == "pytest benchmarks/ --record run.json"
