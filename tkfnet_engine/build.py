"""`python -m tkfnet_engine.build [--fp16|--int8]`: makes a verified engine file from a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from .backends.fused import chosen_arch
from .backends.registry import BACKENDS
from .bundle import SUFFIX
from .console import Parser, run_command, say
from .errors import BackendError, UsageError, VerificationError
from .kernels.chips import ARCHS, arch_named
from .tensorrt_flags import TENSORRT, add_tensorrt_flags, dry_run, rebuild, tensorrt_settings

REFERENCE = "tkfnet_reference.safetensors"


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.build", description=__doc__.partition(": ")[2])
    p.add_argument("--checkpoint", help="of `python -m tkfnet_engine.train` (default: the shipped reference)")
    precision = p.add_mutually_exclusive_group()
    for flag, name in (("--fp32", "float32"), ("--fp16", "float16"), ("--int8", "int8"), ("--fp8", "float8")):
        precision.add_argument(flag, dest="precision", action="store_const", const=name)
    p.add_argument("--strict-int8", dest="strict", action="store_true", help="--int8, and no layer goes back to float")
    p.add_argument("--calibration", metavar="TABLE", help="of `calibrate` (default: made on rendered faces, and kept)")
    p.set_defaults(precision="float32")
    p.add_argument(
        "--backend",
        default="auto",
        choices=("auto", *BACKENDS),
        help="auto times the installed ones that run without PyTorch",
    )
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    p.add_argument(
        "--arch",
        action="append",
        metavar="sm_XY",
        help="GPU architecture of a fused engine, may be repeated (default: this GPU's; without a GPU, every one)",
    )
    p.add_argument("--max-batch", type=int, default=32, metavar="N", help="largest batch in one run (default 32)")
    p.add_argument("--verify-data", metavar="DATA", help="test images to verify on (default: rendered faces)")
    p.add_argument("--out", help="the engine file (default: tkfnet-PRECISION.tkf)")
    add_tensorrt_flags(p)
    return p


def reference_checkpoint() -> str:
    """The path of the checkpoint that ships with the package."""
    return os.path.join(os.path.dirname(__file__), "assets", REFERENCE)


def checked_out(out: str) -> str:
    """`UsageError` for a name that is no engine file's, or whose folder is not there."""
    if not out.endswith(SUFFIX):
        raise UsageError(f"--out: got {out!r}, expected a name that ends in {SUFFIX}; change it")
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise UsageError(f"--out: the folder {folder} is not there; make it first")
    return out


def _archs(named: Sequence[str] | None, device: str) -> tuple[str, ...]:
    """The architectures that --arch names, each once."""
    if named and device != "cuda":
        raise UsageError(f"--arch {' '.join(named)}: is of GPUs; give --device cuda as well, or leave it out")
    for name in named or ():
        arch_named(name)
    return tuple(dict.fromkeys(named or ()))


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.source:
        return rebuild(p, args)
    if args.strict:
        if args.precision not in ("float32", "int8"):
            raise UsageError(f"--strict-int8: got it with {args.precision}; leave one of them out")
        args.precision = "int8"
    if args.calibration and args.precision not in ("int8", "float8"):
        raise UsageError(f"--calibration: {args.precision} needs none; give --int8 or --fp8 as well, or leave it out")
    if not 1 <= args.max_batch <= 4096:
        raise UsageError(f"--max-batch: got {args.max_batch}, expected 1 to 4096")
    tensorrt = tensorrt_settings(args)
    out = checked_out(args.out or f"tkfnet-{args.precision}{SUFFIX}")
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"building needs {error.name}, which is not installed; install it with pip install 'tkfnet-engine[build]'"
        ) from None

    from .export.engine_from_checkpoint import build_engine
    from .export.request import Request
    from .model.checkpoint import load_checkpoint

    gpu = torch.cuda.is_available()
    device = "cuda" if args.device == "cuda" or (args.device == "auto" and gpu) else "cpu"
    if args.device == "auto" and args.backend != "auto" and device not in BACKENDS[args.backend].devices:
        device = BACKENDS[args.backend].devices[0]
    ahead = device == "cuda" and not gpu
    if args.device == "auto":
        why = {"cpu": "no NVIDIA GPU is used", "cuda": "an NVIDIA GPU is here"}[device]
        why = f"{args.backend} runs on nothing else, and no NVIDIA GPU is used here" if ahead else why
        say(f"building for the {'GPU' if device == 'cuda' else 'CPU'}: {why}")
    if args.precision == "float8" and device == "cpu":
        raise UsageError(
            "--fp8: got --device cpu, expected an NVIDIA GPU of compute capability 8.9 or later; give --device cuda to "
            "build for one elsewhere, or --int8"
        )
    suited = tuple(name for name, arch in ARCHS.items() if arch.fp8 or args.precision != "float8")
    # TensorRT takes its own: it builds for GPUs that our kernels are not for, and the other way round.
    named = None if args.backend in TENSORRT else args.arch
    archs = _archs(named, device)
    if unfit := [name for name in archs if name not in suited]:
        raise UsageError(f"--fp8 --arch {' '.join(unfit)}: got no FP8 there, expected {', '.join(suited)}, or --int8")
    if device == "cuda" and gpu:
        try:
            here = chosen_arch(torch.cuda.get_device_capability(), list(archs or suited), torch.cuda.get_device_name())
            archs = archs or (here,)
        except BackendError:
            # Named ones are for GPUs elsewhere; without names, this GPU is too old for fused kernels only.
            if args.backend == "fused" and not archs:
                raise
            ahead = bool(archs)
    elif ahead:
        archs = archs or suited
    if ahead and args.backend not in TENSORRT:
        say(f"no NVIDIA GPU of {', '.join(archs)} is used here: building ahead, for one elsewhere")
    if device == "cpu" and args.precision == "float16":
        say("float16 on a CPU: the engine stores FP16 and rounds to it; most processors compute it in float32")
    checkpoint = load_checkpoint(reference_checkpoint() if args.checkpoint is None else args.checkpoint)
    if args.checkpoint is None:
        say("no --checkpoint: using the shipped reference, trained on rendered faces only (docs/reference.md)")
    request = Request(
        args.precision,
        args.backend,
        device,
        args.max_batch,
        args.verify_data,
        archs,
        ahead,
        args.calibration,
        args.strict,
        tensorrt,
        args.log or f"{out.removesuffix(SUFFIX)}.tensorrt.log",
    )
    if args.dry_run:
        return dry_run(checkpoint, request)
    try:
        facts = build_engine(checkpoint, request, out)
    except VerificationError as error:
        json.dump(error.report, sys.stderr, indent=2)
        say("")
        raise
    report = facts["verification"]
    state = f"; {report['state']}; its graph:" if "state" in report else ";"
    report = report.get("graph", report)
    say(
        f"wrote {out}: {facts['backend']} on {facts['device']}, {facts['precision']}, "
        f"{os.path.getsize(out) / 1e6:.1f} MB{state} SQNR {report['sqnr_db']} dB, top-1 agreement "
        f"{report['top1_agreement']:.2%} on {report['images']} images"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
