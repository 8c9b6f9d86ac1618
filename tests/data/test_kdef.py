"""KDEF in miniature: every person, names gone wrong, placeholders, and folds that part no person."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.data import open_data
from tkfnet_engine.data.kdef import ANGLES, EXPRESSIONS, fold_of, open_kdef
from tkfnet_engine.errors import DataError, UsageError
from tkfnet_engine.spec import LABELS

PEOPLE = [f"{sex}{number:02}" for sex in "FM" for number in range(1, 36)]


def write_photograph(path, level=200):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 8), (level, level // 2, level // 4)).save(path, "JPEG")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """All 70 people in both sessions: frontal in all expressions, every angle for F01."""
    root = tmp_path_factory.mktemp("kdef")
    base = root / "KDEF_and_AKDEF" / "KDEF"
    for person in PEOPLE:
        for session in "AB":
            for expression in EXPRESSIONS:
                for angle in ANGLES if person == "F01" else ("S",):
                    write_photograph(base / f"{session}{person}" / f"{session}{person}{expression}{angle}.JPG")
    (root / "KDEF_and_AKDEF" / "AKDEF").mkdir()
    return root


def test_layouts_give_one_set(tree, tmp_path):
    whole = open_data(f"kdef:{tree}", "train")
    names = [os.path.basename(whole.source(i)) for i in range(len(whole))]
    for root in (tree / "KDEF_and_AKDEF", tree / "KDEF_and_AKDEF" / "KDEF"):
        part = open_data(f"kdef:{root}", "train")
        assert [os.path.basename(part.source(i)) for i in range(len(part))] == names
    assert whole.name == "kdef-all-fold0-train" and whole.image(0).shape == (8, 6, 3) and whole.skipped == ()
    for name, label, group in zip(names, whole.labels, whole.groups, strict=True):
        assert LABELS[label] == EXPRESSIONS[name[4:6]] and PEOPLE[group] == name[1:4]
    with pytest.raises(DataError, match=r"expected KDEF_and_AKDEF/KDEF/AF01/AF01AFS.JPG"):
        open_kdef(tmp_path, "train")


def test_lower_case_and_files_without_folders(tmp_path):
    for person in PEOPLE:
        write_photograph(tmp_path / f"a{person.lower()}has.jpeg")
    faces = [open_kdef(tmp_path, split) for split in ("train", "val", "test")]
    assert [len(f) for f in faces] == [56, 7, 7] and set(faces[0].labels) == {LABELS.index("happiness")}


def test_folds_part_no_person(tree):
    tested = []
    for fold in range(10):
        groups = [set(open_kdef(tree, split, fold=fold).groups.tolist()) for split in ("train", "val", "test")]
        assert [len(g) for g in groups] == [56, 7, 7] and len(set.union(*groups)) == 70
        assert sum(person < 35 for person in groups[2]) in (3, 4)
        assert groups[1] == set(open_kdef(tree, "test", fold=(fold + 1) % 10).groups.tolist())
        tested += groups[2]
    assert sorted(tested) == list(range(70))
    # Pinned: other folds would make older results incomparable.
    assert [fold_of(person) for person in (0, 1, 34, 35, 69)] == [3, 3, 2, 4, 0]
    test = open_kdef(tree, "test")
    sessions = {os.path.basename(test.source(i))[0] for i in range(len(test))}
    assert sessions == {"A", "B"} and open_kdef(tree, "test").fingerprint() == test.fingerprint()


def test_angles(tree):
    fold = fold_of(0)
    counts = {
        a: int((open_data(f"kdef:{tree},angles={a},fold={fold}", "test").groups == 0).sum()) for a in ("S", "FL+HR")
    }
    assert counts == {"S": 14, "FL+HR": 28}
    assert open_data(f"kdef:{tree},fold=3,angles=HR+S", "val").name == "kdef-S+HR-fold3-val"
    with pytest.raises(DataError, match="no images"):
        open_kdef(tree, "test", ["HL"], fold=(fold + 1) % 10)
    for angles in ([], ["X"], "S"):
        with pytest.raises(UsageError, match="angles: got"):
            open_kdef(tree, "test", angles)
    for fold in (10, -1, True, "1"):
        with pytest.raises(UsageError, match="fold: got"):
            open_kdef(tree, "test", fold=fold)


def test_misnamed_files_and_placeholders_are_reported(tmp_path):
    base = tmp_path / "KDEF"
    for person in PEOPLE:
        write_photograph(base / f"A{person}" / f"A{person}NES.JPG")
    odd = [
        "AF31V.JPG",
        "AM31H.JPG",
        "AF31XXS.JPG",
        "AF36AFS.JPG",
        "AF00AFS.JPG",
        "Thumbs.db",
        "AF31NES.png",
        "AF31NES.jpg",
    ]
    for name in odd:
        write_photograph(base / "AF31" / name)
    write_photograph(base / "AF31" / "AF30SUS.JPG")
    (base / "AF31" / "old").mkdir()
    (base / "extra").mkdir()
    write_photograph(base / "AF31" / "AF31SAS.JPG", level=0)
    (base / "AF31" / "AF31DIS.JPG").write_bytes(b"\xff\xd8\xff damaged")
    sets = [open_kdef(tmp_path, "test", fold=fold) for fold in range(10)]
    reasons = {os.path.basename(path): reason for faces in sets for path, reason in faces.skipped}
    twin = "AF31NES.jpg" if "AF31NES.jpg" in reasons else "AF31NES.JPG"
    assert set(reasons) == {*odd, "AF30SUS.JPG", "old", "extra", "AF31SAS.JPG"} - {"AF31NES.jpg"} | {twin}
    assert reasons["AF31SAS.JPG"] == "an all-black placeholder" and "same name" in reasons[twin]
    assert "another person" in reasons["AF30SUS.JPG"] and "like AF01AFS.JPG" in reasons["AF31V.JPG"]
    # Damage is no placeholder: it stays, and reading it is refused by name.
    assert sum(len(faces) for faces in sets) == 71
    faces = sets[fold_of(30)]
    damaged = next(i for i in range(len(faces)) if faces.source(i).endswith("AF31DIS.JPG"))
    with pytest.raises(DataError, match=r"AF31DIS.JPG"):
        faces.image(damaged)


def test_placeholders_among_full_sized_photographs(tmp_path):
    """In the original size a black picture is longer than 8 KiB, yet less than half of any photograph."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (96, 70, 3), np.uint8)
    photograph = Image.fromarray(noise).resize((562, 762), Image.Resampling.BICUBIC)
    for person in PEOPLE:
        if fold_of(PEOPLE.index(person)) == 0:
            path = tmp_path / f"A{person}" / f"A{person}NES.JPG"
            path.parent.mkdir()
            photograph.save(path, quality=90)
    path = path.with_name(path.name.replace("NE", "SU"))
    Image.new("RGB", (562, 762)).save(path, subsampling=0)
    assert path.stat().st_size > 8192
    faces = open_kdef(tmp_path, "test")
    assert faces.skipped == ((str(path), "an all-black placeholder"),) and len(faces) == 7
