"""`python -m tkfnet_engine.tune [--minutes N]`: measures tiles of the fused kernels on this GPU and keeps the best.

Writes `kernels/tiles.json`, which every later build reads. Each candidate is checked against plain PyTorch before it is
timed. What was measured is kept at once, so a run that is stopped, or ends with its time, goes on when given again.
FP16 comes first, then INT8 and, where the GPU has it, FP8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .atomic import write_atomically
from .build import reference_checkpoint
from .console import Parser, run_command, say
from .errors import UsageError
from .kernels.plan import BUCKETS
from .kernels.precisions import PRECISIONS
from .kernels.tile_table import Measured, Tile, TileTable
from .kernels.tiles import ranked_candidates

if TYPE_CHECKING:
    from .kernels.tile_tasks import TileTask


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.tune", description=__doc__.partition(": ")[2].partition("\n")[0])
    p.add_argument("--minutes", type=float, default=8.0, metavar="N", help="stop after so long (default 8)")
    p.add_argument("--batch", type=int, nargs="+", default=list(BUCKETS), metavar="N", help="batches (default: all)")
    p.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, metavar="P", help=f"of {', '.join(PRECISIONS)} (default: all)"
    )
    p.add_argument("--candidates", type=int, default=24, metavar="N", help="tiles tried per product (default 24)")
    p.add_argument("--again", action="store_true", help="measure also what the table already has")
    p.add_argument("--checkpoint", help="whose network (default: the shipped reference)")
    p.add_argument("--table", help="the file to rewrite (default: the package's own)")
    return p


def tune(
    tasks: Sequence[TileTask],
    table: TileTable,
    arch: str,
    measure: Callable[[TileTask, list[Tile]], list[tuple[Tile, float]]],
    out_of_time: Callable[[], bool],
    candidates: int,
    again: bool = False,
) -> int:
    """Measures until all is done or time is out; returns how many tasks are left. The table is saved after each.

    measure: the tiles that are right, with their microseconds, of those given.
    """
    left = [t for t in tasks if again or not table.has(t.product.key, t.precision, arch)]
    done = 0
    for task in left:
        if out_of_time():
            break
        what = f"{task.product.key} in {task.precision}"
        tiles = ranked_candidates(task.product, arch, task.rows)[:candidates]
        if timed := measure(task, tiles):
            tile, us = min(timed, key=lambda pair: pair[1])
            first = dict(timed).get(tiles[0])
            gain = f", {first / us:.2f} x the model's choice" if first else ""
            say(f"{what}: {tile} {us:.2f} us of {len(timed)} right{gain}")
            table.put(task.product.key, task.precision, arch, tile, us)
            write_atomically(table.path, (table.to_json(),))
        else:
            say(f"{what}: none of {len(tiles)} tiles is right here; the model's choice stays")
        done += 1
    return len(left) - done


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.minutes <= 0 or min(args.batch) < 1 or args.candidates < 1:
        raise UsageError(
            f"--minutes {args.minutes} --batch {args.batch} --candidates {args.candidates}: expected positive numbers"
        )
    deadline = time.monotonic() + 60 * args.minutes
    from .export.tiles_from_gpu import TileBench
    from .kernels.tile_tasks import precisions_on, tasks_of

    bench = TileBench(args.checkpoint or reference_checkpoint())
    precisions = [name for name in precisions_on(bench.arch) if not args.precision or name in args.precision]
    if unknown := sorted({*(args.precision or ())} - {*precisions}):
        raise UsageError(f"--precision: got {', '.join(unknown)}, which {bench.chip} does not have; leave it out")
    table = TileTable.read(args.table, Measured(bench.chip, bench.driver, time.strftime("%Y-%m-%d"), bench.triton))
    tasks = tasks_of(bench.network, sorted(set(args.batch)), precisions, bench.arch)
    left = tune(
        tasks, table, bench.arch, bench.measure, lambda: time.monotonic() > deadline, args.candidates, args.again
    )
    say(f"{len(tasks) - left} of {len(tasks)} products have a measured tile in {table.path}")
    if left:
        say(f"{left} are left: run it again to go on")
    return 0


if __name__ == "__main__":
    run_command(main)
