"""The accuracy gate: what it lets through and what not, on answers with known faults."""

from __future__ import annotations

import numpy as np
import pytest

from tkfnet_engine.errors import UsageError
from tkfnet_engine.export.accuracy_gate import GATES, LEAST_IMAGES, gate_report

CLASSES, N = 7, 2100


def _logits(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels] + np.float32(0.1)


def _answers(truth: np.ndarray, wrong: float, seed: int = 0) -> np.ndarray:
    """Labels of which the share `wrong` is another than the true one."""
    draw = np.random.default_rng(seed)
    answers = truth.copy()
    chosen = draw.choice(len(truth), round(wrong * len(truth)), replace=False)
    answers[chosen] = (answers[chosen] + 1 + draw.integers(0, CLASSES - 1, len(chosen))) % CLASSES
    return answers


TRUTH = np.arange(N) % CLASSES
REFERENCE = _answers(TRUTH, 0.08)


def test_an_equal_answer_passes_and_the_report_says_all_is_kept():
    report, faults = gate_report("int8", TRUTH, _logits(REFERENCE), _logits(REFERENCE))
    assert faults == []
    assert report["images"] == N and report["accuracy"] == report["float32_accuracy"] == 0.92
    assert report["accuracy_kept"] == report["agreement"] == 1 and report["recall_lost"] == [0.0] * CLASSES
    assert report["asked"] == {"accuracy_kept": 0.99, "agreement": 0.985, "recall_lost": 0.02}


@pytest.mark.parametrize(
    ("precision", "changed", "passes"), [("int8", 31, True), ("int8", 32, False), ("float8", 32, False)]
)
def test_agreement_is_asked_to_the_image(precision, changed, passes):
    """Of images that float32 names wrongly as many get another wrong label, so that accuracy stays."""
    wrong = np.flatnonzero(REFERENCE != TRUTH)[:changed]
    got = REFERENCE.copy()
    got[wrong] = [next(c for c in range(CLASSES) if c not in (TRUTH[i], REFERENCE[i])) for i in wrong]
    report, faults = gate_report(precision, TRUTH, _logits(REFERENCE), _logits(got))
    assert report["accuracy_kept"] == 1 and report["agreement"] == round(1 - changed / N, 6)
    assert (faults == []) == passes
    assert passes or "label of float32" in faults[0]


def test_lost_accuracy_is_a_fault_of_its_own():
    got = REFERENCE.copy()
    for label in range(CLASSES):  # 1.7 points of every class: no class loses two, all together lose 1 % of 92 %
        got[np.flatnonzero((REFERENCE == TRUTH) & (label == TRUTH))[:5]] = (label + 1) % CLASSES
    report, faults = gate_report("int8", TRUTH, _logits(REFERENCE), _logits(got))
    assert max(report["recall_lost"]) < 0.02
    assert any(fault.startswith("accuracy ") for fault in faults)


@pytest.mark.parametrize(("lost", "passes"), [(6, True), (7, False)])
def test_one_class_may_not_pay_for_all(lost, passes):
    got = REFERENCE.copy()
    of = np.flatnonzero((REFERENCE == TRUTH) & (TRUTH == 3))[:lost]  # of 300 images
    got[of] = 4
    # Accuracy is made up for elsewhere.
    mended = np.flatnonzero((REFERENCE != TRUTH) & (TRUTH != 3))[:lost]
    got[mended] = TRUTH[mended]
    report, faults = gate_report("int8", TRUTH, _logits(REFERENCE), _logits(got))
    assert report["accuracy_kept"] == 1 and report["recall_lost"][3] == pytest.approx(lost / 300, abs=1e-6)
    assert (faults == []) == passes and (passes or "class 3 loses" in faults[0])


def test_half_precision_is_asked_for_accuracy_alone():
    got = REFERENCE.copy()
    got[np.flatnonzero(REFERENCE == TRUTH)[:1]] = (TRUTH[np.flatnonzero(REFERENCE == TRUTH)[0]] + 1) % CLASSES
    assert gate_report("float16", TRUTH, _logits(REFERENCE), _logits(got))[1] == []
    got[np.flatnonzero(REFERENCE == TRUTH)[:2]] = (TRUTH[np.flatnonzero(REFERENCE == TRUTH)[:2]] + 1) % CLASSES
    assert len(gate_report("float16", TRUTH, _logits(REFERENCE), _logits(got))[1]) == 1
    assert GATES["float16"].agreement is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_nobodys_label(value):
    logits = _logits(REFERENCE)
    logits[:, 0] = value
    report, faults = gate_report("int8", TRUTH, _logits(REFERENCE), logits)
    assert report["agreement"] == 0 and report["accuracy"] == 0 and len(faults) == 3


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match=f"got 1999 labelled test images, expected at least {LEAST_IMAGES}"):
        gate_report("int8", TRUTH[:1999], _logits(REFERENCE[:1999]), _logits(REFERENCE[:1999]))


def test_a_network_that_guesses_has_nothing_to_keep():
    guesses = _logits(np.random.default_rng(0).integers(0, CLASSES, N))
    with pytest.raises(UsageError, match="twice what guessing does"):
        gate_report("int8", TRUTH, guesses, guesses)


def test_a_class_without_images_loses_nothing():
    truth = TRUTH % 6
    answers = _answers(truth, 0.1)
    report, _ = gate_report("int8", truth, _logits(answers), _logits(answers))
    assert report["recall_lost"][6] == 0
