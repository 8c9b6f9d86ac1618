"""The GPU by way of PyCUDA, where `cuda-bindings` is not installed: context, memory, streams and copies are PyCUDA's.

PyCUDA wraps neither graphs, nor events on a stream of someone else's, nor the question whether such a stream is being
captured. The last two are asked of the driver library itself, by ctypes; graphs there are none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import BackendError
from .cuda_driver import LEGACY_STREAM, OutOfMemory, check, is_sticky, no_driver, poisoned
from .cuda_streams import StreamGpu

_NON_BLOCKING = 1


class PyCudaGpu(StreamGpu):
    """As `StreamGpu`, on the device's primary context, which PyTorch, the CUDA runtime and pycuda.autoprimaryctx use.

    can_capture: false. `capture` is not to be called.
    """

    can_capture = False

    def __init__(self):
        if reason := poisoned():
            raise BackendError(reason)
        try:
            import pycuda.driver as driver

            driver.init()
            device = driver.Device(0)
            self.api = _Calls()
        except (ImportError, OSError) as error:
            raise no_driver(error) from error
        except driver.Error as error:
            raise no_driver(error) from error
        self._driver, self._process = driver, os.getpid()
        self.device, self.name = 0, device.name()
        self.capability, self.driver_version = tuple(device.compute_capability()), driver.get_driver_version()
        with self._translated():
            self._primary = device.retain_primary_context()
        self._context = self._primary.handle
        # PyCUDA's objects by address or handle: each frees what it holds when it goes.
        self._held: dict[int, Any] = {}

    def __enter__(self) -> PyCudaGpu:
        self._check_usable()
        with self._translated():
            self._primary.push()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(self._driver.Error):
            self._driver.Context.pop()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """PyCUDA's errors as ours. They carry no number, so the driver is asked whether this one stays."""
        try:
            yield
        except self._driver.MemoryError:
            check((2,))
        except self._driver.Error as error:
            status = self.api.cuStreamQuery(LEGACY_STREAM)
            if is_sticky(status[0]):
                check(status)
            raise BackendError(
                f"the GPU driver reports {str(error).splitlines()[0]}; see nvidia-smi and the system log, or update "
                "the driver"
            ) from error

    # --- memory --------------------------------------------------------------------------------------------

    def _memory(self) -> tuple[int, int]:
        with self._translated():
            return self._driver.mem_get_info()

    def _new_memory(self, nbytes: int) -> int:
        with self._translated():
            made = self._driver.mem_alloc(nbytes)
        self._held[int(made)] = made
        return int(made)

    def free(self, address: int) -> None:
        """As `Gpu.free`."""
        self._free(address, lambda made: made.free())

    def _free(self, handle: int, free: Callable[[Any], None]) -> None:
        def destroy() -> None:
            with self._translated():
                free(self._held.pop(handle))

        self._quietly(destroy)

    def pinned(self, nbytes: int) -> np.ndarray:
        """As `Gpu.pinned`."""
        try:
            with self._translated():
                made = self._driver.pagelocked_empty(nbytes, np.uint8)
        except OutOfMemory:
            raise self._no_pinned(nbytes) from None
        self._held[made.ctypes.data] = made
        return made

    def free_pinned(self, array: np.ndarray) -> None:
        self._free(array.ctypes.data, lambda made: made.base.free())

    # --- streams and copies --------------------------------------------------------------------------------

    def stream(self) -> int:
        with self._translated():
            made = self._driver.Stream(_NON_BLOCKING)
        self._held[made.handle] = made
        return made.handle

    def free_stream(self, stream: int) -> None:
        # It has no call for this: the object frees the stream when it goes, in the context that is current here.
        self._free(stream, lambda made: None)

    def synchronise(self, stream: int) -> None:
        if stream in self._held:
            with self._translated():
                self._held[stream].synchronize()
        else:
            check(self.api.cuStreamSynchronize(stream))

    def copy_in(self, address: int, source: np.ndarray, stream: int) -> None:
        with self._translated():
            self._driver.memcpy_htod_async(address, source, self._held[stream])

    def copy_out(self, target: np.ndarray, address: int, stream: int) -> None:
        with self._translated():
            self._driver.memcpy_dtoh_async(target, address, self._held[stream])


class _Calls:
    """Calls of the driver library that PyCUDA lacks, each answering as `cuda.bindings.driver` does: a status, and a
    value where there is one. The numbers are cuda.h's."""

    CUpointer_attribute = SimpleNamespace(
        CU_POINTER_ATTRIBUTE_CONTEXT=1, CU_POINTER_ATTRIBUTE_MEMORY_TYPE=2, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9
    )
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)

    def __init__(self):
        self._library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        made = ctypes.c_void_p()
        return self._library.cuEventCreate(ctypes.byref(made), ctypes.c_uint(flags)), made.value or 0

    def cuEventDestroy(self, event: int) -> tuple[int]:
        return self._status("cuEventDestroy_v2", event)

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:
        return self._status("cuEventRecord", event, stream)

    def cuEventQuery(self, event: int) -> tuple[int]:
        return self._status("cuEventQuery", event)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        return self._status("cuEventSynchronize", event)

    def cuStreamQuery(self, stream: int) -> tuple[int]:
        return self._status("cuStreamQuery", stream)

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:
        return self._status("cuStreamSynchronize", stream)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        return (self._library.cuStreamWaitEvent(ctypes.c_void_p(stream), ctypes.c_void_p(event), ctypes.c_uint(flags)),)

    def cuStreamIsCapturing(self, stream: int) -> tuple[int, int]:
        found = ctypes.c_int()
        return self._library.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(found)), found.value

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[int, int | None]:
        kind = ctypes.c_void_p if attribute == self.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT else ctypes.c_int
        value = kind()
        call = self._library.cuPointerGetAttribute
        return call(ctypes.byref(value), ctypes.c_int(attribute), ctypes.c_uint64(address)), value.value

    def _status(self, name: str, *handles: int) -> tuple[int]:
        return (getattr(self._library, name)(*map(ctypes.c_void_p, handles)),)
