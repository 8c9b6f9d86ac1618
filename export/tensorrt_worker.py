"""Parsing and building with TensorRT, in the process that calls it. `engine_from_onnx` calls it in one of its own."""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from ..backends.trt_compatibility import MODULES, known_capabilities
from ..errors import BackendError, UsageError
from .tensorrt_layers import Layer, layers_from_inspector, layers_from_log
from .tensorrt_log import log_to, progress_monitor
from .tensorrt_network import TypedLayer, parse, typed_layers
from .tensorrt_options import RTX, TensorRtOptions
from .timing_cache import add_to_cache, read_cache

INPUT = "images"
# It builds for the others on any machine, but cannot compile this network's float32 products for Turing (1.7).
_UNABLE = ((7, 5),)


@dataclass(frozen=True)
class Outcome:
    """Of a build or, with an empty plan, of a dry run. capabilities: that the plan is for."""

    plan: bytes
    layers: list[Layer]
    network: list[TypedLayer]
    version: str
    capabilities: list[str]


def supported_capabilities(trt: Any) -> list[str]:
    """Compute capabilities ("8.6") that TensorRT for RTX builds this network for."""
    return ["{}.{}".format(*found) for found in known_capabilities(trt) or () if found not in _UNABLE]


def wanted_capabilities(trt: Any, options: TensorRtOptions, here: str | None) -> list[str]:
    """What an engine of `options` is for: what they name, or this GPU (`here`, "9.0"), or every one that there is.

    `BackendError` for one that TensorRT for RTX does not know.
    """
    if options.backend != RTX:
        return [here] if here else []
    known = supported_capabilities(trt)
    wanted = list(options.capabilities) or ([here] if here else known)
    if unknown := [capability for capability in wanted if capability not in known]:
        raise BackendError(
            f"TensorRT for RTX {trt.__version__} builds this network for compute capabilities {', '.join(known)}, got "
            f"{', '.join(unknown)}; build with --backend fused, which is made for it, or with --backend tensorrt on "
            "that GPU"
        )
    return wanted


def run_build(
    graph: bytes, size: int, precision: str, options: TensorRtOptions, log_path: str, here: str | None, dry: bool
) -> Outcome:
    """Parses the graph, and unless `dry` builds the engine. log_path: replaced by TensorRT's whole log.

    size: the side of the input. here: this GPU's compute capability, or None. `BackendError` with TensorRT's reason.
    """
    trt = importlib.import_module(MODULES[options.backend][0])
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    capabilities = wanted_capabilities(trt, options, here)
    with open(log_path, "w", encoding="utf-8") as file:
        log = log_to(trt, file)
        builder = trt.Builder(log)
        network = parse(trt, builder, log, graph)
        layers = typed_layers(network, options.max_batch)
        if dry:
            return Outcome(b"", [], layers, trt.__version__, capabilities)
        config = _configured(trt, builder, options, precision, size, capabilities)
        config.progress_monitor = progress_monitor(trt, deadline)
        cache = _timing_cache(config, options)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise timed_out(options)
            reason = " ".join((log.errors or ["it gives no reason"])[0].split())
            raise BackendError(f"{trt.__name__} {trt.__version__} could not build the engine: {reason}; see {log_path}")
        if cache is not None:
            _keep(config, cache, options.timing_cache)
        plan = bytes(plan)
        built = layers_from_log(log.messages) if options.backend == RTX else _inspected(trt, log, plan)
    return Outcome(plan, built, layers, trt.__version__, capabilities)


def timed_out(options: TensorRtOptions) -> BackendError:
    return BackendError(
        f"building took longer than --timeout {options.timeout_s:g} s; give it more, or a lower --optimization-level"
    )


def _configured(
    trt: Any, builder: Any, options: TensorRtOptions, precision: str, size: int, capabilities: list[str]
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if precision == "float32":
        # Else products of an engine that says float32 would have ten bits of mantissa.
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.backend == RTX:
        # Else it allocates by itself while it runs, which a CUDA graph cannot capture (its release notes).
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            kind = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            config.set_compute_capability(kind, i)
    for shapes in options.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((shapes[which], size, size, 3) for which in ("min", "opt", "max")))
        if config.add_optimization_profile(profile) < 0:
            raise UsageError(f"batches: {trt.__name__} refuses the profile {asdict(options)}")
    return config


def _timing_cache(config: Any, options: TensorRtOptions) -> Any:
    """The cache that the build reads and adds to, or None."""
    if options.timing_cache is None:
        return None
    cache = config.create_timing_cache(read_cache(options.timing_cache)) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache


def _keep(config: Any, cache: Any, path: str) -> None:
    def merged(content: bytes) -> bytes:
        # What other builds have added meanwhile stays; one of another version is no cache, and is replaced.
        if content and (other := config.create_timing_cache(content)) is not None:
            cache.combine(other, True)
        return bytes(cache.serialize())

    add_to_cache(path, merged)


def _inspected(trt: Any, log: Any, plan: bytes) -> list[Layer]:
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return layers_from_inspector(json.loads(text)["Layers"])
