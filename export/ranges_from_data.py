"""Calibration: the float32 network on a few hundred faces, a histogram for each map that is stored quantised, a table.

The scales depend on the checkpoint, the images and nothing else, so every backend's INT8 engine reads one table.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import write_atomically
from ..cache_folder import cache_folder
from ..console import progress, say
from ..data.cache import load_all
from ..errors import FileError, UsageError
from ..kernels.network import Network, network_of
from ..kernels.placement import Point, placement_of
from ..model.checkpoint import Checkpoint
from ..model.equalise import Shifts, equalise, shifts_from_peaks
from ..model.fold import FoldedTKFNet, fold
from ..spec import Preprocessing
from ..strict_json import canonical
from .calibration_images import CalibrationSet, check_images, draw_calibration_set
from .calibration_table import FORMAT_VERSION, CalibrationData, CalibrationTable, PointRange, read_table
from .histogram import Histogram
from .scales_from_histogram import KINDS, best_scale

BATCH = 32
# A channel's largest value is wanted roughly, to a power of two.
EQUALISING_IMAGES = 128


def calibrate_ranges(
    folded: FoldedTKFNet, network: Network, images: np.ndarray, batch: int = BATCH
) -> tuple[dict[str, Histogram], tuple[str, ...]]:
    """The histogram of every point of `network`'s placement over uint8 images [N, S, S, 3], and what is odd about them.

    folded: in float32. What is odd is said as well. Raises `DataError` for images that cannot be right
    (`check_images`), `CheckpointError` that names the point where a value is not finite.
    """
    if folded.stem.weight.dtype != torch.float32:
        raise UsageError(
            f"calibration: got a network in {folded.stem.weight.dtype}, expected float32: fold the checkpoint again"
        )
    warnings = check_images(images, folded.preprocessing)
    for warning in warnings:
        say(f"warning: {warning}")
    with _watched(folded, placement_of(network).points) as histograms, torch.inference_mode():
        for start in progress(range(0, len(images), batch), f"calibrating on {len(images)} images"):
            folded(torch.from_numpy(images[start : start + batch]))
    return histograms, warnings


@contextmanager
def _watched(folded: FoldedTKFNet, points: tuple[Point, ...]) -> Iterator[dict[str, Histogram]]:
    """While it lasts, what flows through `points` is counted."""
    histograms = {point.name: Histogram(point.name) for point in points}
    with ExitStack() as hooks:
        for point in points:
            module, add = folded.get_submodule(point.module), histograms[point.name].add
            if point.of_output:
                handle = module.register_forward_hook(lambda _module, _inputs, output, add=add: add(output))
            else:
                handle = module.register_forward_pre_hook(lambda _module, inputs, add=add: add(inputs[0]))
            hooks.callback(handle.remove)
        yield histograms


def range_of_histogram(point: Point, histogram: Histogram) -> PointRange:
    """The best scale of each kind for one point."""
    assert not point.positive or histogram.minimum >= 0, f"{point.name} is placed after a ReLU, and is negative"
    scales = {kind: best_scale(histogram, kind) for kind in KINDS}
    return PointRange(histogram.count, histogram.minimum, histogram.maximum, scales)


def calibrate(checkpoint: Checkpoint, data: str | None = None, images: int | None = None) -> CalibrationTable:
    """The table of `checkpoint` on `images` (512) training images of `data` (by default rendered faces)."""
    return _calibrated(checkpoint, draw_calibration_set(checkpoint, data, images))


def _calibrated(checkpoint: Checkpoint, drawn: CalibrationSet) -> CalibrationTable:
    pixels = load_all(drawn.faces, checkpoint.preprocessing.size, workers=1)
    seen = CalibrationData(drawn.name, drawn.faces.fingerprint(), len(pixels), drawn.classes, drawn.warnings)
    return table_from_images(checkpoint, pixels, seen)


def table_from_images(checkpoint: Checkpoint, images: np.ndarray, seen: CalibrationData) -> CalibrationTable:
    """The table of `checkpoint` on uint8 images [N, S, S, 3]; seen: what they are, to which oddities are added."""
    plain = fold(checkpoint.model, checkpoint.preprocessing)
    network = network_of(plain)
    shifts = equalising_shifts(plain, images)
    histograms, warnings = calibrate_ranges(equalise(plain, shifts), network, images)
    points = progress(placement_of(network).points, "choosing scales")
    ranges = {point.name: range_of_histogram(point, histograms[point.name]) for point in points}
    seen = replace(seen, warnings=seen.warnings + warnings)
    return CalibrationTable(checkpoint.sha256, checkpoint.preprocessing, seen, shifts, ranges)


def equalising_shifts(folded: FoldedTKFNet, images: np.ndarray) -> Shifts:
    """The shifts that bring the channels of TAFE's merge and gate to like ranges, on some of `images`."""
    if not folded.config.tafe:
        return Shifts()
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), EQUALISING_IMAGES)).astype(np.int64)]
    peaks: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for name in ("merge", "gate"):

            def note(_module: Any, inputs: tuple[Tensor], name: str = name) -> None:
                found = inputs[0].abs().amax((0, 2, 3))
                peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

            hooks.callback(folded.tafe.get_submodule(name).register_forward_pre_hook(note).remove)
        for start in progress(range(0, len(chosen), BATCH), f"equalising on {len(chosen)} images"):
            folded(torch.from_numpy(chosen[start : start + BATCH]))
    return shifts_from_peaks(folded, peaks["merge"], peaks["gate"])


def cached_table(checkpoint: Checkpoint, data: str | None = None, images: int | None = None) -> CalibrationTable:
    """As `calibrate`; a table made before of this checkpoint and these images is read again, which is said.

    It is kept in `$XDG_CACHE_HOME/tkfnet-engine` (`~/.cache/tkfnet-engine`); where that cannot be, this is said too.
    """
    drawn = draw_calibration_set(checkpoint, data, images)
    fingerprint = drawn.faces.fingerprint()
    path = cache_path(checkpoint.sha256, checkpoint.preprocessing, drawn.name, fingerprint)
    if path is not None and os.path.lexists(path):
        try:
            table = read_table(path)
            table.check(
                checkpoint.sha256,
                checkpoint.preprocessing,
                network_of(fold(checkpoint.model, checkpoint.preprocessing)),
            )
            if (table.data.fingerprint, table.data.classes) != (fingerprint, drawn.classes):
                raise UsageError(f"{path}: got a table of other images")
        except UsageError as error:
            say(f"calibrating again, the kept table is not usable: {error}")
        else:
            for warning in table.data.warnings:
                if warning not in drawn.warnings:
                    say(f"warning: {warning}")
            say(f"using the calibration of {table.data.images} images kept in {path}")
            return table
    table = _calibrated(checkpoint, drawn)
    if path is None:
        say("the calibration is not kept: there is no home folder; set XDG_CACHE_HOME to keep it")
        return table
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, table.to_json().encode())
    except (FileError, OSError) as error:
        say(f"the calibration is not kept: {error}")
    return table


def cache_path(sha256: str, preprocessing: Preprocessing, name: str, fingerprint: str) -> str | None:
    """Where the table of that checkpoint and those images is kept; None where there is no place.

    The fingerprint covers how many images were drawn, and which.
    """
    folder = cache_folder()
    if folder is None:
        return None
    facts = [FORMAT_VERSION, sha256, preprocessing.to_dict(), name, fingerprint]
    key = hashlib.sha256(canonical(facts).encode()).hexdigest()
    return os.path.join(folder, f"calibration-{key[:32]}.json")
