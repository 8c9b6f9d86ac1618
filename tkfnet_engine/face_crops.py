"""A face in a picture -> the square crop that the network looks at, framed as the crops it was trained on.

Three ways, one of `CROPS`; which one a face was cut by is recorded with its result:

- "five-point": turned, scaled and moved so that eyes, nose and mouth lie on `TEMPLATE`, where there are landmarks.
- "margin": a square around the middle of the box, on each side wider by `margin` of the box's side. Not turned.
- "given": the box itself, for boxes that someone else has cut to, and whole pictures that are crops already.

What lies outside the picture is black, as aligned crops are padded.

How `TEMPLATE` relates to others: ArcFace's for 112 x 112 pixels (38.2946, 51.6963; 73.5318, 51.5014; 56.0252, 71.7366;
41.5493, 92.3655; 70.7299, 92.2041) is the same face to a correlation of 0.999, but 14 % smaller and lower down: more
forehead, less chin. RAF-DB's aligned pictures come from their authors; one public alignment of its originals
(github.com/MiviaLab/emotion-robustness) maps eyes and mouth alone, not by a similarity: eyes to (0.286, 0.4) and
(0.714, 0.4), 13 % wider apart than here, the mouth's middle to (0.5, 0.714), 24 % nearer to them.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from .errors import ImageError, UsageError
from .face import Face, Point
from .preprocess import check_crop, resize_crop
from .spec import CROPS, INPUT_SIZE

__all__ = ["CROPS", "MARGIN", "TEMPLATE", "check_crop_fits", "crop_of", "cut_face"]

# Measured on 654 rendered faces with their surroundings: the training crop's side is 0.97 of the cascade's box
# (standard deviation 0.08, of which 0.04 is the training crops' own), its middle 4.5 % of the side lower (3.4 %, of
# which 3 % are the crops' own). So the box is the crop.
MARGIN = 0.0
# Where the renderer draws eyes, nose and mouth, as fractions of the training crop's side: the mean of 1,500 faces of
# all expressions, left and right alike (standard deviation of a point: 0.03, of the corners of the mouth 0.045).
TEMPLATE: tuple[Point, Point, Point, Point, Point] = (
    (0.3114, 0.3668), (0.6886, 0.3668), (0.5, 0.596), (0.3443, 0.7797), (0.6557, 0.7797),
)  # fmt: skip

# Coordinates beyond this are no pixels, and would overflow what is computed from them.
_LIMIT = 1e6
# Correlation of five points with the template under the best similarity: above 0.97 for every rendered face, 0.82 for
# a profile, 0.18 where left and right are exchanged.
_LIKE_A_FACE = 0.5
# Where more pixels than this lie under one of the crop's, a side, whole blocks of them are averaged first.
_OVERSAMPLING = 4


def crop_of(face: Face, without_landmarks: str = "margin") -> str:
    """How a face is cut by default: "five-point" where its landmarks look like a face's, else as the detector says."""
    landmarks = face.landmarks
    return "five-point" if landmarks and _fit(landmarks)[1] >= _LIKE_A_FACE else without_landmarks


