"""What annotated videos and folders share: a thread that draws and encodes, behind a queue of bounded size.

A file gets its name when it is complete. Ctrl-C completes it with what was written so far; any other error leaves none.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from types import TracebackType
from typing import Self

from ..errors import UsageError
from .results import Frame, FrameResult

# Of frames that wait to be encoded, if more than one does; then `write` waits.
MOST_WAITING_BYTES = 32 * 2**20


class Annotated(ABC):
    """A context manager: `write` hands a frame to the thread, and raises what went wrong with those before it.

    frames: how many were encoded. One thread writes and closes.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._waiting: deque[FrameResult] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _check(self, frame: Frame) -> None:
        """In the caller's thread: refuses a frame that must not be written."""

    @abstractmethod
    def _encode(self, result: FrameResult) -> None:
        """In the thread: draws one frame and writes it."""

    @abstractmethod
    def _finish(self) -> None:
        """After the last frame: gives the result its name."""

    @abstractmethod
    def _discard(self) -> None:
        """Removes what is not finished, however far it is."""

    def write(self, result: FrameResult) -> None:
        """Queues one frame; waits while those in front of it are many. Raises what an earlier one has failed with."""
        self._check(result.frame)
        size = result.frame.image.nbytes
        with self._changed:
            if self._ended:
                raise UsageError("write: got a frame after the end, expected none: this output is closed; open another")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="annotate", daemon=True)
                self._thread.start()
            while self._error is None and self._waiting and self._bytes + size > MOST_WAITING_BYTES:
                self._changed.wait()
            self._raise_error()
            self._waiting.append(result)
            self._bytes += size
            self._changed.notify_all()

    def close(self) -> None:
        """Writes what waits and completes the output; of an output that failed, raises why. A second call is harmless.

        Ctrl-C in here ends it without a result.
        """
        try:
            self._end(drop=False)
            self._raise_error()
            self._finish()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Ends without a result: what waits is dropped, what is not complete removed."""
        self._end(drop=True)
        self._discard()

    def _end(self, drop: bool) -> None:
        with self._changed:
            self._ended = True
            if drop:
                self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                result = self._waiting.popleft()
                self._bytes -= result.frame.image.nbytes
                self._changed.notify_all()
            try:
                self._encode(result)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            self.frames += 1
            # Not kept while the next one is waited for.
            del result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.abandon()
