"""RAF-DB's layouts in miniature, and each quirk of its label files."""

from __future__ import annotations

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.data import open_data
from tkfnet_engine.data.rafdb import LIST_NAME, open_rafdb
from tkfnet_engine.errors import DataError

# stem -> label as in the file, 1 to 7
TRAIN = {f"train_{i:05}": (i * 3) % 7 + 1 for i in range(1, 85)}
TEST = {f"test_{i:04}": i % 7 + 1 for i in range(1, 15)}
LISTED = TRAIN | TEST


def write_face(path, stem):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), sum(map(ord, stem)) % 256).save(path, "JPEG")


def write_list(path, text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{stem}.jpg {label}" for stem, label in LISTED.items()]
    path.write_bytes((text if text is not None else "\n".join(lines)).encode())


def official(root):
    write_list(root / "EmoLabel" / LIST_NAME)
    for stem in LISTED:
        write_face(root / "Image" / "aligned" / f"{stem}_aligned.jpg", stem)


def basic(root):
    official(root / "basic")


def flat(root):
    write_list(root / LIST_NAME)
    for stem in LISTED:
        write_face(root / f"{stem}.jpg", stem)


def folders(root):
    for stem, label in LISTED.items():
        write_face(root / stem.split("_")[0] / str(label) / f"{stem}_aligned.jpg", stem)


def kaggle(root):
    folders(root / "DATASET")
    for part, entries in (("train", TRAIN), ("test", TEST)):
        with open(root / f"{part}_labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "label"), *((f"{s}_aligned.jpg", n) for s, n in entries.items())])


LAYOUTS = {"official": official, "basic": basic, "flat": flat, "folders": folders, "kaggle": kaggle}
NAMES = {"official": "official", "basic": "official", "flat": "flat", "folders": "folders", "kaggle": "folders"}


def stems(faces):
    return [os.path.basename(faces.source(i)).removesuffix(".jpg").removesuffix("_aligned") for i in range(len(faces))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    sets = {split: open_data(f"rafdb:{tmp_path}", split) for split in ("train", "val", "test")}
    for split, faces in sets.items():
        assert faces.layout == NAMES[layout] and faces.name == f"rafdb-{faces.layout}-{split}" and faces.skipped == ()
        assert faces.labels.tolist() == [LISTED[stem] - 1 for stem in stems(faces)]
        assert faces.image(0).shape == (4, 4, 3)
        assert abs(int(faces.image(0)[0, 0, 0]) - sum(map(ord, stems(faces)[0])) % 256) <= 2
    assert sorted(stems(sets["test"])) == sorted(TEST)
    assert sorted(stems(sets["train"]) + stems(sets["val"])) == sorted(TRAIN)
    assert np.bincount(sets["val"].labels).tolist() == [1] * 7
    groups = np.concatenate([faces.groups for faces in sets.values()])
    assert len(set(groups.tolist())) == len(LISTED)


def test_validation_is_the_same_in_every_layout(tmp_path):
    drawn = []
    for name, layout in LAYOUTS.items():
        layout(tmp_path / name)
        drawn.append(sorted(stems(open_rafdb(tmp_path / name, "val"))))
    assert all(d == drawn[0] for d in drawn)
    # Pinned: another draw would make older results incomparable.
    assert [int(stem[-5:]) for stem in drawn[0]] == [2, 42, 53, 57, 73, 82, 83]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rstrip("\n"),
        lambda t: t + "\n",
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace("\n", "\n\n") + "\n \n",
        lambda t: t.replace(" ", "  \t"),
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", " \n"),
    ],
    ids=["no last line end", "last line end", "CRLF", "blank lines", "spaces", "byte order mark", "trailing spaces"],
)
def test_label_file_quirks(change, tmp_path):
    official(tmp_path)
    before = open_rafdb(tmp_path, "train")
    path = tmp_path / "EmoLabel" / LIST_NAME
    path.write_bytes(change(path.read_text()).encode())
    after = open_rafdb(tmp_path, "train")
    assert after.fingerprint() == before.fingerprint() and stems(after) == stems(before)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("train_00001.jpg 5", "already listed in line 1"),
        ("train_99999.jpg", "expected like"),
        ("train_99999.jpg 5 5", "expected like"),
        ("face.jpg 5", "expected like"),
        ("../train_00009.jpg 5", "expected like"),
        ("train_99999.jpg 0", "got label '0', expected 1 to 7 .*6 anger"),
        ("train_99999.jpg 8", "got label '8'"),
        ("train_99999.jpg x", "got label 'x'"),
        ("train_99999.jpg 1.0", "got label"),
    ],
)
def test_bad_lines_are_numbered(line, found, tmp_path):
    flat(tmp_path)
    with open(tmp_path / LIST_NAME, "a") as file:
        file.write("\n" + line)
    with pytest.raises(DataError, match=rf"{LIST_NAME}, line {len(LISTED) + 1}: .*{found}"):
        open_rafdb(tmp_path, "test")


