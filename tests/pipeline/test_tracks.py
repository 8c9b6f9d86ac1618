"""Who is who, and smoothing: by boxes and numbers made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tkfnet_engine.pipeline.tracks import MAX_GAP_FRAMES, MAX_GAP_S, Tracker, overlaps

A, B = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)


def box(x, y=0.0, side=10.0):
    return (float(x), float(y), float(side), float(side))


def numbers(tracker, seconds, *boxes):
    return tracker.update(seconds, boxes, np.tile(A, (len(boxes), 1)))[0]


def test_overlaps():
    values = overlaps([box(0), box(5), (0, 0, 0, 0)], [box(0), (2, 2, 5, 5), (0, 0, 0, 0), (100, 0, 5, 5)])
    assert values.shape == (3, 4)
    assert values[0].tolist() == [1.0, 0.25, 0.0, 0.0]
    assert values[1] == pytest.approx([50 / 150, 10 / 115, 0, 0]) and not values[2].any()
    assert overlaps([], [box(0)]).shape == (0, 1) and overlaps([box(0)], []).shape == (1, 0)


def test_faces_keep_their_numbers_whatever_their_order():
    tracker = Tracker()
    assert numbers(tracker, 0.0, box(0), box(50)) == [0, 1]
    assert numbers(tracker, 0.1, box(52), box(2)) == [1, 0]
    assert numbers(tracker, 0.2, box(100), box(4), box(54)) == [2, 0, 1]


def test_a_fast_walk_is_followed_step_by_step():
    tracker = Tracker()
    assert {tuple(numbers(tracker, n / 25, box(4 * n))) for n in range(50)} == {(0,)}


def test_the_better_overlap_wins_not_the_first_box():
    tracker = Tracker()
    numbers(tracker, 0.0, box(0))
    # Both overlap the track enough; the second one more.
    assert numbers(tracker, 0.1, box(4), box(1)) == [1, 0]


def test_a_small_overlap_is_someone_else():
    tracker = Tracker()
    numbers(tracker, 0.0, box(0))
    assert numbers(tracker, 0.1, box(8)) == [1]


def test_a_short_gap_is_bridged_and_a_long_one_is_not():
    tracker = Tracker()
    numbers(tracker, 0.0, box(0))
    for n in range(1, 10):
        assert numbers(tracker, n * 0.04, box(50)) == [1]
    assert numbers(tracker, MAX_GAP_S, box(0), box(50)) == [0, 1]
    for n in range(1, 20):
        numbers(tracker, MAX_GAP_S + n * 0.04, box(50))
    assert numbers(tracker, 2 * MAX_GAP_S + 0.3, box(0), box(50)) == [2, 1]


def test_a_slow_camera_bridges_frames_not_seconds():
    tracker = Tracker()
    numbers(tracker, 0.0, box(0))
    for n in range(1, MAX_GAP_FRAMES):
        numbers(tracker, 10.0 * n)
    assert numbers(tracker, 10.0 * MAX_GAP_FRAMES, box(0)) == [0]
    for n in range(MAX_GAP_FRAMES):
        numbers(tracker, 100.0 + 10 * n)
    assert numbers(tracker, 200.0, box(0)) == [1]


def test_without_smoothing_probabilities_are_as_they_were():
    tracker = Tracker()
    given = np.array([A, B])
    for n in range(3):
        out = tracker.update(n * 0.04, [box(0), box(50)], given[::-1] if n else given)[1]
        assert (out == (given[::-1] if n else given)).all()


def test_smoothing_decays_with_time_not_with_frames():
    """The same second in one step and in 25: the same weight, 1/e after `smooth` seconds."""
    for steps in (1, 25):
        tracker = Tracker(smooth=1.0)
        first = tracker.update(0.0, [box(0)], A[None])[1]
        assert (first == A).all()
        for n in range(1, steps + 1):
            last = tracker.update(n / steps, [box(0)], B[None])[1]
        assert last[0] == pytest.approx([math.exp(-1), 1 - math.exp(-1)], abs=1e-6) and last.dtype == np.float32


def test_smoothing_follows_the_person_and_starts_anew_with_another():
    tracker = Tracker(smooth=1000.0)
    tracker.update(0.0, [box(0), box(50)], np.array([A, B]))
    ids, out = tracker.update(0.04, [box(50), box(0), box(100)], np.array([A, B, B]))
    assert ids == [1, 0, 2] and out.round(3).tolist() == [[0, 1], [1, 0], [0, 1]]


def test_time_that_steps_back_does_no_harm():
    tracker = Tracker(smooth=1.0)
    tracker.update(5.0, [box(0)], A[None])
    assert tracker.update(1.0, [box(0)], B[None])[1].tolist() == [[1.0, 0.0]]


def test_the_arguments_are_left_alone():
    tracker, given = Tracker(smooth=1.0), np.array([A])
    tracker.update(0.0, [box(0)], given)
    given2 = np.array([B])
    tracker.update(0.1, [box(0)], given2)
    assert (given == A).all() and (given2 == B).all()
