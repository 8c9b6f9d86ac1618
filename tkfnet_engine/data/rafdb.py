"""RAF-DB, single-label part: 12,271 training and 3,068 test faces, seven expressions.

The data are the authors' (http://www.whdeng.cn/raf/model1.html), for non-commercial research, not to be passed on.
Persons are not annotated. The test part is never touched; validation is a fixed tenth of the training part, the
same images in every layout below.
"""

from __future__ import annotations

import csv
import os
import re

from ..errors import DataError
from ..spec import LABELS
from .faceset import FaceSet, check_folder, check_split, images_in, listed, not_empty, stratified

# The authors' spelling.
LIST_NAME = "list_patition_label.txt"

LAYOUTS = (
    f"EmoLabel/{LIST_NAME} with Image/aligned/train_00001_aligned.jpg (official), or {LIST_NAME} with train_00001.jpg "
    "or train_00001_aligned.jpg beside it (flat), or train/1/*.jpg to test/7/*.jpg, also below DATASET/ (folders)"
)

_STEM = re.compile(r"((train|test)_\d{4,5})(_aligned)?\.jpg")

Skipped = list[tuple[str, str]]
# (stem such as "train_00001", path, label counted from 0)
Sample = tuple[str, str, int]


def open_rafdb(root: str | os.PathLike, split: str) -> FaceSet:
    """RAF-DB in `root`; its layout is recognised and becomes part of the name.

    split: "train" (nine tenths of the training part), "val" (the other tenth), "test" (the test part).
    Raises `DataError` for an unknown layout, a listed image that is missing, or a bad line of a label file.
    """
    split, root = check_split(split), check_folder(root, "rafdb")
    base = os.path.join(root, "basic") if os.path.isdir(os.path.join(root, "basic", "EmoLabel")) else root
    skipped: Skipped = []
    if os.path.exists(os.path.join(base, "EmoLabel", LIST_NAME)):
        layout, images = "official", os.path.join(base, "Image", "aligned")
        if not os.path.isdir(images):
            raise DataError(f"rafdb: {images} is missing, expected the aligned faces there; unpack Image/aligned.zip")
        samples = _listed_samples(os.path.join(base, "EmoLabel", LIST_NAME), images, ("_aligned",), skipped)
    elif os.path.exists(os.path.join(root, LIST_NAME)):
        layout = "flat"
        samples = _listed_samples(os.path.join(root, LIST_NAME), root, ("", "_aligned"), skipped)
    else:
        layout, base = "folders", _folders_base(root)
        samples = [s for part in ("train", "test") for s in _folder_samples(base, part, skipped)]
    # A face's number in the sorted whole, so that no two splits share one.
    samples.sort()
    training = [i for i, (stem, _, _) in enumerate(samples) if stem.startswith("train_")]
    drawn = stratified([samples[i][0] for i in training], [samples[i][2] for i in training])
    chosen = {
        "train": [i for i, part in zip(training, drawn, strict=True) if part == 0],
        "val": [i for i, part in zip(training, drawn, strict=True) if part == 1],
        "test": sorted(set(range(len(samples))) - set(training)),
    }[split]
    _, paths, labels = zip(*(samples[i] for i in chosen), strict=True) if chosen else ((), (), ())
    return not_empty(
        FaceSet(f"rafdb-{layout}-{split}", paths, labels, chosen, root=root, layout=layout, skipped=skipped)
    )


def read_list(path: str) -> dict[str, tuple[int, int]]:
    """Reads "train_00001.jpg 5" lines: {stem: (label counted from 0, line number)}.

    Blank lines, repeated spaces, either line end and a missing last one are accepted. Raises `DataError` with the
    line's number for anything else, and for a name listed twice.
    """
    entries: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        name = _STEM.fullmatch(fields[0])
        if len(fields) != 2 or not name:
            raise DataError(f"{path}, line {number}: got {line!r}, expected like 'train_00001.jpg 5'; correct the line")
        if name[1] in entries:
            raise DataError(
                f"{path}, line {number}: {fields[0]} is already listed in line {entries[name[1]][1]}, expected each "
                "image once; delete one of the lines"
            )
        entries[name[1]] = _label(fields[1], path, number), number
    return entries


