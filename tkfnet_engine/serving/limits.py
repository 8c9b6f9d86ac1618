"""What one request, and all that wait, may cost a server. Every limit is finite."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from ..errors import UsageError
from ..preprocess import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """max_images: images of one request. max_queue: requests that wait for one model; 503 beyond. queue_seconds: how
    long one may wait; 503 then. request_seconds: for a whole answer; 503 then. max_body: bytes of a request. max_json:
    bytes of the JSON in it, before the tensor. max_pixels: of a picture, as its header says.
    drain_seconds: for requests in flight when the server is told to stop. delay_us: how long a request may wait for
    others to run together with; it only does while no earlier batch is running. connections: open ones, all clients
    together.
    """

    max_images: int = 32
    max_queue: int = 256
    queue_seconds: float = 10.0
    request_seconds: float = 30.0
    max_body: int = 8 * 2**20
    max_json: int = 16384
    max_pixels: int = 12_000_000
    drain_seconds: int = 30
    delay_us: int = 500
    connections: int = 256

    _ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "max_images": (1, 1024),
        "max_queue": (1, 65536),
        "queue_seconds": (0.001, 3600),
        "request_seconds": (0.1, 3600),
        "max_body": (1024, 2**30),
        "max_json": (512, 99_999),
        "max_pixels": (1, MAX_PIXELS),
        "drain_seconds": (1, 3600),
        "delay_us": (0, 1_000_000),
        "connections": (4, 16384),
    }

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), self._ranges[field.name]
            if type(value) not in ((int, float) if field.type == "float" else (int,)) or not low <= value <= high:
                raise UsageError(f"{field.name}: got {value!r}, expected {low} to {high}; every limit is finite")
