"""Arrays in GPU memory that other libraries hold: read without a copy, and an answer handed out the same way.

The protocols: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html and
https://dmlc.github.io/dlpack/latest/python_spec.html.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError, TkfnetError, UsageError
from . import dlpack
from .cuda_driver import LEGACY_STREAM, Gpu

# DLPack's numbers: devices (CUDA, CUDA managed), and the types we take as the array interface spells them.
_DLPACK_CUDA = (2, 13)
_DLPACK_TYPES = {(1, 8): "|u1", (2, 32): "<f4"}
_NAMES = {"|u1": "uint8", "<f4": "float32"}
# Of the pointers that kernels are compiled for: their widest access.
ADDRESS_ALIGNMENT = 16


@dataclass(frozen=True)
class DeviceView:
    """Someone's array. address: of its first element. typestr: numpy's, "|u1". stream: where its content is being
    made, if the owner says. owner: keeps the memory alive."""

    address: int
    shape: tuple[int, ...]
    typestr: str
    contiguous: bool
    writable: bool
    stream: int | None
    owner: Any


def view_of(array: Any, stream: int) -> DeviceView | None:
    """`array` through `__cuda_array_interface__`, else `__dlpack__`; None if it has neither.

    stream: where the array will be used; DLPack's owner makes it wait for what fills the array. `BackendError` for an
    array that is not in a GPU's memory.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if isinstance(interface, dict):
        return _from_interface(interface, array)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, number = array.__dlpack_device__()
        if int(kind) not in _DLPACK_CUDA or number != 0:
            where = f"GPU {number}" if int(kind) in _DLPACK_CUDA else "host memory, or a device that is not CUDA's"
            raise BackendError(f"got an array in {where}, expected it on the first visible GPU; move it there")
        return _from_dlpack(array.__dlpack__(stream=stream), array)
    return None


def checked_view(
    gpu: Gpu,
    array: Any,
    stream: int,
    typestr: str,
    shape: tuple[int | None, ...],
    error: type[TkfnetError],
    what: str,
    alignment: int = ADDRESS_ALIGNMENT,
) -> DeviceView:
    """`view_of`, and `error` unless the array is a C-contiguous `typestr` of `shape`, None in which is any extent of
    at least 1; `BackendError` unless the GPU can use it where it stands. The context must be current."""
    view = view_of(array, stream)
    if view is None or not _fits(view, typestr, shape):
        got = type(array).__name__
        if view is not None:
            got = f"{_NAMES.get(view.typestr, view.typestr)} {list(view.shape)}"
            got += "" if view.contiguous else ", not C-contiguous"
        extents = ", ".join("N" if n is None else str(n) for n in shape)
        raise error(
            f"{what}: got {got}, expected {_NAMES[typestr]} [{extents}] on the GPU, C-contiguous, with "
            "__cuda_array_interface__ or __dlpack__"
        )
    device = gpu.pointer_device(view.address)
    if device != gpu.device:
        where = "memory that is not a GPU's" if device is None else f"GPU {device}"
        raise BackendError(
            f"{what}: got an array in {where}, expected it on GPU {gpu.device}, {gpu.name}; move it there"
        )
    if gpu.is_foreign(view.address):
        raise BackendError(
            f"{what}: got an array in another CUDA context than the device's primary one, which libraries share; with "
            "PyCUDA import pycuda.autoprimaryctx instead of pycuda.autoinit"
        )
    if view.address % alignment:
        raise BackendError(
            f"{what}: got an array that starts at an address which is no multiple of {alignment} bytes, as the "
            "kernels need it; copy it into an array of its own"
        )
    if view.stream is not None and view.stream != stream:
        gpu.follow(stream, view.stream)
    return view


def _fits(view: DeviceView, typestr: str, shape: tuple[int | None, ...]) -> bool:
    alike = len(view.shape) == len(shape) and view.typestr == typestr and view.contiguous
    return alike and all(n == m or (m is None and n > 0) for n, m in zip(view.shape, shape))


def _from_interface(interface: dict[str, Any], owner: Any) -> DeviceView:
    shape, strides = tuple(map(int, interface["shape"])), interface.get("strides")
    address, read_only = interface["data"]
    typestr = interface["typestr"]
    dense = strides is None or _dense(shape, tuple(strides), int(typestr[2:]))
    contiguous = dense and interface.get("mask") is None
    return DeviceView(int(address), shape, typestr, contiguous, not read_only, interface.get("stream"), owner)


def _from_dlpack(capsule: Any, owner: Any) -> DeviceView:
    # The capsule stays ours and unused: when it goes, it gives the array back to its owner.
    tensor = dlpack.tensor_of(capsule)
    shape = tuple(tensor.shape[: tensor.ndim])
    typestr = _DLPACK_TYPES.get((tensor.code, tensor.bits), "other") if tensor.lanes == 1 else "other"
    # DLPack counts strides in elements.
    contiguous = not tensor.strides or _dense(shape, tuple(tensor.strides[: tensor.ndim]), 1)
    return DeviceView((tensor.data or 0) + tensor.byte_offset, shape, typestr, contiguous, True, None, (owner, capsule))


def _dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    """Whether elements stand in C order without gaps. An axis of one element may have any stride."""
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def stream_handle(stream: Any) -> int:
    """A stream's driver handle: of an integer, of an object with `__cuda_stream__`, of one with an integer `handle` as
    PyCUDA's, or, for None, of CUDA's default stream, which is PyTorch's as well. `UsageError` otherwise."""
    if stream is None:
        return LEGACY_STREAM
    handle = stream
    if hasattr(stream, "__cuda_stream__"):
        found = stream.__cuda_stream__
        _, handle = found() if callable(found) else found
    elif not isinstance(stream, int):
        handle = getattr(stream, "handle", None)
    if isinstance(handle, bool) or not isinstance(handle, int) or handle < 0:
        raise UsageError(
            f"stream: got {type(stream).__name__}, expected None, a CUDA stream's handle as an integer "
            "(torch.cuda.current_stream().cuda_stream), or an object with __cuda_stream__ or an integer handle"
        )
    return handle or LEGACY_STREAM


class DeviceArray:
    """float32 in GPU memory, C-contiguous. It owns the memory; `__cuda_array_interface__` and `__dlpack__` show it to
    PyTorch (`torch.from_dlpack(array)`), CuPy, JAX or Numba without a copy. It is valid in `stream`'s order, which who
    takes it through either is told, or put into."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], stream: int):
        self.shape, self.stream, self._gpu = shape, stream, gpu
        self.address = gpu.allocate(4 * math.prod(shape), "an answer")
        weakref.finalize(self, gpu.free, self.address).atexit = False

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "<f4",
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_DLPACK_CUDA[0], self._gpu.device)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule, of DLPack's form before 1.0 whatever `max_version` allows. stream: the consumer's, which is made
        to wait for the answer; None is CUDA's default stream, -1 asks for no wait. `BufferError` for another device or
        a copy."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"expected the array where it is, {self.__dlpack_device__()}, and no copy of it")
        consumer = LEGACY_STREAM if stream is None else stream_handle(stream) if stream != -1 else self.stream
        if consumer != self.stream:
            with self._gpu as gpu:
                gpu.follow(consumer, self.stream)
        return dlpack.capsule_of(self, self.address, self.shape, self.__dlpack_device__())
