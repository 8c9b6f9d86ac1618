"""Builds an engine file that other parts use, for batches up to 256, and verifies it on this GPU.

In FP16 the faces that it is verified on are kept for the other parts. In eight bits it is judged by its labels on the
faces that `calibrate` has drawn; one that does not compute each product as it was asked for is wrong.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import add_precision, part_parser, this_arch
from gpu_state import ENGINES, FACES, LABELLED, RIGHT, SKIPPED, TABLE, WRONG, write_json
from part_calibrate import read_set

from tkfnet_engine import build
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import VerificationError
from tkfnet_engine.export import engine_from_checkpoint
from tkfnet_engine.export.verify import VerificationSet
from tkfnet_engine.kernels.chips import has_float8

MAX_BATCH = 256
FLAGS = {"float16": "--fp16", "int8": "--int8", "float8": "--fp8"}


def remembering(draw: Callable[..., VerificationSet], faces: Path) -> Callable[..., VerificationSet]:
    """`draw`, whose set is also kept at `faces`: drawing it takes a while."""

    def remembered(*arguments: Any, **named: Any) -> VerificationSet:
        found = draw(*arguments, **named)
        beside = faces.with_name("new-" + faces.name)
        np.savez(beside, pixels=found.images, logits=found.reference)
        os.replace(beside, faces)
        return found

    return remembered


def result_of(facts: Mapping[str, Any], cubins: Mapping[str, Any], megabytes: float, seconds: float) -> dict[str, Any]:
    """What is known of an engine that was built, from its facts and its index of machine code; with a "reason" if it is
    not the one that was asked for."""
    report, spilled = facts["verification"], sum(one["spilled_bytes"] > 0 for one in cubins.values())
    said = f"{len(cubins)} kernels, {spilled} spill, {megabytes:.1f} MB, SQNR {report['sqnr_db']} dB on "
    said += f"{report['images']} images"
    result = {
        "seconds": round(seconds, 1),
        "megabytes": round(megabytes, 2),
        "kernels": len(cubins),
        "kernels_that_spill": spilled,
        "verification": report,
    }
    if "quantisation" not in facts:
        return {"summary": f"{said}, top-1 {report['top1_agreement']:.2%}"} | result
    gate, quantised = report["gate"], facts["quantisation"]
    steps = [step["unit"] for step in quantised["back_to_float"]]
    said += f", accuracy kept {gate['accuracy_kept']:.2%}, labels kept {gate['agreement']:.2%}, back to FP16: "
    result = {"summary": said + (", ".join(steps) or "none")} | result | {"quantisation": quantised}
    if astray := quantised["not_as_asked"]:
        listed = ", ".join(f"{name} in {found}" for name, found in astray.items())
        result["reason"] = f"not in {facts['precision']}, though asked for: {listed}"
    return result


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--max-batch", type=int, default=MAX_BATCH)
    add_precision(p)
    args = p.parse_args()
    engine, arch = args.out / ENGINES[args.precision], this_arch()
    if args.precision == "float8" and not has_float8(arch):
        write_json(args.result, {"reason": f"{arch} has no FP8"})
        return SKIPPED
    command = [FLAGS[args.precision], "--device", "cuda", "--backend", "fused", "--max-batch", str(args.max_batch)]
    if args.precision == "float16":
        draw = remembering(engine_from_checkpoint.verification_set, args.out / FACES)
    else:
        command += ["--calibration", str(args.out / TABLE)]
        labelled = read_set(args.out / LABELLED)

        def draw(*_: Any, **__: Any) -> VerificationSet:
            return labelled

    engine_from_checkpoint.verification_set = draw
    start = time.monotonic()
    try:
        build.main([*command, "--checkpoint", str(args.checkpoint), "--out", str(engine)])
    except VerificationError as error:
        write_json(args.result, {"reason": str(error), "verification": error.report})
        return WRONG
    seconds = time.monotonic() - start
    bundle = read_bundle(engine)
    cubins = json.loads(bytes(bundle.bytes(f"cubins/{arch}/index")))["cubins"]
    result = result_of(bundle.facts, cubins, engine.stat().st_size / 1e6, seconds)
    write_json(args.result, result)
    return WRONG if "reason" in result else RIGHT


if __name__ == "__main__":
    sys.exit(main())
