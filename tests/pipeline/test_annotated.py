"""Annotated videos and folders: what is in them, when they get their names, and what is never touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import BackendError, FileError, UsageError
from tkfnet_engine.pipeline import annotated_folder, annotated_video, annotating
from tkfnet_engine.pipeline.annotated import CODECS, AnnotatedFolder, AnnotatedVideo, is_folder
from tkfnet_engine.pipeline.drawing import draw
from tkfnet_engine.pipeline.results import FaceResult, Frame, FrameResult
from tkfnet_engine.preprocess import decode_image

FACE = FaceResult("s", 0, None, 0, None, (20, 10, 30, 30), None, None, "margin", "fear", {"fear": 0.75, "anger": 0.25})


def result(number=0, size=(96, 64), source="clip.mp4", seconds=0.0, faces=(FACE,)) -> FrameResult:
    """Brighter with each frame."""
    image = np.full((size[1], size[0], 3), 20 + 8 * (number % 20), np.uint8)
    return FrameResult(Frame(source, number, seconds, image), faces)


def picture(source, level=90) -> FrameResult:
    return FrameResult(Frame(str(source), 0, None, np.full((64, 96, 3), level, np.uint8)), (FACE,))


def read(path) -> tuple[list[np.ndarray], float]:
    """(RGB frames, frames a second)"""
    cv2 = pytest.importorskip("cv2")
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = capture.read()
        if not there:
            return frames, capture.get(cv2.CAP_PROP_FPS)
        frames.append(frame[..., ::-1])


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2")


# --- videos ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("fps", [25, 30000 / 1001, 2.5])
def test_a_video_holds_every_frame_as_drawn(tmp_path, suffix, fps, cv2):
    path = tmp_path / f"out{suffix}"
    with AnnotatedVideo(path, fps) as out:
        for number in range(13):
            out.write(result(number))
            assert not path.exists()
    frames, told = read(path)
    assert len(frames) == 13 == out.frames and told == pytest.approx(fps, rel=2e-3)
    for number, frame in enumerate(frames):
        expected = draw(result(number).frame.image, (FACE,))
        assert np.abs(frame.astype(int) - expected).mean() < 12
        assert np.abs(frame[-8:, -20:].astype(int) - expected[-8:, -20:]).max() < 8
    assert os.listdir(tmp_path) == [path.name]


def test_a_longer_video_comes_back_whole(tmp_path, cv2):
    for suffix in (".mp4", ".avi"):
        with AnnotatedVideo(tmp_path / f"long{suffix}", 29.97) as out:
            for number in range(401):
                out.write(result(number, (32, 32), faces=()))
        assert len(read(out.path)[0]) == 401


def test_ctrl_c_keeps_what_was_done(tmp_path, cv2):
    path = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt), AnnotatedVideo(path) as out:
        for number in range(7):
            out.write(result(number))
        signal.raise_signal(signal.SIGINT)
    assert len(read(path)[0]) == 7 and os.listdir(tmp_path) == ["out.mp4"]


def test_ctrl_c_while_it_is_completed_leaves_nothing(tmp_path, cv2, monkeypatch):
    monkeypatch.setattr(AnnotatedVideo, "_verify", lambda self: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result())
    assert os.listdir(tmp_path) == []


def test_another_error_leaves_the_old_file(tmp_path, cv2):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="mine"), AnnotatedVideo(path) as out:
        out.write(result())
        raise RuntimeError("mine")
    assert os.listdir(tmp_path) == ["out.mp4"] and path.read_bytes() == b"old"
    with AnnotatedVideo(path) as out:
        out.write(result())
    assert len(read(path)[0]) == 1


def test_errors_of_the_thread_are_raised_where_it_is_used(tmp_path, cv2, monkeypatch):
    def broken(image, faces):
        if image[0, 0, 0] > 40:
            raise ValueError("cannot draw")
        return image

    monkeypatch.setattr(annotated_video, "draw", broken)
    out = AnnotatedVideo(tmp_path / "out.mp4")
    with pytest.raises(ValueError, match="cannot draw"):
        for number in range(1000):
            out.write(result(number))
    with pytest.raises(ValueError, match="cannot draw"):
        out.close()
    assert os.listdir(tmp_path) == []

    with pytest.raises(ValueError, match="cannot draw"), AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result(19))
    assert os.listdir(tmp_path) == []


def test_write_waits_while_too_many_bytes_wait(tmp_path, cv2, monkeypatch):
    limit = 3 * result().frame.image.nbytes
    monkeypatch.setattr(annotating, "MOST_WAITING_BYTES", limit)
    out, go, waiting = AnnotatedVideo(tmp_path / "out.mp4"), threading.Event(), []
    wait, encode = out._changed.wait, out._encode

    def noted():
        if threading.current_thread() is threading.main_thread():
            waiting.append(out._bytes)
            go.set()
        return wait()

    def held(frame):
        go.wait(30)
        encode(frame)

    monkeypatch.setattr(out._changed, "wait", noted)
    monkeypatch.setattr(out, "_encode", held)
    with out:
        for number in range(12):
            out.write(result(number))
        go.set()
    assert waiting and max(waiting) <= limit
    assert out.frames == 12 == len(read(out.path)[0])


def test_a_frame_larger_than_the_queue_passes(tmp_path, cv2, monkeypatch):
    monkeypatch.setattr(annotating, "MOST_WAITING_BYTES", 1)
    with AnnotatedVideo(tmp_path / "out.mp4") as out:
        for number in range(5):
            out.write(result(number))
    assert out.frames == 5


LIMITED = """
import resource, sys
import numpy as np
from tkfnet_engine.pipeline.annotated import AnnotatedVideo
from tkfnet_engine.pipeline.results import Frame, FrameResult
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
draw = np.random.default_rng(0)
with AnnotatedVideo(sys.argv[1]) as out:
    for number in range(40):
        out.write(FrameResult(Frame("s", number, 0.0, draw.integers(0, 256, (64, 64, 3), np.uint8)), ()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, suffix, cv2):
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / f"out{suffix}"], capture_output=True, text=True)
    assert done.returncode == 1 and "FileError" in done.stderr and "came back; the disk may be full" in done.stderr
    assert os.listdir(tmp_path) == []


