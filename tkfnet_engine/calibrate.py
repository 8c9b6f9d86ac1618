"""`python -m tkfnet_engine.calibrate [--data ..]`: writes the scales that every INT8 engine of a checkpoint shares."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .atomic import write_atomically
from .build import reference_checkpoint
from .console import Parser, emit_json, run_command, say
from .data import GRAMMAR
from .errors import UsageError

if TYPE_CHECKING:
    from .export.calibration_table import CalibrationTable

SUFFIX = ".calibration.json"


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.calibrate", description=__doc__.partition(": ")[2])
    p.add_argument("--checkpoint", help="of `python -m tkfnet_engine.train` (default: the shipped reference)")
    p.add_argument("--data", help=f"whose training images to use (default: rendered faces): {GRAMMAR}")
    p.add_argument("--images", type=int, metavar="N", help="how many of them (default 512, at least 128)")
    p.add_argument("--out", help=f"the table (default: the checkpoint's name, with {SUFFIX}, in this folder)")
    p.add_argument("--json", action="store_true", help="the table on standard output as well")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    path = reference_checkpoint() if args.checkpoint is None else args.checkpoint
    out = args.out or os.path.splitext(os.path.basename(path))[0] + SUFFIX
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise UsageError(f"--out: the folder {folder} is not there; make it first")
    if os.path.isdir(out) or (os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path)):
        what = "a folder" if os.path.isdir(out) else "the checkpoint"
        raise UsageError(f"--out: got {out}, which is {what}, expected a file to write; choose another path")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"calibrating needs {error.name}, which is not installed; install it with pip install "
            "'tkfnet-engine[build]'"
        ) from None

    from .export.ranges_from_data import calibrate
    from .model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    if args.checkpoint is None:
        say("no --checkpoint: using the shipped reference, trained on rendered faces only (docs/reference.md)")
    table = calibrate(checkpoint, args.data, args.images)
    write_atomically(out, table.to_json().encode())
    if args.json:
        emit_json(table.to_dict())
    else:
        print(text_of_table(table))
    say(f"wrote {out}: {len(table.points)} maps, {table.data.images} images")
    return 0


def text_of_table(table: CalibrationTable) -> str:
    """For each map and kind: the scale, the method that gave it, and its signal over error in decibels."""
    kinds = list(next(iter(table.points.values())).scales)
    classes = ", ".join(f"{count} {label}" for label, count in table.data.classes.items())
    lines = [f"{table.data.name}: {table.data.images} images ({classes})", ""]
    width = max(map(len, table.points))
    lines.append(f"{'':<{width}}" + "".join(f"  {kind + ' scale':>13} {'dB':>5} {'method':<17}" for kind in kinds))
    for name, found in table.points.items():
        cells = []
        for kind in kinds:
            one = found.scales[kind]
            cells.append(f"  {one.scale:>13.4g} {one.sqnr_db[one.method]:>5.1f} {one.method:<17}")
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    run_command(main)
