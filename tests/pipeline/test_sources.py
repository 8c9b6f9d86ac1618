"""What a source is told by, what order frames come in, and what is said of those that cannot be read."""

from __future__ import annotations

import io
import itertools
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import BackendError, ImageError, UsageError
from tkfnet_engine.pipeline import sources as module
from tkfnet_engine.pipeline import videos
from tkfnet_engine.pipeline.sources import Sources, expand, frames, kind_of, printable


def picture(path, value=100, side=8, **options):
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    """photos/ b.png, a.jpg, .hidden.png, sub/c.png, .git/d.png, notes.txt, and links."""
    root, outside = tmp_path / "photos", tmp_path / "outside"
    for folder in (root / "sub", root / ".git", outside):
        folder.mkdir(parents=True)
    for name, value in (("b.png", 2), ("a.jpg", 1), (".hidden.png", 9), ("sub/c.png", 3), (".git/d.png", 9)):
        picture(root / name, value)
    picture(outside / "x.png", 9)
    (root / "notes.txt").write_text("happy people")
    (root / "inside.png").symlink_to(root / "b.png")
    (root / "leads_out.png").symlink_to(outside / "x.png")
    (root / "sub" / "loop").symlink_to(root)
    (root / "sub" / "elsewhere").symlink_to(outside)
    return root


