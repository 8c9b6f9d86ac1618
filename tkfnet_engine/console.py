"""What every command shares: errors to one line and an exit code, JSON alone on standard output, progress."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from .errors import TkfnetError, UsageError

Item = TypeVar("Item")


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code for a wrong flag (argparse's 2 means "verification failed" here)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see --help\n")


def say(message: str) -> None:
    """One line to the person; standard output is kept for results."""
    print(message, file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """`value` as strict JSON, alone on standard output."""
    json.dump(value, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def run_command(command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `command(argv)` and ends the process; a `TkfnetError` becomes one line and its exit code."""
    try:
        code = command(argv) or 0
        sys.stdout.flush()
    except TkfnetError as error:
        # One line, also where a library's own message has several.
        say(f"error: {' '.join(str(error).split())}")
        code = error.exit_code
    except KeyboardInterrupt:
        say("stopped")
        code = 130
    except BrokenPipeError:
        # The reader of our output left (`| head`); nothing is wrong, but Python must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items`, showing count, rate and remaining time: redrawn on a terminal, else a line now and then."""
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0
    try:
        yield from _shown(items, what, total, terminal, pause)
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _shown(items: Iterable[Item], what: str, total: int, terminal: bool, pause: float) -> Iterator[Item]:
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= pause:
            shown = now
            rate = done / (now - start)
            left = math.ceil((total - done) / rate)
            text = f"{what}: {done}/{total} ({done / max(total, 1):.0%}), {rate:.3g}/s, {left} s left"
            print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
