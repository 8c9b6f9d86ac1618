"""`python -m tkfnet_engine.train --data .. --out ref.safetensors`: trains the reference network.

The validation split of the training set chooses the epoch; the test split is read once, at the end. Several
GPUs: `torchrun --nproc-per-node N -m tkfnet_engine.train ..`. A stopped training continues where it was when
the same command is given again.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from .console import Parser, run_command, say
from .data import GRAMMAR, open_data
from .errors import UsageError


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.train", description=__doc__.split("\n")[0])
    p.add_argument("--data", required=True, help=GRAMMAR)
    p.add_argument("--out", required=True, help="the checkpoint to write (.safetensors)")
    p.add_argument("--preset", choices=("quick", "paper", "reference"), default="paper")
    p.add_argument("--stages", help="image sizes and epochs, such as 112x8,224x2 (default: the preset's)")
    p.add_argument("--batch", type=int, help="images per step over all processes (default: the preset's)")
    p.add_argument("--lr", type=float, help="highest learning rate (default: the preset's)")
    p.add_argument("--backbone", choices=("resnet18", "resnet34", "resnet50"), default="resnet18")
    p.add_argument("--backbone-weights", help="ResNet weights to start from: torchvision or MS-Celeb-1M names")
    p.add_argument("--init", help="a checkpoint of this project to start from")
    p.add_argument("--width", type=float, default=1.0, help="scales the channel counts (default 1)")
    p.add_argument("--pool", choices=("max", "nearest"), default="max")
    p.add_argument("--no-tafe", action="store_true", help="ablation: without TAFE")
    p.add_argument("--no-dcif", action="store_true", help="ablation: without DCIF")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--half", action="store_true", help="store convolution and linear weights in float16")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--restart", action="store_true", help="discard an interrupted training of the same --out")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if not args.out.endswith(".safetensors"):
        raise UsageError(f"--out: got {args.out!r}, expected a name that ends in .safetensors")
    if not os.path.isdir(folder := os.path.dirname(os.path.abspath(args.out))):
        raise UsageError(f"--out: the folder {folder} is not there; make it first")
    if args.seed < 0:
        raise UsageError(f"--seed: got {args.seed}, expected a whole number from 0")
    try:
        import accelerate
        import matplotlib  # noqa: F401  (drawn with at the end: better to know now)
        import torch
    except ImportError as error:
        raise UsageError(
            f"training needs {error.name}, which is not installed; install it with pip install 'tkfnet-engine[train]'"
        ) from None

    from .data.cache import load_all
    from .model.checkpoint import load_backbone_file, load_checkpoint, save_checkpoint
    from .model.net import TKFNet
    from .spec import LABELS, TKFNetConfig
    from .training.loop import Trainer
    from .training.recipe import PRESETS
    from .training.report import write_report

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: got no usable NVIDIA GPU, expected one; use --device cpu")
    cuda = args.device != "cpu" and torch.cuda.is_available()
    # BF16 needs no loss scaling, so a resumed training has no scaler state to lose.
    half = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp16"
    accelerator = accelerate.Accelerator(cpu=not cuda, mixed_precision=half if cuda else "no")

    recipe = PRESETS[args.preset]
    if args.stages:
        recipe = recipe.with_stages(args.stages)
    recipe = replace(
        recipe,
        batch=recipe.batch if args.batch is None else args.batch,
        lr=recipe.lr if args.lr is None else args.lr,
    )
    config = TKFNetConfig(args.backbone, args.width, args.pool, not args.no_tafe, not args.no_dcif, classes=len(LABELS))
    train, validation, test = (open_data(args.data, split) for split in ("train", "val", "test"))

    for faces in (train, validation, test):
        if faces.skipped and accelerator.is_main_process:
            say(faces.skipped_summary())

    torch.manual_seed(args.seed)
    model = TKFNet(config)
    if args.init:
        initial = load_checkpoint(args.init)
        if initial.model.config != config:
            raise UsageError(f"--init {args.init}: got {initial.model.config}, expected {config}")
        model.load_state_dict(initial.model.state_dict())
    if args.backbone_weights:
        say(f"{args.backbone_weights}: {load_backbone_file(model, args.backbone_weights)}")

    state_path = args.out + ".training"
    if args.restart and accelerator.is_main_process and os.path.exists(state_path):
        os.remove(state_path)
    accelerator.wait_for_everyone()
    identity = {
        "data": args.data,
        "train_fingerprint": train.fingerprint(),
        "recipe": recipe.to_dict(),
        "model": config.to_dict(),
        "seed": args.seed,
        "start": [args.init or "", args.backbone_weights or ""],
        "processes": accelerator.num_processes,
    }
    trainer = Trainer(model, recipe, train, validation, args.seed, state_path, identity, accelerator)
    trainer.resume()
    if accelerator.is_main_process:
        say(f"{len(train)} training, {len(validation)} validation, {len(test)} test images; {recipe}")
    started = time.monotonic()
    state = trainer.run()

    scores = trainer.evaluate(load_all(test, recipe.stages[-1][0]), test.labels)
    if accelerator.is_main_process:
        training = {
            "command": "python -m tkfnet_engine.train " + shlex.join(argv if argv is not None else sys.argv[1:]),
            "data": args.data,
            "train_images": len(train),
            "recipe": recipe.to_dict(),
            "seed": args.seed,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {'CUDA' if cuda else 'CPU'}",
            "torch": torch.__version__,
            "seconds": round(time.monotonic() - started),
            "history": state.history,
            "validation_accuracy": state.best_accuracy,
            "test": scores.to_dict(),
        }
        save_checkpoint(args.out, model, training, half=args.half)
        written = write_report(args.out, scores, LABELS, training)
        os.remove(state_path)
        say(f"test: {scores}")
        say(f"wrote {args.out}, {', '.join(written)}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    run_command(main)
