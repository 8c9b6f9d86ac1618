"""`python -m tkfnet_engine.export_plan ENGINE --out model.plan`: writes an engine's TensorRT plan, to run elsewhere.

Beside the plan stands `model.plan.json`, which says all that its user has to know. Nothing is run here, so nothing has
to be trusted; whoever loads the plan does run it.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from .atomic import write_atomically
from .backends.registry import BACKENDS, TENSORRT_PLAN
from .bundle import read_bundle
from .console import Parser, emit_json, run_command, say
from .engine import checked_facts
from .errors import FileError, UsageError
from .serving.plan_config import describe, fixed_batch, triton_config


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.export_plan", description=__doc__.partition(": ")[2].partition("\n")[0])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf) built for TensorRT")
    p.add_argument("--out", required=True, metavar="PLAN", help="the plan; what it takes and gives goes to PLAN.json")
    p.add_argument("--triton", metavar="CONFIG", help="also write a config.pbtxt for Triton Inference Server here")
    p.add_argument("--json", action="store_true", help="print what PLAN.json holds on standard output")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    bundle = read_bundle(args.engine)
    facts = checked_facts(args.engine, bundle.facts)
    with_plan = [name for name, info in BACKENDS.items() if info.artefact == TENSORRT_PLAN]
    if facts["backend"] not in with_plan or TENSORRT_PLAN not in bundle:
        raise UsageError(
            f"{args.engine}: got an engine for {facts['backend']}, which holds no plan, expected one for "
            f"{' or '.join(with_plan)}; build one with `python -m tkfnet_engine.build --backend {with_plan[0]}`"
        )
    if args.triton is not None and facts["backend"] != "tensorrt":
        raise UsageError(
            f"--triton: Triton runs no plan for {facts['backend']}, expected one for tensorrt; leave it out"
        )
    beside = f"{args.out}.json"
    _check_paths(args.engine, args.out, beside, *([] if args.triton is None else [args.triton]))
    plan = bundle.pop(TENSORRT_PLAN)
    about = describe(args.engine, bundle, plan)
    texts = {beside: json.dumps(about, indent=2, allow_nan=False) + "\n"}
    if args.triton is not None:
        texts[args.triton] = triton_config(about, os.path.basename(args.out))
    _write(args.out, plan, texts)
    if args.json:
        emit_json(about)
    say(f"wrote {args.out}, {len(plan) / 1e6:.1f} MB, and {', '.join(texts)}; a plan is a program for whoever loads it")
    say(f"to time it: {timing_command(about, args.out)}")
    return 0


def timing_command(about: dict[str, Any], path: str) -> str:
    """How NVIDIA's own tool loads and times the plan, at the batch that its first profile is best at."""
    command = ["trtexec" if about["backend"] == "tensorrt" else "tensorrt_rtx", f"--loadEngine={path}"]
    if not fixed_batch(about):
        _, *others = about["inputs"][0]["shape"]
        batch = about["tensorrt"]["profiles"][0]["opt"]
        command.append(f"--shapes=images:{'x'.join(map(str, (batch, *others)))}")
    if about["tensorrt"]["options"]["version_compatible"]:
        command.append("--versionCompatible")  # without it the runtime that the plan brings along is not allowed to run
    return shlex.join(command)


def _check_paths(engine: str, *targets: str) -> None:
    """Each target has to be a file of its own, not the engine, in a folder that is there."""
    real = [os.path.realpath(path) for path in (engine, *targets)]
    if len(set(real)) != len(real):
        raise UsageError(
            f"got {', '.join((engine, *targets))}, expected different files; give another --out or --triton"
        )
    for target in targets:
        if not os.path.basename(target):
            raise UsageError(f"got {target!r}, expected a file's name; give another --out or --triton")
        folder = os.path.dirname(os.path.abspath(target))
        if not os.path.isdir(folder):
            raise UsageError(f"{target}: the folder {folder} is not there; make it first")


def _write(out: str, plan: bytes, texts: dict[str, str]) -> None:
    """Writes the plan last, and removes the one before first: no plan ever stands beside what describes another."""
    if os.path.isfile(out):
        try:
            os.unlink(out)
        except OSError as error:
            raise FileError(f"{out}: cannot replace it: {error.strerror}; choose another path") from error
    elif os.path.exists(out):
        raise FileError(f"{out}: a folder, a pipe or a device, expected a file to replace; choose another path")
    for path, text in texts.items():
        write_atomically(path, text.encode())
    try:
        write_atomically(out, plan)
    except FileError as error:
        cause = getattr(error.__cause__, "strerror", None) or error
        raise FileError(
            f"{out}: cannot write it: {cause}; expected place for {len(plan)} bytes; a plan that was there is removed, "
            "because what lies beside it describes this one: free space, and write it again"
        ) from error


if __name__ == "__main__":
    run_command(main)
