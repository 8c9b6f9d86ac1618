"""The seam between data sets and everything that reads them: a list of labelled face crops."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import DataError, ImageError, UsageError
from ..preprocess import decode_image
from ..spec import LABELS

SPLITS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# Part of every random split. Changing it changes which images are validated on, so it stays.
SPLIT_SEED = 1


class FaceSet:
    """N face crops in image files, each with an expression and, where known, a person.

    name: what it is, with layout and split; differs between the splits of one data set.
    labels: int64 [N], in the order of `spec.LABELS`. groups: int64 [N], the person's number, or a number of the
    image's own where persons are unknown; never shared between splits.
    skipped: (path, reason) of everything that was found and left out.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        labels: Iterable[int],
        groups: Iterable[int] | None = None,
        *,
        root: str = "",
        layout: str = "",
        skipped: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.name, self.root, self.layout = name, root, layout
        self._paths = tuple(paths)
        self.labels = np.array(list(labels), np.int64)
        self.groups = (
            np.arange(len(self._paths), dtype=np.int64) if groups is None else np.array(list(groups), np.int64)
        )
        self.skipped = tuple(skipped)
        if not len(self._paths) == len(self.labels) == len(self.groups):
            raise DataError(
                f"{name}: got {len(self._paths)} images, {len(self.labels)} labels, {len(self.groups)} groups, "
                "expected equal numbers; give each image one label and one group"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(LABELS):
            raise DataError(
                f"{name}: got labels {self.labels.min()} to {self.labels.max()}, expected 0 to {len(LABELS) - 1}; "
                f"number them in the order {', '.join(LABELS)}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, i: int) -> np.ndarray:
        """Image i, uint8 [H, W, 3] RGB. `DataError` that names the file where it cannot be decoded."""
        path = self._paths[self._index(i)]
        try:
            return decode_image(path)
        except ImageError as error:
            raise DataError(f"{self.name}, image {i}: {error}") from None

    def source(self, i: int) -> str:
        """Where image i comes from: its path."""
        return self._paths[self._index(i)]

    def skipped_summary(self, most: int = 5) -> str:
        """What was left out, in one line: "" if nothing was."""
        if not self.skipped:
            return ""
        named = "; ".join(f"{path}: {reason}" for path, reason in self.skipped[:most])
        more = f"; and {len(self.skipped) - most} more" if len(self.skipped) > most else ""
        return f"{self.name}: left out {len(self.skipped)}: {named}{more}"

    def fingerprint(self) -> str:
        """SHA-256, hex, over names below the root, file sizes and labels: what was read, without reading it."""
        digest = hashlib.sha256()
        for i, label in enumerate(self.labels):
            name, size = self._identity(i)
            digest.update(os.fsencode(name) + f"\0{size}\0{label}\n".encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> FaceSet:
        """The images at `indices`, in that order, with their labels and groups; `UsageError` for a bad index."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise UsageError(
                f"{self.name}: got indices {chosen.dtype} {list(chosen.shape)}, expected a list of whole numbers; "
                "turn a mask into indices with np.flatnonzero(mask)"
            )
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise UsageError(
                f"{self.name}: got indices {chosen.min()} to {chosen.max()}, expected 0 to {len(self) - 1}; "
                "drop those outside the set"
            )
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        # Caches are keyed by name, so two parts must not share one.
        part.name = f"{self.name}-part{len(chosen)}-{hashlib.sha256(chosen.astype('<i8').tobytes()).hexdigest()[:8]}"
        part._take(chosen)
        return part

    def _take(self, chosen: np.ndarray) -> None:
        self._paths = tuple(self._paths[i] for i in chosen)
        self.labels, self.groups = self.labels[chosen], self.groups[chosen]

    def _identity(self, i: int) -> tuple[str, int]:
        """What tells image i from a changed one: its name below the root, and its size in bytes."""
        path = self._paths[i]
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise DataError(
                f"{self.name}: {path} is gone ({error.strerror}), expected the file that was there when the set was "
                "opened; restore it and open the set again"
            ) from None
        return (os.path.relpath(path, self.root) if self.root else path).replace(os.sep, "/"), size

    def _index(self, i: int) -> int:
        try:
            index = operator.index(i)
        except TypeError:
            raise UsageError(f"{self.name}: got index {i!r}, expected a whole number; pass int(i)") from None
        if not -len(self) <= index < len(self):
            raise UsageError(f"{self.name}: got index {index}, expected below {len(self)}, the number of images")
        return index % len(self)


def check_split(split: str) -> str:
    """`split`, or `UsageError` if it is none of `SPLITS`."""
    if split not in SPLITS:
        raise UsageError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}; choose one of them")
    return split


def check_folder(root: str | os.PathLike, what: str) -> str:
    """`root` as an absolute path, or `DataError` if it is no readable folder."""
    path = os.path.abspath(os.path.expanduser(os.fsdecode(root)))
    if not os.path.isdir(path):
        found = "a file" if os.path.exists(path) else "nothing there"
        raise DataError(
            f"{what}: {path}: {found}, expected the data set's folder; check the path, or unpack the archive"
        )
    return path


def listed(folder: str) -> tuple[list[str], list[str]]:
    """(folders, files) directly in `folder`, by name, sorted; `DataError` if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            both = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}), expected a folder; check its permissions"
        ) from None
    return [name for name, is_dir in both if is_dir], [name for name, is_dir in both if not is_dir]


def images_in(folder: str, skipped: list[tuple[str, str]]) -> list[str]:
    """Names of the image files directly in `folder`, by suffix; the rest is added to `skipped`."""
    folders, files = listed(folder)
    skipped += [(os.path.join(folder, name), "a folder where images are expected") for name in folders]
    images = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    skipped += [(os.path.join(folder, name), "not an image by its name") for name in sorted({*files} - {*images})]
    return images


def stratified(names: Sequence[str], labels: Sequence[int], parts: int = 1) -> np.ndarray:
    """Draws `parts` random parts of 10 % each, the same share of every label: int64 [N], 0 the rest, 1.. the parts.

    Images are drawn by a hash of their names, so that the draw depends on neither NumPy's version nor on how the
    files are laid out. A label gives one image at least to each part while one is left for the rest.
    """
    label_of = np.asarray(labels, np.int64)
    part = np.zeros(len(label_of), np.int64)
    keys = [hashlib.sha256(f"{SPLIT_SEED}:".encode() + os.fsencode(name)).digest() for name in names]
    for label in range(len(LABELS)):
        drawn = sorted(np.flatnonzero(label_of == label).tolist(), key=keys.__getitem__)
        each = max(1, (len(drawn) + 5) // 10)
        for number in range(parts):
            part[drawn[number * each : (number + 1) * each][: max(0, len(drawn) - 1 - number * each)]] = number + 1
    return part


def not_empty(faces: FaceSet) -> FaceSet:
    """`faces`, or `DataError` if nothing is in it."""
    if not len(faces):
        why = f"; {len(faces.skipped)} files were left out, the first {faces.skipped[0]}" if faces.skipped else ""
        raise DataError(f"{faces.name}: no images in {faces.root}, expected at least one; check the folder{why}")
    return faces