def test_label_file_that_is_no_text(tmp_path):
    flat(tmp_path)
    (tmp_path / LIST_NAME).write_bytes(b"\xff\xfe\0\1")
    with pytest.raises(DataError, match="cannot be read as text"):
        open_rafdb(tmp_path, "test")


@pytest.mark.parametrize("layout", ["official", "flat"])
def test_missing_and_unlisted_files(layout, tmp_path):
    LAYOUTS[layout](tmp_path)
    images, ending = (tmp_path / "Image" / "aligned", "_aligned") if layout == "official" else (tmp_path, "")
    write_face(images / "train_77777_aligned.jpg", "x")
    (images / "Thumbs.db").write_bytes(b"x")
    skipped = dict(open_rafdb(tmp_path, "train").skipped)
    assert {os.path.basename(path) for path in skipped} == {"train_77777_aligned.jpg", "Thumbs.db"}
    assert set(skipped.values()) == {f"not listed in {LIST_NAME}"}
    for stem in ("train_00003", "test_0002"):
        (images / f"{stem}{ending}.jpg").unlink()
    with pytest.raises(DataError, match=rf"2 of the {len(LISTED)} images .*train_00003{ending}\.jpg \(line 3\)"):
        open_rafdb(tmp_path, "test")


def test_images_not_unpacked(tmp_path):
    official(tmp_path)
    shutil.rmtree(tmp_path / "Image")
    with pytest.raises(DataError, match="Image/aligned is missing"):
        open_rafdb(tmp_path, "train")


def test_unknown_layout_lists_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=f"no known layout.*EmoLabel/{LIST_NAME}.*flat.*train/1.*DATASET"):
        open_rafdb(tmp_path, "train")


def test_folder_quirks(tmp_path):
    folders(tmp_path)
    (tmp_path / "train" / "8").mkdir()
    (tmp_path / "train" / "3" / "notes.txt").write_text("x")
    write_face(tmp_path / "train" / "3" / "face.jpg", "x")
    write_face(tmp_path / "train" / "3" / "test_0099_aligned.jpg", "x")
    faces = open_rafdb(tmp_path, "train")
    assert {os.path.basename(path) for path, _ in faces.skipped} == {
        "8",
        "notes.txt",
        "face.jpg",
        "test_0099_aligned.jpg",
    }
    wrong = "2" if TRAIN["train_00001"] != 2 else "3"
    write_face(tmp_path / "train" / wrong / "train_00001_aligned.jpg", "x")
    with pytest.raises(DataError, match=r"train_00001_aligned.jpg: also at .*expected each image under one label"):
        open_rafdb(tmp_path, "train")
    shutil.rmtree(tmp_path / "train" / "6")
    with pytest.raises(DataError, match="got no folders 6, expected 1 to 7"):
        open_rafdb(tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.replace("image,label", "name,label"), "line 1: got columns"),
        (
            lambda t: t.replace("train_00002_aligned.jpg,7", "train_00002_aligned.jpg,6"),
            "line 3: .*has label 6 there, but lies in",
        ),
        (lambda t: t + "train_99999_aligned.jpg,2\n", "line 86: .*missing from the folders"),
        (lambda t: t + "train_00001_aligned.jpg,4\n", "line 86: .*already in line 2"),
        (lambda t: t + "train_00001_aligned.jpg\n", "line 86: .*expected like"),
        (lambda t: t.replace("train_00002_aligned.jpg,7", "train_00002_aligned.jpg,9"), "line 3: got label '9'"),
        (lambda t: "", "line 1: got columns"),
    ],
)
def test_kaggle_table_is_cross_checked(change, found, tmp_path):
    kaggle(tmp_path)
    path = tmp_path / "train_labels.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=f"train_labels.csv, {found}"):
        open_rafdb(tmp_path, "train")


def test_kaggle_image_missing_from_the_table(tmp_path):
    kaggle(tmp_path)
    path = tmp_path / "train_labels.csv"
    path.write_text(path.read_text().replace("train_00005_aligned.jpg,2\n", ""))
    both = stems(open_rafdb(tmp_path, "train")) + stems(open_rafdb(tmp_path, "val"))
    assert len(both) == len(TRAIN) - 1 and "train_00005" not in both
    assert [reason for _, reason in open_rafdb(tmp_path, "test").skipped] == ["not listed in train_labels.csv"]
