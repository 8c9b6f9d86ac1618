"""The stages: order, bounds, batches, and that nothing is left behind, whatever fails and wherever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine.faces import Face
from tkfnet_engine.pipeline.results import Frame
from tkfnet_engine.pipeline.stages import OVERHEAD, Limits, Stages

ROOT = Path(__file__).parents[2]
FACE = Face((0.0, 0.0, 1.0, 1.0))
SIDE = 8
CROP_BYTES = SIDE * SIDE * 3


def frames(count, side=4, start=0):
    return [Frame("v", n, n / 25, np.full((side, side, 3), n % 256, np.uint8)) for n in range(start, start + count)]


def find(frame, faces=None):
    """As many faces as the frame's number says, modulo 4; each crop is full of the frame's value."""
    count = frame.number % 4 if faces is None else faces
    return [FACE] * count, np.full((count, SIDE, SIDE, 3), frame.number % 256, np.uint8)


def infer(crops):
    return crops[:, 0, 0, :2].astype(np.float32)


def limits(workers=3, batch=4, **more):
    return Limits(workers, batch, **more)


def ours():
    return [t for t in threading.enumerate() if t.name == "tkfnet-pipeline"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert ours() == []


class Gate:
    """Holds whoever calls `wait` until `open`; never for ever."""

    def __init__(self):
        self._event = threading.Event()

    def wait(self):
        assert self._event.wait(20), "a test waited for what never came"

    def open(self):
        self._event.set()


def test_order_and_belonging():
    """Frames overtake each other in detection, and faces in inference; what comes out is in order and matched."""
    turns = np.random.default_rng(0).permutation(200)

    def slow_find(frame):
        for _ in range(turns[frame.number] * 20):
            pass
        return find(frame)

    jobs = list(Stages(slow_find, infer, limits(inferences=2)).run(frames(200)))
    assert [job.frame.number for job in jobs] == list(range(200))
    for n, job in enumerate(jobs):
        assert len(job.faces) == n % 4
        assert job.probabilities.tolist() == [[n, n]] * (n % 4)
        assert job.frame.image.shape == (4, 4, 3) and job.crops is None


def test_a_frame_that_is_late_holds_back_those_behind_it():
    gate, seen = Gate(), []

    def find_late(frame):
        if frame.number == 0:
            gate.wait()
        seen.append(frame.number)
        if len(seen) == 9:
            gate.open()
        return find(frame, 1)

    out = Stages(find_late, infer, limits()).run(frames(10))
    assert next(out).frame.number == 0 and seen[-1] == 0
    assert [job.frame.number for job in out] == list(range(1, 10))


def test_faces_of_many_frames_share_a_batch_and_none_exceeds_it():
    """One worker, so what it chooses is known: frames while there are any, then full batches."""
    sizes, all_read = [], Gate()

    def source():
        yield from frames(8)
        all_read.open()

    def find_after(frame):
        all_read.wait()
        return find(frame, 1)

    def count(crops):
        sizes.append(len(crops))
        return infer(crops)

    assert len(list(Stages(find_after, count, limits(1, 3)).run(source()))) == 8
    assert sizes == [3, 3, 2]


def test_a_camera_waits_for_no_company():
    """As above, but with a limit of frames: each face is seen before the next frame is searched."""
    calls = []

    def find_one(frame):
        calls.append("find")
        return find(frame, 1)

    def infer_one(crops):
        calls.append(len(crops))
        return infer(crops)

    list(Stages(find_one, infer_one, limits(1, 8, frames=3)).run(frames(5)))
    assert calls == ["find", 1] * 5


def test_faces_are_not_kept_waiting_for_a_frame_that_does_not_come():
    gate = Gate()

    def source():
        yield from frames(1, start=3)
        gate.wait()
        yield from frames(1, start=5)

    out = Stages(find, infer, limits(batch=64)).run(source())
    # The source gives nothing more until the first result is out.
    assert next(out).probabilities.tolist() == [[3, 3]] * 3
    gate.open()
    assert len(list(out)) == 1


def test_the_last_faces_are_shared_among_idle_workers():
    sizes, both = [], threading.Barrier(2, timeout=20)

    def meet(crops):
        both.wait()
        sizes.append(len(crops))
        return infer(crops)

    ready, count = Gate(), []

    def find_all(frame):
        # The other workers are idle by then: there is one frame, and they wait.
        while stages._idle < 2:
            time.sleep(0.001)
        count.append(1)
        ready.open()
        return find(frame, 6)

    stages = Stages(find_all, meet, limits(3, 16, inferences=2))
    (job,) = stages.run(frames(1))
    assert sizes == [3, 3] and len(job.probabilities) == 6


@pytest.mark.parametrize("keep_crops", [False, True])
@pytest.mark.parametrize("keep_images", [False, True])
def test_what_is_kept(keep_images, keep_crops):
    stages = Stages(find, infer, limits(), keep_images, keep_crops)
    for n, job in enumerate(stages.run(frames(9))):
        assert job.frame.image.size == (48 if keep_images else 0)
        assert job.frame.number == n and job.frame.seconds == n / 25
        if keep_crops:
            assert job.crops.shape == (n % 4, SIDE, SIDE, 3) and (job.crops == n).all()
        else:
            assert job.crops is None
    assert stages.in_flight == 0 and stages.peak > 0


# --- bounds ------------------------------------------------------------------------------------------------


def test_bytes_in_flight_are_bounded_and_counted():
    """A consumer that takes nothing: the source gets as far as the bytes allow, and no further."""
    size = 64 * 64 * 3 + OVERHEAD
    read, idle = [], Gate()

    def source():
        for frame in frames(50, side=64):
            read.append(frame.number)
            if len(read) == 7:
                idle.open()
            yield frame

    stages = Stages(lambda f: find(f, 0), infer, limits(bytes_in_flight=6 * size))
    out = stages.run(source())
    next(out)
    idle.wait()
    # One is with the consumer and counts; six fit, the seventh is read and waits.
    assert len(read) == 7 and stages.in_flight == 6 * size
    for _ in out:
        assert stages.in_flight <= 6 * size
    assert stages.peak == 6 * size and len(read) == 50 and stages.in_flight == 0


def test_a_frame_larger_than_the_bound_passes_alone():
    stages = Stages(lambda f: find(f, 1), infer, limits(bytes_in_flight=1))
    seen = []

    def source():
        for frame in frames(5, side=64):
            seen.append(stages.in_flight)
            yield frame

    assert len(list(stages.run(source()))) == 5
    assert stages.peak <= 64 * 64 * 3 + OVERHEAD + CROP_BYTES


def test_freed_pixels_make_room():
    """Without pixels the same bytes hold far more frames than with them."""

    def read_ahead(keep_images):
        size, read, stages = 1024 * 1024 * 3, [], None
        enough = Gate()

        def source():
            for frame in frames(40, side=1024):
                read.append(frame.number)
                if len(read) == (30 if not keep_images else 4):
                    enough.open()
                yield frame

        stages = Stages(lambda f: find(f, 0), infer, limits(bytes_in_flight=3 * (size + OVERHEAD)), keep_images)
        out = stages.run(source())
        next(out)
        enough.wait()
        out.close()
        return len(read)

    assert read_ahead(True) == 4
    assert read_ahead(False) >= 30


@pytest.mark.parametrize("count", [4, 20])
def test_crops_count_and_hold_back_more_of_them(count):
    """Frames with many faces: no second frame is searched while the first one's crops fill the room."""
    bound, crops = 4 * (4 * 4 * 3 + OVERHEAD), 500 * CROP_BYTES
    stages = Stages(lambda f: find(f, 500), infer, limits(1, 16, bytes_in_flight=bound))
    list(stages.run(frames(count)))
    assert bound < crops < stages.peak <= bound + crops


