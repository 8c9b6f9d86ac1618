"""What has to be known of a TensorRT plan to run it elsewhere: its description, and its part of a `config.pbtxt`."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..bundle import Bundle
from ..errors import BundleError

# Facts that the description repeats as they are.
_REPEATED = (
    "backend", "precision", "max_batch", "model", "labels", "preprocessing", "tensorrt", "versions", "hardware",
    "verification",
)  # fmt: skip
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


def describe(path: str, bundle: Bundle, plan: bytes) -> dict[str, Any]:
    """What a user of the plan has to know, as JSON types. `BundleError` if the facts do not say it.

    A dimension of -1 is the batch, within a profile's range. "engine_sha256": the digest that the engine file ends in.
    """
    facts = bundle.facts
    _check_section(path, facts)
    size, batch = facts["preprocessing"]["size"], fixed_batch(facts) or -1
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
    fixed = fixed_batch(about)
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


def fixed_batch(facts: dict[str, Any]) -> int | None:
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
