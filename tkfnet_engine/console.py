"""What every command shares: errors to one line and an exit code, JSON alone on standard output, progress."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

from .errors import TkfnetError, UsageError

Item = TypeVar("Item")
_CLEAR = "\r\x1b[K"
# How many progress lines stand on the terminal, for other lines to wipe away.
_shown_now = 0


class Parser(argparse.ArgumentParser):
    """argparse, with our exit code for a wrong flag (argparse's 2 means "verification failed" here)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; see --help\n")


def say(message: str) -> None:
    """One line to the person; standard output is kept for results."""
    print(f"{_CLEAR if _shown_now else ''}{message}", file=sys.stderr, flush=True)


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


def progress(items: Iterable[Item], what: str, total: int | Callable[[], int | None] | None = None) -> Iterator[Item]:
    """Yields `items`, showing count, rate and remaining time: redrawn on a terminal, else a line now and then.

    total: default `len(items)`; or asked for each time it is shown, and None where nobody knows.
    """
    if total is None:
        total = len(items)  # type: ignore[arg-type]
    known = total if callable(total) else lambda: total
    terminal = sys.stderr.isatty()
    pause = 0.2 if terminal else 10.0
    global _shown_now
    _shown_now += terminal
    try:
        yield from _shown(items, what, known, terminal, pause)
    finally:
        _shown_now -= terminal
        if terminal:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def _shown(
    items: Iterable[Item], what: str, known: Callable[[], int | None], terminal: bool, pause: float
) -> Iterator[Item]:
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= pause:
            shown = now
            rate, total = done / (now - start), known()
            text = f"{what}: {done}, {rate:.3g}/s"
            if total is not None:
                left = math.ceil((total - done) / rate)
                text = f"{what}: {done}/{total} ({done / max(total, 1):.0%}), {rate:.3g}/s, {left} s left"
            print(f"{_CLEAR}{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


class Interruptible:
    """Within it Ctrl-C ends `until_pressed` between two items, and does not tear a line in two. A second one is as
    always. Only in the main thread, and not where the signal is ignored (a shell's background jobs)."""

    def __init__(self) -> None:
        self.pressed = False
        self._waiting = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.pressed = self.pressed, True
        if again or self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def until_pressed(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, until Ctrl-C: the item that is waited for then is dropped, and `items` closed if it can be."""
        iterator = iter(items)
        try:
            while not self.pressed:
                self._waiting = True
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._waiting = False
                yield item
        except KeyboardInterrupt:
            if not self.pressed:
                raise
        finally:
            if (close := getattr(iterator, "close", None)) is not None:
                close()
