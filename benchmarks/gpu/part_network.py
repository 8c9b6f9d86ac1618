"""The whole network at one batch, ours beside PyTorch: uint8 pixels in, logits out on the GPU, other pixels each time.

    fused           our plan as one CUDA graph; each replay reads the next input where it stands
    fused_fixed     the same with one input, so that the graph is never updated
    fused_call      `Engine.logits_on_device`, as a user calls it
    fused_int8      as fused, of the engine in INT8
    fused_float8    as fused, of the engine in FP8
    eager           the folded network in FP16, channels-last, cuDNN's own choice of algorithms measured
    eager_graph     the same in a CUDA graph; the next input is copied in
    compiled        torch.compile(mode="max-autotune") of it, called; it replays CUDA graphs of its own
    compiled_graph  the same kernels, captured into one CUDA graph; the next input is copied in

Each answers rendered faces first; one that errs gets no time. Compiling takes minutes: what needs none is timed and
written before, and all together after. Engines in eight bits are there where `build-int8` and `build-float8` are done.
"""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import (
    Call,
    EngineParts,
    Faces,
    PlanReplay,
    add_took,
    folded_network,
    interleaved,
    part_parser,
    queueing_us,
    spread,
    this_arch,
    times_as_long,
)
from gpu_state import BUILDS, ENGINES, RIGHT, WRONG, write_json
from torch import Tensor

from tkfnet_engine import Engine
from tkfnet_engine.compare import compare
from tkfnet_engine.export.verify import REQUIRED_SQNR_DB

ROUNDS, SAMPLES = 7, 8
HOST_SAMPLES = 60
# Compilation for a second form is not begun with less time left.
SECOND_COMPILE_S = 120.0
# Engines in eight bits, as they race.
EIGHT_BITS = {"fused_int8": "int8", "fused_float8": "float8"}


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
    """The engines of one batch. `result` is what is known so far; `left_out` why an engine has no time."""

    def __init__(self, batch: int, faces: Faces, inputs: Sequence[Tensor]):
        self.batch, self.faces = batch, faces
        self._calls: dict[str, Call] = {}
        self._inputs: dict[str, Sequence[Tensor]] = {}
        self._all_inputs = inputs
        self.sqnr: dict[str, float] = {}
        self.left_out: dict[str, str] = {}

    def enter(self, name: str, make: Callable[[], Call], fixed: bool = False) -> Call | None:
        """Makes an engine and lets it race if it is right. Ours may not fail; what fails of the others is a fact."""
        required = REQUIRED_SQNR_DB[EIGHT_BITS.get(name, "float16")]
        try:
            call = make()
            call(self._all_inputs[0])
            self.sqnr[name] = sqnr_db(call, self.faces, self.batch, required)
        except Exception as error:
            if name.startswith("fused") and name not in EIGHT_BITS:
                raise
            traceback.print_exc()
            # An engine in eight bits is ours too, and no reason to lose the others' times.
            what = "wrong" if name in EIGHT_BITS else "left out"
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
        ours = {name: why for name, why in self.left_out.items() if name.startswith("fused")}
        return [f"{name}: {why}" for name, why in ours.items() if not why.startswith("left out")]

    def run(self, rounds: int, samples: int) -> dict[str, Any]:
        """The figures of all that are in the race, how many times as long as `fused` each takes, and how many times as
        fast as it those in eight bits are."""
        taken = interleaved(self._calls, self._inputs, rounds, samples)
        engines: dict[str, Any] = {n: spread(r, self.batch) | {"sqnr_db": self.sqnr[n]} for n, r in taken.items()}
        for name, call in self._calls.items():
            engines[name]["queueing_us"] = queueing_us(call, self._inputs[name])
        engines |= {name: {"median_us": None, "reason": reason} for name, reason in self.left_out.items()}
        ours = taken.get("fused")
        others = {name: rounds for name, rounds in taken.items() if name != "fused" and ours}
        return {
            "engines": engines,
            "ratios": {name: times_as_long(r, ours) for name, r in others.items()},
            "speedups": {name: times_as_long(ours, r) for name, r in others.items() if name in EIGHT_BITS},
        }


class Ours:
    """One of our engines at one batch, on `stream`: `replay` its graph, and `call` it as a user does."""

    def __init__(self, out: Path, precision: str, batch: int, stream: int):
        parts = EngineParts.read(out, this_arch(), precision)
        self.engine, self._stream = Engine.load(out / ENGINES[precision]), stream
        self._replay = PlanReplay(parts, parts.plans[batch])
        self._logits = torch.empty(batch, len(self.engine.labels), device="cuda")

    def replay(self, pixels: Tensor) -> Tensor:
        self._replay.replay(self._stream, pixels.data_ptr(), self._logits.data_ptr())
        return self._logits

    def call(self, pixels: Tensor) -> Tensor:
        self.engine.logits_on_device(pixels, self._logits, self._stream)
        return self._logits

    def same(self, pixels: Tensor) -> bool:
        """Whether both give equal bits, twice."""
        first = self.replay(pixels).clone()
        return all(torch.equal(first, answer(pixels)) for answer in (self.call, self.replay, self.call))


