"""A stand-in for PyCUDA over the stand-in driver, as far as `pycuda_gpu` uses it. Children import it.

As PyCUDA does, it keeps the driver's stack of contexts one deep per thread, ties each object to the context that was
current when it was made, and cannot free one anywhere else.
"""

from __future__ import annotations

import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
from cuda.bindings import driver as cuda

_threads = threading.local()


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


def _call(name: str, *arguments: object) -> object:
    status, *found = getattr(cuda, name)(*arguments)
    if status:
        text = f"{name} failed: {cuda.cuGetErrorString(status)[1].decode()}"
        raise MemoryError(text) if int(status) == 2 else LogicError(text)
    return found[0] if len(found) == 1 else tuple(found)


def _stack() -> list[Context]:
    if not hasattr(_threads, "stack"):
        _threads.stack = []
    return _threads.stack


class Context:
    def __init__(self, handle: int):
        self.handle = handle

    def push(self) -> None:
        if _stack():
            _call("cuCtxPopCurrent")
        _call("cuCtxPushCurrent", self.handle)
        _stack().append(self)

    @staticmethod
    def pop() -> None:
        _call("cuCtxPopCurrent")
        _stack().pop()
        if _stack():
            _call("cuCtxPushCurrent", _stack()[-1].handle)

    def __del__(self):
        cuda.cuDevicePrimaryCtxRelease(0)


class _Tied:
    """What belongs to a context. `_destroy`: the driver's call that ends it."""

    _destroy = ""

    def __init__(self, handle: int):
        if not _stack():
            raise LogicError("explicit_context_dependent failed: invalid device context - no currently active context?")
        self._context, self.handle = _stack()[-1], int(handle)

    def free(self) -> None:
        if self._context is None:
            raise LogicError("free failed: invalid resource handle")
        if _stack() and _stack()[-1] is self._context:
            _call(self._destroy, self.handle)
        self._context = None

    def __del__(self):
        if getattr(self, "_context", None) is not None:
            self.free()


class DeviceAllocation(_Tied):
    _destroy = "cuMemFree"

    def __int__(self) -> int:
        return self.handle


class PagelockedHostAllocation(_Tied):
    _destroy = "cuMemFreeHost"

    def __init__(self, handle: int, nbytes: int):
        super().__init__(handle)
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (self.handle, False), "version": 3}


class Stream(_Tied):
    _destroy = "cuStreamDestroy"

    def __init__(self, flags: int = 0):
        super().__init__(_call("cuStreamCreate", flags))

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", self.handle)


class Device:
    def __init__(self, number: int):
        self._number = int(_call("cuDeviceGet", number))

    def name(self) -> str:
        return _call("cuDeviceGetName", 128, self._number).split(b"\0")[0].decode()

    def compute_capability(self) -> tuple[int, int]:
        kinds = cuda.CUdevice_attribute
        names = (f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}" for part in ("MAJOR", "MINOR"))
        return tuple(int(_call("cuDeviceGetAttribute", getattr(kinds, name), self._number)) for name in names)

    def retain_primary_context(self) -> Context:
        return Context(int(_call("cuDevicePrimaryCtxRetain", self._number)))


def pagelocked_empty(shape: int, dtype: type) -> np.ndarray:
    assert dtype is np.uint8
    return np.asarray(PagelockedHostAllocation(_call("cuMemHostAlloc", shape, 0), shape))


def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
    # A failure keeps this frame's variables alive; the real one has no frame.
    handle = stream.handle
    del stream
    _call("cuMemcpyHtoDAsync", dest, src.ctypes.data, src.nbytes, handle)


def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
    handle = stream.handle
    del stream
    _call("cuMemcpyDtoHAsync", dest.ctypes.data, src, dest.nbytes, handle)


class GPUArray:
    """As `pycuda.gpuarray.GPUArray` shows itself: with strides, and no stream."""

    def __init__(self, array: np.ndarray):
        self.gpudata, self._like = DeviceAllocation(_call("cuMemAlloc", array.nbytes)), array
        _call("cuMemcpyHtoDAsync", int(self.gpudata), array.ctypes.data, array.nbytes, 1)
        _call("cuStreamSynchronize", 1)

    def get(self) -> np.ndarray:
        made = np.empty_like(self._like)
        _call("cuMemcpyDtoHAsync", made.ctypes.data, int(self.gpudata), made.nbytes, 1)
        _call("cuStreamSynchronize", 1)
        return made

    @property
    def __cuda_array_interface__(self) -> dict:
        shown = {"shape": self._like.shape, "strides": self._like.strides, "data": (int(self.gpudata), False)}
        return shown | {"typestr": self._like.dtype.str, "stream": None, "version": 3}


def install() -> ModuleType:
    """Puts the stand-in where `import` finds it, and hides cuda-bindings from the choice between the two."""
    from tkfnet_engine.backends import cuda_streams

    package, module = ModuleType("pycuda"), ModuleType("pycuda.driver")
    package.__spec__, module.__spec__ = ModuleSpec("pycuda", None), ModuleSpec("pycuda.driver", None)
    kinds = (Error, MemoryError, LogicError, Context, Device, Stream, pagelocked_empty)
    for one in (*kinds, memcpy_htod_async, memcpy_dtoh_async):
        setattr(module, one.__name__, one)
    module.init = lambda: _call("cuInit", 0)
    module.mem_alloc = lambda nbytes: DeviceAllocation(_call("cuMemAlloc", nbytes))
    module.mem_get_info = lambda: _call("cuMemGetInfo")
    module.get_driver_version = lambda: _call("cuDriverGetVersion")
    package.driver = module
    sys.modules.update({"pycuda": package, "pycuda.driver": module})
    cuda_streams.importable = lambda name: name == "pycuda"
    return module
