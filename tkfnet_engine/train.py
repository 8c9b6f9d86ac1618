"""`python -m tkfnet_engine.train --data .. --out ref.safetensors`: trains the reference network.

The validation split of the training set chooses the epoch; the test split is read once, at the end. Several
GPUs: `torchrun --nproc-per-node N -m tkfnet_engine.train ..`. A stopped training continues where it was when
the same command is given again.

`--qat --init float.safetensors` is what is left where INT8 costs too much accuracy: a short training of a network that
computes in eight bits. It gives an ordinary checkpoint, for `build --int8`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .console import Parser, run_command, say
from .data import GRAMMAR, open_data
from .errors import UsageError
from .hardware import processor_name, usable_cores
from .spec import CROPS

if TYPE_CHECKING:
    import accelerate

    from .model.checkpoint import Checkpoint
    from .model.net import TKFNet
    from .training.quantisation_aware import QuantisationAware
    from .training.recipe import Recipe


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.train", description=__doc__.split("\n")[0])
    p.add_argument("--data", required=True, help=GRAMMAR)
    p.add_argument("--out", required=True, help="the checkpoint to write (.safetensors)")
    p.add_argument("--preset", choices=("quick", "paper", "reference"), help="default paper")
    p.add_argument("--stages", help="image sizes and epochs, such as 112x8,224x2 (default: the preset's)")
    p.add_argument("--batch", type=int, help="images per step over all processes (default: the preset's)")
    p.add_argument("--lr", type=float, help="highest learning rate (default: the preset's)")
    p.add_argument(
        "--crop", choices=CROPS, default=CROPS[0],
        help="how the faces of --data were cut out: recorded, so that engines can warn of others (default: unknown)",
    )  # fmt: skip
    p.add_argument("--backbone", choices=("resnet18", "resnet34", "resnet50"), default="resnet18")
    p.add_argument("--backbone-weights", help="ResNet weights to start from: torchvision or MS-Celeb-1M names")
    p.add_argument("--init", help="a checkpoint of this project to start from")
    p.add_argument("--qat", action="store_true", help="fine-tune --init in eight bits: a short schedule of its own")
    p.add_argument("--width", type=float, default=1.0, help="scales the channel counts (default 1)")
    p.add_argument("--pool", choices=("max", "nearest"), default="max")
    p.add_argument("--no-tafe", action="store_true", help="ablation: without TAFE")
    p.add_argument("--no-dcif", action="store_true", help="ablation: without DCIF")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--half", action="store_true", help="store convolution and linear weights in float16")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument(
        "--restart", action="store_true", help="discard an interrupted or finished training of the same --out"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    state_path = args.out + ".training"
    _check(args, state_path)
    try:
        import accelerate
        import matplotlib  # noqa: F401  (drawn with at the end: better to know now)
        import torch
    except ImportError as error:
        raise UsageError(
            f"training needs {error.name}, which is not installed; install it with pip install 'tkfnet-engine[train]'"
        ) from None

    from .data.cache import load_all
    from .model.checkpoint import load_checkpoint, round_to_half, save_checkpoint
    from .spec import LABELS, Preprocessing
    from .training.loop import Trainer
    from .training.report import write_report

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: got no usable NVIDIA GPU, expected one; use --device cpu")
    cuda = args.device != "cpu" and torch.cuda.is_available()
    # BF16 needs no loss scaling, so a resumed training has no scaler state to lose.
    half = "bf16" if cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Rounding to eight bits is not to be seen through the eight bits of BF16.
    accelerator = accelerate.Accelerator(cpu=not cuda, mixed_precision=half if cuda and not args.qat else "no")

    initial = load_checkpoint(args.init) if args.init else None
    recipe = _recipe(args, initial)
    train, validation, test = sets = [open_data(args.data, split) for split in ("train", "val", "test")]
    model, told = _model(args, initial)
    if accelerator.is_main_process:
        for line in (*(faces.skipped_summary() for faces in sets), *told):
            if line:
                say(line)
        if args.restart and os.path.exists(state_path):
            os.remove(state_path)
    accelerator.wait_for_everyone()
    identity = {
        "data": args.data,
        "train_fingerprint": train.fingerprint(),
        "recipe": recipe.to_dict(),
        "model": model.config.to_dict(),
        "seed": args.seed,
        "crop": args.crop,
        "start": [args.init or "", args.backbone_weights or ""],
        # What it was rounded to is measured on this start again.
        "qat": initial.sha256 if args.qat else "",
        "processes": accelerator.num_processes,
    }
    quantised, facts = _quantised(args, model, initial, accelerator) if args.qat else (None, {})
    trainer = Trainer(model, recipe, train, validation, args.seed, state_path, identity, accelerator, quantised)
    trainer.resume()
    if accelerator.is_main_process:
        say(f"{len(train)} training, {len(validation)} validation, {len(test)} test images; {recipe}")
    state = trainer.run()

    if args.half:
        # The test scores are of the parameters that are stored.
        round_to_half(model)
    size = recipe.stages[-1][0]
    images = load_all(test, size)
    scores = trainer.evaluate(images, test.labels, in_float=True)
    if args.qat:
        eighth = trainer.evaluate(images, test.labels)
        facts |= {"validation_accuracy_before": state.start_accuracy, "test": eighth.to_dict()}
    if accelerator.is_main_process:
        training = {
            "command": f"python -m tkfnet_engine.train {shlex.join(arguments)}",
            "data": args.data,
            "train_images": len(train),
            "recipe": recipe.to_dict(),
            "seed": args.seed,
            "machine": f"{torch.cuda.get_device_name() if cuda else processor_name()}, {usable_cores()} cores",
            "torch": torch.__version__,
            "seconds": round(state.seconds),
            "history": state.history,
            "validation_accuracy": state.best_accuracy,
            "test": scores.to_dict(),
        } | ({"qat": facts} if args.qat else {})
        preprocessing = initial.preprocessing if args.qat else Preprocessing(size=size, crop=args.crop)
        save_checkpoint(args.out, model, training, preprocessing, half=args.half)
        written = write_report(args.out, scores, LABELS, training)
        os.remove(state_path)
        say(f"test: {scores}")
        if args.qat:
            say(f"test in eight bits: {eighth}")
            if state.best_accuracy < state.start_accuracy:
                say(
                    f"warning: in eight bits {args.init} scored {state.start_accuracy:.2%} on the validation images, "
                    f"this one {state.best_accuracy:.2%}: build from {args.init}, or try another --lr"
                )
        say(f"wrote {args.out}, {', '.join(written)}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def _check(args: argparse.Namespace, state_path: str) -> None:
    """What is wrong with the arguments themselves, before anything slow."""
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out: got {args.out!r}, expected a name that ends in .safetensors; change it")
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(args.out))):
        raise UsageError(f"--out: the folder {folder} is not there; make it first")
    if os.path.exists(args.out) and not os.path.exists(state_path) and not args.restart:
        raise UsageError(
            f"--out: {args.out} is there, a finished training; give --restart to replace it, or another name"
        )
    if args.init and os.path.abspath(args.init) == os.path.abspath(args.out):
        raise UsageError(f"--out: got {args.out}, which is --init; give another name")
    if args.qat:
        if not args.init:
            raise UsageError("--qat: got no --init, expected the float checkpoint to fine-tune; give --init as well")
        for flag, value in (("--preset", args.preset), ("--backbone-weights", args.backbone_weights)):
            if value:
                raise UsageError(
                    f"{flag}: got {value} with --qat, which starts from --init and has a schedule of its own; leave it "
                    "out (--stages, --lr and --batch change the schedule)"
                )
        if args.crop != CROPS[0]:
            raise UsageError(f"--crop: got {args.crop} with --qat, which keeps what --init says; leave it out")
    if not 0 <= args.seed < 2**32:
        raise UsageError(f"--seed: got {args.seed}, expected a whole number from 0 to 4294967295")


def _recipe(args: argparse.Namespace, initial: Checkpoint | None) -> Recipe:
    from .training.recipe import PRESETS

    recipe = PRESETS["qat" if args.qat else args.preset or "paper"]
    if args.qat:
        # Maps of another size have other ranges.
        size = initial.preprocessing.size
        recipe = replace(recipe, stages=tuple((size, epochs) for _, epochs in recipe.stages))
    if args.stages:
        recipe = recipe.with_stages(args.stages)
        if args.qat and {found for found, _ in recipe.stages} != {size}:
            raise UsageError(f"--stages: got {args.stages}, expected {size}, the size of {args.init}, alone with --qat")
    return replace(
        recipe,
        batch=recipe.batch if args.batch is None else args.batch,
        lr=recipe.lr if args.lr is None else args.lr,
    )


def _model(args: argparse.Namespace, initial: Checkpoint | None) -> tuple[TKFNet, list[str]]:
    """The network to train from its start, and what to tell of that start."""
    import torch

    from .model.checkpoint import load_backbone_file
    from .model.net import TKFNet
    from .spec import TKFNetConfig

    torch.manual_seed(args.seed)
    config = TKFNetConfig(args.backbone, args.width, args.pool, not args.no_tafe, not args.no_dcif)
    model = TKFNet(config)
    if initial is not None:
        if initial.model.config != config:
            raise UsageError(
                f"--init {args.init}: got {initial.model.config}, expected {config}; give the same network's flags"
            )
        model.load_state_dict(initial.model.state_dict())
    if args.backbone_weights:
        return model, [f"{args.backbone_weights}: {load_backbone_file(model, args.backbone_weights)}"]
    return model, []


def _quantised(
    args: argparse.Namespace, model: TKFNet, initial: Checkpoint, accelerator: accelerate.Accelerator
) -> tuple[QuantisationAware, dict[str, Any]]:
    """`model`, which is `initial`'s, on the symmetric grids that calibration gives it; and the facts of that."""
    from accelerate.utils import broadcast_object_list

    from .export.grids_from_table import grids_from_table
    from .export.ranges_from_data import calibrate
    from .training.quantisation_aware import QuantisationAware

    # One process measures for all: they train the same network.
    found = [calibrate(initial, args.data) if accelerator.is_main_process else None]
    (table,) = broadcast_object_list(found)
    facts = {"start": initial.sha256, "calibration": table.digest, "images": table.data.images}
    return QuantisationAware(model, initial.preprocessing, table.shifts, grids_from_table(table, "int8")), facts


if __name__ == "__main__":
    run_command(main)
