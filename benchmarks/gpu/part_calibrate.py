"""What engines in eight bits are made from: the calibration table, and labelled faces that judge their accuracy."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from gpu_common import part_parser
from gpu_state import LABELLED, RIGHT, TABLE, write_json

from tkfnet_engine import calibrate
from tkfnet_engine.export.calibration_table import read_table
from tkfnet_engine.export.verify import GATED, VerificationSet, verification_set
from tkfnet_engine.model.checkpoint import load_checkpoint


def write_set(path: Path, drawn: VerificationSet) -> None:
    """In one step, for `read_set`."""
    beside = path.with_name("new-" + path.name)
    np.savez(beside, **vars(drawn))
    os.replace(beside, path)


def read_set(path: Path) -> VerificationSet:
    with np.load(path) as held:
        fields = {name: held[name] for name in held.files}
    return VerificationSet(**fields | {name: str(fields[name]) for name in ("data", "fingerprint")})


def main() -> int:
    args = part_parser(__doc__).parse_args()
    calibrate.main(["--checkpoint", str(args.checkpoint), "--out", str(args.out / TABLE)])
    table, loaded = read_table(args.out / TABLE), load_checkpoint(args.checkpoint)
    # As `build_engine` draws it for either precision.
    drawn = verification_set(loaded.model, loaded.preprocessing, precision=GATED[0])
    write_set(args.out / LABELLED, drawn)
    accuracy = float((drawn.reference.argmax(1) == drawn.labels).mean())
    write_json(
        args.result,
        {
            "summary": f"{len(table.points)} maps, {table.data.images} images; judged on {len(drawn.images)}, of which "
            f"float32 names {accuracy:.2%} rightly",
            "digest": table.digest,
            "maps": len(table.points),
            "images": table.data.images,
            "warnings": list(table.data.warnings),
            "labelled_images": len(drawn.images),
            "float32_accuracy": round(accuracy, 6),
        },
    )
    return RIGHT


if __name__ == "__main__":
    sys.exit(main())
