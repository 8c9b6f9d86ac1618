"""Records of runs as one page and as Markdown; two runs compared; the README's table.

    python -m benchmarks.report RESULTS.. --out report/            # index.html, report.md
    python -m benchmarks.report RESULTS.. --readme README.md       # what stands between its marks
    python -m benchmarks.report --compare OLD NEW [--threshold 0.10] [--across-machines] [--out report/]

RESULTS, OLD, NEW: records (`pytest benchmarks/`), results of `make gpu`, or folders of both. Exit codes: 0 done,
1 something became slower or lost its number, 3 a bad file, 7 matplotlib is missing, 8 a file cannot be written,
64 wrong flag.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from tkfnet_engine.atomic import write_atomically
from tkfnet_engine.console import Parser, run_command, say
from tkfnet_engine.errors import BackendError, FileError, UsageError

from ..record import Run
from .compare import THRESHOLD, compared, markdown, summary, table, text
from .figures import machine_of
from .reading import ReportError, read_results
from .readme import rewritten


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    p.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="records of runs, or folders of them")
    p.add_argument("--out", type=Path, metavar="DIR", help="write index.html and report.md, or compare.md, here")
    p.add_argument("--readme", type=Path, metavar="FILE", help="rewrite the table between the marks in this file")
    p.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="exit 1 if NEW is slower")
    p.add_argument("--threshold", type=_share, metavar="X", help=f"slower than this share fails (default {THRESHOLD})")
    p.add_argument("--across-machines", action="store_true", help="compare runs of two machines all the same")
    return p


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 or more, 0.1 for 10 %")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.compare:
        if args.results or args.readme:
            raise UsageError("--compare takes OLD and NEW alone; give RESULTS and --readme without it")
        return _compare(args)
    if not args.results:
        raise UsageError("got no RESULTS; expected records of runs, or folders of them, such as benchmarks/results")
    if args.threshold is not None or args.across_machines:
        raise UsageError("--threshold and --across-machines belong to --compare OLD NEW")
    if not args.out and not args.readme:
        raise UsageError("got neither --out nor --readme; expected --out DIR for the page, --readme FILE for its table")
    runs = read_results(args.results, say)
    if args.readme:
        _rewrite(args.readme, runs)
    if args.out:
        _write_page(args.out, runs)
    return 0


def _compare(args: argparse.Namespace) -> int:
    old, new = (_one_run(path) for path in args.compare)
    if old.environment["machine"] != new.environment["machine"] and not args.across_machines:
        raise UsageError(
            f"got runs of {machine_of(old)} and of {machine_of(new)}, expected one machine; "
            "--across-machines compares them all the same"
        )
    threshold = THRESHOLD if args.threshold is None else args.threshold
    found = compared(old, new, threshold)
    lines, made = summary(old, new, found, threshold), table(found)
    print(text(made), *lines, sep="\n")
    if args.out:
        _write(args.out / "compare.md", markdown(lines, made))
    return int(any(one.failed for one in found))


def _one_run(path: Path) -> Run:
    runs = read_results([path], say)
    if len(runs) != 1:
        raise UsageError(f"{path}: got {len(runs)} runs of different machines or commits, expected one; name its file")
    return runs[0]


def _write_page(out: Path, runs: Sequence[Run]) -> None:
    try:
        from . import page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise BackendError("the page's charts need matplotlib: pip install 'tkfnet-engine[train]'") from None
    _write(out / "index.html", page.page(runs))
    _write(out / "report.md", page.markdown(runs))
    count = sum(len(run.measurements) for run in runs)
    say(f"{out / 'index.html'}, report.md: {count} measurements of {len(runs)} runs")


def _rewrite(path: Path, runs: Sequence[Run]) -> None:
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read: {error}") from None
    after = rewritten(before, runs, str(path))
    if after != before:
        _write(path, after)
    say(f"{path}: {'rewritten' if after != before else 'as it was'}")


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path.parent}: cannot be made: {error.strerror}; choose another --out") from error
    write_atomically(path, content.encode())


if __name__ == "__main__":
    run_command(main)
