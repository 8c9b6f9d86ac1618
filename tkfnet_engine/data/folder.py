"""Anybody's faces: one folder per expression, below train, val and test or without them."""

from __future__ import annotations

import os

from ..errors import DataError
from ..spec import LABELS
from .faceset import SPLITS, FaceSet, check_folder, check_split, images_in, listed, not_empty, stratified

_LABEL_OF = {name: i for i, name in enumerate(LABELS)} | {str(i + 1): i for i in range(len(LABELS))}
_EXPECTED = f"expected one of {', '.join(LABELS)}, or RAF-DB's numbers 1 to 7 in this order"


def open_folder(root: str | os.PathLike, split: str) -> FaceSet:
    """DIR/<split>/<label>/*.jpg (or .png, .webp, .bmp); a label is a name of `spec.LABELS` or RAF-DB's number.

    Without DIR/val, a tenth of DIR/train is validated on. With DIR/<label>/ alone, the images are split 80/10/10 at
    random, and `skipped` begins with a line that says so: such a split may show one person on both sides. Random
    splits take the same share of every label and depend on the file names only.
    Raises `DataError` for a folder that is no label, a split that is missing, or no images.
    """
    split, root = check_split(split), check_folder(root, "folder")
    skipped: list[tuple[str, str]] = []
    present = [name for name in SPLITS if os.path.isdir(os.path.join(root, name))]
    if not present:
        layout = "random-80-10-10"
        skipped.append((root, "no folders train, val and test: images were split 80/10/10 by a hash of their names"))
        samples = _samples(root, skipped)
        parts = stratified([name for name, _, _ in samples], [label for _, _, label in samples], parts=2)
        numbers = [i for i, part in enumerate(parts) if part == {"train": 0, "val": 1, "test": 2}[split]]
    elif split in present and not (split == "train" and "val" not in present):
        layout, numbers = "given", None
        samples = _samples(os.path.join(root, split), skipped)
    elif split != "test" and "train" in present:
        layout = "given-val-from-train"
        samples = _samples(os.path.join(root, "train"), skipped)
        parts = stratified([name for name, _, _ in samples], [label for _, _, label in samples])
        numbers = [i for i, part in enumerate(parts) if part == (split == "val")]
    else:
        raise DataError(
            f"folder: {root}: got {', '.join(present)}, expected a folder {split!r} too; add {split}/<label>/*.jpg, or "
            "remove the split folders to have the images split at random"
        )
    numbers = list(range(len(samples))) if numbers is None else numbers
    # Persons are unknown. Numbers of different folders must differ too, so each split folder counts from its own start.
    start = 2**40 * (SPLITS.index(split) if layout == "given" else 0)
    chosen = [samples[i] for i in numbers]
    return not_empty(
        FaceSet(
            f"folder-{os.path.basename(root) or 'root'}-{layout}-{split}",
            [path for _, path, _ in chosen],
            [label for _, _, label in chosen],
            [start + i for i in numbers],
            root=root,
            layout=layout,
            skipped=skipped,
        )
    )


def _samples(folder: str, skipped: list[tuple[str, str]]) -> list[tuple[str, str, int]]:
    """(label/file name, path, label) of all images in `folder`'s label folders, in the order of the names."""
    folders, files = listed(folder)
    skipped += [(os.path.join(folder, name), "a file where label folders are expected") for name in files]
    samples = []
    for name in folders:
        below = os.path.join(folder, name)
        # What archivers and notebooks leave behind.
        if name.startswith((".", "__")):
            skipped.append((below, "a hidden folder"))
        elif name.lower() not in _LABEL_OF:
            raise DataError(f"folder: {below}: got a folder {name!r}, {_EXPECTED}; rename it, or move it out")
        else:
            label = _LABEL_OF[name.lower()]
            samples += [(f"{label}/{file}", os.path.join(below, file), label) for file in images_in(below, skipped)]
    return sorted(samples)
