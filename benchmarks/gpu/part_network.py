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
    tensorrt        TensorRT's engine in FP16 by TensorRT's own calls, in a CUDA graph; the next input is copied in
    tensorrt_int8   the same in INT8
    tensorrt_call   `Engine.logits_on_device` of the engine file that holds TensorRT's in FP16

Each answers rendered faces first; one that errs gets no time. Compiling takes minutes: what needs none is timed and
written before, and all together after. Engines in eight bits and TensorRT's are there where their builds are done.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_common import Call, EngineParts, Faces, PlanReplay, add_took, folded_network, part_parser, this_arch
from gpu_race import EIGHT_BITS, TENSORRT, TENSORRT_CALL, Race, captured, random_inputs
from gpu_state import BUILDS, ENGINES, RIGHT, TENSORRT_BUILDS, WRONG, write_json
from gpu_tensorrt import Rival, engine_path, on_device, unlike
from torch import Tensor

from tkfnet_engine import Engine

ROUNDS, SAMPLES = 7, 8
HOST_SAMPLES = 60
# Compilation for a second form is not begun with less time left.
SECOND_COMPILE_S = 120.0


class Ours:
    """One of our engines at one batch, on `stream`: `replay` its graph, and `call` it as a user does."""

    def __init__(self, out: Path, precision: str, batch: int, stream: int):
        parts = EngineParts.read(out, this_arch(), precision)
        self.engine, self._stream = Engine.load(out / ENGINES[precision]), stream
        self._replay = PlanReplay(parts, parts.plans[batch])
        self._logits = torch.empty(batch, len(self.engine.labels), device="cuda")
        self.call = on_device(self.engine, batch, stream)

    def replay(self, pixels: Tensor) -> Tensor:
        self._replay.replay(self._stream, pixels.data_ptr(), self._logits.data_ptr())
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


def enter_tensorrt(
    race: Race, took: Sequence[str], make: Callable[[str], Rival], load: Callable[[], Call], example: Tensor
) -> None:
    """Enters TensorRT's engines that were built. make: precision -> one by TensorRT's own calls. load: the one in FP16
    as our package runs it."""
    rivals: dict[str, Rival] = {}
    for name, precision in TENSORRT.items():
        if TENSORRT_BUILDS[precision] not in took:
            race.left_out[name] = f"left out: {TENSORRT_BUILDS[precision]} is not done"
            continue

        def made(name: str = name, precision: str = precision) -> Call:
            rivals[name] = rival = make(precision)
            race.notes[name] = {"library": rival.library, "how": rival.how}
            return rival.call

        race.enter(name, made)
    if TENSORRT_BUILDS["float16"] not in took:
        race.left_out[TENSORRT_CALL] = race.left_out["tensorrt"]
        return

    def ours() -> Call:
        call, rival = load(), rivals.get("tensorrt")
        if rival is not None and (why := unlike(rival.call, call, example)):
            raise RuntimeError(why)
        return call

    race.enter(TENSORRT_CALL, ours)


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

    def tensorrt_call() -> Call:
        # This run has built it; in a container of another name the package would not know that.
        opened = Engine.load(engine_path(args.out, "float16", batch), trusted=True)
        return on_device(opened, batch, stream.cuda_stream)

    enter_tensorrt(race, args.took, lambda of: Rival(args.out, of, batch, inputs[0]), tensorrt_call, inputs[0])

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
            for name in ("fused", *EIGHT_BITS, *TENSORRT)
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
