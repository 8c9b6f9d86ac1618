"""The other side of `worker.py`: starts one, asks it, and ends it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Runtimes read one or the other; a worker's threads are pinned to what the run states.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc keeps what it is given back. Otherwise PyTorch at batch 32 takes 100,000 page faults per call and a fifth of its
# time: 605 ms instead of 480, and 920 on another day (two cores, Xeon).
KEEPS_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


class WorkerError(RuntimeError):
    """A worker that could not be opened, failed, or did not answer in time."""


class Worker:
    """A process with one opened engine. open_s, rss_mib: what it said when it had opened it."""

    def __init__(
        self,
        opener: str,
        threads: int,
        timeout: float = 300.0,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ):
        """environment: added to this process's own. `WorkerError` where the engine cannot be opened."""
        text = json.dumps({"opener": opener, "threads": threads, **settings})
        self._begin([sys.executable, "-m", "benchmarks.engines.worker", text], threads, timeout, environment or {})

    @classmethod
    def of(cls, command: list[str], threads: int, timeout: float = 300.0) -> Worker:
        """A process that answers as `worker.py` does."""
        made = cls.__new__(cls)
        made._begin(command, threads, timeout, {})
        return made

    def _begin(self, command: list[str], threads: int, timeout: float, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(_THREADS, str(threads)), **environment},
        )
        try:
            said = self._answer(timeout)
        except WorkerError:
            self.close()
            raise
        self.open_s, self.rss_mib = said["open_s"], said["rss_mib"]

    def ask(self, do: str, timeout: float = 300.0, **arguments: Any) -> dict[str, Any]:
        """`WorkerError` if it fails or takes longer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError("its process has ended") from None
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            raise WorkerError(f"no answer in {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"its process ended with {self._process.wait()}")
        said = json.loads(line)
        if "error" in said:
            raise WorkerError(said["error"])
        return said

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