def _listed_samples(path: str, folder: str, endings: tuple[str, ...], skipped: Skipped) -> list[Sample]:
    entries = read_list(path)
    # One listing instead of 15,339 look-ups, which are slow on a network file system.
    present = set(listed(folder)[1]) - {os.path.basename(path)}
    names = {stem: next((n for e in endings if (n := f"{stem}{e}.jpg") in present), None) for stem in entries}
    missing = [stem for stem, name in names.items() if name is None]
    if missing:
        raise DataError(
            f"rafdb: {len(missing)} of the {len(entries)} images in {path} are missing, the first "
            f"{os.path.join(folder, missing[0] + endings[0] + '.jpg')} (line {entries[missing[0]][1]}); "
            "unpack the images again, or delete their lines"
        )
    unlisted = sorted(present - set(names.values()))
    skipped += [(os.path.join(folder, name), f"not listed in {os.path.basename(path)}") for name in unlisted]
    return [(stem, os.path.join(folder, str(names[stem])), label) for stem, (label, _) in entries.items()]


def _folders_base(root: str) -> str:
    for base in (root, os.path.join(root, "DATASET")):
        if all(os.path.isdir(os.path.join(base, part)) for part in ("train", "test")):
            return base
    raise DataError(f"rafdb: {root}: found no known layout, expected {LAYOUTS}; check the folder")


def _folder_samples(base: str, part: str, skipped: Skipped) -> list[Sample]:
    """The images of train/1 to train/7 or of test/1 to test/7, checked against <part>_labels.csv if that is there."""
    folder = os.path.join(base, part)
    numbers = [str(n) for n in range(1, len(LABELS) + 1)]
    folders, files = listed(folder)
    if absent := sorted(set(numbers) - set(folders)):
        raise DataError(
            f"rafdb: {folder}: got no folders {', '.join(absent)}, expected 1 to 7; unpack the images again"
        )
    skipped += [
        (os.path.join(folder, n), "not one of the folders 1 to 7") for n in (*folders, *files) if n not in numbers
    ]
    samples: dict[str, Sample] = {}
    for number in numbers:
        for name in images_in(os.path.join(folder, number), skipped):
            path = os.path.join(folder, number, name)
            match = _STEM.fullmatch(name)
            if not match or match[2] != part:
                skipped.append((path, f"not named like {part}_00001_aligned.jpg"))
            elif match[1] in samples:
                raise DataError(
                    f"rafdb: {path}: also at {samples[match[1]][1]}, expected each image under one label; delete one"
                )
            else:
                samples[match[1]] = match[1], path, int(number) - 1
    for table in (os.path.join(base, f"{part}_labels.csv"), os.path.join(os.path.dirname(base), f"{part}_labels.csv")):
        if os.path.exists(table):
            return _checked_by_table(table, samples, skipped)
    return list(samples.values())


def _checked_by_table(table: str, samples: dict[str, Sample], skipped: Skipped) -> list[Sample]:
    rows = csv.reader(_text(table).splitlines())
    header = next(rows, [])
    if [h.strip() for h in header] != ["image", "label"]:
        raise DataError(f"{table}, line 1: got columns {header}, expected image,label; restore or delete the file")
    seen: dict[str, int] = {}
    for row in rows:
        number = rows.line_num
        if not row:
            continue
        name = _STEM.fullmatch(row[0].strip())
        if len(row) != 2 or not name:
            raise DataError(
                f"{table}, line {number}: got {row}, expected like train_00001_aligned.jpg,5; correct the line"
            )
        if name[1] in seen:
            raise DataError(f"{table}, line {number}: {row[0]} is already in line {seen[name[1]]}; delete one of them")
        if name[1] not in samples:
            raise DataError(f"{table}, line {number}: {row[0]} is missing from the folders; unpack the images again")
        label, (_, path, found) = _label(row[1].strip(), table, number), samples[name[1]]
        if label != found:
            raise DataError(
                f"{table}, line {number}: {row[0]} has label {label + 1} there, but lies in {path}; correct one of them"
            )
        seen[name[1]] = number
    skipped += [
        (path, f"not listed in {os.path.basename(table)}") for stem, path, _ in samples.values() if stem not in seen
    ]
    return [sample for stem, sample in samples.items() if stem in seen]


def _label(text: str, path: str, number: int) -> int:
    if not re.fullmatch(f"[1-{len(LABELS)}]", text):
        meaning = ", ".join(f"{n} {label}" for n, label in enumerate(LABELS, 1))
        raise DataError(f"{path}, line {number}: got label {text!r}, expected 1 to 7 ({meaning}); correct the line")
    return int(text) - 1


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig", newline=None) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}), expected a label file; restore it") from None
