"""The fused engine on an NVIDIA GPU: cubins and launch plans of an engine file, replayed as CUDA graphs.

Needs NVIDIA's driver and `cuda-bindings`; neither PyTorch, Triton nor the CUDA toolkit. Nothing is compiled here.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import BackendError, BundleError
from ..kernels.cubin_index import index_from_json
from ..kernels.plan import Plan, bucket_for
from .cuda_driver import Gpu
from .cuda_graph import LEAST_DRIVER, Kernel
from .device_array import stream_handle
from .device_request import device_request
from .fused_session import Session, session_bytes
from .golden import check_answer
from .registry import CLOSED, PACKED_WEIGHTS, Artefacts
from .session_pool import SessionPool

# As a build demands of the whole verification set (export/verify.py).
_REQUIRED_SQNR_DB = 40.0


class FusedRunner:
    """`registry.Runner` on the first visible GPU, and `run_device` for what is there already. Any number of threads
    may call; several requests run at once."""

    def __init__(self, resources: _Resources):
        self._resources: _Resources | None = resources
        # At the end of the process the driver frees everything by itself.
        self._free = weakref.finalize(self, resources.close)
        self._free.atexit = False

    def run(self, images: np.ndarray) -> np.ndarray:
        """As `registry.Runner.run`. `BackendError` for more images than the largest bucket holds."""
        held = self._held()
        bucket = held.bucket(len(images))
        with held.gpu, held.pool.lend() as session:
            return session.run(bucket, images)

    def run_device(self, pixels: Any, logits: Any = None, stream: Any = None) -> Any:
        """Images on the GPU -> logits on the GPU, without a copy, in the order of the caller's stream.

        pixels: uint8 [N, S, S, 3] RGB, C-contiguous, N from 1 to the engine's largest batch, with
        `__cuda_array_interface__` or `__dlpack__`. logits: where to write, float32 [N, classes], likewise; by default
        a new `DeviceArray`. stream: a handle, or an object with `__cuda_stream__`; by default CUDA's default stream.
        Returns the logits as soon as the work is queued: both arrays must live, and `pixels` stay as they are, until
        the stream has come this far. `ImageError` or `UsageError` for an array of another shape or dtype,
        `BackendError` for one that is not on this GPU.
        """
        held, handle = self._held(), stream_handle(stream)
        with held.gpu as gpu:
            request = device_request(gpu, held.size, held.classes, pixels, logits, handle, held.bucket)
            with held.pool.lend(handle) as session:
                session.queue(held.bucket(request.images), handle, request.pixels, request.logits, request.images)
        return request.answer

    def close(self) -> None:
        """Waits for the running calls and frees everything. A second call does nothing."""
        self._resources = None
        self._free()

    def _held(self) -> _Resources:
        if (held := self._resources) is None:
            raise BackendError(CLOSED)
        return held


class _Resources:
    """What a runner holds on the GPU: weights, kernels, sessions."""

    def __init__(self, gpu: Gpu, plans: Mapping[int, Plan], kernels: _Kernels, weights: np.ndarray):
        """The context must be current."""
        self.gpu, self._kernels = gpu, kernels
        self._buckets = tuple(sorted(plans))
        largest = plans[self._buckets[-1]]
        self.size, self.classes = largest.size, largest.classes
        need = weights.nbytes + sum(session_bytes(plans).values())
        gpu.check_free(need, f"this engine, for batches of up to {largest.batch},")
        self._weights = address = gpu.upload(weights, "the network's weights")
        try:
            # Without `self`: a cycle would keep the context until the next garbage collection.
            self.pool = SessionPool(lambda _: Session(gpu, plans, address, kernels.of))
        except BaseException:
            gpu.free(address)
            raise

    def bucket(self, images: int) -> int:
        if not 1 <= images <= self._buckets[-1]:
            raise BackendError(
                f"got {images} images at once, expected 1 to {self._buckets[-1]}, this engine's largest batch; split "
                "them, or build with a larger --max-batch"
            )
        return bucket_for(images, self._buckets)

    def close(self) -> None:
        self.pool.close()
        self._kernels.unload()
        self.gpu.free(self._weights)


class _Kernels:
    """The engine file's machine code for this GPU, loaded when the first plan that needs it runs."""

    def __init__(self, gpu: Gpu, index: Mapping[str, Any], codes: Mapping[str, bytes]):
        """index: by variant, as `cubins/<arch>/index` has it. codes: by variant."""
        self._gpu, self._index, self._codes = gpu, index, codes
        self._lock = threading.Lock()
        self._loaded: dict[str, Kernel] = {}
        self._modules: list[Any] = []

    def of(self, plan: Plan) -> dict[str, Kernel]:
        """The kernels of a plan's launches, by variant. The context must be current."""
        with self._lock:
            return {
                variant: self._load(variant, launch.warps) for launch in plan.launches for variant in [launch.variant]
            }

    def _load(self, variant: str, warps: int) -> Kernel:
        if variant not in self._loaded:
            entry, shared_bytes = self._index[variant]["entry"], self._index[variant]["shared_bytes"]
            module, function = self._gpu.function(self._codes[variant], entry, shared_bytes, 32 * warps)
            self._modules.append(module)
            self._loaded[variant] = Kernel(function, shared_bytes)
        return self._loaded[variant]

    def unload(self) -> None:
        self._gpu.discard(self._gpu.api.cuModuleUnload, *self._modules)


