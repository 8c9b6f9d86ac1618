"""Runs a repository with the real tritonserver: ready after the canary, watched, restarted, drained.

What is watched: the server, the processes of its Python backend (Triton 2.51 neither restarts one that died nor says
that it is not ready), nginx, and every now and then the canary. After a fault the server is killed and started anew on
other ports of its own, and nginx is turned to it once its canary has answered right; until then clients get 503.
"""

from __future__ import annotations

import math
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..console import say
from ..errors import BackendError
from . import canary
from .environment import Environment
from .front import Front
from .limits import Limits
from .process import Ports, Server, free_ports

# A start that lasts this long, in seconds, ends a row of failed ones.
_SOUND = 60.0
_MAX_FAILURES = 5
# For the first answers of a server, which may be slower than all others.
_FIRST = 20.0


@dataclass(frozen=True)
class Plan:
    """What to serve and where. known: the canary's answers by engine. host, public: where clients come; with `direct`
    the server itself listens there, on this machine alone. check_seconds: between two canaries, each of which may fail
    once. start_seconds: for a start."""

    environment: Environment
    repository: str
    known: Mapping[str, Mapping[str, Any]]
    public: Ports
    host: str = "127.0.0.1"
    direct: bool = False
    limits: Limits = field(default_factory=Limits)
    check_seconds: float = 30.0
    start_seconds: float = 300.0


class _Stopped(Exception):
    """Somebody asked for the end."""


def serve(plan: Plan, when_ready: Callable[[], None] = lambda: None) -> int:
    """Serves until SIGTERM or SIGINT, then drains: 0. `BackendError` where it cannot start, cannot go on, or was forced
    because requests in flight took longer than `plan.limits.drain_seconds` (or a second signal came)."""
    with tempfile.TemporaryDirectory(prefix="tkfnet-serve-", ignore_cleanup_errors=True) as folder:
        # nginx's workers, of a user of their own when started by root, keep long bodies in there.
        os.chmod(folder, 0o711)
        return _Supervisor(plan, folder, when_ready).run()


class _Supervisor:
    def __init__(self, plan: Plan, folder: str, when_ready: Callable[[], None]):
        self._plan, self._when_ready = plan, when_ready
        self._front = None if plan.direct else Front(folder, plan.host, plan.public, plan.limits)
        self._server: Server | None = None
        self._serving = False
        self._backends = os.path.join(folder, "backends")
        plan.environment.write_backends(self._backends)
        self._signals, self._signalled = 0, -math.inf
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    def run(self) -> int:
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._serve()
            return 0
        finally:
            for process in (self._server, self._front):
                if process is not None:
                    process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _on_signal(self, number: int, frame: Any) -> None:
        # A shell or a container may tell the process and its group: that is one wish.
        now = time.monotonic()
        if now - self._signalled > 1:
            self._signals += 1
            self._signalled = now
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                self._start()
                if failures == 0:
                    self._when_ready()
                why = self._watch()
            except _Stopped:
                return self._drain()
            except BackendError as error:
                why = str(error)
                if self._front is None or self._front.process is None:
                    raise  # the first start: what is wrong is wrong at once
            failures = 1 if time.monotonic() - started > _SOUND else failures + 1
            if failures > _MAX_FAILURES:
                raise BackendError(f"the server failed {failures} times in a row, the last time because {why}")
            pause = 2.0 ** (failures - 2) if failures > 1 else 0.0
            say(f"restarting the server in {pause:g} s: {why}")
            self._server.kill()
            try:
                self._wait([], pause)
            except _Stopped:
                return self._drain()

    # --- start -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        plan, self._serving = self._plan, False
        ports = plan.public if plan.direct else free_ports()
        self._server = Server(plan.environment, plan.repository, self._backends, ports, plan.limits)
        deadline = time.monotonic() + plan.start_seconds
        while True:
            self._wait([self._server.process.pid], 0.1)
            if self._server.process.poll() is not None:
                raise BackendError("tritonserver did not start: it says why above")
            with suppress(OSError):
                if canary.ask(ports.http, "GET", "/v2/health/ready", 5)[0] == 200:
                    break
            if time.monotonic() > deadline:
                raise BackendError(f"tritonserver is not ready after {plan.start_seconds:g} s; see its log above")
        for name, known in plan.known.items():
            try:
                canary.check(ports.http, name, known, max(_FIRST, plan.limits.request_seconds), self._most(known))
            except OSError as error:
                raise BackendError(f"{name}: the server does not answer: {error}") from error
        if self._front is not None:
            self._front.point_to(ports)
        self._serving = True

    # --- watch -----------------------------------------------------------------------------------------------

    def _watch(self) -> str:
        """Returns why the server has to be started again."""
        plan, server, front = self._plan, self._server, self._front
        stubs, missed, due = server.stubs(), 0, time.monotonic() + plan.check_seconds
        while True:
            others = [] if front is None else [front.process.pid]
            self._wait([server.process.pid, *stubs, *others], max(0.0, due - time.monotonic()))
            if server.process.poll() is not None:
                return f"tritonserver ended with {server.process.returncode}"
            if gone := [pid for pid in stubs if not _alive(pid)]:
                return f"process {gone[0]} of its Python backend ended"
            if front is not None and front.process.poll() is not None:
                say(f"nginx ended with {front.process.returncode}; starting it again")
                front.point_to(server.ports)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + plan.check_seconds
            fault = self._fault()
            missed = missed + 1 if fault else 0
            if missed == 2:
                return fault

    def _fault(self) -> str:
        """What the canary has to complain about, or nothing. A full queue is no fault."""
        for name, known in self._plan.known.items():
            try:
                canary.check(self._server.ports.http, name, known, self._plan.limits.request_seconds, self._most(known))
            except BackendError as error:
                if getattr(error, "status", None) != 503:
                    return str(error)
            except OSError as error:
                return f"{name}: the server does not answer: {error}"
        return ""

    def _most(self, known: Mapping[str, Any]) -> int:
        return min(self._plan.limits.max_images, known["max_batch"])

    def _wait(self, pids: Sequence[int], seconds: float) -> None:
        """Until one of the processes ended or the time is over. `_Stopped` once a signal came."""
        if self._signals:
            raise _Stopped
        poll, opened = select.poll(), []
        poll.register(self._wake_read, select.POLLIN)
        try:
            for pid in pids:
                try:
                    opened.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    return
                poll.register(opened[-1], select.POLLIN)
            poll.poll(seconds * 1000)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if self._signals:
            raise _Stopped

    # --- end -------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """nginx first: it closes what waits, and lets the server answer what it has. Then the server, idle by now."""
        if not self._serving:
            return  # nothing is in flight: what runs is killed
        limit = self._plan.limits.drain_seconds
        deadline = time.monotonic() + limit
        say(f"stopping: requests in flight have {limit} s")
        asked = self._signals
        for part in (self._front, self._server):
            if part is None or part.process is None:
                continue
            part.drain()
            while part.process.poll() is None:
                if time.monotonic() > deadline or self._signals > asked:
                    raise BackendError(
                        f"stopped by force: requests were still in flight after {limit} s or a 2nd signal"
                    )
                time.sleep(0.02)
        code = self._server.process.returncode if self._server else 0
        if code:
            raise BackendError(f"tritonserver ended with {code} while it was stopped; see its log above")
        if self._server is not None:
            self._server.clean()


def _alive(pid: int) -> bool:
    """Not ended, and not a zombie, which an ended child of the server stays."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False
