"""Comparing logits: known values, constants, near-ties, NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tkfnet_engine.compare import SQNR_CAP_DB, compare
from tkfnet_engine.errors import UsageError


def _logits(count: int = 50, classes: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32) * 3


def test_identical_outputs():
    report = compare(_logits(), _logits(), 40)
    assert (report.images, report.max_error, report.rms_error, report.sqnr_db) == (50, 0, 0, SQNR_CAP_DB)
    assert (report.top1_agreement, report.disagreements, report.near_ties) == (1, 0, 0)
    json.dumps(report.to_dict(), allow_nan=False)


def test_known_values():
    # Class means 0; signal power (4 + 4 + 1 + 1) / 4 = 2.5; error power 0.25 / 4.
    reference, got = np.array([[2.0, -1.0], [-2.0, 1.0]]), np.array([[2.0, -1.0], [-2.0, 1.5]])
    report = compare(reference, got, 20)
    assert report.max_error == 0.5 and report.rms_error == pytest.approx(0.25)
    assert report.sqnr_db == pytest.approx(10 * math.log10(2.5 / 0.0625))
    assert report.near_tie_margin == pytest.approx(4 * math.sqrt(2.5) / 10)


@pytest.mark.parametrize("decibels", [20, 40, 60])
def test_noise_of_a_given_power_reads_as_such(decibels):
    reference = _logits(4000).astype(np.float64)
    signal = np.sqrt(((reference - reference.mean(0)) ** 2).mean())
    noise = np.random.default_rng(1).normal(size=reference.shape) * signal * 10 ** (-decibels / 20)
    assert compare(reference, reference + noise, 40).sqnr_db == pytest.approx(decibels, abs=0.2)


@pytest.mark.parametrize("offset", [0, 5, 1000])
@pytest.mark.parametrize("answer", ["zero", "mean", "first image", "one"])
def test_a_constant_answer_scores_nothing(offset, answer):
    """Even where the logits share a large offset, which a plain SQNR would count as signal."""
    reference = _logits() + offset
    row = {"zero": 0, "mean": reference.mean(0), "first image": reference[0], "one": 1}[answer]
    assert compare(reference, np.zeros_like(reference) + row, 40).sqnr_db <= 1e-3


def test_an_offset_per_class_is_an_error():
    reference = _logits()
    assert compare(reference, reference + np.arange(7, dtype=np.float32), 40).sqnr_db < 10


def test_a_constant_reference():
    flat = np.ones((4, 7), np.float32)
    assert compare(flat, flat, 40).sqnr_db == SQNR_CAP_DB
    assert compare(flat, flat + 1e-6, 40).sqnr_db == -SQNR_CAP_DB


def test_sqnr_is_capped():
    reference = _logits().astype(np.float64)
    assert compare(reference, reference * (1 + 1e-15), 40).sqnr_db == SQNR_CAP_DB
    assert compare(reference * 1e-200, reference * 1e100, 40).sqnr_db == -SQNR_CAP_DB


def test_near_ties_and_real_disagreements():
    reference = _logits(20)
    margin = compare(reference, reference, 40).near_tie_margin
    reference[0, :] = reference[1, :] = -9
    reference[0, :2] = 1.0, 1.0 - 0.5 * margin
    reference[1, :2] = 1.0, 1.0 - 2.0 * margin
    got = reference.copy()
    got[0, 1] += margin
    report = compare(reference, got, 40)
    assert (report.disagreements, report.near_ties, report.top1_agreement) == (1, 1, 0.95)
    got[1, 1] += 3 * margin
    report = compare(reference, got, 40)
    assert (report.disagreements, report.near_ties, report.top1_agreement) == (2, 1, 0.9)
    # The gap between the two classes in question counts, not the gap to the runner-up.
    got[0] = reference[0]
    got[0, 6] = 5
    assert compare(reference, got, 40).near_ties == 0


def test_an_exact_tie_is_a_near_tie():
    reference = _logits(10)
    reference[3] = 0
    got = reference.copy()
    got[3, 5] = 1e-6
    report = compare(reference, got, 40)
    assert (report.disagreements, report.near_ties) == (1, 1)


def test_margin_follows_the_requirement_and_not_the_error():
    reference = _logits()
    margins = [compare(reference, reference + e, 40).near_tie_margin for e in (0, 0.1, 10)]
    assert len(set(margins)) == 1
    assert compare(reference, reference, 20).near_tie_margin == pytest.approx(10 * margins[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_or_infinity_in_got_fails_everything(value):
    got = _logits()
    got[7, 2] = value
    report = compare(_logits(), got, 40)
    assert (report.max_error, report.rms_error, report.sqnr_db) == (math.inf, math.inf, -SQNR_CAP_DB)
    assert (report.top1_agreement, report.disagreements, report.near_ties) == (0, 50, 0)
    assert math.isfinite(report.near_tie_margin) and "50 differ" in str(report)


def test_a_report_of_nan_answers_is_json():
    json.dumps(compare(_logits(), np.full_like(_logits(), math.nan), 40).to_dict(), allow_nan=False)


def test_nan_in_the_reference_is_refused():
    with pytest.raises(UsageError, match="the reference holds NaN"):
        compare(np.full((3, 7), math.nan), _logits(3), 40)


@pytest.mark.parametrize("shapes", [((3, 7), (3, 6)), ((3, 7), (4, 7)), ((7,), (7,)), ((1, 7), (1, 7)), 
                                    ((0, 7), (0, 7)), ((2, 7, 1), (2, 7, 1))], ids=str)  # fmt: skip
def test_shapes(shapes):
    with pytest.raises(UsageError, match="expected two equal"):
        compare(*(np.zeros(s, np.float32) for s in shapes), 40)


def test_half_precision_does_not_overflow():
    reference = np.array([[60000, -60000], [-60000, 60000]], np.float16)
    report = compare(reference, -reference, 40)
    assert report.max_error == pytest.approx(120000, rel=1e-2) and report.disagreements == 2


def test_inputs_stay():
    reference, got = _logits(), _logits(seed=1)
    compare(reference, got, 40)
    assert np.array_equal(reference, _logits()) and np.array_equal(got, _logits(seed=1))


def test_text():
    got = _logits()
    got[0] = -got[0]
    assert str(compare(_logits(), got, 40)).startswith("50 images: max error ")
    assert "top-1 agreement 98.00% (1 differ, 0 of them near-ties)" in str(compare(_logits(), got, 40))
