"""NVIDIA's driver API through `cuda-bindings`: the GPU, its primary context, memory and machine code.

Thin: handles are integers, failures are `BackendError`s that say what to do. Works with cuda-bindings 12.9 and 13.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import BackendError

# CUDA's own names of its default streams; as handles they mean the same whatever the process was compiled with.
LEGACY_STREAM = 1
_OUT_OF_MEMORY = 2
# Errors after which the driver answers every call of the process with the same error, or the context is gone (cuda.h):
# ECC and NVLink, contained faults, illegal address, time-out, destroyed context, assert, hardware stack, illegal
# instruction, misaligned, address space, program counter, launch failure, tensor memory leak, MPS client terminated,
# external device.
_STICKY = frozenset((214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911))
_REMEDIES = {
    3: "CUDA does not survive a fork: start processes with 'spawn' and load the engine in each",
    34: "the loaded libcuda is the toolkit's stub: put the driver's own first on the library path",
    46: "another process holds the GPU alone, or it is in a bad state: see nvidia-smi",
    100: "no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES, or build an engine for this machine with "
    "`python -m tkfnet_engine.build --device cpu`",
    200: "the engine file's machine code is damaged: build it again",
    209: "the engine file lacks machine code for this GPU: build it again",
    802: "the machine's fabric is not ready: start nvidia-fabricmanager",
    803: "the driver's kernel module and library differ: restart the machine",
    804: "the driver library does not support this GPU: remove the CUDA compatibility package from the library path",
    906: "a stream of this process is being captured: use another stream than the default, or end the capture first",
}

# What made the GPU context of this process unusable, if something did. One per process, as the context is.
_poison: str | None = None


def no_driver(error: Exception) -> BackendError:
    return BackendError(
        f"no NVIDIA driver answers here ({_first_line(error)}); install the GPU's driver, or build an engine for this "
        "machine with `python -m tkfnet_engine.build --device cpu`"
    )


class OutOfMemory(BackendError):
    """The GPU's memory does not suffice."""


def poisoned() -> str | None:
    """Why the GPU context of this process is unusable, None while it is not."""
    return _poison


def is_sticky(code: int) -> bool:
    """Whether the context of this process is unusable after this error of the driver's."""
    return int(code) in _STICKY


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"


def check(result: tuple) -> Any:
    """What a driver call gave beside its status: nothing, a value, or a tuple. `BackendError` if it failed."""
    if not result[0]:
        return result[1] if len(result) == 2 else result[1:] or None
    global _poison
    code = int(result[0])
    found = f"the GPU driver reports {_error_name(code)}"
    if is_sticky(code):
        _poison = (
            f"{found}: the GPU context of this process is unusable from now on; start a new process. If it happens "
            "again, run the program under compute-sanitizer"
        )
        raise BackendError(_poison)
    if code == _OUT_OF_MEMORY:
        raise OutOfMemory(f"{found}; free GPU memory, or build an engine with a smaller --max-batch")
    raise BackendError(f"{found}; {_REMEDIES.get(code, 'see nvidia-smi and the system log, or update the driver')}")


def _error_name(code: int) -> str:
    """CUDA's name and text of an error, as far as the driver tells."""
    try:
        from cuda.bindings import driver

        name, text = (get(driver.CUresult(code))[1] for get in (driver.cuGetErrorName, driver.cuGetErrorString))
        return f"{name.decode()} ({text.decode()})"
    # A code newer than the binding or the driver; no binding, where PyCUDA stands in for it.
    except (ValueError, KeyError, RuntimeError, AttributeError, ImportError):
        return f"error {code}"


