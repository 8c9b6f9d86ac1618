"""DLPack's C structures, read from a capsule and handed out in one (https://dmlc.github.io/dlpack/latest/c_api.html)."""

from __future__ import annotations

import ctypes
from typing import Any

_UNUSED = b"dltensor"


class Tensor(ctypes.Structure):
    """DLTensor, which a DLManagedTensor begins with."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor. deleter: gets its address."""

    _fields_ = (("tensor", Tensor), ("manager_ctx", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's own C interface, with a signature that nobody else sets."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_pointer_of = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_new_capsule = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
# Of a capsule that is being destroyed: as a Python object it would come to life again.
_dying_is = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

# What consumers hold, by the address of its structure: that, its shape, and the owner of the memory.
_lent: dict[int, tuple[Any, ...]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _give_back(managed: int) -> None:
    _lent.pop(managed, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule: int) -> None:
    """The capsule's destructor: a consumer renames a capsule that it has taken, and gives that back itself."""
    if _dying_is(capsule, _UNUSED):
        _lent.pop(_dying_pointer(capsule, _UNUSED), None)


def tensor_of(capsule: Any) -> Tensor:
    """The array behind an unused capsule; valid while the capsule lives and nobody takes it."""
    return Tensor.from_address(_pointer_of(capsule, _UNUSED))


def capsule_of(owner: Any, address: int, shape: tuple[int, ...], device: tuple[int, int]) -> Any:
    """A capsule of float32 [shape] at `address`, C-contiguous. It keeps `owner` alive until its taker gives it back."""
    extents = (ctypes.c_int64 * len(shape))(*shape)
    tensor = Tensor(address, *device, len(shape), 2, 32, 1, extents, None, 0)
    managed = _Managed(tensor, None, ctypes.cast(_give_back, ctypes.c_void_p))
    at = ctypes.addressof(managed)
    _lent[at] = (managed, extents, owner)
    return _new_capsule(at, _UNUSED, ctypes.cast(_drop, ctypes.c_void_p))
