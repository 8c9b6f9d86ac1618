"""The real tritonserver as a child process, and the processes of its Python backend."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from .environment import Environment
from .limits import Limits

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
# What nobody may do through any port: the key is known to nobody.
_LOCKED = "model-repository,shared-memory,trace,logging"


@dataclass(frozen=True)
class Ports:
    """Of one listener each."""

    http: int
    grpc: int
    metrics: int


def dies_with_parent(number: int = signal.SIGKILL) -> None:
    """In a child before it becomes another program: should we be killed, it gets this signal."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))


def free_ports(host: str = "127.0.0.1") -> Ports:
    """Three that nobody listens at now."""
    sockets = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) for _ in range(3)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return Ports(*(one.getsockname()[1] for one in sockets))
    finally:
        for one in sockets:
            one.close()


class Server:
    """One tritonserver on 127.0.0.1. `process` is its handle; `stubs` are the backend's processes."""

    def __init__(self, environment: Environment, repository: str, backends: str, ports: Ports, limits: Limits):
        self.ports = ports
        # Names of its shared memory, which a killed server leaves behind.
        self._prefix = f"tkfnet_{os.getpid()}_{secrets.token_hex(4)}_"
        self.process = subprocess.Popen(
            server_command(environment.server, repository, backends, ports, limits, self._prefix),
            env={**os.environ, **environment.variables},
            stdin=subprocess.DEVNULL,
            preexec_fn=dies_with_parent,
            start_new_session=True,
        )

    def stubs(self) -> list[int]:
        """Process numbers of its children."""
        return [pid for pid in _processes() if _parent(pid) == self.process.pid]

    def drain(self) -> None:
        """New requests are refused, those in flight are answered; then it exits."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The server, its backend's processes, and what they leave in shared memory."""
        children = self.stubs()
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pid in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self.clean()

    def clean(self) -> None:
        for path in glob.glob(f"/dev/shm/{self._prefix}*"):
            with suppress(OSError):
                os.unlink(path)


def server_command(
    server: str, repository: str, backends: str, ports: Ports, limits: Limits, prefix: str
) -> Sequence[str]:
    """tritonserver's command line: nothing is on that nobody asked for, and all of it listens on 127.0.0.1."""
    key = f"{secrets.token_hex(8)}={secrets.token_hex(32)}"
    return [
        server,
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={limits.drain_seconds}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--http-header-forward-pattern=(?i)x-request-id",
        "--grpc-header-forward-pattern=(?i)x-request-id",
        f"--http-restricted-api={_LOCKED}:{key}",
        f"--grpc-restricted-protocol={_LOCKED}:{key}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        "--log-info=false",
        "--pinned-memory-pool-byte-size=0",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything.
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
