"""The pipeline against the plain loop: the same crops bit for bit, the same answers, whatever is given to it."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from PIL import Image

import tkfnet_engine
from tkfnet_engine import Engine, Pipeline
from tkfnet_engine.errors import BackendError, ImageError, UsageError
from tkfnet_engine.face_crops import MARGIN, crop_of, cut_face
from tkfnet_engine.faces import Face, ReadyCrops
from tkfnet_engine.hardware import usable_cores
from tkfnet_engine.pipeline import BATCH, SMALLER_BATCH, Frame, Sources

from ..scenes import group_picture, moving_scene, write_video

# What one engine's answers may differ by when the same crops come in other batches.
CLOSE = {"rtol": 0, "atol": 2e-5}


class Everywhere:
    """Faces at fixed places, as many as the frame's number says; one of them with landmarks."""

    name, crop = "everywhere", "margin"

    def __init__(self, most=5):
        self.most, self.threads = most, set()

    def find_faces(self, image, source="", frame=0):
        self.threads.add(threading.current_thread().name)
        height, width = image.shape[:2]
        eyes = ((20.0, 20.0), (40.0, 20.0), (30.0, 30.0), (22.0, 40.0), (38.0, 40.0))
        places = [(width * n / self.most, height * (n % 2) / 3, 30.0 + n, 36.0) for n in range(frame % (self.most + 1))]
        return [Face(box, eyes if n == 1 else None, n / 10) for n, box in enumerate(places)]


