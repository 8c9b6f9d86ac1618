"""`python -m tkfnet_engine.predict ENGINE SOURCE..`: names the expressions on the faces in pictures and videos."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import PurePath

import numpy as np

from .console import Interruptible, Parser, progress, run_command, say
from .errors import FileError, ImageError, UsageError
from .explain import Explainer, write_heat_map
from .face_crops import MARGIN
from .faces import DETECTORS, Detector, Face
from .pipeline import SEARCH_S, SMOOTH_S, Frame, FrameResult, Pipeline, Sources
from .pipeline.annotated import AnnotatedFolder, AnnotatedVideo, is_folder
from .pipeline.sources import Source, kind_of
from .pipeline.videos import FPS
from .pipeline.writers import CsvFile, JsonList, Table, Writer
from .preprocess import crop_box
from .trust import TRUST_HELP

_NONE = "--detector none"


def parser() -> Parser:
    p = Parser(prog="python -m tkfnet_engine.predict", description=__doc__.partition(": ")[2])
    p.add_argument("engine", metavar="ENGINE", help="an engine file (.tkf)")
    p.add_argument(
        "sources", metavar="SOURCE", nargs="+",
        help="pictures (JPEG, PNG, WebP, BMP), videos, folders, patterns such as 'p/*.jpg', the number of a camera, or "
        "- for a picture on standard input",
    )  # fmt: skip
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--detector", metavar="D", default="haar",
        help=f"{DETECTORS}: how faces are found; none: each picture is a face crop (default: haar, which needs OpenCV)",
    )  # fmt: skip
    where.add_argument("--boxes", metavar="FILE", help="where the faces are, as JSON: --detector boxes:FILE")
    where.add_argument(
        "--box", metavar="X,Y,W,H", help="one face, the same in all, in pixels of the upright image (square is best)"
    )
    p.add_argument("--margin", type=float, metavar="M", default=MARGIN, help=f"around a found box (default: {MARGIN})")
    p.add_argument("--every", type=int, metavar="N", default=1, help="of a video, only each N-th frame")
    p.add_argument(
        "--search-every", type=float, metavar="S", default=SEARCH_S,
        help="of a video: seconds between two searches for all faces; between them those seen are looked for, which "
        f"is faster (default: {SEARCH_S}; 0: for all in every frame)",
    )  # fmt: skip
    p.add_argument("--track", action="store_true", help="number the people in a video")
    p.add_argument(
        "--smooth", type=float, metavar="S", nargs="?", const=SMOOTH_S,
        help=f"average each person's probabilities in a video over S seconds (default: {SMOOTH_S}); tracks as well",
    )  # fmt: skip
    p.add_argument("--json", action="store_true", help="a JSON list on standard output")
    p.add_argument("--csv", metavar="FILE", help="write a CSV file, a line a face")
    p.add_argument("--annotate", metavar="OUT", help="draw the results: a video (out.mp4) or a folder of pictures")
    p.add_argument("--explain", metavar="DIR", help="a PNG a face: what the network looks at in it")
    p.add_argument("--resume", action="store_true", help="leave out what the --csv file or --annotate folder holds")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: every core)")
    p.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return p


def parse_box(text: str) -> tuple[int, int, int, int]:
    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--box: got {text!r}, expected four whole numbers X,Y,W,H such as 40,30,160,160") from None
    return x, y, w, h


class OneBox:
    """The same box in every picture."""

    name, crop = "box", "given"

    def __init__(self, box: tuple[int, int, int, int]):
        self._box = box

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        crop_box(image, self._box)  # refuses a box outside
        x, y, w, h = self._box
        return [Face((float(x), float(y), float(w), float(h)))]


class Annotations:
    """Gives frames to what draws them. A video is opened with its first frame, when its rate is known."""

    def __init__(self, path: str, sources: Sources, roots: Sequence[str]):
        self._path, self._sources = path, sources
        self._out: AnnotatedVideo | AnnotatedFolder | None = None
        self.folder: AnnotatedFolder | None = None
        if is_folder(path):
            self._out = self.folder = AnnotatedFolder(path, roots)

    def write(self, result: FrameResult) -> None:
        if self._out is None:
            self._out = AnnotatedVideo(self._path, self._sources.fps.get(result.frame.source, FPS))
        self._out.write(result)

    def close(self, complete: bool) -> None:
        if self._out is not None:
            self._out.close()

    def abandon(self) -> None:
        if self._out is not None:
            self._out.abandon()


class HeatMaps:
    """DIR/stem-frame-face.png; of sources that share a stem, the second has stem-2."""

    def __init__(self, folder: str, engine: str, sources: Sequence[Source], threads: int | None):
        self._folder, self._stems = folder, dict[str, str]()
        self._explainer = Explainer(engine, threads)
        taken: set[str] = set()
        for name in dict.fromkeys(source.name for source in sources):
            stem = "input" if name == "-" else PurePath(name).stem.replace(" ", "_")
            unique, number = stem, 1
            while unique in taken:
                number += 1
                unique = f"{stem}-{number}"
            self._stems[name] = unique
            taken.add(unique)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise FileError(f"{folder}: cannot make this folder: {error.strerror}; choose another") from error

    def write(self, result: FrameResult) -> None:
        assert result.crops is not None
        for face, crop, explanation in zip(result.faces, result.crops, self._explainer.explain(result.crops)):
            name = f"{self._stems[face.source]}-{face.frame}-{face.face}.png"
            write_heat_map(os.path.join(self._folder, name), crop, explanation, face.label)

    def close(self, complete: bool) -> None:
        self._explainer.close()

    def abandon(self) -> None:
        self._explainer.close()


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    # What libraries print by themselves says less than our errors do. Read when OpenCV is imported.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    detector: Detector | str = args.detector
    if args.box is not None:
        detector = OneBox(parse_box(args.box))
    elif args.boxes is not None:
        detector = f"boxes:{args.boxes}"
    outputs = [path for path in (args.csv, args.annotate, args.explain) if path is not None]
    with Pipeline(
        args.engine, detector, margin=args.margin, smooth=args.smooth, track=args.track,
        search_every=args.search_every, threads=args.threads, trusted=args.trust, warn=say,
    ) as pipeline:  # fmt: skip
        return _run(args, pipeline, Sources(args.sources, args.every, say, outputs))


def _run(args: argparse.Namespace, pipeline: Pipeline, sources: Sources) -> int:
    count = len(sources.found)
    writers: list[Writer] = []
    with Interruptible() as interrupt, ExitStack() as stack:
        stack.push(lambda kind, *_: _end(writers, kind is None, not interrupt.pressed))
        _open(args, pipeline, sources, writers)
        if not sources.found:
            say(f"nothing left to do: all {count} sources are finished")
            return 0
        tally = Tally(pipeline.detector.name in ("haar", "yunet"))
        frames = pipeline.frames(sources, keep_images=args.annotate is not None, keep_crops=args.explain is not None)
        # Lines that come as they are made show by themselves how it goes.
        if not (sys.stdout.isatty() and (args.json or not _files(args))):
            frames = progress(frames, "frames", sources.total)
        for result in interrupt.until_pressed(frames):
            for writer in writers:
                writer.write(result)
            tally.add(result)
        if not (tally.frames or sources.failed or interrupt.pressed):
            raise ImageError(
                f"no picture or video among {sources.passed_over} files; expected JPEG, PNG, WebP, BMP, MP4"
            )
    return _told(args, pipeline, sources, tally, interrupt.pressed, count)


class Tally:
    """Counts what came; says so once if a detector finds nothing in a picture."""

    def __init__(self, detects: bool):
        self.frames = self.faces = self.sources = 0
        self._detects, self._source = detects, None

    def add(self, result: FrameResult) -> None:
        frame = result.frame
        self.frames += 1
        self.faces += len(result.faces)
        self.sources += frame.source != self._source
        self._source = frame.source
        if self._detects and not result.faces and frame.seconds is None:
            self._detects = False
            say(f"{frame.source}: no face found; if your pictures are face crops already, give {_NONE}")


def _open(args: argparse.Namespace, pipeline: Pipeline, sources: Sources, writers: list[Writer]) -> None:
    """Opens every output, and takes out of `sources` what --resume finds finished."""
    finished: list[Callable[[Source], bool]] = []
    if args.csv is not None:
        table = CsvFile(args.csv, pipeline.engine.labels, args.resume)
        writers.append(table)
        finished.append(lambda source: source.name in table.finished)
    if args.annotate is not None:
        drawn = Annotations(args.annotate, sources, [path for path in args.sources if os.path.isdir(path)])
        writers.append(drawn)
        if (folder := drawn.folder) is not None:
            # All of them, and in order: their names may depend on those before.
            there = {s: os.path.exists(folder.target(Frame(s.name, 0, None, _NO_PIXELS))) for s in sources.found}
            finished.append(lambda s: there[s] or (args.csv is not None and kind_of(s.path) != "picture"))
        elif args.resume:
            raise UsageError("--resume: a video cannot be continued; expected --annotate FOLDER, or --csv alone")
    if args.resume and not finished:
        raise UsageError("--resume: got no file that tells what is finished; expected --csv FILE or --annotate FOLDER")
    if args.explain is not None:
        writers.append(HeatMaps(args.explain, args.engine, sources.found, args.threads))
    if args.resume:
        sources.found = [s for s in sources.found if s.kind != "file" or not all(known(s) for known in finished)]
    if args.json:
        writers.append(JsonList(sys.stdout))
    elif not _files(args):
        width = max((len(source.name) for source in sources.found), default=0)
        writers.append(Table(sys.stdout, width, sources.live))


_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


def _files(args: argparse.Namespace) -> bool:
    """Whether results go to files, and need no table."""
    return args.csv is not None or args.annotate is not None


def _end(writers: Sequence[Writer], fine: bool, complete: bool) -> None:
    """Ends every output, whatever one of them may raise."""
    with ExitStack() as stack:
        for writer in writers:
            stack.callback(*((writer.close, complete) if fine else (writer.abandon,)))


def _told(
    args: argparse.Namespace, pipeline: Pipeline, sources: Sources, tally: Tally, stopped: bool, count: int
) -> int:
    """Says what was done, and gives the exit code."""
    done = f"{tally.frames} frames, {tally.faces} faces"
    where = " and ".join(path for path in (args.csv, args.annotate) if path is not None)
    if stopped:
        more = "; --resume continues" if args.csv is not None else ""
        say(f"stopped in source {tally.sources} of {count}: {done}{f' in {where}' if where else ''}{more}")
        return 130
    if (warning := getattr(pipeline.detector, "warning", lambda: None)()) is not None:
        say(warning)
    if where:
        say(f"{done} in {where}")
    if sources.failed:
        say(f"{sources.failed} of {count} sources could not be read, or not to their end")
        return ImageError.exit_code
    return 0


if __name__ == "__main__":
    run_command(main)
