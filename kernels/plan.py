"""The launch plan: the whole network as an ordered list of kernel launches over one static memory arena.

A plan is pure data. It is built without a GPU or a driver (`planner.plan_from_network`), stored in the engine
file as JSON, and run by two executors: Triton's interpreter (`interpret.py`) and cubins in a CUDA graph
(`backends/fused.py`). A launch names memory by space and offset, never by address:

    pixels    the caller's images, uint8 [images, S, S, 3]
    logits    the answer, float32 [images, classes]
    weights   the packed parameters (`weights.py`), read only, one copy per device
    arena     every intermediate map, laid out by liveness, one per stream
    counters  of split-K: int32, zero before the first run, reset by every launch that uses them, one set per stream
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..errors import BundleError
from ..strict_json import parse

SPACES = ("pixels", "logits", "weights", "arena", "counters")
# Bytes per element, and Triton's name, of each dtype a buffer may have. "f8" is e4m3.
DTYPES = {
    "u8": (1, "u8"),
    "i8": (1, "i8"),
    "f8": (1, "fp8e4nv"),
    "f16": (2, "fp16"),
    "i32": (4, "i32"),
    "f32": (4, "fp32"),
}
# What a quantised map or weight is stored in.
QUANTISED_DTYPES = ("i8", "f8")
# Every buffer starts on such a boundary, so that every kernel may be compiled for 16-byte accesses.
ALIGNMENT = 256
# The scalar that an executor may lower from the plan's batch to the number of images that are really there.
IMAGES = "images"
# One set of buckets for all: a request runs in the smallest that holds it.
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FORMAT = 1


@dataclass(frozen=True)
class Buffer:
    """`count` elements of `dtype`, `offset` bytes into `space`; the part of it that a launch may touch."""

    space: str
    offset: int
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * itemsize(self.dtype)


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    name: the layer, "layer1.0.conv1". kernel: the Triton function. args: its run-time parameters by name, in the
    kernel's own order, buffers and int32. constexprs: its compile-time parameters by name; a pointer that this launch
    does not use is None there, and no run-time parameter. warps, stages: Triton's launch
    options. flops: 2 x multiply-accumulate that the layer needs, not what padding adds. reads, writes: bytes of
    distinct memory, each once. loads: bytes that thread blocks ask for, with every re-read of a tile.
    """

    name: str
    kernel: str
    grid: tuple[int, int, int]
    args: tuple[tuple[str, Buffer | int], ...]
    constexprs: tuple[tuple[str, int | bool | None], ...]
    warps: int
    stages: int
    flops: int
    reads: int
    writes: int
    loads: int

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def bytes(self) -> int:
        return self.reads + self.writes

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """(parameter, Triton type) of every run-time parameter: "*fp16", "i32"."""
        return tuple(
            (name, "*" + DTYPES[value.dtype][1] if isinstance(value, Buffer) else "i32") for name, value in self.args
        )

    @property
    def quantised(self) -> bool:
        """Whether it reads or writes quantised values."""
        return any(isinstance(value, Buffer) and value.dtype in QUANTISED_DTYPES for _, value in self.args)

    @property
    def fp_fusion(self) -> bool:
        """Whether the compiler may contract a multiplication and an addition. Not where values are quantised: those
        are rounded as every other executor of the same formula rounds them, to the bit."""
        return not self.quantised

    @property
    def variant(self) -> str:
        """Names the machine code this launch needs: equal for launches that one cubin serves, for one architecture."""
        facts = [self.kernel, self.signature, self.constexprs, self.warps, self.stages]
        return f"{self.kernel}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]}"


