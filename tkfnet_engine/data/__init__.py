"""Data sets of labelled faces. `open_data` is the one way in; `FaceSet` is what it returns."""

from __future__ import annotations

import hashlib
import os
import re

import numpy as np

from ..errors import UsageError
from .faceset import SPLITS, FaceSet, check_split

__all__ = ["GRAMMAR", "SPLITS", "FaceSet", "open_data"]

GRAMMAR = (
    "synthetic[:n=IMAGES,seed=NUMBER,texture_only] | rafdb:DIR | kdef:DIR[,angles=S+HL+HR][,fold=0..9] | folder:DIR"
)
_DEFAULT_IMAGES = 3500


def open_data(text: str, split: str) -> FaceSet:
    """Opens one split, "train", "val" or "test", of the data set that `text` names; `GRAMMAR` is its form.

    synthetic: `n` is the size of the training split; val and test have a fifth of it each, in multiples of the seven
    expressions and at least seven, so that one text serves all three. Its defaults are n=3500, seed=0.
    Nothing is decoded yet, except KDEF's suspected placeholders. Raises `UsageError` for a text that does not follow
    the grammar, `DataError` for a folder that does not hold that data set.
    """
    check_split(split)
    if not isinstance(text, str):
        raise UsageError(f"data: got {type(text).__name__}, expected text of the form {GRAMMAR}; pass a str")
    kind, colon, rest = text.partition(":")
    if kind == "synthetic":
        if colon and not rest:
            raise _wrong(text, "nothing after the colon")
        return _synthetic(
            text, split, _options(text, rest.split(",") if rest else [], ("n", "seed"), ("texture_only",))
        )
    if kind not in ("rafdb", "kdef", "folder"):
        raise _wrong(text, f"unknown data set {kind!r}")
    folder, options = _folder_and_options(text, rest, ("angles", "fold") if kind == "kdef" else ())
    if kind == "rafdb":
        from .rafdb import open_rafdb

        return open_rafdb(folder, split)
    if kind == "folder":
        from .folder import open_folder

        return open_folder(folder, split)
    from .kdef import ANGLES, FOLDS, open_kdef

    angles = options["angles"].split("+") if "angles" in options else list(ANGLES)
    if len(set(angles)) != len(angles) or not set(angles) <= set(ANGLES):
        raise _wrong(text, f"angles={options['angles']}, expected some of {'+'.join(ANGLES)}, each once")
    return open_kdef(folder, split, angles, _number(text, options, "fold", 0, 0, FOLDS - 1))


def _wrong(text: str, what: str) -> UsageError:
    return UsageError(f"data: got {text!r}: {what}; expected the form {GRAMMAR}")


def _folder_and_options(text: str, rest: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Options stand behind the folder, whose own name may contain commas."""
    parts: list[str] = []
    while not os.path.isdir(os.path.expanduser(rest)) and (match := re.fullmatch(r"(.*),([A-Za-z_]+=[^,/\\]*)", rest)):
        rest = match[1]
        parts.insert(0, match[2])
    if not rest:
        raise _wrong(text, "no DIR")
    return rest, _options(text, parts, known, ())


def _options(text: str, parts: list[str], valued: tuple[str, ...], flags: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in (valued if equals else flags):
            raise _wrong(text, f"unknown option {part!r}")
        if key in options:
            raise _wrong(text, f"option {key!r} twice")
        options[key] = value
    return options


def _number(text: str, options: dict[str, str], key: str, default: int, low: int, high: int) -> int:
    value = options.get(key, str(default))
    if not re.fullmatch("[0-9]{1,10}", value) or not low <= int(value) <= high:
        raise _wrong(text, f"{key}={value}, expected a whole number from {low} to {high}")
    return int(value)


class _SyntheticSet(FaceSet):
    """`SyntheticFaces`, or a part of them, as a face set: drawn when asked for, no files behind it."""

    def __init__(self, faces) -> None:
        self._faces, self._chosen = faces, np.arange(len(faces))
        sources = [faces.source(i) for i in range(len(faces))]
        super().__init__(faces.name, sources, faces.labels, faces.groups, layout="synthetic")

    def image(self, i: int) -> np.ndarray:
        return self._faces.image(int(self._chosen[self._index(i)]))

    def fingerprint(self) -> str:
        # The text that names rendered faces stays when the renderer changes; a picture of theirs does not.
        first = self.image(0).tobytes() if len(self) else b""
        return hashlib.sha256(super().fingerprint().encode() + first).hexdigest()

    def _take(self, chosen: np.ndarray) -> None:
        super()._take(chosen)
        self._chosen = self._chosen[chosen]

    def _identity(self, i: int) -> tuple[str, int]:
        return f"{self._paths[i]},texture_only={self._faces.texture_only},side={self._faces.size}", 0


def _synthetic(text: str, split: str, options: dict[str, str]) -> FaceSet:
    from .synthetic import SyntheticFaces

    n = _number(text, options, "n", _DEFAULT_IMAGES, 1, 1_000_000)
    seed = _number(text, options, "seed", 0, 0, 2**32 - 1)
    n = n if split == "train" else max(7, n // 5 // 7 * 7)
    return _SyntheticSet(SyntheticFaces(n, seed, split, texture_only="texture_only" in options))
