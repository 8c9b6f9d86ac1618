"""The race of one batch: engines answer rendered faces, and those that are right are timed in turns."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gpu_common import Call, Faces, interleaved, queueing_us, spread, times_as_long
from torch import Tensor

from tkfnet_engine.compare import compare
from tkfnet_engine.export.verify import REQUIRED_SQNR_DB

# Engines in eight bits, as they race; TensorRT's by its own calls; and TensorRT's as our package runs it.
EIGHT_BITS = {"fused_int8": "int8", "fused_float8": "float8"}
TENSORRT = {"tensorrt": "float16", "tensorrt_int8": "int8"}
TENSORRT_CALL = "tensorrt_call"
# Ours that must race: without them there is nothing to time.
_MUST = ("fused", "fused_fixed", "fused_call")
# Others of ours may be wrong: that is no reason to lose everybody's times.
_OURS = (*_MUST, *EIGHT_BITS, TENSORRT_CALL)


def random_inputs(batch: int, size: int) -> list[Tensor]:
    """Several batches of random pixels; of large batches together more than the last cache holds."""
    draw = torch.Generator("cuda").manual_seed(batch)
    shape = (batch, size, size, 3)
    count = 8 if batch <= 64 else 4
    return [torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8, device="cuda") for _ in range(count)]


def sqnr_db(call: Call, faces: Faces, batch: int, required: float) -> float:
    """Of the answers to some of the faces, asked `batch` at a time. required: what is asked for."""
    count = min(len(faces.pixels), max(batch, 64)) // batch * batch
    parts = []
    for first in range(0, count, batch):
        pixels = torch.from_numpy(faces.pixels[first : first + batch]).to("cuda")
        parts.append(call(pixels).float().cpu().numpy().copy())
    report = compare(faces.logits[:count], np.concatenate(parts), required).to_dict()
    return report["sqnr_db"]


def captured(call: Call, example: Tensor) -> Call:
    """`call` as one CUDA graph over an input of its own, into which each call's pixels are copied."""
    static = example.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = call(static)

    def replay(pixels: Tensor) -> Tensor:
        static.copy_(pixels)
        graph.replay()
        return logits

    return replay


class Race:
    """The engines of one batch. `left_out` is why an engine has no time, `notes` what is to stand beside its times."""

    def __init__(self, batch: int, faces: Faces, inputs: Sequence[Tensor]):
        self.batch, self.faces = batch, faces
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Sequence[Tensor]] = {}
        self._all_inputs = inputs
        self.sqnr: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self.notes: dict[str, dict[str, Any]] = {}

    def enter(self, name: str, make: Callable[[], Call], fixed: bool = False) -> Call | None:
        """Makes an engine and lets it race if it is right. Ours may not fail; what fails of the others is a fact."""
        required = REQUIRED_SQNR_DB[(EIGHT_BITS | TENSORRT).get(name, "float16")]
        try:
            call = make()
            call(self._all_inputs[0])
            self.sqnr[name] = sqnr_db(call, self.faces, self.batch, required)
        except Exception as error:
            if name in _MUST:
                raise
            traceback.print_exc()
            what = "wrong" if name in _OURS else "left out"
            self.left_out[name] = f"{what}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            return None
        if self.sqnr[name] < required:
            self.left_out[name] = f"wrong: SQNR {self.sqnr[name]} dB"
            return None
        self._calls[name] = call
        self._inputs[name] = self._all_inputs[:1] if fixed else self._all_inputs
        return call

    @property
    def wrong(self) -> list[str]:
        """Of our engines, those that were built and are wrong."""
        ours = {name: why for name, why in self.left_out.items() if name in _OURS}
        return [f"{name}: {why}" for name, why in ours.items() if not why.startswith("left out")]

    def run(self, rounds: int, samples: int) -> dict[str, Any]:
        """The figures of all that are in the race, how many times as long as `fused` each takes, and how many times as
        fast as it those in eight bits are."""
        taken = interleaved(self._calls, self._inputs, rounds, samples)
        engines: dict[str, Any] = {n: spread(r, self.batch) | {"sqnr_db": self.sqnr[n]} for n, r in taken.items()}
        for name, call in self._calls.items():
            engines[name]["queueing_us"] = queueing_us(call, self._inputs[name])
            engines[name] |= self.notes.get(name, {})
        engines |= {name: {"median_us": None, "reason": reason} for name, reason in self.left_out.items()}
        ours = taken.get("fused")
        others = {name: rounds for name, rounds in taken.items() if name != "fused" and ours}
        return {
            "engines": engines,
            "ratios": {name: times_as_long(r, ours) for name, r in others.items()},
            "speedups": {name: times_as_long(ours, r) for name, r in others.items() if name in EIGHT_BITS},
        }
