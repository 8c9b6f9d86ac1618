"""Rows for JSON, lines for CSV, a frame for pandas."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tkfnet_engine.errors import UsageError
from tkfnet_engine.pipeline.results import FaceResult, columns, to_pandas

POINTS = tuple((n + 0.04, n + 0.06) for n in range(5))


def result(**changes):
    facts = {
        "source": "v.mp4", "frame": 3, "seconds": 0.12345, "face": 1, "track": 7,
        "box": (1.04, 2.06, 30.0, np.float32(40)), "landmarks": POINTS,
        "score": np.float32(0.5), "crop": "margin", "label": "score", "probabilities": {"x": 0.25, "score": 0.75},
    }  # fmt: skip
    return FaceResult(**{**facts, **changes})


def test_row_is_json():
    row = result().row()
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row == {
        "source": "v.mp4", "frame": 3, "seconds": 0.123, "face": 1, "track": 7, "box": [1.0, 2.1, 30.0, 40.0],
        "landmarks": [[n + 0.0, n + 0.1] for n in range(5)], "score": 0.5, "crop": "margin", "label": "score",
        "probabilities": {"x": 0.25, "score": 0.75},
    }  # fmt: skip
    bare = result(seconds=None, track=None, landmarks=None, score=None).row()
    assert [bare[k] for k in ("seconds", "track", "landmarks", "score")] == [None] * 4


def test_flat_has_the_columns_even_where_labels_clash_with_them():
    flat = result().flat()
    assert list(flat) == columns(["x", "score"]) and len(flat) == len(set(flat)) == 14
    assert (flat["x"], flat["y"], flat["w"], flat["h"]) == (1.0, 2.1, 30.0, 40.0)
    assert (flat["p_x"], flat["p_score"], flat["score"], flat["label"]) == (0.25, 0.75, 0.5, "score")


def test_pandas(monkeypatch):
    made = []
    fake = SimpleNamespace(DataFrame=lambda rows, columns=None: made.append((rows, columns)) or "frame")
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert to_pandas(iter([result(), result(face=2)])) == "frame"
    assert made[0][0] == [result().flat(), result(face=2).flat()]
    to_pandas([])
    assert made[1] == ([], columns(()))


def test_the_real_pandas():
    pytest.importorskip("pandas")
    table = to_pandas([result(), result(face=2)])
    assert list(table.columns) == columns(["x", "score"]) and table["face"].tolist() == [1, 2]


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        to_pandas([result()])