def cut_face(
    image: np.ndarray, face: Face, size: int = INPUT_SIZE, crop: str | None = None, margin: float = MARGIN
) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> the face's crop, uint8 [size, size, 3]; shrinking averages, as `resize_crop` does.

    crop: one of `CROPS`, default `crop_of(face)`. margin: for "margin", of the box's longer side, on each side.
    Raises `ImageError` for a face outside the picture or landmarks that are none, `UsageError` for the rest.
    """
    image, crop = check_crop(image), crop_of(face) if crop is None else crop
    if crop not in CROPS:
        raise UsageError(f"crop: got {crop!r}, expected one of {', '.join(CROPS)}")
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not 0 <= margin <= 2:
        raise UsageError(f"margin: got {margin!r}, expected a number from 0 to 2, of the box's side on each side")
    if crop == "five-point":
        corner, across = _aligned(face.landmarks)
        return _sampled(image, corner, across, across * 1j, size)
    x, y, w, h = _checked_box(face.box)
    if crop == "margin":
        side = max(w, h) * (1 + 2 * margin)
        x, y, w, h = x + (w - side) / 2, y + (h - side) / 2, side, side
    left, top = round(x), round(y)
    right, bottom = (round(x + w), round(y + h)) if crop == "given" else (left + round(w), top + round(h))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    if left >= 0 and top >= 0 and right <= image.shape[1] and bottom <= image.shape[0]:
        return resize_crop(image[top:bottom, left:right], size).copy()
    return _sampled(image, complex(left, top), complex(right - left), complex(0, bottom - top), size)


def check_crop_fits(trained: str, used: str) -> str | None:
    """A warning where an engine trained on crops of one kind is shown another, None where they agree.

    "given" agrees with everything: of the engine it says that nobody recorded how its faces were cut, of a face that
    the caller did. Both kinds of ours frame a face alike, so what differs is whether it is upright.
    """
    if trained == used or "given" in (trained, used):
        return None
    if trained == "five-point":
        return (
            "the engine was trained on faces aligned by five points, and these are cut by their box, tilted as they "
            "are: expect lower accuracy; use --detector yunet:FILE, or give landmarks in --boxes"
        )
    return (
        f"the engine was trained on faces cut by their box ({trained}), and these are aligned by five points: accuracy "
        "may differ; use --detector haar, or boxes without landmarks"
    )


def _checked_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in box)
    if not (all(abs(v) <= _LIMIT for v in (x, y, w, h)) and w > 0 and h > 0):
        raise ImageError(f"box: got {box!r}, expected X, Y, W, H in pixels, not empty; W, H is a size and no corner")
    return x, y, w, h


def _fit(landmarks: tuple[Point, ...]) -> tuple[tuple[complex, complex], float]:
    """The similarity `z -> a z + b` from pixels onto the template, by least squares, and how well it correlates.

    In the complex plane Umeyama's solution without reflection is one division.
    """
    points, template = (np.array(p, np.float64) for p in (landmarks, TEMPLATE))
    if points.shape != (5, 2) or not (np.abs(points) <= _LIMIT).all():
        return (0j, 0j), 0.0
    points, template = points @ [1, 1j], template @ [1, 1j]
    from_middle, to_middle = points - points.mean(), template - template.mean()
    shared, spread = np.vdot(from_middle, to_middle), np.vdot(from_middle, from_middle).real
    if spread < 1e-6:
        return (0j, 0j), 0.0
    a = shared / spread
    correlation = abs(shared) / math.sqrt(spread * np.vdot(to_middle, to_middle).real)
    return (complex(a), complex(template.mean() - a * points.mean())), correlation


def _aligned(landmarks: tuple[Point, ...] | None) -> tuple[complex, complex]:
    """(the crop's top left corner, the vector along its top edge) in pixels of the picture."""
    (a, b), correlation = _fit(landmarks) if landmarks else ((0j, 0j), 0.0)
    if correlation < _LIKE_A_FACE:
        raise ImageError(
            f"landmarks: got {landmarks!r}, expected both eyes, the tip of the nose, both corners of the mouth, each "
            "pair from left to right in the image; exchange left and right, or cut the face by its box (margin)"
        )
    return -b / a, 1 / a


def _sampled(image: np.ndarray, corner: complex, across: complex, down: complex, size: int) -> np.ndarray:
    """The rectangle at `corner` with the edges `across` and `down`, in pixels; uint8 [size, size, 3], black outside."""
    height, width = image.shape[:2]
    corners = [corner, corner + across, corner + down, corner + across + down]
    xs, ys = [z.real for z in corners], [z.imag for z in corners]
    # One pixel more on each side, for the neighbours that are interpolated with.
    left, top = max(0, math.floor(min(xs)) - 1), max(0, math.floor(min(ys)) - 1)
    right, bottom = min(width, math.ceil(max(xs)) + 1), min(height, math.ceil(max(ys)) + 1)
    if min(xs) >= width or min(ys) >= height or max(xs) <= 0 or max(ys) <= 0:
        raise ImageError(
            f"face: its crop spans x {min(xs):.0f} to {max(xs):.0f}, y {min(ys):.0f} to {max(ys):.0f}, expected it to "
            f"touch the {width} x {height} pixels; its coordinates are of another picture or size"
        )
    region = Image.fromarray(image[top:bottom, left:right])
    blocks = max(1, int(max(abs(across), abs(down)) / (_OVERSAMPLING * size)))
    if blocks > 1:
        region = region.reduce(blocks)
    corner, across, down = (corner - complex(left, top)) / blocks, across / blocks, down / blocks
    # At the picture's own scale, so that all pixels count when it is shrunk; enlarged at once, so that none is
    # interpolated twice.
    columns, rows = (max(size, round(abs(edge))) for edge in (across, down))
    x, y = across / columns, down / rows
    data = (x.real, y.real, corner.real, x.imag, y.imag, corner.imag)
    turned = region.transform((columns, rows), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return resize_crop(np.asarray(turned), size)
