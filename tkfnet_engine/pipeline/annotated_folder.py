"""Annotated pictures and frames as files in a folder."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath

from PIL import Image, PngImagePlugin

from ..atomic import write_atomically
from ..errors import FileError, UsageError
from .annotating import Annotated
from .drawing import draw
from .results import Frame, FrameResult

# What this class writes carries this, and is replaced by its next run; other files are not.
MARK = "annotated by tkfnet-engine"
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")


class AnnotatedFolder(Annotated):
    """A folder of pictures named as their sources: JPEG for a JPEG, else PNG; frames of a video are JPEGs in a folder
    of its name.

    roots: the folders that sources come from; their subfolders are kept. Files that this class did not write, sources
    among them, are never replaced: `FileError`. `UsageError` for a path that is a root.
    """

    def __init__(self, path: str | os.PathLike, roots: Iterable[str | os.PathLike] = ()):
        super().__init__()
        self.path = os.fsdecode(path)
        # Links are not followed: two names for one picture are two pictures here.
        self._roots = [Path(os.path.abspath(os.fsdecode(root))) for root in roots]
        if any(_is_same(root, self.path) for root in self._roots):
            raise UsageError(
                f"{self.path}: got the folder of the pictures to annotate, expected another to write to; choose one"
            )
        # Of sources outside the roots: their names here, and which are given away.
        self._names: dict[str, str] = {}
        self._given: set[str] = set()
        _make_folder(self.path)

    def target(self, frame: Frame) -> str:
        """The file that `frame` is written to. Of sources outside the roots it may depend on those before."""
        name = self._name(frame.source)
        if frame.seconds is not None:
            return os.path.join(self.path, name, f"{frame.number:06d}.jpg")
        suffix = PurePath(name).suffix.lower()
        return os.path.join(self.path, name if suffix in (*_JPEG, ".png") else f"{name}.png")

    def _name(self, source: str) -> str:
        """Below this folder, of a picture or a video."""
        if source in self._names:
            return self._names[source]
        path = Path(os.path.abspath(source))
        for number, root in enumerate(self._roots):
            if path != root and path.is_relative_to(root):
                inner = path.relative_to(root)
                return str(inner if len(self._roots) == 1 else self._root_name(number) / inner)
        with suppress(ValueError):
            path = path.relative_to(Path.cwd())
        name = "standard input" if source == "-" else path.name if path.is_absolute() else str(path)
        stem, suffix = os.path.splitext(name)
        number = 1
        while name in self._given:
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._given.add(name)
        self._names[source] = name
        return name

    def _root_name(self, number: int) -> PurePath:
        """Of one of several roots: its own name, with a number where roots before it have the same."""
        name = self._roots[number].name or "root"
        before = sum(root.name == self._roots[number].name for root in self._roots[:number])
        return PurePath(f"{name}-{before + 1}" if before else name)

    def _check(self, frame: Frame) -> None:
        target = self.target(frame)
        if os.path.lexists(target) and not _is_ours(target):
            raise FileError(
                f"{target}: there is another's file already, expected none or an annotated picture; it stays as it is: "
                "choose another folder"
            )

    def _encode(self, result: FrameResult) -> None:
        target = self.target(result.frame)
        image = Image.fromarray(draw(result.frame.image, result.faces))
        data = io.BytesIO()
        if target.lower().endswith(".png"):
            notes = PngImagePlugin.PngInfo()
            notes.add_text("Comment", MARK)
            image.save(data, "PNG", compress_level=3, pnginfo=notes)
        else:
            # Colour in full resolution: of thin lines and small text it is half of what is seen.
            image.save(data, "JPEG", quality=90, subsampling=0, comment=MARK)
        _make_folder(os.path.dirname(target))
        write_atomically(target, data.getvalue())

    def _finish(self) -> None:
        """Each picture is complete when it is written."""

    def _discard(self) -> None:
        """Pictures that are complete stay."""


def _is_same(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is not there
        return False


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path}: expected a folder, which cannot be made: {error.strerror}; choose another") from error


def _is_ours(path: str) -> bool:
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            comment = image.info.get("comment" if image.format == "JPEG" else "Comment")
    except (OSError, ValueError, SyntaxError):
        return False
    return comment in (MARK, MARK.encode())