def names(found):
    return [os.path.basename(source.name) for source in found]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """clip(name, count, fps, fourcc, size) -> a video whose n-th frame is grey, a bit lighter than the one before."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("clips")

    def make(name="clip.mp4", count=20, fps=10.0, fourcc="mp4v", size=(64, 48)):
        path = folder / name
        if not path.exists():
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), fps, size)
            assert writer.isOpened()
            for n in range(count):
                # Blue in OpenCV's order, so that a swap of channels shows.
                writer.write(np.full((size[1], size[0], 3), (200, 20, 10 * n + 10), np.uint8))
            writer.release()
        return path

    return make


# --- which sources there are -------------------------------------------------------------------------------


def test_a_folder_is_read_whole_in_order_without_what_is_hidden_or_leads_out(tree):
    assert names(expand([tree])) == ["a.jpg", "b.png", "inside.png", "notes.txt", "c.png"]
    got = list(frames([tree]))
    assert [int(f.image[0, 0, 0]) for f in got] == [1, 2, 2, 3]
    assert all(f.number == 0 and f.seconds is None for f in got)
    assert got[0].source == str(tree / "a.jpg")


def test_what_is_left_out(tree):
    assert names(expand([tree], leave_out=[tree / "sub", tree / "a.jpg"])) == ["b.png", "inside.png", "notes.txt"]
    assert names(expand([f"{tree}/*.jpg", tree / "b.png"], leave_out=[tree / "sub"])) == ["a.jpg", "b.png"]


def test_patterns(tree):
    assert names(expand([f"{tree}/*.png"])) == ["b.png", "inside.png", "leads_out.png"]
    assert names(expand([f"{tree}/**/*.png"]))[-1] == "c.png"
    assert names(expand([f"{tree}/s*"])) == ["c.png"]
    assert not any(source.named for source in expand([f"{tree}/*.png"]))
    strange = picture(tree / "[1]*.png", 7)
    (one,) = expand([strange])
    assert one.named and one.path == str(strange)
    with pytest.raises(ImageError, match="no such file, and no file fits this pattern"):
        expand([f"{tree}/*.tiff"])


def test_an_empty_folder_is_an_error(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    with pytest.raises(ImageError, match="a folder without files"):
        expand([tmp_path])


def test_numbers_are_cameras_but_for_files_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand(["0"])[0].kind == "camera" and Sources(["3"]).live
    picture(tmp_path / "0", format="PNG")
    assert expand(["0"])[0].kind == "file" and not Sources(["0"]).live
    for wrong in (["1", "0"], ["0", "1"], ["1", "2"]):
        with pytest.raises(UsageError, match="give it alone"):
            expand(wrong)
    with pytest.raises(UsageError, match="more than once"):
        expand(["-", "-"])


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_every_is_a_whole_number(every):
    with pytest.raises(UsageError, match="every: got"):
        Sources(["x.png"], every)


def test_printable_names():
    assert printable("a/ä b.png") == "a/ä b.png"
    assert printable(os.fsdecode(b"caf\xe9\n.png")) == "caf\\xe9\\n.png"
    assert printable("bidi\u202e.png") == "bidi\\u202e.png"


# --- pictures ----------------------------------------------------------------------------------------------


def test_pictures_are_told_by_content(tmp_path, clip):
    picture(tmp_path / "a.mp4", 5, format="PNG")
    os.link(clip(), tmp_path / "b.jpg") if os.stat(clip()).st_dev == os.stat(tmp_path).st_dev else None
    if not (tmp_path / "b.jpg").exists():
        (tmp_path / "b.jpg").write_bytes(clip().read_bytes())
    assert (kind_of(tmp_path / "a.mp4"), kind_of(tmp_path / "b.jpg")) == ("picture", "video")
    got = list(frames([tmp_path / "a.mp4", tmp_path / "b.jpg"]))
    assert len(got) == 21 and got[0].seconds is None and got[1].seconds == 0.0


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_stills_are_never_decoded_by_opencv(tmp_path, format, monkeypatch):
    def refuse(*_):
        raise AssertionError("OpenCV was asked")

    path = picture(tmp_path / "x", 5, format=format)
    if format == "GIF":
        # Often a video: FFmpeg may have it.
        assert kind_of(path) == "video"
        return
    monkeypatch.setattr(module, "opened_video", refuse)
    assert kind_of(path) == "picture"
    if format == "TIFF":
        with pytest.raises(ImageError, match="TIFF"):
            list(frames([path]))
    else:
        assert len(list(frames([path]))) == 1


def test_standard_input(monkeypatch):
    data = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 50, np.uint8)).save(data, "PNG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data.getvalue())))
    (frame,) = frames(["-"])
    assert frame.source == "-" and frame.image.shape == (4, 6, 3) and frame.seconds is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<html>", "HTML"),
        (b"happy", "it starts with"),
        (None, "no such file"),
        (b"\xff\xd8\xff", "it starts with ff d8 ff"),
    ],
)
def test_a_named_file_that_is_no_picture_is_an_error(tmp_path, content, words):
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as caught:
        list(frames([path]))
    assert str(path) in str(caught.value)


def test_in_a_folder_bad_files_are_reported_and_the_rest_goes_on(tree):
    (tree / "aa.png").write_bytes((tree / "b.png").read_bytes()[:50])
    (tree / "zz.jpeg").write_text("<html>")
    (tree / "data.bin").write_bytes(bytes(100))
    said = []
    sources = Sources([tree], report=said.append)
    assert [int(f.image[0, 0, 0]) for f in sources] == [1, 2, 2, 3]
    assert sources.failed == 2 and sources.passed_over == 2
    assert len(said) == 2 and "aa.png: damaged or truncated" in said[0] and "zz.jpeg" in said[1] and "HTML" in said[1]


def test_total_becomes_known(tree, clip):
    sources = Sources([tree / "b.png", clip(), tree / "a.jpg"])
    assert sources.total() == 3
    seen = iter(sources)
    next(seen)
    assert sources.total() == 3
    next(seen)
    assert sources.total() == 22 and sources.fps == {str(clip()): 10.0}
    assert len(list(seen)) == 20 and sources.total() == 22
    assert Sources(["0"]).total() is None


# --- videos ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fourcc"), [("clip.mp4", "mp4v"), ("clip.avi", "MJPG"), ("clip.mkv", "mp4v")])
def test_frames_of_a_video(clip, name, fourcc):
    path = clip(name, fourcc=fourcc)
    got = list(frames([path]))
    assert [f.number for f in got] == list(range(20))
    assert [f.seconds for f in got] == pytest.approx([n / 10 for n in range(20)], abs=0.002)
    for f in got:
        assert f.image.shape == (48, 64, 3) and f.image.dtype == np.uint8 and f.image.flags.c_contiguous
        # Red grows, blue stays.
        assert np.abs(f.image[24, 32].astype(int) - (10 * f.number + 10, 20, 200)).max() < 12
    assert len({f.image.__array_interface__["data"] for f in got}) == 20


@pytest.mark.parametrize("every", [2, 7, 50])
def test_every_nth_frame_is_the_same_frame(clip, every):
    all_frames = list(frames([clip()]))
    sources = Sources([clip()], every)
    got = list(sources)
    assert [f.number for f in got] == list(range(0, 20, every)) and sources.total() == len(got)
    assert sources.fps[str(clip())] == pytest.approx(10 / every)
    for f in got:
        assert (f.image == all_frames[f.number].image).all() and f.seconds == all_frames[f.number].seconds


def test_a_video_that_ends_early_gives_what_there_is_and_says_so(clip, tmp_path):
    whole = clip("long.avi", count=60, fourcc="MJPG").read_bytes()
    # The index at the end goes too; the header still promises sixty.
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 3 // 4])
    said = []
    sources = Sources([tmp_path / "cut.avi"], report=said.append)
    got = list(sources)
    assert 10 < len(got) < 55 and [f.number for f in got] == list(range(len(got)))
    assert sources.failed == 1 and f"ends early, after {len(got)} of 60 frames" in said[0]
    assert sources.total() == len(got)


def test_a_damaged_video(clip, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(clip().read_bytes()[:300])
    with pytest.raises(ImageError, match=r"cut\.mp4: neither a picture .* nor a video|cut\.mp4: not an image"):
        list(frames([tmp_path / "cut.mp4"]))
    said = []
    assert list(sources := Sources([tmp_path], report=said.append)) == [] and sources.failed == 1 and len(said) == 1


def test_text_is_never_given_to_ffmpeg(tmp_path, monkeypatch):
    """It would draw it, or open what a playlist names."""
    asked = []
    monkeypatch.setattr(module, "opened_video", lambda *a, **k: asked.append(a))
    for name, text in (("a.mp4", "#EXTM3U\nhttp://example.org/x.ts\n"), ("b.avi", "ffconcat version 1.0\n"),
                       ("c.mkv", "größer " * 900)):  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ImageError):
            list(frames([tmp_path / name]))
    assert not asked
    (tmp_path / "d.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ImageError):
        list(frames([tmp_path / "d.bin"]))
    assert len(asked) == 1


def test_a_name_is_a_file_and_no_address_or_pattern(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:x.mp4", "img_%03d.mp4", "-x.mp4"):
        (tmp_path / name).write_bytes(clip().read_bytes())
        assert len(list(frames([name]))) == 20
    for gone in ("http://localhost/x.mp4", "rtsp://localhost/x"):
        with pytest.raises(ImageError, match="no such file"):
            list(frames([gone]))


def test_a_name_that_is_not_utf8(clip, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4")
    with open(path, "wb") as file:
        file.write(clip().read_bytes())
    with pytest.raises(ImageError, match=r"caf\\xe9\.mp4: .*rename it"):
        list(frames([os.fsdecode(path)]))


def test_without_opencv(clip, tmp_path, monkeypatch, tree):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"clip\.mp4: .*pip install 'tkfnet-engine\[faces\]'"):
        list(frames([clip()]))
    with pytest.raises(BackendError, match="camera 0: "):
        list(frames(["0"]))
    assert len(list(frames([tree]))) == 4
    (tmp_path / "x.png").write_bytes(bytes(50))
    with pytest.raises(ImageError, match="not an image"):
        list(frames([tmp_path / "x.png"]))


class FakeCapture:
    """A camera, or a video with times as given."""

    def __init__(self, count, rate=30.0, times=None):
        self._count, self._rate, self._times, self.taken, self.released = count, rate, times, 0, False

    def isOpened(self):
        return True

    def get(self, what):
        import cv2

        if what == cv2.CAP_PROP_FPS:
            return self._rate
        return 0.0 if self._times is None else self._times[self.taken - 1]

    def set(self, *_):
        return True

    def grab(self):
        self.taken += 1
        return self.taken <= self._count

    def retrieve(self, buffer):
        return True, np.full((4, 6, 3), self.taken, np.uint8)

    def release(self):
        self.released = True


def test_a_camera(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    capture = FakeCapture(9, rate=float("nan"))
    monkeypatch.setattr(cv2, "VideoCapture", lambda index: capture if index == 0 else None)
    monkeypatch.setattr(videos.time, "monotonic", lambda: 100.0 + capture.taken)
    sources = Sources(["0"], every=2)
    got = list(sources)
    assert [f.number for f in got] == [0, 2, 4, 6, 8] and [f.seconds for f in got] == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert got[0].source == "camera 0" and sources.fps == {"camera 0": 12.5} and capture.released
    capture = FakeCapture(10**9)
    seen = frames(["0"])
    next(seen)
    seen.close()
    assert capture.released
    capture = FakeCapture(0)
    with pytest.raises(ImageError, match="camera 0: gives no picture"):
        list(frames(["0"]))


def test_no_camera():
    pytest.importorskip("cv2")
    with pytest.raises(ImageError, match="camera 97: cannot be opened"):
        list(frames(["97"]))


@pytest.mark.parametrize("times", [[0.0] * 9, [0, 40, 80, 30, float("nan"), 200, 240, 280, 320]], ids=["none", "back"])
def test_times_always_grow(times):
    pytest.importorskip("cv2")
    capture = FakeCapture(9, rate=25.0, times=times)
    got = list(videos.video_frames(capture, "v", 1, {}, lambda n: None, lambda text: None))
    seconds = [f.seconds for f in got]
    assert capture.released and len(got) == 9 and all(b > a for a, b in itertools.pairwise(seconds)), seconds
