"""What a `config.pbtxt` says of each model, as `pbtxt` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from .limits import Limits
from .pbtxt import Enum

KINDS = ("python", "onnxruntime", "tensorrt")
LABELS_FILE = "labels.txt"

_UINT8, _INT32, _FP32, _STRING = map(Enum, ("TYPE_UINT8", "TYPE_INT32", "TYPE_FP32", "TYPE_STRING"))
ANSWER_MAP = {"probabilities": "probabilities", "class": "class"}
JPEG_INPUT = {"name": "jpeg", "data_type": _STRING, "dims": [1]}


@dataclass(frozen=True)
class Options:
    """kind: of `KINDS`. instances: of the network, each a process (python) or a context. threads: of the CPU for each
    instance, None for its share of every core. trusted: as for `Engine.load`.
    """

    kind: str = "python"
    instances: int = 1
    threads: int | None = None
    trusted: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind: got {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 1 <= self.instances <= 64:
            raise UsageError(f"instances: got {self.instances}, expected 1 to 64")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UsageError(f"threads: got {self.threads}, expected 1 to 1024; leave it out for every core")


def images(facts: Mapping[str, Any]) -> dict[str, Any]:
    size = facts["preprocessing"]["size"]
    return {"name": "images", "data_type": _UINT8, "dims": [size, size, 3]}


def logits(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "logits", "data_type": _FP32, "dims": [len(facts["labels"])]}


def _answers(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    probabilities = {**logits(facts), "name": "probabilities", "label_filename": LABELS_FILE}
    # No texts: asked to classify one, Triton 2.51 divides by its size, which is 0, and ends.
    return [probabilities, {"name": "class", "data_type": _INT32, "dims": [1]}]


def max_batch(facts: Mapping[str, Any], options: Options) -> int:
    return min(options.limits.max_images, facts["max_batch"])


def scheduling(batch: int, options: Options, delay: bool = True) -> dict[str, Any]:
    """Queue, batching and priorities: 1 goes before 2, which is the default."""
    limits = options.limits
    policy = {
        "timeout_action": Enum("REJECT"),
        "default_timeout_microseconds": int(limits.queue_seconds * 1e6),
        # A request may ask for less, not for more.
        "allow_timeout_override": True,
        "max_queue_size": limits.max_queue,
    }
    return {
        "dynamic_batching": {
            "preferred_batch_size": [batch],
            "max_queue_delay_microseconds": limits.delay_us if delay else 0,
            "priority_levels": 2,
            "default_priority_level": 2,
            "default_queue_policy": policy,
        }
    }


def instances(count: int, gpu: bool = False) -> dict[str, Any]:
    return {"instance_group": [{"count": count, "kind": Enum("KIND_GPU" if gpu else "KIND_CPU")}]}


def parameters(**values: Any) -> dict[str, Any]:
    return {"parameters": [{"key": key, "value": {"string_value": json.dumps(v)}} for key, v in values.items()]}


def warm_up(tensor: Mapping[str, Any], batches: Sequence[int], **data: Any) -> dict[str, Any]:
    held = {"data_type": tensor["data_type"], "dims": tensor["dims"], **(data or {"zero_data": True})}
    return {
        "model_warmup": [
            {"name": f"batch {n}", "batch_size": n, "inputs": {"key": tensor["name"], "value": held}}
            for n in sorted(set(batches))
        ]
    }


def engine_config(facts: Mapping[str, Any], options: Options) -> dict[str, Any]:
    batch = max_batch(facts, options)
    return {
        "backend": "python",
        "max_batch_size": batch,
        "input": [images(facts)],
        "output": _answers(facts),
        **scheduling(batch, options),
        **instances(options.instances),
        **parameters(threads=options.threads, instances=options.instances, trusted=options.trusted),
        **warm_up(images(facts), (1, batch)),
    }


def decode_config(facts: Mapping[str, Any], options: Options) -> dict[str, Any]:
    batch = max_batch(facts, options)
    return {
        "backend": "python",
        "max_batch_size": batch,
        "input": [JPEG_INPUT],
        "output": [images(facts)],
        # Pictures are decoded one by one: to wait for others would gain nothing.
        **scheduling(batch, options, delay=False),
        **instances(1),
        **parameters(size=facts["preprocessing"]["size"], max_pixels=options.limits.max_pixels),
        **warm_up(JPEG_INPUT, (1,), input_data_file="picture"),
    }


def answer_config(facts: Mapping[str, Any], options: Options) -> dict[str, Any]:
    batch = max_batch(facts, options)
    return {
        "backend": "python",
        "max_batch_size": batch,
        "input": [logits(facts)],
        "output": _answers(facts),
        **scheduling(batch, options, delay=False),
        **instances(1),
        **warm_up(logits(facts), (1,)),
    }


def ensemble(
    tensor: Mapping[str, Any], steps: Sequence[tuple[str, dict, dict]], facts: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    return {
        "platform": "ensemble",
        "max_batch_size": max_batch(facts, options),
        "input": [tensor],
        "output": _answers(facts),
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": model,
                    "model_version": -1,
                    "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
                    "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
                }
                for model, inputs, outputs in steps
            ]
        },
    }