class Gpu:
    """The first visible GPU and its primary context, which PyTorch and the CUDA runtime use as well.

    `with gpu:` makes the context current for the calling thread; every other method needs that. The context is
    released when the last reference to this object goes.

    name, capability: "NVIDIA H200", (9, 0). driver_version: 13000 is 13.0. api: `cuda.bindings.driver`.
    """

    def __init__(self):
        if _poison:
            raise BackendError(_poison)
        try:
            from cuda.bindings import driver

            version = driver.cuDriverGetVersion()
        except (ImportError, RuntimeError) as error:  # RuntimeError: what the binding raises without libcuda
            raise no_driver(error) from error
        self.api, self.driver_version = driver, check(version)
        self._process = os.getpid()
        check(driver.cuInit(0))
        self.device = int(check(driver.cuDeviceGet(0)))
        self.name = check(driver.cuDeviceGetName(128, self.device)).split(b"\0")[0].decode(errors="replace")
        attributes = driver.CUdevice_attribute
        self.capability = (
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )
        self._shared_limit = self._attribute(attributes.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self._context = check(driver.cuDevicePrimaryCtxRetain(self.device))
        # At the end of the process the driver cleans up by itself, and may be gone before we are.
        weakref.finalize(self, _release, driver, self.device, self._process).atexit = False

    def _attribute(self, attribute: Any) -> int:
        return check(self.api.cuDeviceGetAttribute(attribute, self.device))

    def __enter__(self) -> Gpu:
        self._check_usable()
        check(self.api.cuCtxPushCurrent(self._context))
        return self

    def _check_usable(self) -> None:
        if _poison:
            raise BackendError(_poison)
        if os.getpid() != self._process:
            raise BackendError(f"this engine was loaded in process {self._process}, before a fork; {_REMEDIES[3]}")

    def __exit__(self, *_: object) -> None:
        self.api.cuCtxPopCurrent()

    # --- memory --------------------------------------------------------------------------------------------

    def check_free(self, nbytes: int, purpose: str) -> None:
        """`OutOfMemory` if fewer than `nbytes` of the GPU's memory are free."""
        free, total = self._memory()
        if nbytes > free:
            raise OutOfMemory(
                f"not enough GPU memory: {purpose} needs {_mib(nbytes)}, and {self.name} has {_mib(free)} of "
                f"{_mib(total)} free; free some, or build an engine with a smaller --max-batch"
            )

    def _memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        return check(self.api.cuMemGetInfo())

    def allocate(self, nbytes: int, purpose: str) -> int:
        """The address of `nbytes` of device memory; the content is not defined. `OutOfMemory`."""
        try:
            return self._new_memory(max(nbytes, 1))
        except OutOfMemory:
            self.check_free(nbytes, purpose)
            raise OutOfMemory(
                f"not enough GPU memory: {purpose} needs {_mib(nbytes)} in one piece, which {self.name} does not have; "
                "free some, or build an engine with a smaller --max-batch"
            ) from None

    def _new_memory(self, nbytes: int) -> int:
        return int(check(self.api.cuMemAlloc(nbytes)))

    def free(self, address: int) -> None:
        """Waits for the work that uses it. Quiet if the context is gone: so is the memory, then."""
        self._quietly(lambda: self.api.cuMemFree(address))

    def pinned(self, nbytes: int) -> np.ndarray:
        """uint8 [nbytes] of page-locked host memory, to be given to `free_pinned`."""
        try:
            address = int(check(self.api.cuMemHostAlloc(nbytes, 0)))
        except OutOfMemory:
            raise self._no_pinned(nbytes) from None
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)

    def _no_pinned(self, nbytes: int) -> BackendError:
        return BackendError(
            f"not enough host memory: {_mib(nbytes)} cannot be page-locked for the copy to {self.name}; free some, or "
            "run smaller batches"
        )

    def free_pinned(self, array: np.ndarray) -> None:
        self._quietly(lambda: self.api.cuMemFreeHost(array.ctypes.data))

    def pointer_device(self, address: int) -> int | None:
        """The ordinal of the GPU whose memory `address` is in; None for host memory and for none of CUDA's."""
        attributes, kinds = self.api.CUpointer_attribute, self.api.CUmemorytype
        status, kind = self.api.cuPointerGetAttribute(attributes.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
        if status or int(kind) != int(kinds.CU_MEMORYTYPE_DEVICE):
            return None
        return int(check(self.api.cuPointerGetAttribute(attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)))

    def is_foreign(self, address: int) -> bool:
        """Whether `address` belongs to another context than the primary one, which cannot be used from here. Memory of
        a pool belongs to none."""
        which = self.api.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
        status, context = self.api.cuPointerGetAttribute(which, address)
        return not status and int(context or 0) not in (0, int(self._context))

    def capturing(self, stream: int) -> bool:
        """Whether the stream is being captured into a graph."""
        return bool(int(check(self.api.cuStreamIsCapturing(stream))))

    def follow(self, stream: int, first: int) -> None:
        """Makes what comes next on `stream` wait for what is queued on the stream `first`."""
        event = check(self.api.cuEventCreate(self.api.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        try:
            check(self.api.cuEventRecord(event, first))
            check(self.api.cuStreamWaitEvent(stream, event, 0))
        finally:
            # The driver keeps it until the wait is over.
            self.discard(self.api.cuEventDestroy, event)

    def upload(self, data: np.ndarray, purpose: str) -> int:
        """The address of a copy of `data`, uint8, in device memory; the copy is complete on return."""
        address = self.allocate(data.nbytes, purpose)
        try:
            # On a stream of its own: it waits for nobody else's work.
            stream = check(self.api.cuStreamCreate(self.api.CUstream_flags.CU_STREAM_NON_BLOCKING))
            try:
                check(self.api.cuMemcpyHtoDAsync(address, data.ctypes.data, data.nbytes, stream))
                check(self.api.cuStreamSynchronize(stream))
            finally:
                self.discard(self.api.cuStreamDestroy, stream)
        except BaseException:
            self.free(address)
            raise
        return address

    def discard(self, destroy: Any, *handles: Any) -> None:
        """Calls a destructor of the driver's on each handle; quiet as `free` is."""
        for handle in handles:
            self._quietly(lambda h=handle: destroy(h))

    def _quietly(self, call: Any) -> None:
        if _poison is None and os.getpid() == self._process:
            with suppress(BackendError), self:
                call()

    # --- machine code --------------------------------------------------------------------------------------

    def function(self, code: bytes, entry: str, shared_bytes: int, threads: int) -> tuple[Any, Any]:
        """(module, function) of a cubin, allowed `shared_bytes` of dynamic shared memory.

        `BackendError` where a block of `threads`, or that much shared memory, does not fit this GPU.
        """
        api = self.api
        if shared_bytes > self._shared_limit:
            raise BackendError(
                f"{entry} needs {shared_bytes} bytes of shared memory, and {self.name} allows {self._shared_limit}; "
                "build the engine for this GPU"
            )
        module = check(api.cuModuleLoadData(code))
        try:
            function = check(api.cuModuleGetFunction(module, entry.encode()))
            # Reading an attribute also makes a lazily loading driver load the code now, not during a capture.
            limit = check(
                api.cuFuncGetAttribute(api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function)
            )
            if threads > limit:
                raise BackendError(
                    f"{entry} runs in blocks of {threads} threads, and its registers allow {limit} on {self.name}; "
                    "build the engine again"
                )
            if shared_bytes > 48 * 1024:  # more than every GPU gives without being asked
                which = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                check(api.cuFuncSetAttribute(function, which, shared_bytes))
        except BackendError:
            self.discard(api.cuModuleUnload, module)
            raise
        return module, function


def _release(driver: Any, device: int, process: int) -> None:
    if os.getpid() == process:
        driver.cuDevicePrimaryCtxRelease(device)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
