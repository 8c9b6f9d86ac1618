"""The part of `python -m tkfnet_engine.build` that is TensorRT's: its flags, its dry run, and building an engine file
anew for this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .backends.registry import BACKENDS, TENSORRT_PLAN
from .console import Parser, emit_json, say
from .errors import BackendError, UsageError

if TYPE_CHECKING:
    from .export.request import Request
    from .model.checkpoint import Checkpoint

TENSORRT = tuple(name for name, info in BACKENDS.items() if info.artefact == TENSORRT_PLAN)
# What `--from` takes beside --out: the rest stands in the engine file.
_OF_A_REBUILD = ("source", "out", "backend", "arch", "log", "timeout", "timing_cache", "no_timing_cache")


def add_tensorrt_flags(p: Parser) -> None:
    flags = p.add_argument_group(f"of --backend {' and '.join(TENSORRT)}")
    flags.add_argument("--min-batch", type=int, metavar="N", help="smallest batch (default 1)")
    flags.add_argument("--opt-batch", type=int, metavar="N", help="the batch it is tuned for (default 8)")
    flags.add_argument("--contexts", type=int, metavar="N", help="requests that can run at once (default 2)")
    flags.add_argument("--workspace", type=float, metavar="MIB", help="GPU memory that a layer may take besides maps")
    flags.add_argument("--optimization-level", type=int, metavar="0..5", help="more tries more kernels (default 3)")
    flags.add_argument("--timing-cache", metavar="FILE", help="of the fastest kernels (default: in your cache folder)")
    flags.add_argument("--no-timing-cache", action="store_true", help="measure every kernel again, and keep nothing")
    flags.add_argument("--version-compatible", action="store_true", help="also for later versions of TensorRT; slower")
    flags.add_argument("--hardware-compatible", action="store_true", help="also for other GPUs from 8.0 on; slower")
    flags.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this")
    flags.add_argument("--log", metavar="FILE", help="TensorRT's whole log (default: beside the engine file)")
    flags.add_argument("--dry-run", action="store_true", help="parse and check the graph; write nothing")
    flags.add_argument("--from", dest="source", metavar="ENGINE", help="build that engine file anew for this machine")


def tensorrt_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, for `TensorRtOptions`. `UsageError` if they are given for another backend."""
    given = {
        "min_batch": args.min_batch,
        "opt_batch": args.opt_batch,
        "contexts": args.contexts,
        "workspace": None if args.workspace is None else round(args.workspace * 2**20),
        "optimization_level": args.optimization_level,
        "timing_cache": args.timing_cache,
        "version_compatible": args.version_compatible or None,
        "hardware_compatible": args.hardware_compatible or None,
        "timeout_s": args.timeout,
    }
    given = {name: value for name, value in given.items() if value is not None}
    others = {"no_timing_cache": args.no_timing_cache, "dry_run": args.dry_run, "log": args.log}
    if args.backend not in TENSORRT:
        if wrong := sorted({*given, *(name for name, value in others.items() if value)}):
            flags = ", ".join("--" + name.removesuffix("_s").replace("_", "-") for name in wrong)
            raise UsageError(f"{flags}: got --backend {args.backend}, expected {' or '.join(TENSORRT)}; name one")
        return {}
    if args.no_timing_cache and args.timing_cache:
        raise UsageError("--no-timing-cache: got --timing-cache as well; leave one of them out")
    if args.backend == "tensorrt" and not args.no_timing_cache:
        from .export.engine_from_onnx import DEFAULT_CACHE

        given.setdefault("timing_cache", DEFAULT_CACHE)
    return given | ({"capabilities": tuple(map(capability_of, dict.fromkeys(args.arch)))} if args.arch else {})


def capability_of(arch: str) -> str:
    """ "sm_86" -> "8.6". `UsageError`."""
    digits = arch.removeprefix("sm_")
    if digits == arch or not digits.isascii() or not digits.isdigit() or not 2 <= len(digits) <= 3:
        raise UsageError(f"--arch: got {arch!r}, expected a GPU architecture such as sm_86")
    return f"{digits[:-1]}.{digits[-1]}"


def dry_run(checkpoint: Checkpoint, request: Request) -> int:
    """Prints as JSON what TensorRT makes of the graph; nothing is built or written. `BackendError` if it refuses it, or
    if a layer's type is not what the precision asks for."""
    from .export.dry_run import examine_engine

    found = examine_engine(checkpoint, request)
    emit_json(found)
    if unexpected := found["unexpected"]:
        listed = "; ".join(f"{name}: {what}" for name, what in unexpected.items())
        raise BackendError(f"{len(unexpected)} layers are not in the types of {request.precision}: {listed}")
    say("dry run: the graph parses and its types are as asked for; nothing was written")
    return 0


def rebuild(p: Parser, args: argparse.Namespace) -> int:
    """`--from`: the graph, the batches and the options of an engine file, built for this machine."""
    changed = [name for name, value in vars(args).items() if value != p.get_default(name) and name not in _OF_A_REBUILD]
    if changed:
        named = {"precision": "--fp32 or its like", "strict": "--strict-int8"}
        flags = ", ".join(named.get(name, "--" + name.replace("_", "-")) for name in changed)
        raise UsageError(f"{flags}: --from takes that from the engine file; leave it out, or build from the checkpoint")
    from .export.engine_from_engine import rebuilt_engine

    backend = None if args.backend == "auto" else args.backend
    settings = tensorrt_settings(argparse.Namespace(**vars(args) | {"backend": backend or "tensorrt-rtx"}))
    facts = rebuilt_engine(args.source, args.out, backend, settings, args.log)
    say(f"wrote {args.out}: {facts['backend']}, {facts['precision']}, verification: {facts['verification']}")
    return 0
