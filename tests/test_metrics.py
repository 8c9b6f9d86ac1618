"""Classification scores against values worked out by hand and against the definitions, class by class."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tkfnet_engine.errors import UsageError
from tkfnet_engine.metrics import Scores, confusion_matrix


def test_confusion_matrix_counts_true_rows_and_predicted_columns():
    matrix = confusion_matrix(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2]), 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert confusion_matrix(np.array([], int), np.array([], int), 3).tolist() == [[0] * 3] * 3


def test_known_values():
    scores = Scores.from_confusion(np.array([[8, 2, 0], [1, 3, 0], [2, 0, 4]]))
    assert scores.accuracy == pytest.approx(15 / 20)
    assert scores.mean_class_accuracy == pytest.approx((8 / 10 + 3 / 4 + 4 / 6) / 3)
    # F1 = 2 hits / (actual + claimed)
    assert scores.macro_f1 == pytest.approx((16 / 21 + 6 / 9 + 8 / 10) / 3)
    assert scores.confusion == ((8, 2, 0), (1, 3, 0), (2, 0, 4))


@pytest.mark.parametrize("seed", range(5))
def test_definitions(seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 7, 200), rng.integers(0, 7, 200)
    predicted = np.where(rng.random(200) < 0.6, labels, predicted)
    scores = Scores.from_confusion(confusion_matrix(labels, predicted, 7))
    recalls, f1s = [], []
    for k in range(7):
        hit = np.sum((labels == k) & (predicted == k))
        recall, precision = hit / np.sum(labels == k), hit / np.sum(predicted == k)
        recalls.append(recall)
        f1s.append(2 * precision * recall / (precision + recall))
    assert scores.accuracy == pytest.approx(np.mean(labels == predicted))
    assert scores.mean_class_accuracy == pytest.approx(np.mean(recalls))
    assert scores.macro_f1 == pytest.approx(np.mean(f1s))


def test_classes_without_a_sample_take_no_part():
    # Class 2 is claimed once, but no image has it.
    scores = Scores.from_confusion(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    assert scores.mean_class_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert scores.macro_f1 == pytest.approx((6 / 7 + 1) / 2)


def test_a_class_that_is_never_claimed_scores_zero():
    scores = Scores.from_confusion(np.array([[5, 0], [5, 0]]))
    assert (scores.accuracy, scores.mean_class_accuracy) == (0.5, 0.5)
    assert scores.macro_f1 == pytest.approx((10 / 15 + 0) / 2)


def test_all_right_and_all_wrong():
    right, wrong = Scores.from_confusion(np.eye(7, dtype=int)), Scores.from_confusion(1 - np.eye(7, dtype=int))
    assert (right.accuracy, right.mean_class_accuracy, right.macro_f1) == (1, 1, 1)
    assert (wrong.accuracy, wrong.mean_class_accuracy, wrong.macro_f1) == (0, 0, 0)


def test_nothing_to_score():
    with pytest.raises(UsageError, match="empty set, expected at least one"):
        Scores.from_confusion(np.zeros((7, 7), int))


def test_json_and_text():
    scores = Scores.from_confusion(np.array([[8, 2], [1, 9]]))
    facts = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert facts["confusion"] == [[8, 2], [1, 9]] and facts["accuracy"] == 0.85
    assert str(scores) == "accuracy 85.00%, mean-class accuracy 85.00%, macro F1 0.850"