@pytest.fixture(scope="module")
def engine(small_engine_path):
    with Engine.load(small_engine_path, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    pytest.importorskip("cv2")
    path = tmp_path_factory.mktemp("video") / "two.mp4"
    write_video(path, moving_scene(1.6, 10, (320, 240), people=2), 10, (320, 240))
    return path


def some_frames(noise, count, side=96):
    images = noise(4, side, seed=5)
    return [Frame("noise", n, n / 10, np.roll(images[n % 4], n, 1)) for n in range(count)]


def by_hand(engine, detector, frames, margin=MARGIN):
    """The plain loop: one frame after the other, one inference each."""
    rows = []
    for frame in frames:
        faces = detector.find_faces(frame.image, frame.source, frame.number)
        crops = [cut_face(frame.image, f, engine.input_size, crop_of(f, detector.crop), margin) for f in faces]
        rows.append((faces, crops, engine.predict(crops)))
    return rows


def values(face):
    return list(face.probabilities.values())


def same(results, rows):
    assert len(results) == len(rows)
    for result, (faces, crops, prediction) in zip(results, rows):
        assert len(result.faces) == len(faces) == len(result.crops)
        for number, (got, face, crop) in enumerate(zip(result.faces, faces, crops)):
            assert (got.box, got.landmarks, got.score, got.face) == (face.box, face.landmarks, face.score, number)
            assert (result.crops[number] == crop).all()
            assert np.allclose(values(got), prediction.probabilities[number], **CLOSE)
            assert got.label == prediction.labels[number] and tuple(got.probabilities) == prediction.class_names
            assert (got.source, got.frame, got.seconds) == (
                result.frame.source,
                result.frame.number,
                result.frame.seconds,
            )


@pytest.mark.parametrize("opened", [True, False], ids=["engine", "path"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_as_frame_by_frame(engine, small_engine_path, noise, threads, opened):
    detector, frames = Everywhere(), some_frames(noise, 40)
    with Pipeline(engine if opened else small_engine_path, detector, threads=threads) as pipeline:
        results = list(pipeline.frames(iter(frames), keep_crops=True))
    same(results, by_hand(engine, detector, frames))
    assert [r.frame.number for r in results] == list(range(40))
    assert {f.crop for r in results for f in r.faces} == {"margin", "five-point"}
    assert results[4].faces[1].crop == "five-point" and results[4].faces[2].crop == "margin"
    engine.predict([])  # the caller's engine is still open


def test_a_real_detector_on_a_real_video(engine, video):
    frames = list(Sources([video]))
    pipeline = Pipeline(engine, "haar", threads=2)
    rows = by_hand(engine, pipeline.detector, frames)
    results = list(pipeline.frames(frames, keep_crops=True))
    same(results, rows)
    assert sum(len(r.faces) for r in results) >= len(frames) / 2
    again = list(pipeline.video(video))
    assert [[f.box for f in r.faces] for r in again] == [[f.box for f in r.faces] for r in results]
    assert (again[3].frame.image == frames[3].image).all() and again[3].crops is None
    every = list(Pipeline(engine, "haar", every=5).video(video))
    assert [r.frame.number for r in every] == [0, 5, 10, 15]
    assert [r.frame.number for r in pipeline.video(video, every=8)] == [0, 8]


def test_faces_of_several_frames_go_in_one_batch(engine, noise, monkeypatch):
    sizes, real, most = [], engine.predict, BATCH["cpu"]
    monkeypatch.setattr(engine, "predict", lambda crops: sizes.append(len(crops)) or real(crops))
    all_read = threading.Event()

    class Waiting(ReadyCrops):
        def find_faces(self, image, source="", frame=0):
            assert all_read.wait(20)
            return super().find_faces(image, source, frame)

    def source():
        yield from some_frames(noise, 2 * most + 3)
        all_read.set()

    assert len(list(Pipeline(engine, Waiting(), threads=1).frames(source()))) == 2 * most + 3
    assert sizes == [most, most, 3]


def test_an_engine_of_its_own_runs_as_suits_the_backend(small_engine_path, tampered, monkeypatch, engine):
    loaded, load = [], Engine.load
    monkeypatch.setattr(Engine, "load", lambda *a, **k: loaded.append(k["threads"]) or load(*a, **k))
    other = tampered(small_engine_path, backend="openvino")
    cases = ((small_engine_path, 3, (1, 3, SMALLER_BATCH)), (small_engine_path, 1, (1, 1, BATCH["cpu"])),
             (other, 3, (3, 1, BATCH["cpu"])), (other, None, (None, 1, BATCH["cpu"])))  # fmt: skip
    for path, threads, expected in cases:
        with Pipeline(path, "none", threads=threads) as pipeline:
            limits = pipeline._limits
            assert (loaded.pop(), limits.inferences, limits.batch) == expected
            assert limits.workers == (threads or usable_cores())
    assert Pipeline(engine, "none", threads=3)._limits.inferences == 1 and not loaded


def test_a_batch_is_never_more_than_the_engine_takes(
    build, small_checkpoint_path, tmp_path, noise, monkeypatch, quick_build
):
    quick_build(small_checkpoint_path, tmp_path / "two.tkf", max_batch=2)
    with Pipeline(tmp_path / "two.tkf", "none", threads=1) as pipeline:
        sizes, real = [], pipeline.engine.logits
        monkeypatch.setattr(pipeline.engine, "logits", lambda crops: sizes.append(len(crops)) or real(crops))
        assert len(list(pipeline.frames(some_frames(noise, 9)))) == 9
    assert max(sizes) == 2


# --- what it takes -----------------------------------------------------------------------------------------


def test_one_picture(engine, noise, tmp_path):
    image = noise(1, 80, seed=1)[0]
    path = tmp_path / "bä.png"
    Image.fromarray(image).save(path)
    pipeline = Pipeline(engine, "none")
    expected = engine.predict([image])
    for given, source in ((image, ""), (path, str(path)), (str(path), str(path)), (path.read_bytes(), "<bytes>"),
                          (Frame("x", 7, 0.5, image), "x")):  # fmt: skip
        (face,) = pipeline(given)
        assert (face.source, face.box, face.crop) == (source, (0, 0, 80, 80), "given")
        assert face.label == expected.labels[0] and np.allclose(values(face), expected.probabilities[0], **CLOSE)
        assert (face.frame, face.seconds) == ((7, 0.5) if source == "x" else (0, None)) and face.track is None


def test_several_pictures(engine, noise, tmp_path):
    images = noise(5, 70, seed=2)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    pipeline = Pipeline(engine, "none")
    expected = engine.predict(images).probabilities
    for given in (images, list(images), (i for i in images), [tmp_path / "a.png", *images[1:]]):
        faces = pipeline(given)
        assert np.allclose([values(f) for f in faces], expected, **CLOSE)
        assert [f.frame for f in faces] == list(range(5))
    assert pipeline([]) == [] and pipeline(np.empty((0, 70, 70, 3), np.uint8)) == []


def test_one_picture_with_many_faces_is_spread_over_the_cores(small_engine_path, noise):
    detector = Everywhere(11)
    frame = Frame("x", 11, None, noise(1, 128, seed=3)[0])
    with Pipeline(small_engine_path, detector, threads=3) as pipeline:
        faces = pipeline(frame)
        rows = by_hand(pipeline.engine, detector, [frame])
    assert len(faces) == 11 and [f.label for f in faces] == rows[0][2].labels
    assert np.allclose([values(f) for f in faces], rows[0][2].probabilities, **CLOSE)
    # The caller's: a detector prepares itself for each thread anew.
    assert detector.threads == {threading.current_thread().name}


def test_nothing_found_is_an_empty_result(engine, noise):
    pytest.importorskip("cv2")
    grey = np.full((120, 160, 3), 128, np.uint8)
    pipeline = Pipeline(engine)
    assert pipeline(grey) == [] and pipeline([grey, grey]) == []
    (result,) = pipeline.frames([Frame("g", 0, None, grey)], keep_crops=True)
    assert result.faces == () and result.crops.shape == (0, 64, 64, 3) and (result.frame.image == grey).all()


def test_a_group_is_found_in_reading_order(engine):
    pytest.importorskip("cv2")
    image, boxes = group_picture(6, size=(900, 700))
    faces = Pipeline(engine)(image)
    assert [f.face for f in faces] == list(range(len(faces))) and len(faces) >= 3
    middles = np.array([(x + w / 2, y + h / 2) for x, y, w, h in (f.box for f in faces)])
    true = np.array([(x + w / 2, y + h / 2) for x, y, w, h in boxes])
    order = np.linalg.norm(middles[:, None] - true, axis=2).argmin(1)
    assert (np.diff(order) > 0).all()


@pytest.mark.parametrize(
    "wrong", [7, None, np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4, 1), np.uint8), b"junk"], ids=str
)
def test_what_is_no_picture(engine, wrong):
    with pytest.raises(ImageError):
        Pipeline(engine, "none")(wrong)


def test_a_video_is_no_picture(engine, video):
    with pytest.raises(ImageError, match="video"):
        Pipeline(engine, "none")(video)


@pytest.mark.parametrize(
    "arguments",
    [{"smooth": 0}, {"smooth": "1"}, {"smooth": float("nan")}, {"threads": 0}, {"threads": True}, {"threads": 1.5},
     {"bytes_in_flight": 0}, {"bytes_in_flight": 2.5}, {"every": 0}, {"margin": -1}, {"margin": 3},
     {"detector": "mtcnn"}],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument(engine, arguments):
    (name,) = arguments
    with pytest.raises(UsageError, match=name):
        Pipeline(engine, **{"detector": "none", **arguments})


# --- what it leaves behind ---------------------------------------------------------------------------------


def test_only_an_engine_of_its_own_is_closed(engine, small_engine_path, noise):
    with Pipeline(engine, "none") as pipeline:
        pass
    assert len(pipeline(noise(1, 64)[0])) == 1
    with Pipeline(small_engine_path, "none") as pipeline:
        pass
    with pytest.raises(BackendError, match="closed"):
        pipeline(noise(1, 64)[0])


def test_pixels_are_freed_where_nobody_wants_them(engine, noise):
    frames = some_frames(noise, 3)
    for keep in (True, False):
        results = list(Pipeline(engine, "none").frames(frames, keep_images=keep))
        assert [r.frame.image.shape for r in results] == [(96, 96, 3) if keep else (0, 0, 3)] * 3
        assert [r.frame.seconds for r in results] == [0.0, 0.1, 0.2]


def test_closing_an_iterator_ends_its_threads(engine, noise):
    results = Pipeline(engine, "none").frames(some_frames(noise, 100))
    next(results)
    assert any(t.name == "tkfnet-pipeline" for t in threading.enumerate())
    results.close()
    assert not any(t.name == "tkfnet-pipeline" for t in threading.enumerate())


def test_an_error_of_the_detector_is_raised(engine, noise):
    class Failing(Everywhere):
        def find_faces(self, image, source="", frame=0):
            if frame == 3:
                raise ImageError("box: outside")
            return super().find_faces(image, source, frame)

    seen = []
    with pytest.raises(ImageError, match="box: outside"):
        for result in Pipeline(engine, Failing()).frames(some_frames(noise, 9)):
            seen.append(result.frame.number)
    assert seen == [0, 1, 2]


def test_many_callers_at_once(engine, noise):
    detector, frames = Everywhere(), some_frames(noise, 12)
    pipeline, rows = Pipeline(engine, detector, threads=2), by_hand(engine, detector, frames)
    failures = []

    def call():
        try:
            same(list(pipeline.frames(frames, keep_crops=True)), rows)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- tracks, smoothing, warnings ---------------------------------------------------------------------------


class Walking:
    """One face that walks to the right; in the last frames another one before it in reading order."""

    name, crop = "walking", "margin"

    def find_faces(self, image, source="", frame=0):
        faces = [Face((10.0 + 2 * frame, 40.0, 30.0, 30.0))]
        return [Face((60.0, 2.0, 20.0, 20.0)), *faces] if frame >= 6 else faces


def test_tracks_and_smoothing(engine, noise):
    frames = some_frames(noise, 9)
    plain = list(Pipeline(engine, Walking()).frames(frames))
    tracked = list(Pipeline(engine, Walking(), track=True).frames(frames))
    smoothed = list(Pipeline(engine, Walking(), smooth=0.2).frames(frames))
    assert {f.track for r in plain for f in r.faces} == {None}
    expected = [[0]] * 6 + [[1, 0]] * 3
    assert [[f.track for f in r.faces] for r in tracked] == [[f.track for f in r.faces] for r in smoothed] == expected
    state = None
    for a, b, c in zip(plain, tracked, smoothed):
        raw = np.array(values(a.faces[-1]))
        assert np.allclose(values(b.faces[-1]), raw, **CLOSE)
        state = raw if state is None else state * np.exp(-0.1 / 0.2) + raw * (1 - np.exp(-0.1 / 0.2))
        assert np.allclose(values(c.faces[-1]), state, rtol=0, atol=1e-4)
        assert c.faces[-1].label == engine.labels[int(state.argmax())]


def test_pictures_are_not_tracked_and_videos_not_with_each_other(engine, noise):
    image = noise(1, 96)[0]
    frames = [
        Frame("a", 0, 0.0, image),
        Frame("a", 1, 0.1, image),
        Frame("b", 6, 0.0, image),
        Frame("p", 0, None, image),
    ]
    results = list(Pipeline(engine, Walking(), smooth=1.0).frames(frames))
    assert [[f.track for f in r.faces] for r in results] == [[0], [0], [0, 1], [None]]


def test_it_warns_once_where_crops_are_not_the_training_s(tampered, small_engine_path, noise):
    from tkfnet_engine.bundle import read_bundle

    preprocessing = {**read_bundle(small_engine_path).facts["preprocessing"], "crop": "five-point"}
    path, said = tampered(small_engine_path, preprocessing=preprocessing), []
    with Pipeline(path, Walking(), warn=said.append) as pipeline:
        list(pipeline.frames(some_frames(noise, 5)))
        pipeline(some_frames(noise, 1)[0])
    assert len(said) == 1 and "aligned by five points" in said[0]
    with Pipeline(path, Walking()) as pipeline, pytest.warns(UserWarning, match="five points"):
        pipeline(some_frames(noise, 1)[0])
    with Pipeline(path, "none", warn=said.append) as pipeline, warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline(noise(1, 64)[0])
    assert len(said) == 1


def test_it_is_exported_lazily():
    import subprocess
    import sys

    assert tkfnet_engine.Pipeline is Pipeline
    code = "import sys, tkfnet_engine as t; assert 'tkfnet_engine.pipeline' not in sys.modules; t.Pipeline; "
    code += "assert 'cv2' not in sys.modules and 'torch' not in sys.modules and 'pandas' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
