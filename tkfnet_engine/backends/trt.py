"""A TensorRT plan on an NVIDIA GPU: of the full TensorRT, or of TensorRT for RTX, which compiles the rest here.

Needs the library that built the plan, NVIDIA's driver, and `cuda-bindings` or PyCUDA, which has no CUDA graphs: with it
small batches take longer. PyTorch is not needed. A plan is a program: `Engine.load` asks whether to trust it.
"""

from __future__ import annotations

import importlib
import platform
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError, BundleError, UsageError
from .cuda_streams import StreamGpu, first_gpu
from .device_array import stream_handle
from .device_request import device_request
from .golden import LOGITS, PIXELS, check_answer
from .registry import CLOSED, TENSORRT_PLAN, Artefacts
from .session_pool import SessionPool
from .trt_compatibility import RTX_MODULE, Here, PlanFacts, check_compatible, known_capabilities, rebuild_command
from .trt_engine import TrtEngine
from .trt_runtime_cache import runtime_cache_path
from .trt_session import ALIGNMENT, Limits, TrtSession, free_objects

# As a build demands of the whole verification set. In eight bits the answers are those of another runtime on the same
# graph, which rounds elsewhere.
REQUIRED_SQNR_DB = {"float32": 60.0, "float16": 40.0, "int8": 20.0}


class TrtRunner:
    """`registry.Runner` on the first visible GPU, `run_device` for what is there already, and what the engine tells of
    its layers. Any number of threads may call; as many requests run at once as the plan has profiles."""

    def __init__(self, resources: _Resources):
        self._resources: _Resources | None = resources
        # At the end of the process the driver frees everything by itself.
        self._free = weakref.finalize(self, resources.close)
        self._free.atexit = False

    def run(self, images: np.ndarray) -> np.ndarray:
        """As `registry.Runner.run`. Fewer images than the plan takes are padded. `BackendError` for more."""
        held = self._held()
        held.check_count(len(images), 1)
        with held.gpu, held.pool.lend() as session:
            return session.run(images)

    def run_device(self, pixels: Any, logits: Any = None, stream: Any = None) -> Any:
        """As `fused.FusedRunner.run_device`, but that both arrays must start at multiples of 256 bytes, as every array
        of its own memory does, and that `BackendError` also meets fewer images than the plan takes: there is no memory
        to pad them in."""
        held, handle = self._held(), stream_handle(stream)
        with held.gpu as gpu:
            request = device_request(
                gpu,
                held.size,
                held.limits.classes,
                pixels,
                logits,
                handle,
                lambda count: held.check_count(count, held.limits.least),
                ALIGNMENT,
            )
            with held.pool.lend(handle) as session:
                session.queue(handle, request.pixels, request.logits, request.images)
        return request.answer

    def profile(self, batch: int, runs: int) -> list[tuple[str, float]]:
        """Each layer in the order in which they run, and its median milliseconds over `runs` runs of `batch` random
        images. Layers that run at the same time are timed one by one: the sum may exceed the engine's latency."""
        held = self._held()
        limits = held.limits
        if type(batch) is not int or not limits.least <= batch <= limits.most:
            raise UsageError(
                f"batch: got {batch!r}, expected {limits.least} to {limits.most}, as this engine takes them"
            )
        if type(runs) is not int or not 1 <= runs <= 10_000:
            raise UsageError(f"runs: got {runs!r}, expected 1 to 10000")
        shape = (batch, held.size, held.size, 3)
        with held.gpu, held.pool.lend() as session:
            return session.profile(np.random.default_rng(0).integers(0, 256, shape, np.uint8), runs)

    def layers(self) -> list[dict[str, Any]]:
        """What TensorRT's inspector tells of each layer of the engine, as it is on this GPU."""
        held = self._held()
        with held.gpu, held.pool.lend():  # while it holds a session nobody can close the engine
            return held.engine.layers()

    def close(self) -> None:
        """Waits for the running calls and frees everything. A second call does nothing."""
        self._resources = None
        self._free()

    def _held(self) -> _Resources:
        if (held := self._resources) is None:
            raise BackendError(CLOSED)
        return held


class _Resources:
    """What a runner holds on the GPU: the engine and its sessions."""

    def __init__(self, gpu: StreamGpu, engine: TrtEngine, facts: PlanFacts, classes: int):
        """The context must be current."""
        self.gpu, self.engine, self.size = gpu, engine, engine.size
        self.limits = limits = Limits(facts.least, facts.most, engine.size**2 * 3, classes)
        # One context per profile may run at once where there is a choice of batches.
        limit = None if facts.static else len(facts.profiles)
        # Without `self`: a cycle would keep the context until the next garbage collection.
        self.pool = SessionPool(lambda number: TrtSession(gpu, engine, limits, number), limit)

    def check_count(self, images: int, least: int) -> None:
        most = self.limits.most
        if images > most:
            raise BackendError(
                f"got {images} images at once, expected {least} to {most}, this engine's largest batch; split them, or "
                "build with a larger --max-batch"
            )
        if images < least:
            raise BackendError(
                f"got {images} images, expected {least} to {most}, the batches of this engine's plan; give more, call "
                "it with images in host memory, which are padded, or build with a smaller --min-batch"
            )

    def keep_cache(self) -> None:
        """Writes what TensorRT for RTX has compiled for this GPU, so that the next start need not."""
        if self.engine.cache is not None:
            with self.gpu:
                self.engine.cache.keep()

    def close(self) -> None:
        self.pool.close()
        engine, self.engine = self.engine, None
        try:
            with self.gpu:
                if engine.cache is not None:
                    engine.cache.keep()
                engine.close()
        except BackendError:  # poisoned, or after a fork
            free_objects(self.gpu, [engine])


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> TrtRunner:
    """Opens a plan on the first visible GPU, and checks its answer on the file's verification images.

    `BackendError` without a GPU, driver or memory that suffices, for a plan of another version or for another GPU
    (before TensorRT is called), if TensorRT refuses it, or if the answer is wrong; `BundleError` for a file that
    contradicts itself. threads: of no use here.
    """
    wanted = PlanFacts.from_facts(facts)
    if not {PIXELS, LOGITS} <= set(artefacts.names()):
        raise BundleError(
            f"the engine file lacks {PIXELS} or {LOGITS}, by which a GPU's first answer is checked; build it again",
            "tensor",
        )
    gpu = first_gpu()
    module = importlib.import_module(wanted.module)
    here = Here(
        module.__version__,
        platform.machine(),
        gpu.name,
        gpu.capability,
        gpu.driver_version,
        known_capabilities(module),
    )
    check_compatible(wanted, here, rebuild_command(getattr(artefacts, "path", None)))
    plan, size, classes = artefacts.pop(TENSORRT_PLAN), facts["preprocessing"]["size"], len(facts["labels"])
    cache_path = None
    if wanted.module == RTX_MODULE:
        cache_path = runtime_cache_path(here.version, here.gpu, here.capability, here.driver, plan)
    with gpu:
        resources = _Resources(gpu, TrtEngine(module, plan, wanted, size, classes, cache_path), wanted, classes)
    del plan  # TensorRT has taken what it needs of it
    runner = TrtRunner(resources)
    try:
        check_answer(runner.run, artefacts, wanted.most, REQUIRED_SQNR_DB[facts["precision"]])
        resources.keep_cache()
    except BaseException:
        runner.close()
        raise
    return runner
