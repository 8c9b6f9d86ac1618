"""KDEF: 4,900 photographs of 70 people, seven expressions, five angles, two sessions.

The data are Lundqvist, Flykt and Öhman's (https://kdef.se), for non-commercial research. A file's name says it all:
session A or B, sex F or M, person 01-35, expression, angle. Both sessions show the same person, so the person is
sex and number without the session, and no person is ever in two splits.
"""

from __future__ import annotations

import hashlib
import os
import re
import statistics
from collections.abc import Sequence
from functools import cache

from ..errors import DataError, ImageError, UsageError
from ..preprocess import decode_image
from ..spec import LABELS
from .faceset import SPLIT_SEED, FaceSet, check_folder, check_split, listed, not_empty

ANGLES = ("FL", "HL", "S", "HR", "FR")
FOLDS = 10
EXPRESSIONS = {
    "AF": "fear",
    "AN": "anger",
    "DI": "disgust",
    "HA": "happiness",
    "NE": "neutral",
    "SA": "sadness",
    "SU": "surprise",
}
_NAME = re.compile(rf"([AB])([FM])(\d\d)({'|'.join(EXPRESSIONS)})({'|'.join(ANGLES)})\.jpe?g", re.IGNORECASE)
_SUBJECT = re.compile(r"[AB][FM]\d\d", re.IGNORECASE)
_PEOPLE = 35  # of each sex

# No level of a placeholder rises above this; a face in the darkest of photographs does.
BLACK = 16
# A photograph never compresses this far, so larger files need no look.
SMALL = 8192


def open_kdef(root: str | os.PathLike, split: str, angles: Sequence[str] = ANGLES, fold: int = 0) -> FaceSet:
    """KDEF in `root`, or in its KDEF_and_AKDEF/KDEF or KDEF; groups are persons: F01 is 0, M01 is 35.

    split: "test" is fold `fold` of 10, "val" the next one, "train" the other eight. A fold holds seven people, three
    or four of each sex, whichever files are present. angles: from full left profile to full right.
    Misnamed files and all-black placeholders are left out and named in `skipped`. Looking for placeholders means
    decoding: done for files of the split below half the median size or 8 KiB, as an even picture compresses best.
    Raises `DataError` where no KDEF is found, `UsageError` for an unknown angle or fold.
    """
    split, root = check_split(split), check_folder(root, "kdef")
    unknown = [angle for angle in angles if angle not in ANGLES]
    if unknown or not angles or isinstance(angles, str):
        raise UsageError(f"angles: got {angles!r}, expected a list from {', '.join(ANGLES)}; name each angle once")
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < FOLDS:
        raise UsageError(f"fold: got {fold!r}, expected 0 to {FOLDS - 1}; choose one of the ten folds")
    skipped: list[tuple[str, str]] = []
    wanted = {"test": {fold}, "val": {(fold + 1) % FOLDS}}.get(split) or set(range(FOLDS)) - {fold, (fold + 1) % FOLDS}
    chosen = [
        (path, label, person)
        for path, label, person, angle in _photographs(_base(root), skipped)
        if angle in angles and fold_of(person) in wanted
    ]
    black = _placeholders([path for path, _, _ in chosen])
    skipped += [(path, "an all-black placeholder") for path in black]
    chosen = [photograph for photograph in chosen if photograph[0] not in black]
    paths, labels, people = zip(*chosen, strict=True) if chosen else ((), (), ())
    seen = "all" if set(angles) == set(ANGLES) else "+".join(a for a in ANGLES if a in angles)
    return not_empty(
        FaceSet(f"kdef-{seen}-fold{fold}-{split}", paths, labels, people, root=root, layout="kdef", skipped=skipped)
    )


@cache
def fold_of(person: int) -> int:
    """The fold, 0 to 9, of person 0 to 69; women and men are dealt from opposite ends, so that all folds hold seven."""
    sex, number = divmod(person, _PEOPLE)
    order = sorted(range(_PEOPLE), key=lambda n: hashlib.sha256(f"{SPLIT_SEED}:{sex}:{n}".encode()).digest())
    place = order.index(number) % FOLDS
    return FOLDS - 1 - place if sex else place


def _base(root: str) -> str:
    for base in (os.path.join(root, "KDEF_and_AKDEF", "KDEF"), os.path.join(root, "KDEF"), root):
        if os.path.isdir(base):
            folders, files = listed(base)
            if any(map(_SUBJECT.fullmatch, folders)) or any(map(_NAME.fullmatch, files)):
                return base
    raise DataError(
        f"kdef: {root}: got no folder or photograph named as KDEF's are, expected "
        "KDEF_and_AKDEF/KDEF/AF01/AF01AFS.JPG, KDEF/AF01/AF01AFS.JPG or AF01/AF01AFS.JPG; "
        "give the folder that the archive was unpacked in"
    )


def _photographs(base: str, skipped: list[tuple[str, str]]) -> list[tuple[str, int, int, str]]:
    """(path, label, person, angle) of every photograph below `base`, in the order of the names."""
    found: dict[str, tuple[str, int, int, str]] = {}
    folders, files = listed(base)
    names = [(base, "", name) for name in files]
    for folder in folders:
        below = os.path.join(base, folder)
        if not _SUBJECT.fullmatch(folder):
            skipped.append((below, "a folder not named like AF01"))
            continue
        inner, files = listed(below)
        skipped += [(os.path.join(below, name), "a folder where photographs are expected") for name in inner]
        names += [(below, folder, name) for name in files]
    for below, folder, name in names:
        path, match = os.path.join(below, name), _NAME.fullmatch(name)
        if not match or not 1 <= int(match[3]) <= _PEOPLE:
            skipped.append((path, "not named session, sex, person, expression, angle, like AF01AFS.JPG"))
            continue
        _, sex, number, expression, angle = (field.upper() for field in match.groups())
        key = os.path.splitext(name)[0].upper()
        if folder and not key.startswith(folder.upper()):
            skipped.append((path, f"named after another person than its folder {folder}"))
        elif key in found:
            skipped.append((path, f"the same name as {found[key][0]}"))
        else:
            person = int(number) - 1 + _PEOPLE * (sex == "M")
            found[key] = path, LABELS.index(EXPRESSIONS[expression]), person, angle
    return [found[key] for key in sorted(found)]


def _placeholders(paths: list[str]) -> set[str]:
    if not paths:
        return set()
    # A link that leads nowhere has no size; reading it says so by name.
    sizes = [os.stat(path).st_size if os.path.exists(path) else SMALL for path in paths]
    limit = max(SMALL, statistics.median(sizes) / 2)
    return {path for path, size in zip(paths, sizes, strict=True) if size < limit and _is_black(path)}


def _is_black(path: str) -> bool:
    try:
        return int(decode_image(path).max()) <= BLACK
    except ImageError:
        # Not a placeholder but damage: it stays, and reading it says so by name.
        return False
