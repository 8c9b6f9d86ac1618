"""What is looked for in the frames of a video, and when all of it is."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tkfnet_engine.face import Face
from tkfnet_engine.pipeline import Frame, Pipeline
from tkfnet_engine.pipeline.search import Search

from ..scenes import moving_scene

PIXELS = np.zeros((8, 8, 3), np.uint8)


def face(x: float) -> Face:
    return Face((x, 0.0, 4.0, 4.0))


class Recorder:
    """A detector that writes down what it is asked. faces: by frame number; again: what `find_again` answers."""

    name, crop = "recorder", "given"

    def __init__(self, faces=None, again=lambda seen: seen):
        self.asked, self._faces, self._again = [], faces or {}, again

    def find_faces(self, image, source="", frame=0):
        self.asked.append(("all", frame))
        return self._faces.get(frame, [face(frame)])

    def find_again(self, image, faces):
        self.asked.append(("again", [f.box[0] for f in faces]))
        return self._again(faces)


def video(count, fps=25.0, source="v"):
    return [Frame(source, n, n / fps, PIXELS) for n in range(count)]


def answers(search, frames):
    return [search.find(frame) for frame in search.planned(frames)]


def test_all_are_looked_for_five_times_a_second():
    detector = Recorder()
    assert answers(Search(detector, 0.2), video(12)) == [[face(n // 5 * 5)] for n in range(12)]
    assert [one for one in detector.asked if one[0] == "all"] == [("all", 0), ("all", 5), ("all", 10)]
    assert detector.asked[1:5] == [("again", [0.0])] * 4 and detector.asked[6:10] == [("again", [5.0])] * 4


def test_a_frame_where_one_is_missing_is_searched_for_all():
    detector = Recorder(again=lambda seen: None)
    assert answers(Search(detector, 1.0), video(3)) == [[face(0)], [face(1)], [face(2)]]
    assert detector.asked == [("all", 0), ("again", [0.0]), ("all", 1), ("again", [0.0]), ("all", 2)]


@pytest.mark.parametrize(
    "frames",
    [
        [Frame("p", n, None, PIXELS) for n in range(4)],  # pictures
        video(4, fps=5.0),  # frames far apart
        [Frame(name, 0, 0.0, PIXELS) for name in "abcd"],  # the first ones of four videos
    ],
)
def test_frames_that_have_little_to_do_with_each_other_are_searched_for_all(frames):
    detector = Recorder()
    answers(Search(detector, 0.2), frames)
    assert [what for what, _ in detector.asked] == ["all"] * 4


def test_every_frame_for_all():
    detector = Recorder()
    answers(Search(detector, 0), video(4))
    assert [what for what, _ in detector.asked] == ["all"] * 4


def test_a_detector_that_cannot_find_again():
    class Plain:
        name, crop, asked = "plain", "given", 0

        def find_faces(self, image, source="", frame=0):
            self.asked += 1
            return []

    detector = Plain()
    assert answers(Search(detector), video(4)) == [[]] * 4
    assert detector.asked == 4


def test_threads_wait_for_the_frame_they_depend_on():
    """The first frame takes long; the others, in other threads, still get what it found, and not what came first."""
    first_may_end = threading.Event()

    class Slow(Recorder):
        def find_faces(self, image, source="", frame=0):
            assert first_may_end.wait(20)
            return super().find_faces(image, source, frame)

    search = Search(Slow(), 10)
    frames = list(search.planned(video(4)))
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(search.find, frame) for frame in frames]
        first_may_end.set()
        assert [one.result(20) for one in found] == [[face(0)]] * 4


def test_an_error_in_the_frame_they_depend_on_is_that_frames_alone():
    class Failing(Recorder):
        def find_faces(self, image, source="", frame=0):
            if frame == 0:
                raise ValueError("frame 0")
            return super().find_faces(image, source, frame)

    search = Search(Failing(), 10)
    first, second = search.planned(video(2))
    with pytest.raises(ValueError, match="frame 0"):
        search.find(first)
    assert search.find(second) == [face(1)]


def test_the_cascade_finds_the_same_faces_either_way(small_engine_path):
    """A scene with moving faces: every frame searched for all, and one in five."""
    pytest.importorskip("cv2")
    frames = [Frame("scene", n, n / 25, image) for n, image in enumerate(moving_scene(1, 25, (640, 360), 2))]
    found = {}
    for seconds in (0, 0.2):
        with Pipeline(small_engine_path, "haar", search_every=seconds, threads=2) as pipeline:
            found[seconds] = [[f.box for f in result.faces] for result in pipeline.frames(frames)]
    assert sum(map(len, found[0])) >= 40
    assert sum(a == b for a, b in zip(found[0], found[0.2])) >= 24
