"""What the parts share: their flags, engine files taken apart, the faces, the folded network, timing by events."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_state import ENGINES, FACES
from torch import Tensor

from tkfnet_engine.backends.cuda_driver import Gpu
from tkfnet_engine.backends.cuda_graph import BucketGraph, Kernel
from tkfnet_engine.backends.fused import chosen_arch
from tkfnet_engine.build import reference_checkpoint
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.export.cubins_from_plan import Cubin
from tkfnet_engine.kernels.chips import ARCHS
from tkfnet_engine.kernels.plan import SPACES, Plan
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import FoldedTKFNet, fold


def part_parser(description: str) -> argparse.ArgumentParser:
    """The flags that run.py gives to every part."""
    p = argparse.ArgumentParser(description=description.partition("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="where the engine and the faces are")
    p.add_argument("--result", type=Path, required=True, help="JSON to write")
    p.add_argument("--seconds", type=float, default=540.0, help="the part is stopped after so long")
    p.add_argument("--checkpoint", default=reference_checkpoint(), help="whose network")
    return p


def add_precision(p: argparse.ArgumentParser) -> None:
    p.add_argument("--precision", choices=ENGINES, default="float16", help="of the engine (default float16)")


def add_took(p: argparse.ArgumentParser) -> None:
    p.add_argument("--took", type=lambda names: names.split(","), default=[], help="what is done of `Part.takes`")


def this_arch() -> str:
    """The architecture of kernels for this GPU: "sm_90"."""
    return chosen_arch(torch.cuda.get_device_capability(), list(ARCHS), torch.cuda.get_device_name())


def exact_float32() -> None:
    """The judge computes in float32, not in TF32, and sums FP16 products in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def exact_products() -> None:
    """Convolutions of whole numbers come out whole: cuDNN's transforms (Winograd, FFT) do not leave them so."""
    torch.backends.cudnn.enabled = False


@dataclass(frozen=True)
class Faces:
    """pixels: uint8 [N, S, S, 3]; logits: the float32 reference's, [N, classes]."""

    pixels: np.ndarray
    logits: np.ndarray

    @classmethod
    def read(cls, out: Path) -> Faces:
        with np.load(out / FACES) as held:
            return cls(held["pixels"], held["logits"])


@dataclass(frozen=True)
class EngineParts:
    """What an engine file holds for one architecture. plans: by batch; cubins: by variant; kept_float: the units that
    stay FP16 where the rest is in eight bits."""

    plans: dict[int, Plan]
    cubins: dict[str, Cubin]
    weights: bytes
    kept_float: tuple[str, ...] = ()

    @classmethod
    def read(cls, out: Path, arch: str, precision: str = "float16") -> EngineParts:
        bundle = read_bundle(out / ENGINES[precision])
        index = json.loads(bytes(bundle.pop(f"cubins/{arch}/index")))["cubins"]
        codes = {variant: bytes(bundle.pop(f"cubins/{arch}/{variant}")) for variant in index}
        cubins = {variant: Cubin(code=codes[variant], ptx="", **facts) for variant, facts in index.items()}
        named = [name for name in bundle.names() if name.startswith(f"plans/{arch}/")]
        plans = [Plan.from_json(bytes(bundle.pop(name))) for name in named]
        kept = tuple(bundle.facts.get("quantisation", {}).get("kept_float", ()))
        return cls({plan.batch: plan for plan in plans}, cubins, bytes(bundle.pop("weights.packed")), kept)


def folded_network(checkpoint: str, half: bool) -> FoldedTKFNet:
    """The folded network on the GPU, channels-last, as backends/eager.py runs it."""
    loaded = load_checkpoint(checkpoint)
    network = fold(loaded.model, loaded.preprocessing)
    if half:
        network.half()
    return network.to("cuda").to(memory_format=torch.channels_last)


