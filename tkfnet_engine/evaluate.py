"""`python -m tkfnet_engine.evaluate ENGINE --data ..`: scores an engine on labelled faces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .console import Parser, emit_json, progress, run_command, say
from .data import GRAMMAR, SPLITS, open_data
from .engine import Engine
from .errors import DataError
from .metrics import Scores, confusion_matrix
from .spec import LABELS
from .trust import TRUST_HELP

BATCH = 32


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.evaluate", description=__doc__.partition(": ")[2])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf)")
    p.add_argument("--data", required=True, help=GRAMMAR)
    p.add_argument("--split", default="test", choices=SPLITS, help="which part of the data (default test)")
    p.add_argument("--json", action="store_true", help="JSON on standard output")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return p


def evaluate(engine: Engine, faces, what: str = "scoring") -> Scores:
    """Scores of `engine` on a face set. `DataError` if the engine's classes are not the data's."""
    if engine.labels != LABELS:
        raise DataError(f"the engine names {', '.join(engine.labels)}, expected the data's {', '.join(LABELS)}")
    matrix = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for start in progress(range(0, len(faces), BATCH), f"{what}, batches of {BATCH}"):
        indices = range(start, min(start + BATCH, len(faces)))
        predicted = engine.predict([faces.image(i) for i in indices]).probabilities.argmax(1)
        matrix += confusion_matrix(faces.labels[start : start + BATCH], predicted, len(LABELS))
    return Scores.from_confusion(matrix)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    faces = open_data(args.data, args.split)
    if faces.skipped:
        say(faces.skipped_summary())
    with Engine.load(args.engine, threads=args.threads, trusted=args.trust) as engine:
        scores = evaluate(engine, faces)
    if args.json:
        emit_json(
            {"data": args.data, "split": args.split, "images": len(faces), "labels": list(LABELS), **scores.to_dict()}
        )
        return 0
    print(f"{faces.name}: {len(faces)} images\n{scores}\n\n{confusion_table(scores)}")
    return 0


def confusion_table(scores: Scores) -> str:
    """The confusion matrix as text: rows true, columns predicted."""
    lines = ["true \\ predicted " + "".join(f"{name[:9]:>10}" for name in LABELS)]
    for name, row in zip(LABELS, scores.confusion):
        lines.append(f"{name:<17}" + "".join(f"{count:>10}" for count in row))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