def test_a_camera_is_bounded_by_frames():
    gaps = []

    def source():
        for frame in frames(30):
            gaps.append(frame.number - taken[0])
            yield frame

    taken = [0]
    for job in Stages(find, infer, limits(2, 8, frames=3)).run(source()):
        taken[0] = job.frame.number
    # Three admitted, one being read, one with the consumer.
    assert max(gaps) <= 5


# --- failures ----------------------------------------------------------------------------------------------


class Boom(Exception):
    pass


def fail_at(number, function):
    def failing(frame):
        if frame.number == number:
            raise Boom(number)
        return function(frame)

    return failing


def failing_source(count):
    yield from frames(count)
    raise Boom(count)


def failing_infer(crops):
    if (crops == 17).any():
        raise Boom(17)
    return infer(crops)


@pytest.mark.parametrize(
    ("stages", "source", "at"),
    [
        (lambda: Stages(find, infer, limits()), lambda: failing_source(17), 17),
        (lambda: Stages(fail_at(17, find), infer, limits()), lambda: frames(500), 17),
        (lambda: Stages(lambda f: find(f, 1), failing_infer, limits(batch=1)), lambda: frames(500), 17),
    ],
    ids=["source", "detection", "inference"],
)
def test_a_failure_comes_after_the_frames_before_it(stages, source, at):
    seen = []
    with pytest.raises(Boom) as caught:
        for job in stages().run(source()):
            seen.append(job.frame.number)
    assert seen == list(range(at)) and caught.value.args == (at,) and ours() == []


