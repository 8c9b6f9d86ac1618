"""TensorRT as it is: which of its two libraries is here, and a plan run by its own calls over PyTorch's memory.

Nothing of `backends/trt*.py`, which is raced and judged beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_common import Call
from gpu_race import captured
from gpu_state import SMALL_MOST, tensorrt_file
from torch import Tensor

from tkfnet_engine import Engine
from tkfnet_engine.backends.registry import TENSORRT_PLAN
from tkfnet_engine.backends.trt_compatibility import MODULES
from tkfnet_engine.bundle import read_bundle

ONE_GRAPH = "one CUDA graph"


@dataclass(frozen=True)
class Library:
    """backend: of `tkfnet_engine.build`. module: imported."""

    backend: str
    module: Any

    def __str__(self) -> str:
        return f"{self.module.__name__} {self.module.__version__}"


def library() -> tuple[Library | None, list[str]]:
    """The first of the two that can be imported, and why one that is installed cannot."""
    broken = []
    for backend, (name, _) in MODULES.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return Library(backend, importlib.import_module(name)), broken
        except Exception as error:  # what lacks a library, or is for another Python, fails in ways of its own
            broken.append(f"{name} cannot be imported ({type(error).__name__}: {first_line(error)})")
    return None, broken


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


class TensorRtPlan:
    """A plan, deserialised. `RuntimeError` with TensorRT's first complaint, here and in every method."""

    def __init__(self, module: Any, plan: bytes):
        self.module, self._log = module, _log(module)
        self._runtime = module.Runtime(self._log)
        self.engine = self.checked(self._runtime.deserialize_cuda_engine(plan), "does not take the plan")

    def checked(self, answer: Any, what: str) -> Any:
        """`answer`, unless it is None or False, by which TensorRT says that it failed."""
        if answer is None or answer is False:
            said = (self._log.errors or ["it gives no reason"])[0].strip().partition("\n")[0]
            raise RuntimeError(f"{self.module.__name__} {self.module.__version__} {what}: {said}")
        return answer


class TensorRtContext:
    """An execution context at one batch. logits: float32 [batch, classes], where each run writes."""

    def __init__(self, plan: TensorRtPlan, batch: int, device: str = "cuda"):
        engine, self._plan = plan.engine, plan
        made = engine.create_execution_context(*_settings(plan.module, engine))
        self._context = plan.checked(made, "makes no execution context")
        shape = (batch, *tuple(engine.get_tensor_shape("images"))[1:])
        plan.checked(self._context.set_input_shape("images", shape), f"does not take a batch of {batch}")
        self.logits = torch.empty(batch, tuple(engine.get_tensor_shape("logits"))[-1], device=device)
        plan.checked(self._context.set_tensor_address("logits", self.logits.data_ptr()), "does not take an address")

    def enqueue(self, pixels: Tensor, stream: int) -> Tensor:
        """Queues one run on `stream`. pixels: uint8 [batch, S, S, 3], read where they stand."""
        fine = self._context.set_tensor_address("images", pixels.data_ptr())
        self._plan.checked(fine and self._context.execute_async_v3(stream), "does not run")
        return self.logits

    def capturable(self, stream: int) -> bool:
        """Only TensorRT for RTX can be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or ask(stream)


def _settings(module: Any, engine: Any) -> tuple[Any, ...]:
    """For TensorRT for RTX, which otherwise compiles in the background and runs other kernels meanwhile."""
    if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
        return ()
    config = engine.create_runtime_config()
    kinds = module.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
    return (config,)


def _log(module: Any) -> Any:
    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        # TensorRT calls it from threads of its own.
        def log(self, severity: Any, msg: str) -> None:
            kinds = module.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self.errors.append(msg)
                print(msg, file=sys.stderr, flush=True)

    return Log()


# --- in the race -----------------------------------------------------------------------------------------


def engine_path(out: Path, precision: str, batch: int) -> Path:
    """The engine file for a batch: it was built for that of 1, or for that of 256."""
    return out / tensorrt_file(precision, "small" if batch <= SMALL_MOST else "large")


class Rival:
    """TensorRT's engine of one precision at one batch. call: by TensorRT's own calls; how: in which way; library: whose
    and which version; path: the engine file."""

    def __init__(self, out: Path, precision: str, batch: int, example: Tensor):
        self.path = engine_path(out, precision, batch)
        bundle = read_bundle(self.path)
        module = importlib.import_module(MODULES[bundle.facts["backend"]][0])
        self.library = f"{module.__name__} {module.__version__}"
        context = TensorRtContext(TensorRtPlan(module, bytes(bundle.pop(TENSORRT_PLAN))), batch)
        self.call, self.how = in_a_graph(context, example)


def in_a_graph(context: TensorRtContext, example: Tensor) -> tuple[Call, str]:
    """A run as one CUDA graph or, where it cannot be captured, queued call by call; and which of the two."""

    def enqueue(pixels: Tensor) -> Tensor:
        return context.enqueue(pixels, torch.cuda.current_stream().cuda_stream)

    enqueue(example)  # what belongs to the first run of a batch is not captured
    torch.cuda.synchronize()
    if not context.capturable(torch.cuda.current_stream().cuda_stream):
        return enqueue, "queued: TensorRT says that it cannot be captured"
    try:
        return captured(enqueue, example), ONE_GRAPH
    except Exception as error:
        torch.cuda.synchronize()
        return enqueue, f"queued: capturing failed: {type(error).__name__}: {first_line(error)}"


def on_device(engine: Engine, batch: int, stream: int) -> Call:
    """`Engine.logits_on_device`, as a user calls it."""
    logits = torch.empty(batch, len(engine.labels), device="cuda")

    def call(pixels: Tensor) -> Tensor:
        engine.logits_on_device(pixels, logits, stream)
        return logits

    return call


def unlike(rival: Call, ours: Call, pixels: Tensor) -> str | None:
    """Why `ours` is not what TensorRT answers by itself, where that always answers the same; None if it is."""
    first, again = rival(pixels).clone(), rival(pixels).clone()
    got = ours(pixels)
    if torch.equal(first, got) or not torch.equal(first, again):
        return None
    return f"logits_on_device and TensorRT's own calls differ by up to {(first - got).abs().max().item():.3g}"
