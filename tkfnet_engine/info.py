"""`python -m tkfnet_engine.info ENGINE`: shows what an engine file is, after checking every byte of it.

With --plan it shows what each launch of a fused network costs (`plan_report`), of a file or of a network not yet built;
with --layers what TensorRT made of the network (`layer_report`).
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .backends.trt_compatibility import MODULES
from .bundle import read_facts
from .console import Parser, emit_json, run_command
from .engine import checked_facts
from .errors import BundleError, UsageError
from .spec import TKFNetConfig

# Flags of --plan, and of those that describe a network where no file does.
_PLAN_FLAGS = ("batch", "arch", "chip", "backbone", "width")
_NETWORK_FLAGS = ("backbone", "width")


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.info", description=__doc__.partition(": ")[2].partition("\n")[0])
    p.add_argument("engine", metavar="ENGINE", nargs="?", help="an engine file (.tkf); --plan can do without")
    p.add_argument("--json", action="store_true", help="everything as JSON on standard output")
    p.add_argument("--plan", action="store_true", help="each kernel launch, its code and its cost; needs no GPU")
    p.add_argument("--layers", action="store_true", help="each layer of a TensorRT engine; needs no GPU")
    p.add_argument("--live", action="store_true", help="for --layers, ask TensorRT here, which runs the file's plan")
    p.add_argument("--trust", action="store_true", help="for --live: run the plan of a file from someone trusted")
    p.add_argument("--batch", type=int, metavar="N", help="images per run, for --plan (default 1)")
    p.add_argument("--arch", help="architecture, for --plan (default sm_90)")
    p.add_argument("--chip", help="count for this chip, such as H200, for --plan (default: one of the architecture)")
    p.add_argument("--backbone", choices=TKFNetConfig.BACKBONES, help="for --plan without a file (default resnet18)")
    p.add_argument("--width", type=float, help="for --plan without a file (default 1)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.plan and args.layers:
        raise UsageError("--plan: got --layers as well; leave one of them out")
    if not args.layers and (given := [f"--{name}" for name in ("live", "trust") if getattr(args, name)]):
        raise UsageError(f"{', '.join(given)}: got no --layers, which they are for; add it, or leave them out")
    if args.plan:
        return _plan(args)
    if given := [f"--{name}" for name in _PLAN_FLAGS if getattr(args, name) is not None]:
        raise UsageError(f"{', '.join(given)}: got no --plan, which they are for; add it, or leave them out")
    if args.engine is None:
        p.error("the following arguments are required: ENGINE")
    if args.layers:
        return _layers(args)
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


def _layers(args: argparse.Namespace) -> int:
    from .layer_report import report_of_layers, text_of_layers

    found = report_of_layers(args.engine, args.live, args.trust)
    if args.json:
        emit_json(found)
    else:
        print(text_of_layers(found))
    return 0


def _plan(args: argparse.Namespace) -> int:
    from .plan_report import report_of_engine, report_of_network, text_of_report

    batch = 1 if args.batch is None else args.batch
    if args.engine is None:
        chosen = {name: value for name in _NETWORK_FLAGS if (value := getattr(args, name)) is not None}
        found = report_of_network(TKFNetConfig(**chosen), batch, args.arch, args.chip)
    else:
        if given := [f"--{name}" for name in _NETWORK_FLAGS if getattr(args, name) is not None]:
            raise UsageError(f"{', '.join(given)}: got an engine file too, whose network is given; leave one out")
        found = report_of_engine(args.engine, batch, args.arch, args.chip)
    if args.json:
        emit_json(found)
    else:
        print(text_of_report(found))
    return 0


def _text(path: str, facts: dict[str, Any]) -> str:
    model, pre, report = facts["model"], facts["preprocessing"], facts.get("verification", {})
    rows = [
        ("file", f"{path}, {os.path.getsize(path) / 1e6:.1f} MB, every byte as it was written"),
        ("runs on", f"{facts['backend']}, {facts['device']}, {facts['precision']}, batches up to {facts['max_batch']}"),
        ("network", ", ".join(f"{k} {v}" for k, v in model.items())),
        ("input", f"{pre['size']}x{pre['size']} {pre['color']} uint8; mean {pre['mean']}, std {pre['std']}"),
        ("labels", ", ".join(facts["labels"])),
        *([("kernels", f"for {', '.join(facts['archs'])}")] if facts.get("archs") else []),
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
    if quantisation := facts.get("quantisation"):
        rows += _quantisation_rows(quantisation)
    if tensorrt := facts.get("tensorrt"):
        rows += _tensorrt_rows(facts, tensorrt)
    if "state" in report:
        rows.append(("this plan", report["state"]))
        report = report["graph"] | {"executor": "graph"}
    if report:
        where = {None: "", "interpreter": " in Triton's interpreter", "emulator": " in the kernels' emulator"}
        where["graph"] = " in ONNX Runtime, of the graph it is built from"
        needs = f" (needs {report['required_sqnr_db']})" if "required_sqnr_db" in report else ""
        rows.append(
            (
                "verified",
                f"{report['images']} images{where[report.get('executor')]}: SQNR {report['sqnr_db']} dB{needs}, "
                f"max error {report['max_error']}, top-1 agreement {report['top1_agreement']:.2%}",
            )
        )
    if gate := report.get("gate"):
        rows.append(
            (
                "gate",
                f"accuracy {gate['accuracy']:.2%} of float32's {gate['float32_accuracy']:.2%} on {gate['images']} "
                f"labelled images; the worst class loses {max(gate['recall_lost']):.1%} of its recall",
            )
        )
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


def _tensorrt_rows(facts: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, str]]:
    """What the plan is for, and what did not become what was asked for."""
    profile, count, product = found["profiles"][0], len(found["profiles"]), MODULES[facts["backend"]][1]
    batches = f"{profile['min']} to {profile['max']} images, tuned for {profile['opt']}"
    on = f", built on {found['gpu']}, driver {found['driver']}" if found["gpu"] else ""
    rows = [
        ("plan", f"{product} {found['version']}, for compute capability {', '.join(found['capabilities'])}{on}"),
        ("batches", f"{batches}; {count} at once" if profile["min"] < profile["max"] else f"{profile['max']} images"),
    ]
    if given := ", ".join(f"{name} {value}" for name, value in found["options"].items() if value):
        rows.append(("options", given))
    if found["not_as_asked"] and "quantisation" not in facts:
        rows.append(("NOT AS ASKED", ", ".join(f"{name} in {ran}" for name, ran in found["not_as_asked"].items())))
    return rows


def _quantisation_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What runs in which precision, and from which calibration."""
    counts = Counter(found["layers"].values())
    calibration, worst = found["calibration"], sorted(found["sensitivity_db"].items(), key=lambda item: item[1])[:3]
    rows = [
        ("products", ", ".join(f"{count} in {precision}" for precision, count in counts.most_common())),
        ("calibrated", f"on {calibration['images']} images of {calibration['data']}"),
        ("costliest", ", ".join(f"{unit} {decibels} dB" for unit, decibels in worst)),
    ]
    if found["kept_float"]:
        rows.append(("in float", ", ".join(found["kept_float"])))
    if found["not_as_asked"]:
        rows.append(("NOT AS ASKED", ", ".join(f"{name} in {ran}" for name, ran in found["not_as_asked"].items())))
    return rows


if __name__ == "__main__":
    run_command(main)
