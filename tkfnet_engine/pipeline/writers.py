"""Where results go: a table, a JSON list, a CSV file that can be continued. Each takes them one frame at a time."""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import IO, Any, Protocol

from ..atomic import open_regular
from ..errors import FileError, UsageError
from .results import FaceResult, FrameResult, columns
from .sources import printable

# Results of pictures that are held back: until then a run that fails prints nothing, and a table knows its widths.
HELD_BACK = 256


class Writer(Protocol):
    def write(self, result: FrameResult) -> None: ...

    def close(self, complete: bool) -> None:
        """complete: whether all that was asked for has been written; False after Ctrl-C."""


class JsonList:
    """One JSON list of `FaceResult.row`s on a stream, closed properly whenever it ends."""

    def __init__(self, stream: IO[str]):
        self._stream, self._held, self._begun = stream, [], False

    def write(self, result: FrameResult) -> None:
        self._held += [face.row() for face in result.faces]
        if len(self._held) >= HELD_BACK:
            self._flush()

    def close(self, complete: bool) -> None:
        self._flush()
        self._stream.write("\n]\n" if self._begun else "[]\n")
        self._stream.flush()

    def abandon(self) -> None:
        """After an error: nothing, if nothing was printed yet."""
        if self._begun:
            self.close(False)

    def _flush(self) -> None:
        for row in self._held:
            self._stream.write(",\n" if self._begun else "[\n")
            self._stream.write(textwrap.indent(json.dumps(row, indent=2, allow_nan=False), "  "))
            self._begun = True
        self._held = []


class Table:
    """Lines for a person on a stream. Pictures of one face each: name, label, the two next best. Else: name, time,
    place among the frame's faces, box, label. width: of the longest name."""

    def __init__(self, stream: IO[str], width: int, at_once: bool = False):
        self._stream, self._width, self._at_once = stream, width, at_once
        self._held: list[FrameResult] | None = []

    def write(self, result: FrameResult) -> None:
        if self._held is None:
            return self._print(result, plain=False)
        # Without the pixels.
        self._held.append(FrameResult(replace(result.frame, image=result.frame.image[:0].copy()), result.faces))
        if self._at_once or len(self._held) >= HELD_BACK or result.frame.seconds is not None:
            self._release(plain=False)

    def close(self, complete: bool) -> None:
        if self._held is not None:
            self._release(plain=all(r.frame.seconds is None and len(r.faces) <= 1 for r in self._held))

    def abandon(self) -> None:
        """After an error: nothing more."""

    def _release(self, plain: bool) -> None:
        held, self._held = self._held or [], None
        for result in held:
            self._print(result, plain)

    def _print(self, result: FrameResult, plain: bool) -> None:
        frame, name = result.frame, f"{result.frame.source:<{self._width}}"
        if not result.faces and frame.seconds is None:
            print(f"{name}  no face", file=self._stream)
        for face in result.faces:
            print(name + ("" if plain else _place(face, len(result.faces))) + _ranked(face), file=self._stream)
        if frame.seconds is not None or self._at_once:
            self._stream.flush()


def _place(face: FaceResult, count: int) -> str:
    seconds, (x, y, w, h) = face.seconds, face.box
    when = "" if seconds is None else f"  {int(seconds) // 60:>3}:{seconds % 60:05.2f}"
    who = f"{face.face + 1}/{count}" if face.track is None else f"#{face.track}"
    return f"{when}  {who:>5}  {f'{x:.0f},{y:.0f} {w:.0f}x{h:.0f}':<19}"


def _ranked(face: FaceResult) -> str:
    (first, p), *others = sorted(face.probabilities.items(), key=lambda item: -item[1])
    rest = ", ".join(f"{name} {q:.1%}" for name, q in others[:2])
    return f"  {first:<10} {p:>6.1%}   ({rest})"


class CsvFile:
    """A CSV file, one line a face, written as results come. A source without any face has one line with its name alone,
    so that `resume` knows it is done.

    resume: continues the file at `path`, if there is one. finished: the sources that are complete in it: all but the
    last, whose lines are taken out. `UsageError` where the file is not one that this run would write.
    """

    def __init__(self, path: str | os.PathLike, labels: Sequence[str], resume: bool = False):
        self.path, self.finished, self._columns = os.fsdecode(path), frozenset[str](), columns([*labels])
        self._source: str | None = None
        self._empty = False
        header = self._line(self._columns)
        kept = self._kept(header) if resume and os.path.exists(self.path) else 0
        try:
            # Unbuffered: a killed process loses no whole line.
            self._file: IO[bytes] = open(self.path, "r+b" if kept else "wb", buffering=0)  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise FileError(f"{self.path}: cannot write it: {error}; choose another path") from error
        try:
            if kept:
                self._file.seek(kept)
                self._file.truncate()
            else:
                self._put(header)
        except BaseException:
            self._file.close()
            raise

    def write(self, result: FrameResult) -> None:
        name = result.frame.source
        if name in self.finished:
            return
        if name != self._source:
            self._end_source()
            self._source, self._empty = name, True
        if result.faces:
            self._empty = False
            lines = []
            for face in result.faces:
                row = face.flat()
                lines.append(self._line([row[c] for c in self._columns]))
            self._put(b"".join(lines))

    def close(self, complete: bool) -> None:
        if complete:
            self._end_source()
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _end_source(self) -> None:
        if self._source is not None and self._empty:
            self._put(self._line([self._source, *[None] * (len(self._columns) - 1)]))
            self._empty = False

    def _line(self, values: Sequence[Any]) -> bytes:
        text = io.StringIO()
        cells = [printable(v) if isinstance(v, str) else v for v in values]
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue().encode()

    def _put(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise FileError(
                f"{self.path}: cannot write it: {error.strerror}; what it holds is sound: free space, and --resume"
            ) from error

    def _kept(self, header: bytes) -> int:
        """How many bytes of the file are of finished sources, which it notes; 0 if not even the header is whole."""
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise FileError(f"{self.path}: --resume: {error}; choose another path") from error
        with file:
            first = file.readline()
            if first != header:
                # A killed run may have left a part of the first line.
                if header.startswith(first) and not first.endswith(b"\n"):
                    return 0
                raise UsageError(
                    f"{self.path}: --resume: its first line is not {header.decode().strip()!r}; it was written by "
                    "another engine or program: choose another file, or leave --resume out to replace it"
                )
            at = start = len(header)
            last, seen = None, set()
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if (name := self._name(line)) != last:
                    seen.add(name)
                    last, start = name, at
                at += len(line)
        self.finished = frozenset(seen - {last})
        return start

    def _name(self, line: bytes) -> str:
        try:
            (cells,) = csv.reader([line.decode()], strict=True)
        except (ValueError, csv.Error):
            cells = []
        if len(cells) != len(self._columns):
            raise UsageError(
                f"{self.path}: --resume: it holds a line that is not of this form: {line[:80]!r}; choose another file, "
                "or leave --resume out to replace it"
            )
        return cells[0]
