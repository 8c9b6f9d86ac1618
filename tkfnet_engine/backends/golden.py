"""The verification images that an engine file carries, and whether a GPU gives the reference's answer on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..compare import compare
from ..errors import BackendError
from .registry import Artefacts

PIXELS, LOGITS = "golden/pixels", "golden/logits"


def check_answer(
    run: Callable[[np.ndarray], np.ndarray], artefacts: Artefacts, batch: int, required_sqnr_db: float
) -> None:
    """`BackendError` unless `run` gives the reference's answer on the file's verification images, if it has any.

    run: as `registry.Runner.run`, of up to `batch` images.
    """
    if PIXELS not in artefacts.names():
        return
    pixels, expected = artefacts.array(PIXELS), artefacts.array(LOGITS)
    parts = [run(np.ascontiguousarray(pixels[i : i + batch])) for i in range(0, len(pixels), batch)]
    if fault := _fault(expected, np.concatenate(parts), required_sqnr_db):
        raise BackendError(
            f"this GPU does not answer as the network: {fault}; update the driver, and if it stays so build the engine "
            "on this machine"
        )


def _fault(expected: np.ndarray, got: np.ndarray, required_sqnr_db: float) -> str | None:
    """What is wrong with logits [N, classes], or None."""
    if len(expected) < 2:
        # One image has no spread over images. Four standard deviations of the error that is allowed, and the spread
        # over classes instead.
        limit = 4 * float(expected.std()) * 10 ** (-required_sqnr_db / 20)
        error = float(np.abs(got - expected).max())
        return None if error <= limit else f"an error of {error:.3g}, expected at most {limit:.3g}, on one image"
    found = compare(expected, got, required_sqnr_db)
    if found.sqnr_db < required_sqnr_db:
        return f"SQNR {found.sqnr_db:.1f} dB on {found.images} images, expected at least {required_sqnr_db:.0f} dB"
    if found.disagreements > found.near_ties:
        return f"{found.disagreements - found.near_ties} of {found.images} images get another label"
    return None
