"""A TensorRT plan, deserialised: its inputs and outputs checked, execution contexts made from it and queued.

TensorRT answers with None or False where it fails, and says why in its log: here both become one error.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from ..errors import BackendError, BundleError
from .cuda_driver import OutOfMemory, poisoned
from .trt_compatibility import RTX_MODULE, PlanFacts
from .trt_runtime_cache import RuntimeCache

INPUT, OUTPUT = "images", "logits"


class TrtEngine:
    """One engine, and what its contexts have in common. The GPU's context must be current, here and in every method.

    scratch_bytes: of device memory that a context works in.
    """

    def __init__(self, module: Any, plan: Any, facts: PlanFacts, size: int, classes: int, cache_path: str | None):
        """module: `tensorrt` or `tensorrt_rtx`. plan: bytes-like. cache_path: TensorRT for RTX keeps there what it
        compiles. `BackendError` with TensorRT's reason, `BundleError` if the plan is not of these facts."""
        self._module, self._facts, self.size = module, facts, size
        self._log = _log(module)
        try:
            self._runtime = module.Runtime(self._log)
        except (TypeError, RuntimeError):  # what its constructor makes of a null pointer
            raise self.failure("cannot start") from None
        if facts.version_compatible:
            # Such a plan carries the runtime that it was built for. Whether to run it was asked before.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.failure("does not take this engine's plan")
        self._check_tensors(classes)
        sizes = ("device_memory_size_v2", "device_memory_size")
        self.scratch_bytes = int(next(getattr(self._engine, name) for name in sizes if hasattr(self._engine, name)))
        self.cache: RuntimeCache | None = None
        # What a context is made from: a strategy, or for RTX a configuration that holds the strategy and the cache.
        self._how = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if module.__name__ == RTX_MODULE:
            self._how = self._configuration(cache_path)

    def _configuration(self, cache_path: str | None) -> Any:
        module, config = self._module, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # the graphs are ours
        # By default kernels for a new batch are compiled in the background, and a graph would keep those that stand in
        # for them until then.
        kinds = module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        self.cache = RuntimeCache(config, cache_path)
        return config

    def _check_tensors(self, classes: int) -> None:
        engine, module, size = self._engine, self._module, self.size
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        wanted = {
            INPUT: (module.TensorIOMode.INPUT, module.DataType.UINT8, (size, size, 3)),
            OUTPUT: (module.TensorIOMode.OUTPUT, module.DataType.FLOAT, (classes,)),
        }
        wrong = [] if sorted(names) == sorted(wanted) else [f"it has {', '.join(names) or 'none'}"]
        for name in wanted.keys() & set(names):
            mode, dtype, shape = wanted[name]
            found = tuple(engine.get_tensor_shape(name))
            if (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) != (mode, dtype) or found[1:] != shape:
                kind = engine.get_tensor_dtype(name).name.lower()
                wrong.append(f"{name} is {kind} {list(found)}")
            elif found[0] not in (-1, self._facts.most) or (found[0] != -1 and not self._facts.static):
                wrong.append(f"{name} is for {found[0]} images")
        wrong = wrong or self._check_profiles()
        if wrong:
            batches = ", ".join(f"{p.least} to {p.most}" for p in self._facts.profiles)
            raise BundleError(
                f"the plan's inputs and outputs are not the engine file's: {'; '.join(wrong)}; expected {INPUT} uint8 "
                f"[N, {size}, {size}, 3] and {OUTPUT} float [N, {classes}], N in profiles {batches}; it was put "
                "together from several builds: build it again",
                "plan",
            )

    def _check_profiles(self) -> list[str]:
        """What is wrong with the ranges of the plan's profiles."""
        if self._engine.get_tensor_shape(INPUT)[0] != -1:
            return []
        count, wanted = self._engine.num_optimization_profiles, self._facts.profiles
        found = [tuple(s[0] for s in self._engine.get_tensor_profile_shape(INPUT, i)) for i in range(count)]
        if found == [(p.least, p.best, p.most) for p in wanted]:
            return []
        return [f"its profiles are {', '.join(f'{least} to {most}' for least, _, most in found)}"]

    # --- contexts ------------------------------------------------------------------------------------------

    def context(self, profile: int, scratch: int, stream: int) -> Any:
        """A new execution context on a profile, working in `scratch_bytes` at the address `scratch`. stream: idle.

        What it has queued must be done before anything else uses that memory. `OutOfMemory`, `BackendError`.
        """
        made = self._engine.create_execution_context(self._how)
        if made is None:
            raise self.failure("cannot make an execution context")
        if hasattr(made, "set_device_memory"):
            made.set_device_memory(scratch, self.scratch_bytes)
        else:
            made.device_memory = scratch
        if len(self._facts.profiles) > 1 and not made.set_optimization_profile_async(profile, stream):
            raise self.failure(f"does not take profile {profile}")
        return made

    def bind(self, context: Any, images: int, pixels: int, logits: int) -> None:
        """Sets the number of images, and the device addresses to read from and to write to."""
        fine = context.set_input_shape(INPUT, (images, self.size, self.size, 3))
        fine = fine and context.set_tensor_address(INPUT, pixels) and context.set_tensor_address(OUTPUT, logits)
        if not fine:
            raise self.failure(f"does not take {images} images")

    def enqueue(self, context: Any, stream: int) -> None:
        """Queues what `bind` has set."""
        if not context.execute_async_v3(stream):
            raise self.failure("cannot run")

    def profiler(self) -> Any:
        """An `IProfiler`. times: (layer, milliseconds) as they were reported."""
        return _profiler(self._module)

    def layers(self) -> list[dict[str, Any]]:
        """What the engine's inspector tells of each layer; only its `Name` where the plan was built to tell no more."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._module.LayerInformationFormat.JSON)
        try:
            found = json.loads(text)["Layers"]
        except (ValueError, KeyError, TypeError):
            raise self.failure("does not tell the engine's layers") from None
        return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in found]

    def failure(self, what: str) -> BackendError:
        """The error that TensorRT has logged, or the driver's, if that has ended everything. what: "cannot run"."""
        if reason := poisoned():
            return BackendError(reason)
        line = self._log.first_error()
        kind = OutOfMemory if "outofmemory" in line.lower().replace(" ", "") else BackendError
        remedy = "free GPU memory, or build it with a smaller --max-batch" if kind is OutOfMemory else (
            "build it again for this machine, or use another --backend"
        )  # fmt: skip
        return kind(f"{self._facts.product} {what}: {line}; {remedy}")

    def close(self) -> None:
        """Frees the engine. All contexts must be gone."""
        self._how = self.cache = self._engine = self._runtime = None


def _log(module: Any) -> Any:
    class Log(module.ILogger):
        """The last errors and warnings; nothing is printed. May be called by several threads."""

        def __init__(self):
            module.ILogger.__init__(self)
            self._errors, self._warnings = deque(maxlen=32), deque(maxlen=32)

        def log(self, severity: Any, msg: str) -> None:
            kinds = module.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self._errors.append(msg)
            elif severity == kinds.WARNING:
                self._warnings.append(msg)

        def first_error(self) -> str:
            """The first line of the first error since the last call, or else of the last warning."""
            lines = [*self._errors] or [*self._warnings][-1:]
            self._errors.clear()
            self._warnings.clear()
            return (lines[0].strip().splitlines() or [""])[0] if lines else "it gave no reason"

    return Log()


def _profiler(module: Any) -> Any:
    class Profiler(module.IProfiler):
        def __init__(self):
            module.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, float(ms)))

    return Profiler()