def test_it_stops_before_the_disk_is_full(tmp_path, cv2, monkeypatch):
    free = iter([2**40, 2**40, 2**20])
    usage = lambda path: SimpleNamespace(free=next(free))  # noqa: E731
    monkeypatch.setattr(annotated_video.shutil, "disk_usage", usage)
    with pytest.raises(FileError, match="MiB free after 200 frames"), AnnotatedVideo(tmp_path / "out.mp4") as out:
        for number in range(10_000):
            out.write(result(number, (32, 32), faces=()))
    assert os.listdir(tmp_path) == []


def test_frames_that_are_lost_on_the_way_are_noticed(tmp_path, cv2):
    class Forgetful:
        def __init__(self, writer):
            self.writer, self.count = writer, 0

        def write(self, frame):
            self.count += 1
            if self.count != 5:
                self.writer.write(frame)

        def __getattr__(self, name):
            return getattr(self.writer, name)

    with pytest.raises(FileError, match="of its 9 frames 8 came back"), AnnotatedVideo(tmp_path / "out.mp4") as out:
        opened = out._opened
        out._opened = lambda *size: Forgetful(opened(*size))
        for number in range(9):
            out.write(result(number))
    assert os.listdir(tmp_path) == []


def test_frames_of_another_shape_are_fitted(tmp_path, cv2):
    with AnnotatedVideo(tmp_path / "out.avi") as out:
        out.write(result(10, (96, 64), faces=()))
        out.write(result(10, (64, 96), faces=()))
        out.write(result(10, (192, 128), faces=()))
        out.write(result(10, (30, 10), faces=()))
    first, upright, larger, wide = read(out.path)[0]
    assert {frame.shape for frame in (first, upright, larger, wide)} == {(64, 96, 3)}
    assert first.min() > 90 and larger.min() > 90
    # 64 x 96 becomes 43 x 64 in the middle; 30 x 10 becomes 96 x 32.
    assert upright[:, :24].max() < 12 and upright[:, 72:].max() < 12 and upright[:, 30:66].min() > 85
    assert wide[:14].max() < 12 and wide[50:].max() < 12 and wide[20:44].min() > 85


def test_a_size_of_ones_own(tmp_path, cv2):
    with AnnotatedVideo(tmp_path / "out.mp4", size=(129, 65)) as out:
        out.write(result(10))
    assert read(out.path)[0][0].shape == (64, 128, 3)