def open_runner(facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int) -> FusedRunner:
    """Opens an engine on the first visible GPU, and checks its answer on the file's verification images.

    `BackendError` without a GPU, driver, machine code or memory that suffices, or if the answer is wrong;
    `BundleError` for a file that contradicts itself. threads: of no use here.
    """
    gpu = Gpu()
    arch = chosen_arch(gpu.capability, _archs(artefacts), gpu.name)
    index = index_from_json(artefacts.pop(f"cubins/{arch}/index"))
    if gpu.driver_version < (least := max(index["driver"], LEAST_DRIVER)):
        raise BackendError(
            f"the GPU driver is for CUDA {_version(gpu.driver_version)}, and this engine needs {_version(least)} or "
            "later; update the driver"
        )
    plans, codes = _plans(artefacts, arch), {}
    for name in artefacts.names():
        if name.startswith(f"cubins/{arch}/") and not name.endswith("/index"):
            codes[name.rpartition("/")[2]] = bytes(artefacts.pop(name))
    weights = np.frombuffer(artefacts.pop(PACKED_WEIGHTS), np.uint8)
    _check_consistent(facts, plans, index["cubins"], codes, weights)
    with gpu:
        runner = FusedRunner(_Resources(gpu, plans, _Kernels(gpu, index["cubins"], codes), weights))
    try:
        check_answer(runner.run, artefacts, max(plans), _REQUIRED_SQNR_DB)
    except BaseException:
        runner.close()
        raise
    return runner


def chosen_arch(capability: tuple[int, int], held: list[str], gpu: str) -> str:
    """The architecture among `held` whose machine code a GPU of `capability` runs. `BackendError` if there is none.

    Within 8.x newer GPUs run older code. From 9.0 on the code is specific to one architecture (Triton's "a" targets).
    """
    major, minor = capability
    runs = [f"sm_{major}{m}" for m in (range(minor, -1, -1) if major == 8 else [minor])]
    if found := next((arch for arch in runs if arch in held), None):
        return found
    needed = f"{gpu} has compute capability {major}.{minor}"
    if major < 8:
        raise BackendError(
            f"{needed}, expected 8.0 or later; build an engine for another backend: "
            "`python -m tkfnet_engine.build --backend eager --device cuda`"
        )
    raise BackendError(
        f"this engine holds machine code for {', '.join(held) or 'no GPU'}, and {needed}; build one for it: "
        f"`python -m tkfnet_engine.build --fp16 --device cuda --arch sm_{major}{minor}`"
    )


def _archs(artefacts: Artefacts) -> list[str]:
    names = [name.split("/") for name in artefacts.names()]
    return sorted(n[1] for n in names if len(n) == 3 and n[0] == "cubins" and n[2] == "index")


def _plans(artefacts: Artefacts, arch: str) -> dict[int, Plan]:
    """The file's plans for `arch`, by batch."""
    prefix = f"plans/{arch}/"
    plans = [Plan.from_json(bytes(artefacts.pop(n))) for n in artefacts.names() if n.startswith(prefix)]
    return {plan.batch: plan for plan in plans}


def _check_consistent(
    facts: Mapping[str, Any],
    plans: Mapping[int, Plan],
    index: Mapping[str, Any],
    codes: Mapping[str, bytes],
    weights: np.ndarray,
) -> None:
    """`BundleError` unless plans, machine code, weights and facts are of one build."""
    size, classes = facts["preprocessing"]["size"], len(facts["labels"])
    needed = {launch.variant for plan in plans.values() for launch in plan.launches}
    checks = {
        f"plans for batches {sorted(plans)}": max(plans, default=0) >= facts["max_batch"],
        f"{len(codes)} kernels": needed <= index.keys() and needed <= codes.keys(),
        f"{weights.nbytes} bytes of weights": all(p.weight_bytes == weights.nbytes for p in plans.values()),
        f"{classes} labels and images of {size}": all((p.size, p.classes) == (size, classes) for p in plans.values()),
    }
    if wrong := [what for what, fine in checks.items() if not fine]:
        raise BundleError(
            f"the engine file's {'; '.join(wrong)} do not fit its launch plans; it was put together from several "
            "builds: build it again",
            "plan",
        )


def _version(number: int) -> str:
    """13000 -> "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"