def test_a_failure_stops_the_source():
    read = []

    def source():
        for frame in frames(100_000):
            read.append(frame.number)
            yield frame

    stages = Stages(fail_at(3, lambda f: find(f, 0)), infer, limits(bytes_in_flight=20 * (48 + OVERHEAD)))
    with pytest.raises(Boom):
        list(stages.run(source()))
    assert len(read) < 100


def test_a_batch_that_fails_is_raised_at_its_first_frame():
    """Faces of frames 1, 2, 3 in one batch: 0 has none and comes out, 1 raises."""
    seen, ready = [], Gate()

    def source():
        yield from frames(4)
        ready.open()

    def find_after(frame):
        ready.wait()
        return find(frame)

    def boom(crops):
        raise Boom(len(crops))

    with pytest.raises(Boom, match="6"):
        for job in Stages(find_after, boom, limits(1, 64)).run(source()):
            seen.append(job.frame.number)
    assert seen == [0]


def test_the_same_exception_with_the_place_it_comes_from():
    error = Boom("x")

    def source():
        raise error
        yield

    with pytest.raises(Boom) as caught:
        list(Stages(find, infer, limits()).run(source()))
    assert caught.value is error and "source" in [entry.name for entry in caught.traceback]


def test_closing_early_ends_every_thread_and_the_source():
    closed = []

    def source():
        try:
            yield from frames(100_000)
        finally:
            closed.append(threading.current_thread().name)

    out = Stages(find, infer, limits()).run(source())
    assert next(out).frame.number == 0 and len(ours()) == 4
    out.close()
    # In the thread that iterates it: another could not.
    assert ours() == [] and closed == ["tkfnet-pipeline"]


def test_an_error_of_the_consumer_ends_every_thread():
    with pytest.raises(Boom):
        for job in (out := Stages(find, infer, limits()).run(frames(1000))):
            if job.frame.number == 5:
                out.throw(Boom())
    assert ours() == []


def test_never_started_is_nothing():
    Stages(find, infer, limits()).run(frames(3))
    assert ours() == []


def test_no_frames():
    assert list(Stages(find, infer, limits()).run([])) == []
    assert list(Stages(lambda f: find(f, 0), infer, limits()).run(frames(3)))[2].probabilities.shape == (0, 0)


def test_an_iterator_that_is_left_open_does_not_keep_the_process():
    code = """
import sys
sys.path.insert(0, "tests/pipeline")
from test_stages import *
out = Stages(find, infer, limits()).run(frames(100_000))
next(out)
print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# --- OpenCV's own threads ----------------------------------------------------------------------------------


def test_opencv_runs_single_threaded_meanwhile():
    cv2 = pytest.importorskip("cv2")
    before, inside = cv2.getNumThreads(), []
    cv2.setNumThreads(2)
    try:

        def look(frame):
            inside.append(cv2.getNumThreads())
            return find(frame)

        first = Stages(look, infer, limits()).run(frames(3))
        next(first)
        second = Stages(look, infer, limits()).run(frames(3))
        list(second)
        # The other one still runs.
        assert cv2.getNumThreads() == 1
        list(first)
        assert set(inside) == {1} and cv2.getNumThreads() == 2
        with pytest.raises(Boom):
            list(Stages(fail_at(1, find), infer, limits()).run(frames(3)))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)
