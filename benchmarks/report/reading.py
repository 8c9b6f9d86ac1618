"""Records of runs from files and folders, whichever program wrote them; every value is checked before it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tkfnet_engine.errors import TkfnetError
from tkfnet_engine.strict_json import StrictJsonError, parse

from ..record import Measurement, Ratio, RecordError, Run, merged, read_run
from .from_gpu import is_gpu_results, run_from_gpu

_TEXTS = ("subject", "device", "unit")
_MAYBE_TEXTS = ("precision", "mode", "reason")
_COUNTS = ("batch", "clients")
_NUMBERS = ("median", "low", "high", "p90", "p99", "of_peak")


class ReportError(TkfnetError, ValueError):
    """A file of results cannot be read, or the README has no place for its table."""

    exit_code = 3


def read_results(paths: Sequence[Path], say: Callable[[str], None] = lambda line: None) -> list[Run]:
    """Runs of all files, and of all `*.json` below folders, those of one machine and commit as one. `ReportError` for a
    file that holds none; of a folder, files of other programs are left out, and `say` is told."""
    runs: list[Run] = []
    for path in paths:
        if not path.is_dir():
            runs.append(_read(path))
            continue
        before = len(runs)
        for file in sorted(path.rglob("*.json")):
            if _is_results(file):
                runs.append(_read(file))
            else:
                say(f"{file}: no record of a run; left out")
        if len(runs) == before:
            raise ReportError(
                f"{path}: no record of a run in this folder; pytest benchmarks/ --benchmark-only makes one"
            )
    return [replace(run, measurements=tuple(run.measurements)) for run in merged(runs)]


def _content(path: Path) -> Any:
    try:
        return parse(path.read_bytes())
    except (OSError, StrictJsonError) as error:
        raise ReportError(f"{path}: cannot be read as a record of a run: {error}") from None


def _is_results(path: Path) -> bool:
    """Damaged JSON counts: it must be reported, not passed over."""
    content = _content(path)
    return is_gpu_results(content) or (isinstance(content, Mapping) and {"format", "measurements"} <= content.keys())


def _read(path: Path) -> Run:
    content = _content(path)
    kind = "results of `make gpu`" if is_gpu_results(content) else "record of a run"
    try:
        run = run_from_gpu(content, str(path)) if is_gpu_results(content) else read_run(path)
        _check(run)
    except RecordError as error:
        text = str(error)
        raise ReportError(text if text.startswith(str(path)) else f"{path}: no {kind} ({text})") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{path}: no {kind} ({type(error).__name__}: {error})") from None
    return run


# --- checks ------------------------------------------------------------------------------------------------


def _check(run: Run) -> None:
    if not isinstance(run.environment, Mapping):
        raise RecordError(f"environment: got {type(run.environment).__name__}, expected an object")
    missing = [name for name in ("machine", "commit") if not isinstance(run.environment.get(name), str)]
    if missing:
        raise RecordError(f"environment: no text {' and '.join(missing)}")
    for number, m in enumerate(run.measurements):
        where = f"measurement {number} ({m.subject!s:.60})"
        for wrong in _wrong(m):
            raise RecordError(f"{where}: {wrong}")


def _wrong(m: Measurement) -> Iterable[str]:
    for name in _TEXTS:
        if not isinstance(getattr(m, name), str):
            yield f"{name}: got {getattr(m, name)!r}, expected a text"
    for name in _MAYBE_TEXTS:
        if not isinstance(getattr(m, name), str | None):
            yield f"{name}: got {getattr(m, name)!r}, expected a text or null"
    for name in _COUNTS:
        if (value := getattr(m, name)) is not None and not (_is_number(value) and value == int(value) > 0):
            yield f"{name}: got {value!r}, expected a whole number above 0"
    for name in _NUMBERS:
        if (value := getattr(m, name)) is not None and not _is_number(value):
            yield f"{name}: got {value!r}, expected a number or null"
    if not _is_number(m.samples):
        yield f"samples: got {m.samples!r}, expected a number"
    if not isinstance(m.ours, bool):
        yield f"ours: got {m.ours!r}, expected true or false"
    if isinstance(m.speedup, Ratio) and not (
        isinstance(m.speedup.over, str) and all(map(_is_number, (m.speedup.median, m.speedup.low, m.speedup.high)))
    ):
        yield f"speedup: got {m.speedup!r}, expected a text and three numbers"
    for name in ("gate", "more"):
        if not isinstance(getattr(m, name), Mapping | None):
            yield f"{name}: got {getattr(m, name)!r}, expected an object"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