def test_odd_sides_lose_a_pixel(tmp_path, cv2):
    with AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result(10, (97, 65), faces=()))
    (frame,), _ = read(out.path)
    assert frame.shape == (64, 96, 3) and frame.min() > 90


def test_no_frames_make_no_file(tmp_path, cv2):
    with AnnotatedVideo(tmp_path / "out.mp4") as out:
        pass
    assert out.frames == 0 and os.listdir(tmp_path) == []


def test_after_the_end_there_is_no_more(tmp_path, cv2):
    with AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result())
    out.close()
    assert (tmp_path / "out.mp4").exists()
    with pytest.raises(UsageError, match="after the end"):
        out.write(result())


@pytest.mark.parametrize("name", ["out.webm", "out.mkv", "out.gif", "out", "out.mp4.part"])
def test_what_opencv_cannot_write_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"\*\.mp4, \*\.m4v, \*\.mov, \*\.avi"):
        AnnotatedVideo(tmp_path / name)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "25", True, None, 1001])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    with pytest.raises(UsageError, match="fps: got"):
        AnnotatedVideo(tmp_path / "out.mp4", fps)


@pytest.mark.parametrize("fps", [0.01, 0.37, 59.94, 64.998, 100.123, 119.88, 123.457, 1000])
def test_rates_that_a_codec_counts_in(tmp_path, fps, cv2):
    with AnnotatedVideo(tmp_path / "out.mp4", fps) as out:
        out.write(result(0))
        out.write(result(1))
    frames, told = read(out.path)
    assert len(frames) == 2 and told == pytest.approx(fps, rel=0.01)


def test_tiny_frames_are_refused(tmp_path, cv2):
    with pytest.raises(UsageError, match="got 96 x 15 pixels"), AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result(size=(96, 15)))
    assert os.listdir(tmp_path) == []


def test_the_source_is_not_written_over(tmp_path, cv2):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"source")
    (tmp_path / "link.mp4").symlink_to(path)
    for name in ("clip.mp4", "link.mp4"):
        with pytest.raises(UsageError, match="got the source itself"), AnnotatedVideo(tmp_path / name) as out:
            out.write(result(source=str(path)))
    assert path.read_bytes() == b"source" and sorted(os.listdir(tmp_path)) == ["clip.mp4", "link.mp4"]


def test_places_that_cannot_be_written_to(tmp_path, cv2):
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "fifo.mp4")
    for name in ("folder.mp4", "fifo.mp4", "nowhere/out.mp4"):
        with pytest.raises(FileError):
            AnnotatedVideo(tmp_path / name)


def test_without_opencv_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"pip install 'tkfnet-engine\[faces\]'"):
        AnnotatedVideo(tmp_path / "out.mp4")
    with AnnotatedFolder(tmp_path / "out") as out:
        out.write(picture("a.png"))
    assert (tmp_path / "out" / "a.png").exists()


def test_without_the_codec_it_says_so(tmp_path, cv2, monkeypatch):
    monkeypatch.setitem(annotated_video.CODECS, ".mp4", "abcd")
    with pytest.raises(BackendError, match="cannot write abcd of 96 x 64"), AnnotatedVideo(tmp_path / "out.mp4") as out:
        out.write(result())
    assert os.listdir(tmp_path) == []


# --- folders ---------------------------------------------------------------------------------------------


def files_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_keep_their_names_and_kinds(tmp_path):
    with AnnotatedFolder(tmp_path / "out", roots=[tmp_path / "in"]) as out:
        for name in ("a/x.jpg", "b/x.jpg", "x.jpg", "b/c/y.PNG", "z.webp", "z.png", "w.bmp", "v.JPEG"):
            out.write(picture(tmp_path / "in" / name))
    expected = ["a/x.jpg", "b/c/y.PNG", "b/x.jpg", "v.JPEG", "w.bmp.png", "x.jpg", "z.png", "z.webp.png"]
    assert files_in(tmp_path / "out") == expected
    drawn = draw(picture("").frame.image, (FACE,)).astype(int)
    for name in expected:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == ("JPEG" if name.lower().endswith(("jpg", "jpeg")) else "PNG")
        error = np.abs(decode_image(tmp_path / "out" / name).astype(int) - drawn)
        assert error.max() <= (0 if name.lower().endswith("png") else 40) and error.mean() < 2


