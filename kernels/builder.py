"""Building a plan: launches are collected, then their buffers are placed in one arena by liveness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import Buffer, Launch, Plan, aligned, itemsize


@dataclass(frozen=True)
class _Handle:
    """A buffer of the arena or of the counters, by number, before it has an offset; otherwise as `Buffer`."""

    number: int
    dtype: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * itemsize(self.dtype)


class PlanBuilder:
    """Collects launches; `finish` places their buffers. `buffer` and `counters` give handles for `launch`'s args."""

    def __init__(self, weights: dict[str, Buffer], weight_bytes: int):
        self.weights = weights
        self._weight_bytes = weight_bytes
        self._buffers: list[tuple[str, str, int]] = []  # space, dtype, count
        self._launches: list[dict[str, Any]] = []

    def buffer(self, dtype: str, count: int) -> _Handle:
        """Arena memory that lives from the first launch that names it to the last."""
        self._buffers.append(("arena", dtype, count))
        return _Handle(len(self._buffers) - 1, dtype, count)

    def counters(self, count: int) -> _Handle:
        self._buffers.append(("counters", "i32", count))
        return _Handle(len(self._buffers) - 1, "i32", count)

    def launch(self, args: dict[str, Buffer | _Handle | int | None], constexprs: dict[str, Any], **facts: Any) -> None:
        """Appends a launch. args: of them, None is a pointer it does not use. facts: `Launch`'s other fields."""
        unused = {name: value for name, value in args.items() if value is None}
        used = {name: value for name, value in args.items() if value is not None}
        self._launches.append({"args": used, "constexprs": tuple((unused | constexprs).items()), **facts})

    def finish(self, **facts: Any) -> Plan:
        """The plan; `facts` are `Plan`'s batch, precision, arch, size and classes."""
        placed, arena_bytes, counter_bytes = self._place()
        launches = []
        for fields in self._launches:
            args = tuple((n, placed[v.number] if isinstance(v, _Handle) else v) for n, v in fields["args"].items())
            launches.append(Launch(**{**fields, "args": args}))
        plan = Plan(
            launches=tuple(launches),
            arena_bytes=arena_bytes,
            counter_bytes=counter_bytes,
            weight_bytes=self._weight_bytes,
            **facts,
        )
        plan.validate()
        return plan

    def _place(self) -> tuple[dict[int, Buffer], int, int]:
        """Offsets. Arena: by falling size, each at the lowest gap among those alive with it. Counters: one by one."""
        alive: dict[int, tuple[int, int]] = {}
        for index, fields in enumerate(self._launches):
            for value in fields["args"].values():
                if isinstance(value, _Handle):
                    first, _ = alive.get(value.number, (index, index))
                    alive[value.number] = (first, index)
        placed: dict[int, Buffer] = {}
        ends = {"arena": 0, "counters": 0}
        order = sorted(alive, key=lambda n: (-self._nbytes(n), n))
        for number in order:
            space, dtype, count = self._buffers[number]
            first, last = alive[number]
            if space == "counters":
                offset = ends[space]
            else:
                taken = sorted(
                    (b.offset, aligned(b.offset + b.nbytes))
                    for n, b in placed.items()
                    if b.space == space and alive[n][0] <= last and first <= alive[n][1]
                )
                offset = _gap(taken, self._nbytes(number))
            placed[number] = Buffer(space, offset, dtype, count)
            ends[space] = max(ends[space], aligned(offset + self._nbytes(number)))
        return placed, ends["arena"], ends["counters"]

    def _nbytes(self, number: int) -> int:
        _, dtype, count = self._buffers[number]
        return count * itemsize(dtype)


def _gap(taken: list[tuple[int, int]], nbytes: int) -> int:
    """The lowest offset where `nbytes` fit between `taken` (begin, end), sorted by begin."""
    end = 0
    for begin, until in taken:
        if begin - end >= nbytes:
            return end
        end = max(end, until)
    return end
