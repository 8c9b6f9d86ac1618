"""A stand-in for `tensorrt` and `tensorrt_rtx` over the stand-in driver. Children import it.

Its engines launch the kernels of fake_cuda.c: answers, order and addresses are what the "GPU" computed. It is stricter
than TensorRT: an address that is not aligned, a batch outside of the context's profile, a capture without a plain run
of that batch before it, or a change to a context that a graph was captured from, all fail.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
from cuda.bindings import driver
from fake_cuda import BIAS, CLASSES, SIGNATURES, SIZE, STEP, answers, artefacts, faces, facts

IMAGE_BYTES = SIZE * SIZE * 3
VERSION = "1.7.1.116"
LAYERS = {"Layers": [{"Name": "conv", "LayerType": "Convolution"}, "classify"], "Bindings": ["images", "logits"]}


def note(**entry: object) -> None:
    """One more line in the log of the stand-in driver."""
    with open(os.environ["FAKE_CUDA_LOG"], "a") as file:
        file.write(json.dumps(entry) + "\n")


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self):
        self.ready = True


class IProfiler:
    def __init__(self):
        self.ready = True


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class DataType(Enum):
    FLOAT, HALF, INT8, INT32, UINT8 = range(5)


class ExecutionContextAllocationStrategy(Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class CudaGraphStrategy(Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY, EAGER, NONE = range(3)


class LayerInformationFormat(Enum):
    ONELINE, JSON = range(2)


class ComputeCapability(Enum):
    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = range(8)


def plan_of(profiles: list[tuple[int, int, int]], **changes: object) -> bytes:
    """A "plan". Profiles of one batch only make it static."""
    static = len(profiles) == 1 and profiles[0][0] == profiles[0][2]
    batch = profiles[0][2] if static else -1
    tensors = {"images": ["INPUT", "UINT8", [batch, SIZE, SIZE, 3]], "logits": ["OUTPUT", "FLOAT", [batch, CLASSES]]}
    return json.dumps({"profiles": profiles, "tensors": tensors, "host_code": False, "wrong": 0} | changes).encode()


class Runtime:
    def __init__(self, log: ILogger):
        assert log.ready
        note(runtime=True)
        self.engine_host_code_allowed, self._log = False, log
        if BEHAVIOUR.no_runtime:
            log.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
        self._log.log(Severity.WARNING, "a warning before it\nof two lines")
        try:
            found = json.loads(bytes(plan))
            if found["host_code"] and not self.engine_host_code_allowed:
                raise ValueError
        except ValueError:
            self._log.log(Severity.INFO, "some news")
            self._log.log(Severity.ERROR, "deserializeCudaEngine: Error Code 1: Serialization (magic tag)\nmore")
            self._log.log(Severity.ERROR, "a later error")
            return None
        return CudaEngine(found, self._log)


class _OnGpu:
    """Memory of the driver's, freed with the object. As the CUDA runtime, which TensorRT uses, it holds the primary
    context meanwhile."""

    def __init__(self, nbytes: int):
        status, address = driver.cuMemAlloc(nbytes)
        assert not status, f"no context is current: {status}"
        self.context, self.address = driver.cuDevicePrimaryCtxRetain(0)[1], int(address)

    def __del__(self):
        if hasattr(self, "context") and not sys.is_finalizing():
            driver.cuCtxPushCurrent(self.context)
            driver.cuMemFree(self.address)
            driver.cuCtxPopCurrent()
            driver.cuDevicePrimaryCtxRelease(0)


class CudaEngine:
    device_memory_size_v2 = 2 * STEP

    def __init__(self, plan: dict, log: ILogger):
        self.plan, self.log, self.contexts, self.streams = plan, log, 0, set()
        self._weights = _OnGpu(1024)
        self.counters, self.weights = self._weights.address, self._weights.address + 256
        ctypes.memset(self.counters, 0, 1024)
        ctypes.c_int32.from_address(self.weights).value = BIAS + plan["wrong"]
        self.functions = {}
        for name, signature in SIGNATURES.items():
            status, module = driver.cuModuleLoadData(f"{name} {signature}\0".encode())
            assert not status
            self.functions[name] = (module, driver.cuModuleGetFunction(module, name.encode())[1])

    def __del__(self):
        if not sys.is_finalizing():
            driver.cuCtxPushCurrent(self._weights.context)
            for module, _ in self.functions.values():
                driver.cuModuleUnload(module)
            driver.cuCtxPopCurrent()

    @property
    def num_io_tensors(self) -> int:
        return len(self.plan["tensors"])

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.plan["tensors"])[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self.plan["tensors"][name][0]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.plan["tensors"][name][1]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.plan["tensors"][name][2])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(n, *self.plan["tensors"][name][2][1:]) for n in self.plan["profiles"][index]]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: object) -> Context | None:
        managed = ExecutionContextAllocationStrategy.USER_MANAGED
        if BEHAVIOUR.rtx:
            settings = (how.strategy, how.cuda_graph_strategy, how.dynamic_shapes_kernel_specialization_strategy)
            eager = DynamicShapesKernelSpecializationStrategy.EAGER
            assert settings == (managed, CudaGraphStrategy.DISABLED, eager), settings
            if not how.cache.compiled:
                note(compiled=True)
                how.cache.compiled = True
        else:
            assert how is managed
        self.contexts += 1
        if self.contexts > BEHAVIOUR.contexts:
            self.log.log(Severity.ERROR, "createExecutionContext: Error Code 2: OutOfMemory (Requested 9 bytes.)")
            return None
        return (RtxContext if BEHAVIOUR.rtx else Context)(self)

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda form: BEHAVIOUR.layers)


class RuntimeCache:
    def __init__(self):
        self.compiled = False

    def deserialize(self, blob: bytes) -> bool:
        self.compiled = bytes(blob) == b"compiled"
        return self.compiled

    def serialize(self) -> memoryview:
        return memoryview(b"compiled" if self.compiled else b"nothing yet")


class RuntimeConfig:
    def __init__(self):
        self.strategy, self.cache = ExecutionContextAllocationStrategy.STATIC, None
        self.cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Context:
    """profiler, enqueue_emits_profile: as TensorRT's."""

    def __init__(self, engine: CudaEngine):
        self.engine, self._own = engine, _OnGpu(64)
        self._profile, self._captured, self._settled = 0, False, None
        self._state: dict[str, object] = {}
        self.profiler, self.enqueue_emits_profile, self._measured = None, True, 0

    def _fail(self, text: str) -> bool:
        self.engine.log.log(Severity.ERROR, text)
        return False

    def _set(self, key: str, value: object) -> bool:
        assert not self._captured or self._state[key] == value, "a graph's context was changed"
        self._state[key] = value
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == CudaEngine.device_memory_size_v2 and address % 256 == 0
        self._set("memory", address)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        note(profile=index, context=self._own.address)
        self._profile = index
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.plan["profiles"][self._profile]
        if name != "images" or not least <= shape[0] <= most or shape[1:] != (SIZE, SIZE, 3):
            return self._fail(f"setInputShape: Error Code 3: API Usage Error ({name} {shape})")
        return self._set("batch", shape[0])

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            return self._fail("setTensorAddress: Error Code 3: API Usage Error (alignment)")
        return self._set(name, address)

    def execute_async_v3(self, stream: int) -> bool:
        state, engine = self._state, self.engine
        if engine.plan.get("fails"):
            return self._fail("enqueueV3: Error Code 1: Cuda Runtime (an error of the plan's)")
        batch, memory = state["batch"], state["memory"]
        capturing = int(driver.cuStreamIsCapturing(stream)[1])
        if capturing and (self._settled != batch or BEHAVIOUR.no_capture):
            return self._fail("enqueueV3: Error Code 1: Cuda Runtime (not permitted when stream is capturing)")
        work = {
            "pack_pixels_kernel": (state["images"], memory, batch, batch, IMAGE_BYTES),
            "conv_kernel": (memory, engine.weights, memory + STEP, engine.counters, batch),
            "classify_kernel": (memory + STEP, state["logits"], batch, CLASSES),
        }
        for name, arguments in work.items():
            if status := self._launch(name, arguments, stream):
                return self._fail(f"enqueueV3: Error Code 1: Cuda Runtime ({status})")
        self._captured, self._settled = self._captured or bool(capturing), batch
        engine.streams.add(stream)
        return True

    def __del__(self):
        if not sys.is_finalizing():
            driver.cuCtxPushCurrent(self._own.context)
            if any(int(driver.cuStreamQuery(stream)[0]) == 600 for stream in self.engine.streams):
                note(busy="a context went while the engine had work to do")
            driver.cuCtxPopCurrent()

    def _launch(self, name: str, arguments: tuple[int, ...], stream: int) -> int:
        kinds = {"p": ctypes.c_uint64, "i": ctypes.c_int32}
        values = [kinds[kind](value) for kind, value in zip(SIGNATURES[name], arguments, strict=True)]
        values += [ctypes.c_uint64(0)] * 2
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        config = driver.CUlaunchConfig()
        config.gridDimX = config.gridDimY = config.gridDimZ = config.blockDimY = config.blockDimZ = 1
        config.blockDimX, config.hStream = 32, stream
        return int(driver.cuLaunchKernelEx(config, self.engine.functions[name][1], ctypes.addressof(pointers), 0)[0])

    def report_to_profiler(self) -> bool:
        assert self.profiler.ready and not self.enqueue_emits_profile
        first, self._measured = self._measured == 0, self._measured + 1
        for name, ms in (("conv", 100 if first else self._measured), ("classify", 0.5)):
            self.profiler.report_layer_time(name, ms)
        return True


