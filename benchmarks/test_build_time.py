"""How long it takes from a checkpoint to an engine, by the command that users type, and PyTorch's compiler beside it.

"cold": nothing is kept from before. "cached": given again, with what the first build kept: the calibration of INT8 (of
another backend's build: the scales are the same), the compiler's cache. One build each: its samples would cost minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .engines.client import Worker, WorkerError
from .engines.subjects import SUBJECTS, Subject, why_absent
from .record import Measurement

# In this order: the second INT8 build finds the first one's calibration.
BUILDS = (
    ("onnxruntime", "float32", "cold"),
    ("openvino", "float32", "cold"),
    ("openvino", "int8", "cold"),
    ("onnxruntime", "int8", "cached"),
)
COMPILED = [subject for subject in SUBJECTS if subject.opener == "compiled"]


def _facts(subject: str, precision: str, mode: str, ours: bool) -> dict:
    return {"suite": "build_time", "subject": subject, "precision": precision, "mode": mode, "ours": ours, "unit": "s"}


@pytest.mark.parametrize(("backend", "precision", "mode"), BUILDS)
def test_build(benchmark, recorder, builds, quick, backend, precision, mode):
    facts = _facts(f"tkfnet-engine, {backend}", precision, mode, ours=True)
    subject = next(s for s in SUBJECTS if s.engine == (backend, precision))
    if reason := why_absent(subject, quick):
        recorder.put(benchmark, "build", Measurement(**facts, reason=reason), [])
    cache = builds.folder / "cache" if mode == "cached" else builds.cold_cache()
    seconds = builds.build(backend, precision, cache)
    if mode == "cold" and precision == "int8":
        builds.keep_cache(cache)
    recorder.put(benchmark, "build", Measurement(**facts, samples=1, median=round(seconds, 2)), [seconds])


@pytest.mark.parametrize("mode", ["cold", "cached"])
@pytest.mark.parametrize("subject", COMPILED, ids=lambda s: s.name)
def test_compiler(benchmark, recorder, builds, quick, subject: Subject, mode: str):
    """From an eager network to the first answer of batch 1."""
    facts = _facts(subject.name, subject.precision, mode, ours=False)
    if reason := why_absent(subject, quick):
        recorder.put(benchmark, "build", Measurement(**facts, reason=reason), [])
    settings = builds.settings(subject)
    if mode == "cold":
        builds.emptied(Path(settings["cache"]))
    try:
        worker = Worker(subject.opener, **settings)
        said = worker.ask("first", batch=1)
        worker.close()
    except WorkerError as error:
        recorder.put(benchmark, "build", Measurement(**facts, reason=f"cannot be run: {error}"), [])
    seconds = said["seconds"]
    recorder.put(benchmark, "build", Measurement(**facts, samples=1, median=round(seconds, 2)), [seconds])
