"""Every engine in eight bits: its accuracy, and its speed beside float32, its peers and the processor's own rate.

    python benchmarks/compare_int8.py [--rounds 5] [--samples 20] [--batch 1 8 32] [--checkpoint P] [--out FOLDER]
                                      [--only accuracy|speed] [--minutes N] [--nncf-python PATH]

Builds the engines, has ONNX Runtime and NNCF quantise the same graph on the same images, and writes one report,
`<processor>-int8-<date>.json` and `.md`. Accuracy is that on the faces which builds are judged on; fused engines
answer in the emulator. For speed every engine and peer runs in a process of its own, in turn, `--rounds` times over;
ratios are taken within a round. Ctrl-C during the rounds reports the whole ones. A missed target is reported; the exit
code is 0 unless something could not be made or run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from int8_peers import Contestant, check_nncf_python, peers
from int8_process import output
from int8_tables import AGREEING, FLOAT, INT_MM, INT_MM_SIZE, markdown, record_name, verdict_line, verdicts

from tkfnet_engine.atomic import write_atomically
from tkfnet_engine.backends.registry import why_unavailable
from tkfnet_engine.bench import MAX_BATCH
from tkfnet_engine.build import reference_checkpoint
from tkfnet_engine.bundle import SUFFIX, read_facts
from tkfnet_engine.console import Parser, run_command, say
from tkfnet_engine.errors import BackendError, UsageError, VerificationError
from tkfnet_engine.hardware import has_exact_byte_products, processor_name, usable_cores
from tkfnet_engine.model.checkpoint import Checkpoint, load_checkpoint
from tkfnet_engine.model.fold import FoldedTKFNet, fold

# Name -> flag and backend of `build`. The first is what all is compared to, and what peers take their facts from.
ENGINES = {
    FLOAT: ("--fp32", "auto"),
    "float16 onnxruntime": ("--fp16", "onnxruntime"),
    "int8 onnxruntime": ("--int8", "onnxruntime"),
    "int8 openvino": ("--int8", "openvino"),
    "int8 auto": ("--int8", "auto"),
}
EMULATED = {"int8 fused": "int8", "float8 fused": "float8"}
LIBRARIES = ("tkfnet-engine", "torch", "onnxruntime", "openvino", "onnx", "numpy")
# Of a quantised engine's facts, those that the report shows.
FACTS = ("calibration", "weight_bits", "kept_float", "back_to_float", "layers", "not_as_asked", "sensitivity_db")
RUN_SCRIPT = Path(__file__).with_name("int8_run.py")
RESULTS = Path(__file__).with_name("results")


def parser() -> Parser:
    p = Parser(prog="compare_int8.py", description=__doc__.partition("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--samples", type=int, default=20, help="timed runs per batch size and round")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    p.add_argument("--checkpoint", help="default: the shipped reference")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the report (default benchmarks/results)")
    p.add_argument("--only", choices=("accuracy", "speed"), help="measure one of them")
    p.add_argument("--minutes", type=float, help="begin no further round after so long")
    p.add_argument("--nncf-python", metavar="PATH", help="a Python that has nncf and openvino (default: this one)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args, started = parser().parse_args(argv), time.monotonic()
    if args.rounds < 1 or args.samples < 1 or not 1 <= min(args.batch) <= max(args.batch) <= MAX_BATCH:
        batches = " ".join(map(str, args.batch))
        raise UsageError(
            f"--rounds {args.rounds} --samples {args.samples} --batch {batches}: expected rounds and samples from 1, "
            f"batches of 1 to {MAX_BATCH}"
        )
    nncf_python = check_nncf_python(args.nncf_python)
    # Now, and not after an hour: where nothing can be written, nothing is worth measuring.
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.checkpoint or reference_checkpoint()
    checkpoint = load_checkpoint(path)
    measured = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "environment": environment(checkpoint)}
    stopped, accuracy, speed, rounds = None, None, None, 0
    with tempfile.TemporaryDirectory(prefix="tkfnet-int8-") as name:
        folder, folded = Path(name), fold(checkpoint.model, checkpoint.preprocessing)
        contestants = engines(path, folder, max(32, *args.batch))
        contestants |= peers(*graph_and_images(checkpoint, folded, folder), folder, nncf_python)
        if args.only != "speed":
            accuracy = accuracy_of(contestants, checkpoint, folder)
        if args.only != "accuracy":
            until = None if args.minutes is None else started + 60 * args.minutes
            speed, rounds, stopped = speed_of(contestants, args.rounds, args.samples, args.batch, until)
    settings = {"rounds": rounds, "samples": args.samples, "batches": args.batch, "only": args.only, "stopped": stopped}
    measured["environment"]["load_average_after"] = load_average()
    measured |= {"settings": settings, "flops": flops(folded), "accuracy": accuracy, "speed": speed}
    measured["contestants"] = {name: one.record for name, one in contestants.items()}
    report = json.loads(json.dumps(measured, allow_nan=False))
    report["verdicts"] = verdicts(report)
    write(report, args.out)
    for verdict in report["verdicts"]:
        print(verdict_line(verdict))
    failed = [name for name, one in report["contestants"].items() if one.get("failed")]
    for name in failed:
        say(f"error: {name}: {report['contestants'][name]['failed']}")
    return 130 if stopped == "Ctrl-C" else int(bool(failed))


# --- what is compared --------------------------------------------------------------------------------------


def engines(checkpoint: str, folder: Path, max_batch: int) -> dict[str, Contestant]:
    """Every engine, built as a user builds it. `BackendError` if float32 cannot be; another one says why."""
    found = {}
    for name, (flag, backend) in ENGINES.items():
        path = folder / f"{name.replace(' ', '-')}{SUFFIX}"
        flags = [flag, "--device", "cpu", "--backend", backend]
        record: dict[str, Any] = {"kind": "engine", "backend": backend, "how": " ".join(["build", *flags])}
        if backend != "auto" and (reason := why_unavailable(backend)):
            found[name] = Contestant(record | {"missing": reason})
            continue
        command = [sys.executable, "-m", "tkfnet_engine.build", *flags, "--checkpoint", checkpoint, "--out", path]
        try:
            output(f"building {name}", [*command, "--max-batch", str(max_batch)])
        except BackendError as error:
            if name == FLOAT:
                raise
            found[name] = Contestant(record | {"failed": str(error)})
            continue
        facts = read_facts(path)
        quantised = facts.get("quantisation", {})
        record |= {"backend": facts["backend"], "bytes": path.stat().st_size}
        record |= {key: quantised[key] for key in FACTS if key in quantised}
        if "layers" in quantised:
            record["products"] = dict(Counter(quantised["layers"].values()))
        found[name] = Contestant(record, path)
    return found


def graph_and_images(checkpoint: Checkpoint, folded: FoldedTKFNet, folder: Path) -> tuple[Path, Path]:
    """Files for the peers: our float32 graph (`.onnx`) and the images that our engines are calibrated on (`.npy`)."""
    from tkfnet_engine.data.cache import load_all
    from tkfnet_engine.export.calibration_images import draw_calibration_set
    from tkfnet_engine.export.onnx_from_torch import bytes_from_onnx, onnx_from_folded

    graph, images = folder / "float32.onnx", folder / "calibration.npy"
    graph.write_bytes(bytes_from_onnx(onnx_from_folded(folded, {})))
    np.save(images, load_all(draw_calibration_set(checkpoint).faces, checkpoint.preprocessing.size, workers=1))
    return graph, images


def flops(folded: FoldedTKFNet) -> int:
    """Of one image: 2 x multiply-accumulate, convolutions and matrix products."""
    from tkfnet_engine.kernels.network import network_of
    from tkfnet_engine.kernels.planner import plan_from_network

    return plan_from_network(network_of(folded), 1, "float16", "sm_90").flops


# --- accuracy ----------------------------------------------------------------------------------------------


def accuracy_of(contestants: dict[str, Contestant], checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """The report's "accuracy". Adds the emulated engines to `contestants`, and to records why one did not answer."""
    from int8_accuracy import agreement, answers, emulated, row

    from tkfnet_engine.export.verify import verification_set

    say("the gate set")
    expected = verification_set(checkpoint.model, checkpoint.preprocessing, None, "int8")
    np.save(images := folder / "gate.npy", expected.images)
    logits, rows = {}, {"float32 reference": row(expected, expected.reference, "float32")}
    for name, one in contestants.items():
        if one.path is not None:
            try:
                logits[name] = answers(name, one.path, contestants[FLOAT].path, images, folder)
            except BackendError as error:
                one.record["failed"] = str(error)
    for name, precision in EMULATED.items():
        say(f"{name}: calibration, sensitivity, emulation")
        try:
            contestants[name], logits[name] = emulated(checkpoint, precision, expected)
        except VerificationError as error:
            contestants[name] = Contestant({"kind": "emulated", "backend": "fused", "failed": str(error)})
    for name, values in logits.items():
        engine = name in ENGINES or name in EMULATED
        rows[name] = row(expected, values, name.partition(" ")[0] if engine else "int8")
    agreeing = agreement({name: logits[name] for name in AGREEING if name in logits})
    return {"data": expected.data, "images": len(expected.images), "rows": rows, "agreement": agreeing}


