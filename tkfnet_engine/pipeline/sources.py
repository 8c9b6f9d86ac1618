"""Pictures, folders, globs, videos, a camera or standard input -> frames, one after the other.

What a file is, its content says, never its name. In a folder, and in what a glob finds:

- folders below are entered, sorted by name; names that start with a dot are left out
- a link to a file is followed where it stays inside the folder, a link to a folder never: nothing outside is read,
  nothing twice, and no loop entered
- a file that is neither by content nor by name a picture or a video is passed over
- a picture or video that cannot be read is reported, counted in `failed`, and the rest goes on

One that was named by itself is an error instead.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..atomic import open_regular
from ..errors import FileError, ImageError, UsageError
from ..preprocess import MAX_BYTES, decode_image
from .results import Frame
from .videos import Report, camera_frames, opened_video, video_frames

# Names that promise a picture or video: such a file is not passed over in silence.
PICTURE_NAMES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl",
)  # fmt: skip
VIDEO_NAMES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp", ".ogv",
)  # fmt: skip
_PICTURES = ((0, b"\xff\xd8\xff"), (0, b"\x89PNG"), (8, b"WEBP"), (0, b"BM"))
# Stills that OpenCV or its FFmpeg would open; the only decoder of pictures is ours.
_FOREIGN_STILLS = (
    (0, b"II*\0"), (0, b"MM\0*"), (0, b"%PDF"), (8, b"heic"), (8, b"heix"), (8, b"mif1"), (8, b"avif"), (8, b"msf1"),
    (0, b"\xff\x0a"), (4, b"JXL "), (4, b"jP  "), (0, b"8BPS"),
)  # fmt: skip
_VIDEOS = (
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (8, b"AVI "), (0, b"\x1a\x45\xdf\xa3"), (0, b"FLV"),
    (0, b"\0\0\1\xba"), (0, b"\0\0\1\xb3"), (0, b"OggS"), (0, b"\x30\x26\xb2\x75"), (0, b"YUV4MPEG2"), (0, b"GIF8"),
)  # fmt: skip
_HEAD = 4096
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Source:
    """kind: "file", "camera" or "input". path: as the system knows it. name: the same, printable. named: by itself,
    and not found in a folder or by a glob."""

    kind: str
    path: str
    name: str
    named: bool = True


def printable(path: str | os.PathLike[str]) -> str:
    """One line of text: bytes that are none, and what cannot be seen, escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def expand(texts: Iterable[str | os.PathLike[str]], leave_out: Collection[str | os.PathLike[str]] = ()) -> list[Source]:
    """What the user named, as single sources in order. leave_out: files and folders not to enter, such as where the
    results go. `ImageError` for an empty folder or glob, `UsageError` for a camera beside other sources."""
    hidden = {os.path.realpath(path) for path in leave_out}
    found: list[Source] = []
    for given in texts:
        text = os.fsdecode(given)
        if text == STANDARD_INPUT:
            found.append(Source("input", text, text))
        elif text.isascii() and text.isdigit() and not os.path.lexists(text):
            found.append(Source("camera", text, f"camera {text}"))
        elif os.path.isdir(text):
            found += _checked(_in_folder(text, hidden), f"{printable(text)}: a folder without files; expected pictures")
        elif glob.has_magic(text) and not os.path.lexists(text):
            found += _checked(_in_glob(text, hidden), f"{printable(text)}: no such file, and no file fits this pattern")
        else:
            found.append(Source("file", text, printable(text)))
    kinds = [source.kind for source in found]
    if "camera" in kinds and len(found) > 1:
        raise UsageError("source: got a camera and others; a camera never ends: give it alone")
    if kinds.count("input") > 1:
        raise UsageError("source: got - (standard input) more than once; it holds one picture")
    return found


def _checked(found: list[Source], message: str) -> list[Source]:
    if not found:
        raise ImageError(message)
    return found


def _in_folder(folder: str, hidden: Collection[str]) -> list[Source]:
    root, found = os.path.realpath(folder), []
    if root in hidden:
        return found
    for where, folders, files in os.walk(folder, followlinks=False):
        # Changed in place: this is the order, and the choice, of what is entered.
        folders[:] = sorted(
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(where, name)) not in hidden
        )
        for name in sorted(files):
            path = os.path.join(where, name)
            if name[0] == ".":
                continue
            real = os.path.realpath(path)
            if real not in hidden and (not os.path.islink(path) or os.path.commonpath((root, real)) == root):
                found.append(Source("file", path, printable(path), named=False))
    return found


