"""One launch plan as a CUDA graph: captured once, replayed with other addresses or fewer images."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..kernels.plan import IMAGES, Buffer, Launch, Plan
from .cuda_driver import Gpu, check

# The least driver (12.3): the first whose graphs know launches that begin before their predecessor has ended.
LEAST_DRIVER = 12030


@dataclass(frozen=True)
class Kernel:
    """Loaded machine code. function: of the driver's. shared_bytes: of dynamic shared memory per block."""

    function: Any
    shared_bytes: int


def captured(gpu: Gpu, stream: Any, enqueue: Callable[[], None]) -> Any:
    """A new graph of what `enqueue` queues on `stream`; nothing of it runs."""
    api = gpu.api
    # Thread-local: what other threads allocate meanwhile is no concern of this capture.
    check(api.cuStreamBeginCapture(stream, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    try:
        enqueue()
    except BaseException:
        # Else the stream would stay in capture and be of no use.
        status, graph = api.cuStreamEndCapture(stream)
        if not status:
            gpu.discard(api.cuGraphDestroy, graph)
        raise
    return check(api.cuStreamEndCapture(stream))


class _Parameters:
    """The values of one launch's parameters, laid out as the driver reads them; a few of them may be replaced."""

    def __init__(self, launch: Launch, base: Mapping[str, int]):
        values: list[Any] = []
        # What a replay may replace: (value, space or IMAGES, bytes into the space).
        self._replaceable: list[tuple[Any, str, int]] = []
        for name, arg in launch.args:
            if isinstance(arg, Buffer):
                value = ctypes.c_uint64(base[arg.space] + arg.offset)
                if arg.space in ("pixels", "logits"):
                    self._replaceable.append((value, arg.space, arg.offset))
            else:
                value = ctypes.c_int32(arg)
                if name == IMAGES:
                    self._replaceable.append((value, IMAGES, 0))
            values.append(value)
        # Triton's own two: global scratch and profiling scratch, which these kernels do not use.
        values += [ctypes.c_uint64(0), ctypes.c_uint64(0)]
        self._values = values
        self._pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        # As `void**`; valid while this object lives.
        self.address = ctypes.addressof(self._pointers)

    @property
    def fixed(self) -> bool:
        return not self._replaceable

    def wanted(self, now: Mapping[str, int]) -> tuple[int, ...]:
        """The replaceable values, for `now`: the addresses of "pixels" and "logits" and the number IMAGES."""
        return tuple(now[key] + offset for _, key, offset in self._replaceable)

    def replace(self, wanted: tuple[int, ...]) -> None:
        for (value, _, _), new in zip(self._replaceable, wanted, strict=True):
            value.value = new


class _Node:
    """A captured launch whose parameters may be replaced, and what they were when the graph last heard of them."""

    def __init__(self, handle: Any, parameters: _Parameters, params: Any, sent: tuple[int, ...]):
        self.handle, self.parameters, self.params, self.sent = handle, parameters, params, sent


class BucketGraph:
    """A plan's launches over one set of buffers. Not for two threads at once."""

    def __init__(self, gpu: Gpu, plan: Plan, kernels: Mapping[str, Kernel], base: Mapping[str, int], stream: Any):
        """Captures on `stream`, which must be idle. kernels: by `Launch.variant`. base: address of each space.

        Needs the GPU's context to be current, as all methods here.
        """
        self._gpu, self._api = gpu, gpu.api
        self._nodes: list[_Node] = []
        now = {"pixels": base["pixels"], "logits": base["logits"], IMAGES: plan.batch}

        def launch_all() -> None:
            for launch in plan.launches:
                self._capture(launch, kernels[launch.variant], base, now, stream)

        self._graph = captured(gpu, stream, launch_all)
        try:
            self._exec = check(self._api.cuGraphInstantiate(self._graph, 0))
        except BaseException:
            gpu.discard(self._api.cuGraphDestroy, self._graph)
            raise

    def _capture(self, launch: Launch, kernel: Kernel, base: Mapping[str, int], now: Mapping[str, int], stream: Any):
        api, parameters = self._api, _Parameters(launch, base)
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = 32 * launch.warps, 1, 1
        config.sharedMemBytes = kernel.shared_bytes
        config.hStream = stream
        if ("PDL", True) in launch.constexprs:
            config.attrs, config.numAttrs = [_dependent_launch(api)], 1
        check(api.cuLaunchKernelEx(config, kernel.function, parameters.address, 0))
        if parameters.fixed:
            return
        params = api.CUDA_KERNEL_NODE_PARAMS()
        params.func = kernel.function
        params.gridDimX, params.gridDimY, params.gridDimZ = launch.grid
        params.blockDimX, params.blockDimY, params.blockDimZ = 32 * launch.warps, 1, 1
        params.sharedMemBytes = kernel.shared_bytes
        params.kernelParams = parameters.address
        self._nodes.append(_Node(self._last_node(stream), parameters, params, parameters.wanted(now)))

    def _last_node(self, stream: Any) -> Any:
        """The node that the next one captured would depend on: the launch just captured."""
        # cuda-bindings 12 has two such calls, of which the plain one fails where dependent launches are; 13 has one.
        query = getattr(self._api, "cuStreamGetCaptureInfo_v3", None) or self._api.cuStreamGetCaptureInfo
        nodes = check(query(stream))[3]
        assert len(nodes) == 1, f"{len(nodes)} nodes at the end of a chain"
        return nodes[0]

    def replay(self, stream: Any, pixels: int, logits: int, images: int) -> None:
        """Queues the launches on `stream`. pixels, logits: device addresses. images: at most the plan's batch."""
        now = {"pixels": pixels, "logits": logits, IMAGES: images}
        for node in self._nodes:
            wanted = node.parameters.wanted(now)
            if wanted != node.sent:
                node.parameters.replace(wanted)
                # Launches already queued keep the values they were queued with.
                check(self._api.cuGraphExecKernelNodeSetParams(self._exec, node.handle, node.params))
                node.sent = wanted
        check(self._api.cuGraphLaunch(self._exec, stream))

    def destroy(self) -> None:
        self._gpu.discard(self._api.cuGraphExecDestroy, self._exec)
        self._gpu.discard(self._api.cuGraphDestroy, self._graph)


def _dependent_launch(api: Any) -> Any:
    """The attribute of a launch that may begin before its predecessor in the stream has ended."""
    attribute = api.CUlaunchAttribute()
    attribute.id = api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    return attribute
