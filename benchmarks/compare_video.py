"""A video annotated end to end: the pipeline beside the same work frame by frame.

    python benchmarks/compare_video.py ENGINE [--seconds 60] [--rounds 5] [--people 2] [--long] [--out FILE]

Renders a 720p video of 25 frames a second, then runs both, each in a process of its own and in turn, `--rounds` times
over. Frame by frame is: decode, find the faces, one `predict` for the frame, draw, encode, in one loop, with every
library's own threads. That both find the same faces is checked. Prints the median and spread of the rounds' ratios,
and the peak memory of both. --long: the pipeline once more on the video ten times over. The exit code is 1 where that
takes 10 % more memory, or where --least or --memory is not reached.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tkfnet_engine import Engine, Pipeline
from tkfnet_engine.atomic import write_atomically
from tkfnet_engine.console import Parser, run_command, say
from tkfnet_engine.errors import BackendError, UsageError
from tkfnet_engine.face_crops import crop_of, cut_face
from tkfnet_engine.faces import open_detector
from tkfnet_engine.hardware import processor_name, usable_cores
from tkfnet_engine.pipeline import SEARCH_S, FaceResult, Frame, FrameResult, Sources
from tkfnet_engine.pipeline.annotated import AnnotatedVideo
from tkfnet_engine.pipeline.drawing import draw
from tkfnet_engine.pipeline.tracks import overlaps

ROOT = Path(__file__).parents[1]
FPS, SIZE = 25, (1280, 720)
# Labels of faces within this of a tie may differ between batches.
NEAR = 1e-3
# Between two boxes of one face. Searched near where it was, a face may come out a step of the search away.
SAME_FACE, MOST_OTHERS = 0.7, 0.01


def parser() -> Parser:
    p = Parser(prog="compare_video.py", description=__doc__.partition("\n")[0])
    p.add_argument("engine", metavar="ENGINE")
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--people", type=int, default=2)
    p.add_argument("--search-every", type=float, default=SEARCH_S, help=f"of the pipeline (default: {SEARCH_S})")
    p.add_argument("--long", action="store_true", help="also a video ten times as long")
    p.add_argument("--least", type=float, default=1.5, help="the ratio to reach (default: 1.5)")
    p.add_argument("--memory", type=int, default=700, help="the most MB the pipeline may take (default: 700)")
    p.add_argument("--out", type=Path, help="a JSON file for the numbers")
    p.add_argument("--run", nargs=4, metavar=("KIND", "VIDEO", "OUT", "ROWS"), help="for the processes it starts")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.run:
        run_one(args.engine, args.search_every, *args.run)
        return 0
    if args.seconds < 1 or args.rounds < 1 or args.people < 1:
        raise UsageError("--seconds, --rounds and --people: expected numbers from 1")
    with tempfile.TemporaryDirectory(prefix="tkfnet-video-") as name:
        folder = Path(name)
        say(f"rendering {args.seconds} s of {SIZE[0]} x {SIZE[1]}, {args.people} people")
        video = rendered(folder / "video.mp4", args.seconds, args.people)
        measured = compared(args, folder, video)
        if args.long:
            say("rendering ten times as much")
            tenfold = rendered(folder / "long.mp4", args.seconds, args.people, times=10)
            measured["long"] = started(args, "pipeline", tenfold, folder)
    if args.out:
        write_atomically(args.out, (json.dumps(measured, indent=1) + "\n").encode())
    return reported(args, measured)


def rendered(path: Path, seconds: int, people: int, times: int = 1) -> Path:
    """The scene, `times` over."""
    sys.path.insert(0, str(ROOT))
    from tests.scenes import moving_scene, write_video

    def frames() -> Iterator[np.ndarray]:
        for _ in range(times):
            yield from moving_scene(seconds, FPS, SIZE, people)

    write_video(path, frames(), FPS, SIZE)
    return path


def compared(args: Any, folder: Path, video: Path) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"pipeline": [], "frame by frame": []}
    for number in range(args.rounds):
        # In turn, and each first every other time: what warms up or slows down meets both.
        for kind in (list(runs), list(runs)[::-1])[number % 2]:
            runs[kind].append(started(args, kind, video, folder))
            say(f"round {number + 1}, {kind}: {runs[kind][-1]['seconds']:.2f} s, {runs[kind][-1]['peak_mb']} MB")
    if (beside := alike(folder))["missed"] + beside["more"] > MOST_OTHERS * beside["faces"]:
        raise BackendError(f"the pipeline found other faces than the loop: {beside}; expected the same")
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": processor_name(),
        "cores": usable_cores(),
        "engine": {k: Engine.load(args.engine).info[k] for k in ("backend", "precision")},
        "video": {"seconds": args.seconds, "fps": FPS, "size": SIZE, "people": args.people},
        "alike": beside,
        "runs": runs,
    }


def started(args: Any, kind: str, video: Path, folder: Path) -> dict[str, Any]:
    stem = kind.replace(" ", "-")
    command = [sys.executable, __file__, args.engine, "--search-every", args.search_every]
    command += ["--run", kind, video, folder / f"{stem}.mp4", folder / f"{stem}.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BackendError(f"{kind}: ended with {done.returncode}: {done.stderr[-2000:]}; expected it to run")
    return json.loads(done.stdout)


def run_one(engine: str, search_every: float, kind: str, video: str, out: str, rows: str) -> None:
    """One run in this process. What takes the same time for any video, imports and the engine, is not counted."""
    function = {"pipeline": partial(by_pipeline, search_every), "frame by frame": frame_by_frame}[kind]
    frames, faces, seconds = function(engine, video, out, rows)
    # Not getrusage: there a process begins with what the one that started it had.
    status = Path("/proc/self/status").read_text()
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "frames": frames, "faces": faces, "peak_mb": round(peak / 1024)}))


def by_pipeline(search_every: float, engine: str, video: str, out: str, rows: str) -> tuple[int, int, float]:
    frames = faces = 0
    with Pipeline(engine, search_every=search_every) as pipeline:
        start = time.perf_counter()
        with open(rows, "w") as file, AnnotatedVideo(out, FPS) as drawn:
            for result in pipeline.video(video):
                drawn.write(result)
                frames, faces = frames + 1, faces + len(result.faces)
                file.write(json.dumps([face.row() for face in result.faces]) + "\n")
        return frames, faces, time.perf_counter() - start


def frame_by_frame(engine: str, video: str, out: str, rows: str) -> tuple[int, int, float]:
    import cv2

    frames = faces = 0
    with Engine.load(engine) as opened:
        detector = open_detector("haar")
        start = time.perf_counter()
        writer = cv2.VideoWriter(out, cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), FPS, SIZE)
        with open(rows, "w") as file:
            for frame in Sources([video]):
                result = one_frame(opened, detector, frame)
                writer.write(cv2.cvtColor(draw(frame.image, result.faces), cv2.COLOR_RGB2BGR))
                frames, faces = frames + 1, faces + len(result.faces)
                file.write(json.dumps([face.row() for face in result.faces]) + "\n")
        writer.release()
        return frames, faces, time.perf_counter() - start


def one_frame(engine: Engine, detector: Any, frame: Frame) -> FrameResult:
    found = detector.find_faces(frame.image)
    if not found:
        return FrameResult(frame, ())
    crops = [cut_face(frame.image, face, engine.input_size, crop_of(face, detector.crop)) for face in found]
    prediction = engine.predict(crops)
    results = [
        FaceResult(
            frame.source, frame.number, frame.seconds, n, None, face.box, face.landmarks, face.score,
            crop_of(face, detector.crop), label, dict(zip(engine.labels, map(float, row))),
        )
        for n, (face, label, row) in enumerate(zip(found, prediction.labels, prediction.probabilities))
    ]  # fmt: skip
    return FrameResult(frame, tuple(results))


def alike(folder: Path) -> dict[str, Any]:
    """A faster run that finds something else is not faster: the faces of both, frame by frame.

    missed, more: faces of one run without one of the other (intersection over union of `SAME_FACE`). labels: of the
    same faces, the fraction with the same label. Where boxes are equal, probabilities must be: `BackendError`.
    """
    texts = [(folder / f"{stem}.json").read_text().splitlines() for stem in ("pipeline", "frame-by-frame")]
    faces = missed = more = same = equal = 0
    for number, (ours, theirs) in enumerate(zip(*texts, strict=True)):
        ours, theirs = json.loads(ours), json.loads(theirs)
        faces += len(theirs)
        left = list(ours)
        for one in theirs:
            shared = overlaps([face["box"] for face in left], [one["box"]])[:, 0]
            if not left or shared.max() < SAME_FACE:
                missed += 1
                continue
            best = left.pop(int(shared.argmax()))
            same += best["label"] == one["label"]
            equal += best["box"] == one["box"]
            p, q = (np.array(list(face["probabilities"].values())) for face in (best, one))
            if best["box"] == one["box"] and np.abs(p - q).max() > NEAR:
                raise BackendError(f"frame {number}: {p} and {q}: expected the same probabilities for the same crop")
        more += len(left)
    found = max(faces - missed, 1)
    return {"faces": faces, "missed": missed, "more": more, "labels": same / found, "boxes": equal / found}


def reported(args: Any, measured: dict[str, Any]) -> int:
    ours, theirs = measured["runs"]["pipeline"], measured["runs"]["frame by frame"]
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs)]
    median, peak = statistics.median(ratios), max(run["peak_mb"] for run in ours)
    seconds = [statistics.median(run["seconds"] for run in runs) for runs in (ours, theirs)]
    print(f"{measured['processor']}, {measured['cores']} cores, {measured['engine']['backend']} "
          f"{measured['engine']['precision']}; {ours[0]['frames']} frames, {ours[0]['faces']} faces")  # fmt: skip
    print(f"pipeline {seconds[0]:.2f} s, frame by frame {seconds[1]:.2f} s: {median:.2f} x "
          f"({min(ratios):.2f} to {max(ratios):.2f}); least {args.least}")  # fmt: skip
    beside = measured["alike"]
    print(f"of {beside['faces']} faces {beside['missed']} missed, {beside['more']} more; of the same faces "
          f"{beside['boxes']:.1%} with the same box, {beside['labels']:.1%} with the same label")  # fmt: skip
    other = max(run["peak_mb"] for run in theirs)
    print(f"peak memory: pipeline {peak} MB, frame by frame {other} MB; most {args.memory}")
    fine = median >= args.least and peak <= args.memory
    if "long" in measured:
        print(f"ten times as long: {measured['long']['frames']} frames, {measured['long']['peak_mb']} MB")
        fine = fine and measured["long"]["peak_mb"] <= 1.1 * peak
    return 0 if fine else 1


if __name__ == "__main__":
    run_command(main)