class PlanReplay:
    """A plan as one CUDA graph over PyTorch's memory, by the classes that engines use. The context must be current."""

    def __init__(self, parts: EngineParts, plan: Plan):
        self.plan, self._gpu, self._capture = plan, Gpu(), torch.cuda.Stream()
        nbytes = {space: max(plan.nbytes(space), 256) for space in SPACES}
        self._memory = {s: torch.zeros(n, dtype=torch.uint8, device="cuda") for s, n in nbytes.items()}
        blob = torch.frombuffer(bytearray(parts.weights), dtype=torch.uint8)
        self._memory["weights"][: len(blob)] = blob.to("cuda")
        torch.cuda.synchronize()
        kernels = {launch.variant: self._kernel(parts.cubins[launch.variant], launch.warps) for launch in plan.launches}
        base = {space: memory.data_ptr() for space, memory in self._memory.items()}
        self._graph = BucketGraph(self._gpu, plan, kernels, base, self._capture.cuda_stream)

    def _kernel(self, cubin: Cubin, warps: int) -> Kernel:
        _, function = self._gpu.function(cubin.code, cubin.entry, cubin.shared_bytes, 32 * warps)
        return Kernel(function, cubin.shared_bytes)

    def replay(self, stream: int, pixels: int, logits: int) -> None:
        """Queues one run on `stream`; pixels, logits: device addresses."""
        self._graph.replay(stream, pixels, logits, self.plan.batch)


# --- timing ----------------------------------------------------------------------------------------------

Call = Callable[[Tensor], Tensor]
# Work between two events: long beside their resolution (half a microsecond) and the way of the first call to the GPU.
BLOCK_US = 4000.0
MOST_IN_A_BLOCK = 200
WARM_UP_US = 200_000.0


def block_us(call: Call, inputs: Sequence[Tensor], count: int) -> float:
    """Microseconds per call of `count` calls on the current stream, the inputs in turn."""
    stream = torch.cuda.current_stream()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    for i in range(count):
        call(inputs[i % len(inputs)])
    end.record(stream)
    end.synchronize()
    return begin.elapsed_time(end) * 1e3 / count


def queueing_us(call: Call, inputs: Sequence[Tensor], count: int = 20) -> float:
    """Microseconds that the CPU takes to queue a call. Where the GPU takes less, this is what `block_us` measures."""
    taken = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(count):
            call(inputs[i % len(inputs)])
        taken.append((time.perf_counter() - start) * 1e6 / count)
    torch.cuda.synchronize()
    return round(statistics.median(taken), 2)


def interleaved(
    calls: dict[str, Call], inputs: dict[str, Sequence[Tensor]], rounds: int, samples: int
) -> dict[str, list[list[float]]]:
    """By name, for each round the microseconds of `samples` blocks of calls. In a round each has its turn, and the
    order turns with the rounds, so that a drift of the machine touches all."""
    sizes = {name: _warm(call, inputs[name]) for name, call in calls.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            # Not counted: what ran before left other clocks and caches.
            block_us(calls[name], inputs[name], sizes[name])
            blocks = [block_us(calls[name], inputs[name], sizes[name]) for _ in range(samples)]
            taken[name].append(blocks)
    return taken


def _warm(call: Call, inputs: Sequence[Tensor]) -> int:
    """Runs for a while; how many calls make a block."""
    block_us(call, inputs, max(3, len(inputs)))
    once, spent = block_us(call, inputs, 3), 0.0
    while spent < WARM_UP_US:
        once = block_us(call, inputs, 3)
        spent += 3 * max(once, 10.0)
    return int(min(MOST_IN_A_BLOCK, max(1, -(-BLOCK_US // max(once, 1.0)))))


def spread(rounds: list[list[float]], batch: int) -> dict[str, Any]:
    """The figures of one engine: microseconds per batch, and images per second at the median."""
    values = [value for blocks in rounds for value in blocks]
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    median = statistics.median(values)
    return {
        "median_us": round(median, 3),
        "p10_us": round(tenths[0], 3),
        "p90_us": round(tenths[-1], 3),
        "samples": len(values),
        "images_per_s": round(batch / median * 1e6, 1),
    }


def times_as_long(other: list[list[float]], ours: list[list[float]]) -> dict[str, float]:
    """How many times as long `other` takes: the median of the rounds' ratios, the lowest and the highest."""
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, other, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }
