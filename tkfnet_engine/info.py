"""`python -m tkfnet_engine.info ENGINE`: shows what an engine file is, after checking every byte of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .bundle import read_facts
from .console import Parser, emit_json, run_command
from .engine import checked_facts
from .errors import BundleError


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.info", description=__doc__.partition(": ")[2])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf)")
    p.add_argument("--json", action="store_true", help="all facts as JSON on standard output")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    facts = checked_facts(args.engine, read_facts(args.engine))
    if args.json:
        emit_json(facts)
    else:
        try:
            text = _text(args.engine, facts)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{args.engine}: its facts lack what an engine holds or hold it in another form ({error!r}); "
                "see them with --json, or build it again"
            ) from None
        print(text)
    return 0


def _text(path: str, facts: dict[str, Any]) -> str:
    model, pre, report = facts["model"], facts["preprocessing"], facts.get("verification", {})
    rows = [
        ("file", f"{path}, {os.path.getsize(path) / 1e6:.1f} MB, every byte as it was written"),
        ("runs on", f"{facts['backend']}, {facts['device']}, {facts['precision']}, batches up to {facts['max_batch']}"),
        ("network", ", ".join(f"{k} {v}" for k, v in model.items())),
        ("input", f"{pre['size']}x{pre['size']} {pre['color']} uint8; mean {pre['mean']}, std {pre['std']}"),
        ("labels", ", ".join(facts["labels"])),
        ("built with", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("built on", ", ".join(map(str, facts["hardware"].values()))),
        ("checkpoint", facts["checkpoint"]["sha256"]),
    ]
    if choice := facts.get("choice"):
        timed = "; ".join(
            f"{name} " + ", ".join(f"{ms} ms at {b}" for b, ms in by_batch.items())
            for name, by_batch in choice["p50_ms"].items()
        )
        rows.append(("chosen by", f"{choice['by']}: {timed}"))
    if report:
        rows.append(
            (
                "verified",
                f"{report['images']} images: SQNR {report['sqnr_db']} dB (needs {report['required_sqnr_db']}), "
                f"max error {report['max_error']}, top-1 agreement {report['top1_agreement']:.2%}",
            )
        )
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


if __name__ == "__main__":
    run_command(main)
