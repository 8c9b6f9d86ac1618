"""Builds the engine file that all other parts use, for batches up to 256, and verifies it on this GPU."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
from gpu_common import part_parser, this_arch
from gpu_state import ENGINE, FACES, RIGHT, WRONG, write_json

from tkfnet_engine import build
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import VerificationError
from tkfnet_engine.export import engine_from_checkpoint

MAX_BATCH = 256


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--max-batch", type=int, default=MAX_BATCH)
    args = p.parse_args()
    engine, faces = args.out / ENGINE, args.out / FACES
    draw = engine_from_checkpoint.verification_set

    def remembered(*arguments, **named):
        """The set that the build verifies on, kept for the other parts: drawing it takes a while."""
        found = draw(*arguments, **named)
        beside = faces.with_name("new-" + faces.name)
        np.savez(beside, pixels=found.images, logits=found.reference)
        os.replace(beside, faces)
        return found

    engine_from_checkpoint.verification_set = remembered
    command = ["--fp16", "--device", "cuda", "--backend", "fused", "--max-batch", str(args.max_batch)]
    start = time.monotonic()
    try:
        build.main([*command, "--checkpoint", str(args.checkpoint), "--out", str(engine)])
    except VerificationError as error:
        write_json(args.result, {"reason": str(error), "verification": error.report})
        return WRONG
    seconds = time.monotonic() - start
    bundle = read_bundle(engine)
    cubins = json.loads(bytes(bundle.bytes(f"cubins/{this_arch()}/index")))["cubins"]
    report = bundle.facts["verification"]
    megabytes = engine.stat().st_size / 1e6
    spilled = sum(one["spilled_bytes"] > 0 for one in cubins.values())
    write_json(
        args.result,
        {
            "summary": f"{len(cubins)} kernels, {spilled} spill, {megabytes:.1f} MB, SQNR {report['sqnr_db']} dB on "
            f"{report['images']} images, top-1 {report['top1_agreement']:.2%}",
            "seconds": round(seconds, 1),
            "megabytes": round(megabytes, 2),
            "kernels": len(cubins),
            "kernels_that_spill": spilled,
            "verification": report,
        },
    )
    return RIGHT


if __name__ == "__main__":
    sys.exit(main())
