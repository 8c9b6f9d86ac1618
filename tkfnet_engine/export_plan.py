"""`python -m tkfnet_engine.export_plan ENGINE --out model.plan`: writes an engine's TensorRT plan, to run elsewhere.

Beside the plan stands `model.plan.json`, which says all that its user has to know. Nothing is run here, so nothing has
to be trusted; whoever loads the plan does run it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from .atomic import write_atomically
from .backends.registry import BACKENDS, TENSORRT_PLAN
from .bundle import Bundle, read_bundle
from .console import Parser, emit_json, run_command, say
from .engine import checked_facts
from .errors import BundleError, FileError, UsageError

# Facts that the description repeats as they are.
_REPEATED = (
    "backend", "precision", "max_batch", "model", "labels", "preprocessing", "tensorrt", "versions", "hardware",
    "verification",
)  # fmt: skip
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.export_plan", description=__doc__.partition(": ")[2].partition("\n")[0])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf) built for TensorRT")
    p.add_argument("--out", required=True, metavar="PLAN", help="the plan; what it takes and gives goes to PLAN.json")
    p.add_argument("--triton", metavar="CONFIG", help="also write a config.pbtxt for Triton Inference Server here")
    p.add_argument("--json", action="store_true", help="print what PLAN.json holds on standard output")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    bundle = read_bundle(args.engine)
    facts = checked_facts(args.engine, bundle.facts)
    with_plan = [name for name, info in BACKENDS.items() if info.artefact == TENSORRT_PLAN]
    if facts["backend"] not in with_plan or TENSORRT_PLAN not in bundle:
        raise UsageError(
            f"{args.engine}: got an engine for {facts['backend']}, which holds no plan, expected one for "
            f"{' or '.join(with_plan)}; build one with `python -m tkfnet_engine.build --backend {with_plan[0]}`"
        )
    if args.triton is not None and facts["backend"] != "tensorrt":
        raise UsageError(
            f"--triton: Triton runs no plan for {facts['backend']}, expected one for tensorrt; leave it out"
        )
    beside = f"{args.out}.json"
    _check_paths(args.engine, args.out, beside, *([] if args.triton is None else [args.triton]))
    plan = bundle.pop(TENSORRT_PLAN)
    about = describe(args.engine, bundle, plan)
    texts = {beside: json.dumps(about, indent=2, allow_nan=False) + "\n"}
    if args.triton is not None:
        texts[args.triton] = triton_config(about, os.path.basename(args.out))
    _write(args.out, plan, texts)
    if args.json:
        emit_json(about)
    say(f"wrote {args.out}, {len(plan) / 1e6:.1f} MB, and {', '.join(texts)}; a plan is a program for whoever loads it")
    say(f"to time it: {timing_command(about, args.out)}")
    return 0


def describe(path: str, bundle: Bundle, plan: bytes) -> dict[str, Any]:
    """What a user of the plan has to know, as JSON types. `BundleError` if the facts do not say it.

    A dimension of -1 is the batch, within a profile's range. "engine_sha256": the digest that the engine file ends in.
    """
    facts = bundle.facts
    _check_section(path, facts)
    size, batch = facts["preprocessing"]["size"], _fixed_batch(facts) or -1
    return {
        "plan": {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()},
        "engine_sha256": bundle.sha256,
        "inputs": [
            {
                "name": "images",
                "dtype": "uint8",
                "shape": [batch, size, size, 3],
                "content": "RGB pixels, resized as in preprocessing; mean and std are applied inside",
            }
        ],
        "outputs": [
            {
                "name": "logits",
                "dtype": "float32",
                "shape": [batch, len(facts["labels"])],
                "content": "a column per label; softmax makes them probabilities",
            }
        ],
        **{name: facts[name] for name in _REPEATED if name in facts},
    }


def triton_config(about: dict[str, Any], file: str) -> str:
    """`config.pbtxt` of a plan that lies in MODEL/1/ under the name `file`; Triton calls the model by that folder."""
    fixed = _fixed_batch(about)
    lines = [f"# Labels by column: {', '.join(map(json.dumps, about['labels']))}"]
    if about["tensorrt"]["options"]["version_compatible"]:
        lines.append("# Needs tritonserver --backend-config=tensorrt,version-compatible=true")
    lines.append('platform: "tensorrt_plan"')
    if file != "model.plan":
        lines.append(f"default_model_filename: {json.dumps(file, ensure_ascii=False)}")
    # Of a plan with a fixed batch Triton makes no batches: then the batch is a dimension like any other.
    lines.append(f"max_batch_size: {0 if fixed else about['max_batch']}")
    for kind, tensors in (("input", about["inputs"]), ("output", about["outputs"])):
        for tensor in tensors:
            dims = ", ".join(map(str, tensor["shape"][0 if fixed else 1 :]))
            fields = f'name: "{tensor["name"]}" data_type: {_TYPES[tensor["dtype"]]} dims: [ {dims} ]'
            lines.append(f"{kind} [ {{ {fields} }} ]")
    return "\n".join(lines) + "\n"


def timing_command(about: dict[str, Any], path: str) -> str:
    """How NVIDIA's own tool loads and times the plan, at the batch that its first profile is best at."""
    command = ["trtexec" if about["backend"] == "tensorrt" else "tensorrt_rtx", f"--loadEngine={path}"]
    if not _fixed_batch(about):
        _, *others = about["inputs"][0]["shape"]
        batch = about["tensorrt"]["profiles"][0]["opt"]
        command.append(f"--shapes=images:{'x'.join(map(str, (batch, *others)))}")
    if about["tensorrt"]["options"]["version_compatible"]:
        command.append("--versionCompatible")  # without it the runtime that the plan brings along is not allowed to run
    return shlex.join(command)


