"""A typed ONNX graph -> a TensorRT engine: FP16 where the graph is FP16, INT8 where it has Q/DQ pairs.

TensorRT works in a process of its own: what it takes and what it crashes on ends with that process, and `--timeout`
holds even where it does not look at the clock.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..backends.cuda_streams import first_gpu
from ..backends.trt_compatibility import MODULES
from ..console import say
from ..errors import BackendError, FileError, TkfnetError
from .tensorrt_layers import precision_counts
from .tensorrt_network import activation_bytes, unexpected_types
from .tensorrt_options import RTX, TensorRtOptions
from .tensorrt_worker import Outcome, run_build, timed_out, wanted_capabilities
from .timing_cache import timing_cache_path

# How long a cancelled build may take to notice.
GRACE_S = 15.0
DEFAULT_CACHE = "default"


@dataclass(frozen=True)
class Here:
    """The GPU of this machine. capability: "9.0". driver: 13000 is CUDA 13.0."""

    gpu: str
    capability: str
    driver: int


def gpu_here() -> Here | None:
    try:
        gpu = first_gpu()
    except BackendError:
        return None
    return Here(gpu.name, "{}.{}".format(*gpu.capability), gpu.driver_version)


def plan_from_onnx(
    graph: bytes, size: int, precision: str, options: TensorRtOptions, products: Sequence[str], log_path: str
) -> tuple[Outcome, dict[str, Any]]:
    """The built engine, and `facts["tensorrt"]` of its engine file (docs/engine-file.md).

    size: the side of the graph's input. products: convolutions asked for in int8. log_path: for TensorRT's whole log.
    `BackendError` where TensorRT cannot build it, or where the graph's types are not of `precision`.
    """
    here = check_target(options)
    options = _with_cache(options, here)
    outcome = _in_a_process(graph, size, precision, options, log_path, here, dry=False)
    _check_types(outcome, precision, products)
    counts = ", ".join(f"{count} {kind}" for kind, count in precision_counts(outcome.layers).items())
    say(f"{options.backend} {outcome.version}: {len(outcome.plan) / 1e6:.1f} MB, layers by what they read: {counts}")
    built_on = {"gpu": None, "capability": None, "driver": None} if here is None else vars(here)
    facts = {
        "module": MODULES[options.backend][0],
        "version": outcome.version,
        "capabilities": outcome.capabilities,
        **built_on,
        **options.facts(),
    }
    return outcome, facts


def examined(
    graph: bytes, size: int, precision: str, options: TensorRtOptions, products: Sequence[str], log_path: str
) -> dict[str, Any]:
    """What a dry run tells: layers by type, those in unexpected types, and memory in bytes. Nothing is built.

    `BackendError` where the parser refuses the graph.
    """
    here = gpu_here()
    outcome = _in_a_process(graph, size, precision, options, log_path, here, dry=True)
    kinds: dict[str, int] = {}
    for layer in outcome.network:
        if layer.from_node:
            kinds[layer.writes[0]] = kinds.get(layer.writes[0], 0) + 1
    return {
        "backend": options.backend,
        "version": outcome.version,
        "capabilities": outcome.capabilities,
        "profiles": options.profiles,
        "layers": len(outcome.network),
        "layers_by_type": dict(sorted(kinds.items())),
        "unexpected": unexpected_types(outcome.network, precision, products),
        "memory": {"graph": len(graph), "activations_at_most": activation_bytes(outcome.network)},
    }


def check_target(options: TensorRtOptions) -> Here | None:
    """The GPU of this machine, if there is one. `BackendError` where an engine of `options` could not be built for it,
    or for those that they name."""
    here = gpu_here()
    if options.backend == RTX:
        wanted_capabilities(importlib.import_module(MODULES[RTX][0]), options, here.capability if here else None)
    elif here is None:
        raise BackendError(
            f"backend tensorrt: TensorRT builds on the GPU that its engine is for, and none is here; build there, or "
            f"with --backend {RTX}, which needs none"
        )
    return here


def _with_cache(options: TensorRtOptions, here: Here | None) -> TensorRtOptions:
    """The default timing cache by its path."""
    if options.timing_cache != DEFAULT_CACHE:
        return options
    if options.backend == RTX or here is None:
        return replace(options, timing_cache=None)
    import tensorrt

    return replace(options, timing_cache=timing_cache_path(tensorrt.__version__, here.gpu, here.capability))


def _check_types(outcome: Outcome, precision: str, products: Sequence[str]) -> None:
    if found := unexpected_types(outcome.network, precision, products):
        listed = "; ".join(f"{name}: {what}" for name, what in found.items())
        raise BackendError(
            f"the typed graph is not {precision} throughout: {listed}; install the versions that constraints.txt names"
        )


def _in_a_process(
    graph: bytes, size: int, precision: str, options: TensorRtOptions, log_path: str, here: Here | None, dry: bool
) -> Outcome:
    # Spawned: a forked process could not use CUDA, nor torch's threads.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    work = (graph, size, precision, options, log_path, here.capability if here else None, dry)
    process = context.Process(target=_answer, args=(sender, *work), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(None if options.timeout_s is None else options.timeout_s + GRACE_S):
            raise timed_out(options)
        answer = receiver.recv()
    except EOFError:
        process.join()
        raise BackendError(
            f"{options.backend} ended its process ({process.exitcode}) while it built; see {log_path}, and report it "
            "to NVIDIA with that"
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _answer(sender: Any, *work: Any) -> None:
    """In the process of its own: the outcome, or why there is none."""
    try:
        sender.send(run_build(*work))
    except TkfnetError as error:
        sender.send(error)
    except OSError as error:
        sender.send(FileError(f"{error.filename}: TensorRT's log cannot be written: {error.strerror}; give --log"))
