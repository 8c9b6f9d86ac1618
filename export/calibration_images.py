"""Which images a network is calibrated on, and which it is refused for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..console import say
from ..data import open_data
from ..data.faceset import FaceSet
from ..errors import DataError, UsageError
from ..model.checkpoint import Checkpoint
from ..spec import LABELS, Preprocessing

# Rendered faces of 512 people that neither training, verification nor a test of ours draws (another seed).
DEFAULT_DATA = "synthetic:n=3584,seed=613"
# A test split is never calibrated on: it judges the result.
SPLIT = "train"
DEFAULT_IMAGES = 512
MIN_IMAGES = 128

# Photographs use most of the 256 values, and an image of them spreads by tens.
_FEWEST_VALUES = 16
_LEAST_SPREAD = 2.0
_MOST_BLANK = 0.1
# In units of the preprocessing's standard deviation: rendered faces stand within 0.5 of ImageNet's means.
_FARTHEST_MEAN = 1.0
_WIDEST_RATIO = 2.5
# No picture's: mean 0.5 with 0.5, or 0 with 1, scale pixels and do not describe them.
_NO_SPREAD = 0.4


@dataclass(frozen=True)
class CalibrationSet:
    """faces: what was drawn, not yet decoded. name: of the whole set. warnings: what is odd about the draw."""

    faces: FaceSet
    name: str
    warnings: tuple[str, ...]

    @property
    def classes(self) -> dict[str, int]:
        """How many images of each label."""
        counts = np.bincount(self.faces.labels, minlength=len(LABELS))
        return {label: int(count) for label, count in zip(LABELS, counts)}


def draw_calibration_set(checkpoint: Checkpoint, data: str | None = None, images: int | None = None) -> CalibrationSet:
    """`images` (512) training images of `data`, drawn evenly over each label; what is odd is said.

    `UsageError` for fewer than `MIN_IMAGES`; `DataError` where the set has fewer, or one label alone.
    """
    wanted = DEFAULT_IMAGES if images is None else images
    if wanted < MIN_IMAGES:
        raise UsageError(
            f"--images: got {wanted}, expected at least {MIN_IMAGES}: fewer miss the tails of the distributions"
        )
    faces = open_data(data or DEFAULT_DATA, SPLIT)
    if faces.skipped:
        say(faces.skipped_summary())
    if len(faces) < MIN_IMAGES:
        raise DataError(
            f"calibration data {faces.name}: got {len(faces)} training images, expected at least {MIN_IMAGES}; name a "
            "larger set"
        )
    # By label first: an even step through a set whose labels alternate can meet one of them alone.
    by_label = np.argsort(faces.labels, kind="stable")
    steps = np.linspace(0, len(faces) - 1, min(wanted, len(faces))).astype(np.int64)
    # The name goes into files: JSON holds no half of a surrogate pair, which stands for an undecodable byte.
    name = faces.name.encode("utf-8", "backslashreplace").decode()
    drawn = CalibrationSet(faces.subset(np.sort(by_label[steps])), name, ())
    warnings = _oddities_of_draw(drawn, checkpoint, data, wanted)
    for warning in warnings:
        say(f"warning: {warning}")
    return CalibrationSet(drawn.faces, name, warnings)


def _oddities_of_draw(drawn: CalibrationSet, checkpoint: Checkpoint, data: str | None, wanted: int) -> tuple[str, ...]:
    counts = drawn.classes
    missing = [label for label, count in counts.items() if not count]
    if len(missing) == len(LABELS) - 1:
        (only,) = {*LABELS} - {*missing}
        raise DataError(
            f"calibration data {drawn.name}: got {only} alone in {len(drawn.faces)} images, expected several "
            "expressions; name a set with all of them"
        )
    found = []
    if missing:
        found.append(f"no image of {', '.join(missing)}: their ranges are not seen")
    if len(drawn.faces) < wanted:
        found.append(f"{drawn.name} has {len(drawn.faces)} training images, fewer than the {wanted} wanted")
    elif wanted < DEFAULT_IMAGES:
        found.append(f"{wanted} images: the scales are steadier from {DEFAULT_IMAGES}")
    trained = checkpoint.training.get("data")
    if data is None and isinstance(trained, str) and not trained.startswith("synthetic"):
        found.append(
            f"calibrating on rendered faces, and this checkpoint was trained on {trained.partition(':')[0]}: name its "
            "data with --data"
        )
    return tuple(found)


def check_images(images: np.ndarray, preprocessing: Preprocessing) -> tuple[str, ...]:
    """What looks odd about uint8 [N, S, S, 3], each in one sentence. `DataError` for what cannot be right:

    another dtype or size, fewer than `MIN_IMAGES` that differ, almost constant pixels, pixels that take few values.
    """
    images = np.asarray(images)
    side = preprocessing.size
    if images.dtype != np.uint8:
        raise DataError(
            f"calibration images: got {images.dtype}, expected uint8 pixels, 0 to 255; the network normalises them "
            "itself: pass them as they were decoded"
        )
    if images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise DataError(
            f"calibration images: got shape {list(images.shape)}, expected [N, {side}, {side}, 3], which this "
            "checkpoint reads; resize them with tkfnet_engine.preprocess.stack_crops"
        )
    if len(images) < MIN_IMAGES:
        raise DataError(f"calibration images: got {len(images)}, expected at least {MIN_IMAGES}; add more")
    different = len({hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images})
    if different < MIN_IMAGES:
        raise DataError(
            f"calibration images: got {len(images)} of which {different} differ, expected at least {MIN_IMAGES} that "
            "do; add others"
        )
    values = np.bincount(images.ravel(), minlength=256).nonzero()[0]
    if len(values) < _FEWEST_VALUES:
        raise DataError(
            f"calibration images: got pixels of {len(values)} different values, {values[0]} to {values[-1]}, expected "
            "photographs that use 0 to 255; were they divided by 255, or normalised, and then rounded?"
        )
    found = []
    if different < len(images):
        found.append(f"{len(images) - different} of {len(images)} images repeat another")
    blank = int(sum(image.std() < _LEAST_SPREAD for image in images))
    if blank > _MOST_BLANK * len(images):
        raise DataError(
            f"calibration images: got {blank} of {len(images)} that are almost one colour, expected faces; look at them"
        )
    if blank:
        found.append(f"{blank} of {len(images)} images are almost one colour")
    return (*found, *_odd_colours(images, preprocessing))


def _odd_colours(images: np.ndarray, preprocessing: Preprocessing) -> list[str]:
    """How mean and spread of the channels differ from those that the pixels are normalised with."""
    if max(preprocessing.std) > _NO_SPREAD:
        preprocessing = Preprocessing()
    # One image after the other: float64 of all would take eight times their memory.
    moments = np.array([[(x := image / 255).mean((0, 1)), (x * x).mean((0, 1))] for image in images]).mean(0)
    mean, spread = moments[0], np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0))
    expected, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    told = f"channel means {_listed(mean)}, expected about {_listed(expected)}"
    found = []
    grey = sum(bool((image == image[..., :1]).all()) for image in images)
    if grey > len(images) / 2:
        found.append(f"{grey} of {len(images)} images are grey, and the network reads colours")
    if np.abs((mean - expected) / std).max() > _FARTHEST_MEAN:
        found.append(f"pixels much {'darker' if mean.mean() < expected.mean() else 'brighter'} than usual: {told}")
    elif (mean[0] - mean[2]) * (expected[0] - expected[2]) < 0 and abs(mean[0] - mean[2]) > 0.02:
        found.append(f"red and blue may be swapped (BGR?): {told}")
    if max((spread / std).max(), (std / np.maximum(spread, 1e-9)).max()) > _WIDEST_RATIO:
        found.append(
            f"another contrast than usual: channels spread by {_listed(spread)}, expected about {_listed(std)}"
        )
    return found


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
