"""Folders of faces: given splits, a drawn validation part, and no splits at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.data import open_data
from tkfnet_engine.data.folder import open_folder
from tkfnet_engine.errors import DataError
from tkfnet_engine.spec import LABELS


def fill(folder, names=LABELS, count=20):
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (3, 3), (label, i, 0)).save(folder / name / f"{label}_{i}.png")


def sources(faces):
    return {faces.source(i) for i in range(len(faces))}


def all_splits(root):
    sets = {split: open_data(f"folder:{root}", split) for split in ("train", "val", "test")}
    parts = [sources(faces) for faces in sets.values()]
    assert sum(map(len, parts)) == len(set.union(*parts))
    groups = np.concatenate([faces.groups for faces in sets.values()])
    assert len(np.unique(groups)) == len(groups) and len({faces.name for faces in sets.values()}) == 3
    for faces in sets.values():
        assert all(faces.image(i)[0, 0, 0] == faces.labels[i] for i in range(0, len(faces), 5))
    return sets


@pytest.mark.parametrize("names", [LABELS, [n.capitalize() for n in LABELS], [str(i) for i in range(1, 8)]])
def test_given_splits(names, tmp_path):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        fill(tmp_path / split, names, count)
    sets = all_splits(tmp_path)
    assert {split: len(faces) for split, faces in sets.items()} == {"train": 42, "val": 14, "test": 21}
    assert sets["test"].layout == "given" and sets["test"].skipped == ()


def test_validation_from_train(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=3)
    sets = all_splits(tmp_path)
    assert np.bincount(sets["val"].labels).tolist() == [2] * 7 and len(sets["train"]) == 126
    assert sets["val"].layout == "given-val-from-train"
    assert sources(open_folder(tmp_path, "val")) == sources(sets["val"])


def test_no_splits(tmp_path):
    fill(tmp_path)
    sets = all_splits(tmp_path)
    assert [np.bincount(faces.labels).tolist() for faces in sets.values()] == [[16] * 7, [2] * 7, [2] * 7]
    for faces in sets.values():
        assert faces.skipped[0][0] == str(tmp_path) and "80/10/10" in faces.skipped[0][1]
        assert "random-80-10-10" in faces.name
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert {os.path.basename(s) for s in sources(open_folder(moved, "test"))} == {
        os.path.basename(s) for s in sources(sets["test"])
    }


def test_what_is_left_out_and_what_is_refused(tmp_path):
    fill(tmp_path / "train", count=2)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "readme.md").write_text("x")
    (tmp_path / "train" / "fear" / "more").mkdir()
    (tmp_path / "train" / "fear" / "list.txt").write_text("x")
    (tmp_path / "train" / "fear" / "._1_1.png").write_text("x")
    faces = open_folder(tmp_path, "train")
    left_out = {os.path.basename(path) for path, _ in faces.skipped}
    assert left_out == {".ipynb_checkpoints", "readme.md", "more", "list.txt", "._1_1.png"}
    with pytest.raises(DataError, match="got train, expected a folder 'test' too"):
        open_folder(tmp_path, "test")
    (tmp_path / "train" / "contempt").mkdir()
    with pytest.raises(DataError, match=r"got a folder 'contempt', expected one of surprise, .*1 to 7"):
        open_folder(tmp_path, "train")
    (tmp_path / "empty" / "test" / "fear").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        open_folder(tmp_path / "empty", "test")
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"got test, expected a folder '{split}' too"):
            open_folder(tmp_path / "empty", split)