def enter_eight_bits(race: Race, took: Sequence[str], make: Callable[[str], Ours], example: Tensor) -> None:
    """Enters our engines in eight bits that were built. took: the parts that are done. make: precision -> engine."""
    for name, precision in EIGHT_BITS.items():
        if BUILDS[precision] not in took:
            race.left_out[name] = f"left out: {BUILDS[precision]} is not done"
            continue

        def checked(precision: str = precision) -> Call:
            ours = make(precision)
            if not ours.same(example):
                raise RuntimeError("logits_on_device and the graph's replay differ")
            ours.engine.close()
            return ours.replay

        race.enter(name, checked)


def host_latency(engine: Engine, batch: int, samples: int) -> dict[str, float]:
    """`Engine.logits`, from numpy to numpy, microseconds."""
    draw = np.random.default_rng(batch)
    shape = (batch, engine.input_size, engine.input_size, 3)
    inputs = [draw.integers(0, 256, shape, np.uint8) for _ in range(4)]
    taken = []
    for number in range(samples + 5):
        start = time.perf_counter()
        engine.logits(inputs[number % 4])
        taken.append((time.perf_counter() - start) * 1e6)
    tenths = statistics.quantiles(taken[5:], n=10, method="inclusive")
    return {"p50_us": round(statistics.median(taken[5:]), 2), "p90_us": round(tenths[-1], 2), "samples": samples}


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--batch", type=int, required=True)
    add_took(p)
    args = p.parse_args()
    deadline = time.monotonic() + args.seconds
    torch.set_grad_enabled(False)
    # For PyTorch's own sake: the fastest of cuDNN's algorithms, not its guess.
    torch.backends.cudnn.benchmark = True
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    faces, batch = Faces.read(args.out), args.batch
    inputs = random_inputs(batch, faces.pixels.shape[1])
    race = Race(batch, faces, inputs)

    def make(precision: str) -> Ours:
        return Ours(args.out, precision, batch, stream.cuda_stream)

    ours = make("float16")
    race.enter("fused", lambda: ours.replay)
    race.enter("fused_fixed", lambda: ours.replay, fixed=True)
    race.enter("fused_call", lambda: ours.call)
    same = ours.same(inputs[0])
    enter_eight_bits(race, args.took, make, inputs[0])
    network = folded_network(args.checkpoint, half=True)
    race.enter("eager", lambda: network)
    race.enter("eager_graph", lambda: captured(network, inputs[0]))

    result: dict[str, Any] = {"batch": batch, "complete": False, "call_equals_replay": same}
    result["host_to_host"] = host_latency(ours.engine, batch, HOST_SAMPLES)
    wrong = race.wrong
    if not same:
        wrong.append("logits_on_device and the graph's replay differ")

    def publish() -> None:
        """Times everything that is in the race, and writes it down."""
        result.update(race.run(ROUNDS, SAMPLES))
        result["summary"] = ", ".join(
            f"{name} {found['median_us']} us, {found['images_per_s']} images/s"
            for name in ("fused", *EIGHT_BITS)
            if (found := result["engines"].get(name, {})).get("median_us") is not None
        )
        if wrong:
            result["reason"] = "; ".join(wrong)
        write_json(args.result, result)

    publish()
    if wrong:
        return WRONG
    for name, mode in (("compiled", "max-autotune"), ("compiled_graph", "max-autotune-no-cudagraphs")):
        if name == "compiled_graph" and deadline - time.monotonic() < SECOND_COMPILE_S:
            race.left_out[name] = "left out: no time was left"
            continue
        start = time.monotonic()
        race.enter(name, _compiler(network, mode, inputs[0]))
        result[f"{name}_ready_s"] = round(time.monotonic() - start, 1)
        print(f"{name}: ready after {result[f'{name}_ready_s']} s", flush=True)
        result["complete"] = name == "compiled_graph"
        publish()
    return RIGHT


def _compiler(network: torch.nn.Module, mode: str, example: Tensor) -> Callable[[], Call]:
    def make() -> Call:
        call = torch.compile(network, mode=mode, dynamic=False)
        for _ in range(5):  # compiles, then records its CUDA graphs
            call(example)
        torch.cuda.synchronize()
        return captured(call, example) if mode.endswith("no-cudagraphs") else call

    return make


if __name__ == "__main__":
    sys.exit(main())