def test_roots_of_the_same_name_do_not_meet(tmp_path):
    roots = [tmp_path / "one" / "faces", tmp_path / "two" / "faces", tmp_path / "more"]
    with AnnotatedFolder(tmp_path / "out", roots) as out:
        for level, root in enumerate(roots):
            out.write(picture(root / "x.png", 50 * level))
    assert files_in(tmp_path / "out") == ["faces-2/x.png", "faces/x.png", "more/x.png"]
    levels = [
        decode_image(tmp_path / "out" / name)[-1, -1, 0] for name in ("faces/x.png", "faces-2/x.png", "more/x.png")
    ]
    assert levels == [0, 50, 100]


def test_pictures_named_one_by_one(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    out = AnnotatedFolder("out")
    sources = ["x.jpg", "a/x.jpg", "./a/../b/x.jpg", "../x.jpg", "/elsewhere/x.jpg", "x.jpg", "-"]
    names = [os.path.relpath(out.target(picture(source).frame), "out") for source in sources]
    assert names == ["x.jpg", "a/x.jpg", "b/x.jpg", "x-2.jpg", "x-3.jpg", "x.jpg", "standard input.png"]


def test_links_are_pictures_of_their_own(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / "real.png")
    (tmp_path / "in" / "link.png").symlink_to("real.png")
    with AnnotatedFolder(tmp_path / "out", [tmp_path / "in"]) as out:
        for name in ("real.png", "link.png"):
            out.write(picture(tmp_path / "in" / name))
    assert files_in(tmp_path / "out") == ["link.png", "real.png"]


def test_frames_of_a_video_are_numbered(tmp_path):
    with AnnotatedFolder(tmp_path / "out", [tmp_path / "in"]) as out:
        for number in (0, 5, 1_234_567):
            out.write(result(number, source=str(tmp_path / "in" / "sub" / "clip.mp4"), seconds=number / 25))
    assert files_in(tmp_path / "out") == [f"sub/clip.mp4/{n}.jpg" for n in ("000000", "000005", "1234567")]


def test_files_of_others_are_never_replaced(tmp_path):
    sources = tmp_path / "in"
    sources.mkdir()
    Image.new("RGB", (64, 48), (1, 2, 3)).save(sources / "x.png")
    (sources / "notes.jpg").write_text("no picture")
    before = {name: (sources / name).read_bytes() for name in ("x.png", "notes.jpg")}
    for name in before:
        with pytest.raises(FileError, match="another's file already"), AnnotatedFolder(sources) as out:
            out.write(picture(sources / name if name == "x.png" else tmp_path / "elsewhere" / name))
            raise AssertionError("was taken")
    with pytest.raises(UsageError, match="the folder of the pictures"):
        AnnotatedFolder(sources, roots=[tmp_path / "in" / ".." / "in"])
    assert {name: (sources / name).read_bytes() for name in before} == before and len(os.listdir(sources)) == 2


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_a_second_run_replaces_its_own(tmp_path, name):
    for level in (10, 200):
        with AnnotatedFolder(tmp_path / "out") as out:
            out.write(picture(tmp_path / name, level))
    assert abs(int(decode_image(tmp_path / "out" / name)[-1, -1, 0]) - 200) < 4


def test_complete_pictures_stay_when_another_fails(tmp_path, monkeypatch):
    def broken(image, faces):
        if image[0, 0, 0] == 7:
            raise ValueError("cannot draw")
        return image

    monkeypatch.setattr(annotated_folder, "draw", broken)
    with pytest.raises(ValueError, match="cannot draw"), AnnotatedFolder(tmp_path / "out") as out:
        out.write(picture("a.png", 1))
        out.write(picture("b.png", 7))
    assert files_in(tmp_path / "out") == ["a.png"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="expected a folder"):
        AnnotatedFolder(tmp_path / "file" / "out")
    with pytest.raises(FileError, match="expected a folder"), AnnotatedFolder(tmp_path / "out") as out:
        (tmp_path / "out" / "clip.mp4").write_text("x")
        out.write(result())


def test_the_name_says_which_of_the_two(tmp_path, cv2):
    assert not is_folder(tmp_path / "out.MP4") and is_folder(tmp_path / "out")
    (tmp_path / "named.mp4").mkdir()
    assert is_folder(tmp_path / "named.mp4") and is_folder(f"{tmp_path}/v1.2/")
    assert not is_folder(tmp_path / "v1.3")
    with pytest.raises(UsageError, match="or a folder"):
        AnnotatedVideo(tmp_path / "v1.3")
