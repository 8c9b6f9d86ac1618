"""`python -m tkfnet_engine.predict ENGINE IMAGE..`: names the expression on face images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .console import Parser, emit_json, run_command
from .engine import Engine, Prediction
from .errors import UsageError
from .preprocess import crop_box, decode_image, resize_crop
from .trust import TRUST_HELP

BATCH = 32


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.predict", description=__doc__.partition(": ")[2])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf)")
    p.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG, WebP or BMP: a face crop, or use --box")
    p.add_argument(
        "--box", metavar="X,Y,W,H", help="where the face is, in pixels of the upright image (square is best)"
    )
    p.add_argument("--json", action="store_true", help="a JSON list on standard output")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return p


def parse_box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--box: got {text!r}, expected four whole numbers X,Y,W,H such as 40,30,160,160") from None
    return x, y, w, h


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    box = None if args.box is None else parse_box(args.box)
    with Engine.load(args.engine, threads=args.threads, trusted=args.trust) as engine:
        results = []
        for start in range(0, len(args.images), BATCH):
            names = args.images[start : start + BATCH]
            # Shrunk one by one: a batch of decoded photographs would take gigabytes.
            crops = [_crop(name, box, engine.input_size) for name in names]
            results += _rows(names, engine.predict(crops))
    if args.json:
        emit_json(results)
    else:
        print(_table(results))
    return 0


def _crop(name: str, box: tuple[int, int, int, int] | None, size: int) -> np.ndarray:
    image = decode_image(name)
    return resize_crop(crop_box(image, box) if box else image, size)


def _rows(sources: Sequence[str], prediction: Prediction) -> list[dict]:
    return [
        {
            # A name that is no text (bytes of another encoding) is shown with those bytes escaped.
            "source": os.fsencode(source).decode("utf-8", "backslashreplace"),
            "label": label,
            "probabilities": {name: float(p) for name, p in zip(prediction.class_names, row)},
        }
        for source, label, row in zip(sources, prediction.labels, prediction.probabilities)
    ]


def _table(results: list[dict]) -> str:
    width = max(len(r["source"]) for r in results)
    lines = []
    for r in results:
        ranked = sorted(r["probabilities"].items(), key=lambda item: -item[1])
        (first, p), *others = ranked
        rest = ", ".join(f"{name} {q:.1%}" for name, q in others[:2])
        lines.append(f"{r['source']:<{width}}  {first:<10} {p:>6.1%}   ({rest})")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