@dataclass(frozen=True)
class Plan:
    """The launches of one network for one batch, precision and architecture ("sm_90").

    size: side of the square input, pixels. *_bytes: how much of each space the launches use.
    """

    batch: int
    precision: str
    arch: str
    size: int
    classes: int
    launches: tuple[Launch, ...]
    arena_bytes: int
    counter_bytes: int
    weight_bytes: int

    def nbytes(self, space: str) -> int:
        """How much of `space` the plan uses."""
        return {
            "pixels": self.batch * self.size * self.size * 3,
            "logits": self.batch * self.classes * 4,
            "weights": self.weight_bytes,
            "arena": self.arena_bytes,
            "counters": self.counter_bytes,
        }[space]

    @property
    def flops(self) -> int:
        return sum(launch.flops for launch in self.launches)

    @property
    def bytes(self) -> int:
        """Distinct memory of each launch, read and written, summed over the launches."""
        return sum(launch.bytes for launch in self.launches)

    def to_json(self) -> bytes:
        """Canonical: equal plans give equal bytes."""
        fields = {"format": FORMAT} | {k: v for k, v in vars(self).items() if k != "launches"}
        fields["launches"] = [_launch_to_dict(launch) for launch in self.launches]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Reads and validates `to_json`'s form. `BundleError` for anything else."""
        try:
            fields = parse(bytes(data))
            if (found := fields.pop("format")) != FORMAT or type(found) is not int:
                raise ValueError("another format")
            launches = tuple(_launch_from_dict(d) for d in _checked_list("launches", fields.pop("launches")))
            plan = cls(launches=launches, **fields)
            plan.validate()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BundleError(
                f"launch plan: it is not one of this version ({error!r}); build the engine again", "plan"
            ) from None
        return plan

    def validate(self) -> None:
        """`ValueError` where a launch would leave its memory, or a number makes no sense."""
        for name in ("batch", "size", "classes", "weight_bytes"):
            _check_int(name, getattr(self, name), 1)
        for name in ("arena_bytes", "counter_bytes"):
            _check_int(name, getattr(self, name), 0)
        if type(self.arch) is not str or type(self.precision) is not str or not self.launches:
            raise ValueError(f"arch {self.arch!r}, precision {self.precision!r}, {len(self.launches)} launches")
        for launch in self.launches:
            self._validate_launch(launch)

    def _validate_launch(self, launch: Launch) -> None:
        if type(launch.name) is not str or not _is_ascii(launch.kernel) or not launch.kernel.isidentifier():
            raise ValueError(f"launch {launch.name!r}, kernel {launch.kernel!r}")
        # CUDA's limits on a grid.
        for extent, limit in zip(launch.grid, (2**31 - 1, 65535, 65535), strict=True):
            _check_int(f"{launch.name}: grid", extent, 1, limit)
        _check_int(f"{launch.name}: warps", launch.warps, 1, 32)
        _check_int(f"{launch.name}: stages", launch.stages, 1, 10)
        if launch.warps & (launch.warps - 1):
            raise ValueError(f"{launch.name}: {launch.warps} warps")
        for name in ("flops", "reads", "writes", "loads"):
            _check_int(f"{launch.name}: {name}", getattr(launch, name), 0)
        # What `variant` hashes has to be the same text in every language.
        for name, value in launch.constexprs:
            number = type(value) is int and -(2**63) <= value < 2**63
            if not _is_ascii(name) or not (number or type(value) in (bool, type(None))):
                raise ValueError(f"{launch.name}: constexpr {name!r} of {value!r}")
        for name, value in launch.args:
            if not _is_ascii(name):
                raise ValueError(f"{launch.name}: parameter {name!r}")
            if not isinstance(value, Buffer):
                _check_int(f"{launch.name}: {name}", value, -(2**31), 2**31 - 1)
                continue
            _check_int(f"{launch.name}: {name}.offset", value.offset, 0)
            _check_int(f"{launch.name}: {name}.count", value.count, 1)
            if value.offset % ALIGNMENT or value.offset + value.nbytes > self.nbytes(value.space):
                raise ValueError(f"{launch.name}: {name} ({value}) is not within its space")


def _check_int(what: str, value: Any, low: int, high: int = 2**62) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what}: got {value!r}, expected a whole number from {low} to {high}")


def _is_ascii(name: Any) -> bool:
    return type(name) is str and name.isascii()


def _checked_list(what: str, value: Any) -> list:
    if type(value) is not list:
        raise ValueError(f"{what}: got {value!r}, expected a list")
    return value


def _launch_to_dict(launch: Launch) -> dict[str, Any]:
    fields = dict(vars(launch))
    fields["args"] = [[name, vars(v) if isinstance(v, Buffer) else v] for name, v in launch.args]
    return fields


def _launch_from_dict(fields: dict[str, Any]) -> Launch:
    grid, args, constexprs = (_checked_list(name, fields[name]) for name in ("grid", "args", "constexprs"))
    read = {
        "grid": tuple(grid),
        "args": tuple((name, Buffer(**v) if isinstance(v, dict) else v) for name, v in args),
        "constexprs": tuple((name, value) for name, value in constexprs),
    }
    return Launch(**{**fields, **read})


def bucket_for(images: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `images`; `buckets` ascend and the last is at least `images`."""
    return next(b for b in buckets if b >= images)


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """The buckets of an engine whose largest batch is `max_batch`, which is one of them."""
    return (*(b for b in BUCKETS if b < max_batch), max_batch)


def itemsize(dtype: str) -> int:
    """Bytes of one element."""
    return DTYPES[dtype][0]


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to where the next buffer may start."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
