"""The seam itself, and the grammar of `open_data`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.data import FaceSet, open_data
from tkfnet_engine.data.faceset import stratified
from tkfnet_engine.errors import DataError, UsageError
from tkfnet_engine.spec import LABELS


@pytest.fixture
def faces(tmp_path):
    paths = []
    for i in range(9):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.new("RGB", (4, 3), (i, 0, 0)).save(paths[-1])
    return FaceSet("nine", paths, [i % 7 for i in range(9)], root=str(tmp_path))


def test_contract(faces):
    assert len(faces) == 9 and faces.labels.dtype == np.int64 and faces.groups.tolist() == list(range(9))
    image = faces.image(-1)
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8 and image[0, 0, 0] == 8
    assert faces.source(2).endswith("2.png") and faces.skipped == ()
    assert pickle.loads(pickle.dumps(faces)).fingerprint() == faces.fingerprint()
    for index in (9, -10, "1", 1.0, None):
        with pytest.raises(UsageError, match="nine: got index"):
            faces.image(index)


def test_unreadable_image_is_named_and_never_replaced(faces, tmp_path):
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"nine, image 4: .*4\.png: empty"):
        faces.image(4)
    (tmp_path / "4.png").unlink()
    with pytest.raises(DataError, match=r"4\.png: no such file"):
        faces.image(4)
    with pytest.raises(DataError, match=r"4\.png is gone"):
        faces.fingerprint()


def test_subset(faces):
    part = faces.subset([5, 2, 2])
    assert part.labels.tolist() == [5, 2, 2] and part.groups.tolist() == [5, 2, 2] and part.image(0)[0, 0, 0] == 5
    assert len({faces.name, part.name, faces.subset([2, 5, 2]).name}) == 3
    assert (
        len(faces) == 9
        and len(faces.subset([])) == 0
        and faces.subset(np.arange(3)).subset([1]).source(0) == faces.source(1)
    )
    for indices in ([9], [-1], [0.5], [[1]], np.ones(9, bool)):
        with pytest.raises(UsageError, match="nine: got indices"):
            faces.subset(indices)


def test_fingerprint_sees_names_sizes_and_labels_not_the_root(faces, tmp_path):
    first = faces.fingerprint()
    assert len(first) == 64 and first == faces.fingerprint()
    assert faces.subset(range(8)).fingerprint() != first
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    paths = [str(moved / f"{i}.png") for i in range(9)]
    again = FaceSet("other", paths, faces.labels, root=str(moved))
    assert again.fingerprint() == first
    assert FaceSet("other", paths, [0, *faces.labels[:-1]], root=str(moved)).fingerprint() != first
    with open(paths[3], "ab") as file:
        file.write(b"x")
    assert again.fingerprint() != first


def test_bad_labels_are_refused():
    with pytest.raises(DataError, match="expected equal numbers"):
        FaceSet("x", ["a"], [])
    with pytest.raises(DataError, match="got labels 0 to 7, expected 0 to 6"):
        FaceSet("x", ["a", "b"], [0, 7])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 57])
@pytest.mark.parametrize("parts", [1, 2])
def test_stratified(count, parts):
    labels = np.repeat(np.arange(7), count)
    names = [f"face {i}" for i in range(len(labels))]
    drawn = stratified(names, labels, parts)
    for label in range(7):
        shares = [int((drawn[labels == label] == part).sum()) for part in range(parts + 1)]
        assert shares[0] >= 1
        if count > parts:
            assert set(shares[1:]) == {max(1, round(count / 10))}
    # Neither the order nor an image more or less moves the others about at random.
    order = np.random.default_rng(count).permutation(len(labels))
    np.testing.assert_array_equal(stratified([names[i] for i in order], labels[order], parts), drawn[order])


# open_data


@pytest.mark.parametrize(
    "text",
    [
        "", "synthetc", "synthetic:", "synthetic:n", "synthetic:n=", "synthetic:n=0", "synthetic:n=-7",
        "synthetic:n=7.5", "synthetic:n=1_000", "synthetic:n=٣", "synthetic:n=99999999999", "synthetic:n=7,n=7",
        "synthetic:texture_only=1", "synthetic:seed=1,", "synthetic:size=8", "synthetic:seed=4294967296",
        "SYNTHETIC", "rafdb", "rafdb:", "kdef", "kdef:", "folder:", "kdef:,fold=1", "kdef:DIR,fold=10",
        "kdef:DIR,fold=-1", "kdef:DIR,fold=", "kdef:DIR,fold=1,fold=2", "kdef:DIR,angles=", "kdef:DIR,angles=S+XX",
        "kdef:DIR,angles=S+S", "kdef:DIR,angles=s", "kdef:DIR,angel=S", "rafdb:DIR,fold=1", "folder:DIR,n=3",
    ],
)  # fmt: skip
def test_grammar_errors_show_the_grammar(text, tmp_path):
    with pytest.raises(UsageError, match=r"data: got .*expected the form synthetic\[:n=") as caught:
        open_data(text.replace("DIR", str(tmp_path)), "train")
    assert caught.value.exit_code == 64


def test_other_arguments():
    for split in ("Train", "validation", "", None, 0):
        with pytest.raises(UsageError, match="split: got"):
            open_data("synthetic", split)
    with pytest.raises(UsageError, match="data: got NoneType"):
        open_data(None, "train")


@pytest.mark.parametrize("kind", ["rafdb", "kdef", "folder"])
def test_folders_that_are_not_there(kind, tmp_path):
    (tmp_path / "file").write_text("x")
    for name, found in (("none", "nothing there"), ("file", "a file")):
        with pytest.raises(DataError, match=f"{kind}: .*{name}: {found}"):
            open_data(f"{kind}:{tmp_path / name}", "train")
    with pytest.raises(DataError):
        open_data(f"{kind}:{tmp_path}", "train")


def test_folder_names_with_commas(tmp_path):
    for name in ("a,b", "a,fold=3"):
        folder = tmp_path / name / "train" / "fear"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (2, 2)).save(folder / f"{i}.png")
        assert len(open_data(f"folder:{tmp_path / name}", "train")) == 2


def test_synthetic():
    pytest.importorskip("tkfnet_engine.data.synthetic")
    sets = {split: open_data("synthetic:n=70,seed=5", split) for split in ("train", "val", "test")}
    assert [len(s) for s in sets.values()] == [70, 14, 14]
    assert all(
        isinstance(s, FaceSet) and np.bincount(s.labels).tolist() == [len(s) // 7] * len(LABELS) for s in sets.values()
    )
    groups = [set(s.groups.tolist()) for s in sets.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    train = sets["train"]
    part = train.subset([8, 3])
    np.testing.assert_array_equal(part.image(1), train.image(3))
    assert part.source(1) == train.source(3) and part.labels.tolist() == [1, 3]
    assert part.subset([1]).source(0) == train.source(3)
    prints = {s.fingerprint() for s in (*sets.values(), part, open_data("synthetic:n=70,texture_only,seed=5", "train"))}
    assert len(prints) == 5 and train.fingerprint() == open_data("synthetic:n=70,seed=5", "train").fingerprint()
    assert len(open_data("synthetic:n=1", "val")) == 7