# --- speed -------------------------------------------------------------------------------------------------


def speed_of(
    contestants: dict[str, Contestant], rounds: int, samples: int, batches: Sequence[int], until: float | None
) -> tuple[dict[str, dict[str, list[float | None]]], int, str | None]:
    """(p50 in ms by name, batch and round; how many whole rounds; why no more). until: on `time.monotonic`'s clock.

    Adds `INT_MM` to `contestants`, and to records why one does not run.
    """
    like = contestants[FLOAT].path
    commands: dict[str, list[Any]] = {
        name: [one.path, "--like", like, "--batch", *map(str, batches)]
        for name, one in contestants.items()
        if one.path is not None and not one.record.get("failed")
    }
    commands[INT_MM] = [INT_MM]
    contestants[INT_MM] = Contestant({"kind": "rate", "how": f"int8 x int8 -> int32, {INT_MM_SIZE}^3, PyTorch"})
    speed: dict[str, dict[str, list[float | None]]] = {name: {} for name in commands}
    for number in range(rounds):
        if number and until is not None and time.monotonic() > until:
            return speed, number, "--minutes"
        try:
            times = {}
            # The order turns, so that nobody always follows the same one.
            for name in [*commands][number % len(commands) :] + [*commands][: number % len(commands)]:
                command = [sys.executable, RUN_SCRIPT, *commands[name], "--samples", str(samples)]
                try:
                    times[name] = json.loads(output(f"round {number + 1}/{rounds}: {name}", command))["p50_ms"]
                except BackendError as error:
                    contestants[name].record["failed"] = str(error)
        except KeyboardInterrupt:
            say(f"stopped: reporting {number} whole rounds")
            return speed, number, "Ctrl-C"
        for name, by_batch in speed.items():
            for batch in times.get(name) or by_batch:
                by_batch.setdefault(batch, []).append(times.get(name, {}).get(batch))
        for name in commands.keys() - times.keys():
            del commands[name]
    return speed, rounds, None


# --- the record --------------------------------------------------------------------------------------------


def environment(checkpoint: Checkpoint) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": processor_name(),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "exact_byte_products": has_exact_byte_products(),
        "versions": versions,
        "checkpoint": checkpoint.sha256,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "load_average_before": load_average(),
    }


def load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _git(*arguments: str) -> str | None:
    """None where git knows nothing of this tree."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, cwd=RESULTS.parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write(report: dict[str, Any], folder: Path) -> None:
    """JSON first; the Markdown is made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(report, indent=1) + "\n"), (".md", markdown(report))):
        path = folder / (record_name(report) + suffix)
        write_atomically(path, text.encode())
        say(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
