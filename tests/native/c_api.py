"""tkfnet.h for ctypes: its numbers, its structures and the signature of every function."""

from __future__ import annotations

import ctypes
import enum
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_size_t, c_uint8, c_uint32, c_void_p

ABI_VERSION = 1
MAX_CLASSES = 1024


class Status(enum.IntEnum):
    OK = 0
    ARGUMENT = 1
    FILE = 2
    VERSION = 3
    UNTRUSTED = 4
    BACKEND = 5
    DEVICE = 6
    MEMORY = 7
    ANSWER = 8
    BUSY = 9
    LOST = 10
    INTERNAL = 11


class LogLevel(enum.IntEnum):
    INFO = 0
    WARNING = 1


class CpuMath(enum.IntEnum):
    EXACT = 0
    BFLOAT16 = 1


class Output(enum.IntEnum):
    PROBABILITIES = 0
    LOGITS = 1


class PixelFormat(enum.IntEnum):
    RGB = 0
    BGR = 1
    RGBA = 2
    BGRA = 3
    NV12 = 4


class YuvMatrix(enum.IntEnum):
    BT709 = 0
    BT601 = 1


class YuvRange(enum.IntEnum):
    LIMITED = 0
    FULL = 1


class ChromaSiting(enum.IntEnum):
    LEFT = 0
    CENTRE = 1


class _Versioned(ctypes.Structure):
    """Its struct_size is set unless it is given, and every other field is zero."""

    def __init__(self, **fields: object) -> None:
        super().__init__(**{"struct_size": ctypes.sizeof(self), **fields})


class EngineOptions(_Versioned):
    _fields_ = [
        ("struct_size", c_size_t),
        ("device", c_int32),
        ("threads", c_int32),
        ("allow_native_code", c_int32),
        ("cpu_math", c_int32),
        ("openvino_library", c_char_p),
    ]


class SessionOptions(_Versioned):
    _fields_ = [("struct_size", c_size_t), ("output", c_int32)]


class Frame(_Versioned):
    """data, chroma: addresses, whose memory the caller keeps."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("format", c_int32),
        ("width", c_int32),
        ("height", c_int32),
        ("data", c_void_p),
        ("stride", c_size_t),
        ("chroma", c_void_p),
        ("chroma_stride", c_size_t),
        ("yuv_matrix", c_int32),
        ("yuv_range", c_int32),
        ("chroma_siting", c_int32),
    ]


class Crop(ctypes.Structure):
    _fields_ = [("frame", POINTER(Frame)), ("x", c_int32), ("y", c_int32), ("width", c_int32), ("height", c_int32)]


LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
Pixels, Floats = POINTER(c_uint8), POINTER(c_float)

# Engines and sessions are addresses. A status comes back as a plain int, which compares equal to a `Status`.
SIGNATURES = {
    "tkf_version": (c_char_p,),
    "tkf_abi_version": (c_uint32,),
    "tkf_status_name": (c_char_p, c_int32),
    "tkf_last_error": (c_char_p, c_void_p),
    "tkf_set_log": (None, LogCallback, c_void_p),
    "tkf_engine_open": (c_int32, c_char_p, POINTER(EngineOptions), POINTER(c_void_p)),
    "tkf_engine_open_memory": (c_int32, c_void_p, c_size_t, POINTER(EngineOptions), POINTER(c_void_p)),
    "tkf_engine_close": (None, c_void_p),
    "tkf_input_size": (c_int32, c_void_p),
    "tkf_class_count": (c_int32, c_void_p),
    "tkf_max_batch": (c_int32, c_void_p),
    "tkf_label": (c_char_p, c_void_p, c_int32),
    "tkf_precision": (c_char_p, c_void_p),
    "tkf_backend": (c_char_p, c_void_p),
    "tkf_device_name": (c_char_p, c_void_p),
    "tkf_facts_json": (c_char_p, c_void_p),
    "tkf_session_open": (c_int32, c_void_p, POINTER(SessionOptions), POINTER(c_void_p)),
    "tkf_session_close": (None, c_void_p),
    "tkf_run": (c_int32, c_void_p, Pixels, c_size_t, Floats),
    "tkf_run_strided": (c_int32, c_void_p, POINTER(Crop), c_size_t, Floats),
    "tkf_prepare": (c_int32, POINTER(Crop), c_size_t, c_int32, Pixels),
    "tkf_submit": (c_int32, c_void_p, Pixels, c_size_t, Floats),
    "tkf_submit_strided": (c_int32, c_void_p, POINTER(Crop), c_size_t, Floats),
    "tkf_wait": (c_int32, c_void_p),
    "tkf_run_device": (c_int32, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p),
}


def load(path: str | os.PathLike) -> ctypes.CDLL:
    """libtkfnet.so, every function of tkfnet.h typed. Raises `OSError`, or `AttributeError` where one is missing."""
    library = ctypes.CDLL(os.fspath(path))
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
