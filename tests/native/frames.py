"""Frames for the tests of libtkfnet, in memory whose neighbours may not be touched."""

from __future__ import annotations

import ctypes
import itertools
import mmap

import numpy as np

from . import c_api
from .c_api import ChromaSiting, Crop, Frame, PixelFormat, Status, YuvMatrix, YuvRange

CHANNELS = {
    PixelFormat.RGB: [0, 1, 2],
    PixelFormat.BGR: [2, 1, 0],
    PixelFormat.RGBA: [0, 1, 2, 3],
    PixelFormat.BGRA: [2, 1, 0, 3],
}
YUV = list(itertools.product(YuvMatrix, YuvRange, ChromaSiting))
NOTHING = 0xA5


class Guarded:
    """Bytes against a page that may not be touched: behind them, or in front of them. A touch kills the process."""

    def __init__(self, content: bytes, at_end: bool = True) -> None:
        page = mmap.PAGESIZE
        room = -(-len(content) // page) * page
        self.pages = mmap.mmap(-1, room + page)
        start = room - len(content) if at_end else page
        self.pages[start : start + len(content)] = content
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        forbidden, prot_none = begin + room if at_end else begin, 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), prot_none) == 0
        self.address = begin + start


def rows_of(rows: np.ndarray, gap: int, seed: int = 0) -> bytes:
    """uint8 [rows, bytes] with `gap` bytes of noise between rows, and none behind the last."""
    noise = np.random.default_rng(seed).integers(0, 256, (len(rows), gap), np.uint8)
    return np.concatenate([rows, noise], 1).tobytes()[: rows.size + gap * (len(rows) - 1)]


def picture(image: np.ndarray, kind: PixelFormat, gap: int = 0, at_end: bool = True) -> Frame:
    """A frame of uint8 [H, W, 3] RGB that keeps its memory, which ends, or begins, with the frame's own.

    Between the rows lie `gap` bytes of noise; a fourth channel is noise.
    """
    height, width = image.shape[:2]
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 1), np.uint8)
    pixels = np.concatenate([image, noise], 2)[..., CHANNELS[kind]].reshape(height, -1)
    memory = Guarded(rows_of(pixels, gap), at_end)
    stride = pixels.shape[1] + gap if gap else 0
    frame = Frame(format=kind, width=width, height=height, data=memory.address, stride=stride)
    frame.memory = memory
    return frame


def nv12(luma: np.ndarray, chroma: np.ndarray, yuv=YUV[0], gaps=(0, 0), apart=True) -> Frame:
    """The same of luma, uint8 [H, W], and chroma, uint8 [H/2, W/2, 2], each in memory of its own or both in one.

    yuv: matrix, range and siting.
    """
    (height, width), (luma_gap, chroma_gap) = luma.shape, gaps
    above, below = rows_of(luma, luma_gap), rows_of(chroma.reshape(height // 2, width), chroma_gap)
    memory = [Guarded(above), Guarded(below)] if apart else [Guarded(above + bytes(luma_gap) + below)]
    frame = Frame(
        format=PixelFormat.NV12,
        width=width,
        height=height,
        data=memory[0].address,
        stride=width + luma_gap if luma_gap else 0,
        chroma=memory[1].address if apart else None,
        chroma_stride=width + chroma_gap if chroma_gap != luma_gap else 0,
        yuv_matrix=yuv[0],
        yuv_range=yuv[1],
        chroma_siting=yuv[2],
    )
    frame.memory = memory
    return frame


def prepared(library, frame, boxes, size: int) -> np.ndarray:
    """uint8 [N, size, size, 3] of boxes (x, y, width, height) of a frame, or of one frame each."""
    frames = frame if isinstance(frame, list) else [frame] * len(boxes)
    crops = (Crop * len(boxes))(*(Crop(ctypes.pointer(f), *box) for f, box in zip(frames, boxes)))
    guard = 64
    memory = np.full(len(boxes) * size * size * 3 + 2 * guard, NOTHING, np.uint8)
    rgb = memory[guard:-guard]
    status = library.tkf_prepare(crops, len(boxes), size, rgb.ctypes.data_as(c_api.Pixels))
    assert status == Status.OK, library.tkf_last_error(None)
    assert (memory[:guard] == NOTHING).all() and (memory[-guard:] == NOTHING).all()
    return rgb.reshape(len(boxes), size, size, 3)
