"""The pool that lends sessions, each a set of buffers of its own: who uses which memory, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ..errors import BackendError
from .cuda_driver import OutOfMemory
from .registry import CLOSED

# Requests that run at once; each has buffers for the largest batch.
MAX_SESSIONS = 4


class PooledSession(Protocol):
    """What the pool asks of a session. last_stream: of the last caller whose work may still run in it."""

    last_stream: int | None

    @property
    def idle(self) -> bool:
        """Whether the GPU has done all work queued in it."""

    def destroy(self) -> None:
        """Waits for the work queued, then frees everything."""


class SessionPool:
    """Lends sessions, one caller each; makes them on demand, up to `limit` or what the GPU's memory holds."""

    def __init__(self, make: Callable[[int], Any], limit: int | None = None):
        """make: gives a new session, from how many there are before it. limit: `MAX_SESSIONS` by default."""
        self._make, self._limit = make, MAX_SESSIONS if limit is None else limit
        self._changed = threading.Condition()
        self._all: list[PooledSession] = [make(0)]
        self._free = list(self._all)
        self._closed = False

    @contextmanager
    def lend(self, stream: int | None = None) -> Iterator[Any]:
        """A session for the calling thread; waits for one. stream: the caller's, to find what it used last."""
        with self._changed:
            session = self._take(stream)
            while session is None:
                self._changed.wait()
                session = self._take(stream)
        try:
            yield session
        finally:
            with self._changed:
                self._free.append(session)
                self._changed.notify_all()

    def _take(self, stream: int | None) -> PooledSession | None:
        if self._closed:
            raise BackendError(CLOSED)
        # Best is a session that this stream used last: its order is the stream's own. Then one that rests.
        ready = [s for s in self._free if stream is not None and s.last_stream == stream]
        ready = ready or [s for s in self._free if s.idle]
        if not ready and len(self._all) < self._limit:
            try:
                self._all.append(made := self._make(len(self._all)))
                return made
            except OutOfMemory:
                # The first session is there: others only run more at once, and the memory is someone else's.
                self._limit = len(self._all)
        session = (ready or self._free or [None])[-1]
        if session is not None:
            self._free.remove(session)
        return session

    def close(self) -> None:
        """Waits for the callers, then frees every session."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._free) < len(self._all):
                self._changed.wait()
            for session in self._all:
                session.destroy()
            self._all, self._free = [], []
