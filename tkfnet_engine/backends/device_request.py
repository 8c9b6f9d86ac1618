"""A call with arrays in GPU memory: checked before anything is queued, then in the order of the caller's stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError, ImageError, UsageError
from .cuda_driver import Gpu
from .device_array import ADDRESS_ALIGNMENT, DeviceArray, checked_view


@dataclass(frozen=True)
class DeviceRequest:
    """pixels, logits: device addresses. answer: the array that the logits are written into."""

    images: int
    pixels: int
    logits: int
    answer: Any


def device_request(
    gpu: Gpu,
    size: int,
    classes: int,
    pixels: Any,
    logits: Any,
    stream: int,
    check_count: Callable[[int], Any],
    alignment: int = ADDRESS_ALIGNMENT,
) -> DeviceRequest:
    """What `run_device` of a runner was given, as it documents it. The context must be current.

    check_count: raises for a number of images that cannot run. alignment: of both arrays, in bytes.
    """
    if gpu.capturing(stream):
        raise BackendError(
            "this stream is being captured into a graph, and the engine replays graphs of its own; call it outside of "
            "the capture"
        )
    images = checked_view(gpu, pixels, stream, "|u1", (None, size, size, 3), ImageError, "pixels", alignment)
    count = images.shape[0]
    check_count(count)
    if logits is None:
        made = DeviceArray(gpu, (count, classes), stream)
        return DeviceRequest(count, images.address, made.address, made)
    target = checked_view(gpu, logits, stream, "<f4", (count, classes), UsageError, "logits", alignment)
    if not target.writable:
        raise UsageError("logits: got a read-only array, expected one to write into")
    return DeviceRequest(count, images.address, target.address, logits)
