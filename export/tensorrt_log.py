"""TensorRT's log and progress: all of it to a file, what matters to the person."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from ..console import say

# It says this of every build, and nothing can be done about it.
_NOISE = ("Thread context has not been set", "getHardwareCompatibilityLevel() is unsupported")


def log_to(trt: Any, file: TextIO) -> Any:
    """A `trt.ILogger` that keeps every message in `.messages`, errors in `.errors` as well, writes them to `file` and
    shows each warning once."""
    serious = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []
            self._shown: set[str] = set()

        # TensorRT calls it from threads of its own, and an exception here would end the process.
        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            print(f"{severity.name}: {message}", file=file, flush=severity in serious)
            if severity in serious:
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING and message not in self._shown:
                self._shown.add(message)
                if not message.startswith(_NOISE):
                    say(f"{trt.__name__}: {' '.join(message.split())}")

    return Log()


def progress_monitor(trt: Any, deadline: float | None) -> Any:
    """A `trt.IProgressMonitor` that shows the phase that runs, and cancels the build after `deadline` (of
    `time.monotonic`)."""
    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._next = time.monotonic() + pause

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            now = time.monotonic()
            if now >= self._next:
                self._next = now + pause
                text = f"{trt.__name__}: {phase}: {step + 1}/{self._steps.get(phase, step + 1)}"
                sys.stderr.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
                sys.stderr.flush()
            return deadline is None or now < deadline

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)
            if terminal and not self._steps:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()

    return Monitor()