def _fixed_batch(facts: dict[str, Any]) -> int | None:
    """The batch of a plan that takes no other, else None."""
    first, *more = facts["tensorrt"]["profiles"]
    return first["max"] if not more and first["min"] == first["max"] else None


def _check_section(path: str, facts: dict[str, Any]) -> None:
    """`BundleError` unless the parts of facts["tensorrt"] that are read here are as docs/engine-file.md has them."""
    section = facts.get("tensorrt")
    section = section if isinstance(section, dict) else {}
    profiles, options = section.get("profiles"), section.get("options")
    sound = isinstance(profiles, list) and profiles and all(map(_is_profile, profiles))
    if not sound or max(p["max"] for p in profiles) != facts["max_batch"]:
        found, expected = profiles, f"a list of min <= opt <= max, and max_batch {facts['max_batch']} the largest max"
    elif not isinstance(options, dict) or type(options.get("version_compatible")) is not bool:
        found, expected = options, "an object with version_compatible"
    else:
        return
    raise BundleError(
        f"{path}: its facts of TensorRT hold {found!r:.200}, expected {expected}; build it again with this version"
    )


def _is_profile(profile: Any) -> bool:
    if not isinstance(profile, dict) or not profile.keys() >= {"min", "opt", "max"}:
        return False
    low, best, high = (profile[key] for key in ("min", "opt", "max"))
    return all(type(n) is int for n in (low, best, high)) and 1 <= low <= best <= high


def _check_paths(engine: str, *targets: str) -> None:
    """Each target has to be a file of its own, not the engine, in a folder that is there."""
    real = [os.path.realpath(path) for path in (engine, *targets)]
    if len(set(real)) != len(real):
        raise UsageError(
            f"got {', '.join((engine, *targets))}, expected different files; give another --out or --triton"
        )
    for target in targets:
        if not os.path.basename(target):
            raise UsageError(f"got {target!r}, expected a file's name; give another --out or --triton")
        folder = os.path.dirname(os.path.abspath(target))
        if not os.path.isdir(folder):
            raise UsageError(f"{target}: the folder {folder} is not there; make it first")


def _write(out: str, plan: bytes, texts: dict[str, str]) -> None:
    """Writes the plan last, and removes the one before first: no plan ever stands beside what describes another."""
    if os.path.isfile(out):
        try:
            os.unlink(out)
        except OSError as error:
            raise FileError(f"{out}: cannot replace it: {error.strerror}; choose another path") from error
    elif os.path.exists(out):
        raise FileError(f"{out}: a folder, a pipe or a device, expected a file to replace; choose another path")
    for path, text in texts.items():
        write_atomically(path, text.encode())
    try:
        write_atomically(out, plan)
    except FileError as error:
        cause = getattr(error.__cause__, "strerror", None) or error
        raise FileError(
            f"{out}: cannot write it: {cause}; expected place for {len(plan)} bytes; a plan that was there is removed, "
            "because what lies beside it describes this one: free space, and write it again"
        ) from error


if __name__ == "__main__":
    run_command(main)