def _in_glob(pattern: str, hidden: Collection[str]) -> list[Source]:
    found: list[Source] = []
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(path):
            # `**` names every folder below by itself as well.
            if "**" not in pattern:
                found += _in_folder(path, hidden)
        elif os.path.realpath(path) not in hidden:
            found.append(Source("file", path, printable(path), named=False))
    return found


class Sources:
    """Iterates over the frames of `texts`, once. found: the sources, known before anything is read; a caller may
    take some out. failed: how many could not be read, or not to their end. fps: of each video's frames as they come,
    once its first frame is there. Iterating in one thread and looking at these in another is fine."""

    def __init__(
        self,
        texts: Sequence[str | os.PathLike[str]],
        every: int = 1,
        report: Report | None = None,
        leave_out: Collection[str | os.PathLike[str]] = (),
    ):
        """every: of a video or camera, one frame in so many. report: takes a line on what is passed over or ends
        early; default nobody."""
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"every: got {every!r}, expected a whole number from 1: 1 is every frame")
        self._every, self._report = every, report or (lambda _: None)
        self.found = expand(texts, leave_out)
        self.live = any(source.kind == "camera" for source in self.found)
        self.failed = self.passed_over = 0
        self.fps: dict[str, float] = {}
        self._begun, self._known = 0, 0

    def total(self) -> int | None:
        """How many frames there are, as far as is known: a source that has not been opened counts as one."""
        return None if self.live else self._known + len(self.found) - self._begun

    def __iter__(self) -> Iterator[Frame]:
        for source in self.found:
            self._begun += 1
            try:
                yield from self._frames(source)
            except ImageError as error:
                if source.named:
                    raise
                self._failure(str(error))

    def _failure(self, message: str) -> None:
        self.failed += 1
        self._report(message)

    def _frames(self, source: Source) -> Iterator[Frame]:
        if source.kind == "camera":
            yield from camera_frames(int(source.path), source.name, self._every, self.fps)
        elif source.kind == "input":
            self._known += 1
            yield Frame(source.name, 0, None, decode_image(sys.stdin.buffer))
        elif (kind := kind_of(source.path)) == "other" and not source.named and not _promises(source.path):
            self.passed_over += 1
        elif kind == "video" or (kind == "other" and _is_binary(source.path)):
            yield from self._video(source, certain=kind == "video")
        else:
            self._known += 1
            yield Frame(source.name, 0, None, decode_image(source.path))

    def _video(self, source: Source, certain: bool) -> Iterator[Frame]:
        capture = opened_video(source.path, source.name, certain)
        if capture is None:
            self._known += 1
            if os.path.getsize(source.path) <= MAX_BYTES:
                decode_image(source.path)  # says what it found instead
            raise ImageError(
                f"{source.name}: neither a picture this package reads nor a video that OpenCV opens; expected JPEG, "
                "PNG, WebP, BMP, or a sound video; convert or copy it again"
            )
        known = self._known

        def count(frames: int) -> None:
            self._known = known + frames

        yield from video_frames(capture, source.name, self._every, self.fps, count, self._failure)


def kind_of(path: str) -> str:
    """ "picture", "video" or "other", by the file's first bytes; "picture" also for what the decoder of pictures has
    the better error for."""
    head = _head(path)
    if not head or any(head.startswith(magic, at) for at, magic in (*_PICTURES, *_FOREIGN_STILLS)):
        return "picture"
    if any(head.startswith(magic, at) for at, magic in _VIDEOS) or (head[:1] == b"G" and head[188:189] == b"G"):
        return "video"
    return "other"


def _head(path: str) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(_HEAD)
    except (OSError, FileError, ValueError):
        return b""


def _is_binary(path: str) -> bool:
    """FFmpeg takes text for subtitles to draw, or for playlists of other files and addresses to open."""
    head = _head(path)
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character may be cut in two at the end.
        text = head[: error.start].decode("utf-8") if error.start > len(head) - 4 else "\0"
    return any(c < " " and c not in "\t\n\r\f" for c in text)


def _promises(path: str) -> bool:
    return path.lower().endswith(PICTURE_NAMES + VIDEO_NAMES)


def frames(
    sources: Sequence[str | os.PathLike[str]], every: int = 1, report: Callable[[str], None] | None = None
) -> Iterator[Frame]:
    """The frames of pictures, folders, globs, videos, a camera ("0") or standard input ("-"), in order."""
    return iter(Sources(sources, every, report))