class RtxContext(Context):
    def is_stream_capturable(self, stream: int) -> bool:
        return BEHAVIOUR.capturable


BEHAVIOUR = SimpleNamespace()


def install(backend: str = "tensorrt-rtx", version: str = VERSION, **changes: object) -> ModuleType:
    """Puts the stand-in where `import` finds it. changes: of what BEHAVIOUR is by default."""
    normal = {"contexts": 1000, "capturable": True, "no_capture": False, "no_runtime": False}
    vars(BEHAVIOUR).update(normal | {"layers": json.dumps(LAYERS), "rtx": backend == "tensorrt-rtx"} | changes)
    name = backend.replace("-", "_")
    module = ModuleType(name)
    module.__spec__, module.__version__ = ModuleSpec(name, None), version
    for kind in (
        *(ILogger, IProfiler, Runtime, TensorIOMode, DataType, ExecutionContextAllocationStrategy),
        *(CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, LayerInformationFormat, ComputeCapability),
    ):
        setattr(module, kind.__name__, kind)
    sys.modules[name] = module
    return module


def trt_facts(backend: str, profiles: list[tuple[int, int, int]], **changes: object) -> dict:
    """An engine file's facts. changes: of `facts["tensorrt"]`."""
    tensorrt = {
        "version": VERSION,
        "driver": None,
        "gpu": None,
        "capability": None,
        "capabilities": ["8.6"],
        "profiles": [dict(zip(("min", "opt", "max"), p)) for p in profiles],
        "options": {"version_compatible": False, "hardware_compatible": False},
    }
    most = max((p[2] for p in profiles), default=1)
    about = {"backend": backend, "hardware": {"machine": platform.machine()}, "tensorrt": tensorrt | changes}
    return facts(most) | about


def trt_tensors(plan: bytes, golden: int = 5) -> dict[str, np.ndarray]:
    pixels = faces(golden, seed=99)
    made = {"tensorrt/plan": np.frombuffer(plan, np.uint8), "golden/pixels": pixels, "golden/logits": answers(pixels)}
    return made | {"graph.onnx": np.zeros(3, np.uint8)}


FOUR = [(1, 2, 4)]


def trt_opened(profiles: list = FOUR, backend: str = "tensorrt-rtx", plan: bytes = b"", **changes: object):
    """A runner, opened as an engine file's is."""
    from tkfnet_engine.backends.registry import open_backend

    held = artefacts(trt_tensors(plan or plan_of(profiles)))
    return open_backend(backend, trt_facts(backend, profiles, **changes), held, "cuda", None)
