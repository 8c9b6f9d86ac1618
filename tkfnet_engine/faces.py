"""Where the faces are: the detectors by name, and those that look at the picture.

Needs the extra `faces` (OpenCV) for `haar` and `yunet`; boxes from a file and ready crops need nothing.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .atomic import open_regular
from .errors import BackendError, DataError, UsageError
from .face import Detector, Face, Point, reading_order
from .face_boxes import BoxesFromFile
from .preprocess import check_crop

__all__ = [
    "DETECTORS",
    "BoxesFromFile",
    "Detector",
    "Face",
    "HaarDetector",
    "Point",
    "ReadyCrops",
    "YuNetDetector",
    "open_detector",
    "reading_order",
]

DETECTORS = "haar, yunet:FILE, boxes:FILE or none"
# Detectors look at pictures shrunk to this side, in pixels: it keeps them fast.
WORKING_SIDE = 640
_MAX_MODEL_BYTES = 64 * 2**20
YUNET_FILE = "face_detection_yunet_2023mar.onnx"

# Of 360 rendered faces in 30 group pictures this finds 350, and nothing else. At steps of 1.1 and three neighbours,
# which take twice as long, 352 and 2 that are none; there without the erosion 340 and 1, with histogram equalisation
# for both 305 and 2, with the default cascade (and an opening for the erosion) 331 and 4, with alt 339 and 0.
_CASCADE, _CASCADE_WINDOW = "haarcascade_frontalface_alt2.xml", 20
# Windows of one face are of sizes this far apart, and in a moment it grows little.
_SMALLER, _LARGER = 0.65, 1.5
_SCALE_STEP, _MIN_NEIGHBOURS = 1.2, 2
_SQUARE_ROOT = np.round(255 * (np.arange(256) / 255) ** 0.5).astype(np.uint8)
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_YUNET_TODO = (
    f"expected {YUNET_FILE} of OpenCV's model zoo (github.com/opencv/opencv_zoo, models/face_detection_yunet); "
    "download it, or use --detector haar"
)


def open_detector(text: str) -> Detector:
    """The detector that `--detector` names: "haar", "yunet:FILE", "boxes:FILE" or "none" (the picture is a crop).

    `UsageError` for another name, `BackendError` where OpenCV is missing or lacks it, `DataError` for the file.
    """
    name, _, path = text.partition(":")
    if text == "haar":
        return HaarDetector()
    if text == "none":
        return ReadyCrops()
    if name == "yunet" and path:
        return YuNetDetector(path)
    if name == "boxes" and path:
        return BoxesFromFile(path)
    todo = f"name the file, as in {name}:{YUNET_FILE if name == 'yunet' else 'boxes.json'}"
    raise UsageError(
        f"--detector: got {text!r}, expected {DETECTORS}" + (f"; {todo}" if name in ("yunet", "boxes") else "")
    )


class HaarDetector:
    """The cascade for frontal faces that OpenCV 4's package carries (Viola and Jones 2001). Score: how many windows
    agreed on the face.

    min_face: the smallest face sought, as a fraction of the picture's longer side. Finds upright faces seen from the
    front, light skin better than dark: of rendered faces it misses 0.8 % of the lighter half, 8.5 % of the darkest
    quarter. Each thread loads the cascade for itself: a `CascadeClassifier` is not safe to share.
    """

    name, crop = "haar", "margin"

    def __init__(self, min_face: float = 0.04, working_side: int = WORKING_SIDE):
        if not 0.005 <= min_face <= 1 or not 64 <= working_side <= 16_384:
            raise UsageError(
                f"HaarDetector: got min_face={min_face!r}, working_side={working_side!r}, expected a fraction of the "
                "picture from 0.005 to 1, and 64 to 16384 pixels"
            )
        self.min_face, self.working_side = min_face, working_side
        cv2 = _opencv("haar")
        # OpenCV 5 moved it to its contributed modules, and its package carries no cascade.
        folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
        self._file = os.path.join(folder, _CASCADE)
        if not hasattr(cv2, "CascadeClassifier") or not os.path.isfile(self._file):
            raise BackendError(
                f"--detector haar: OpenCV {cv2.__version__} has no CascadeClassifier with {_CASCADE}, expected "
                "OpenCV 4: pip install 'opencv-python-headless>=4.10,<5'; or use --detector yunet:FILE"
            )
        self._per_thread = _PerThread(lambda: cv2.CascadeClassifier(self._file))
        if self._per_thread().empty():
            raise BackendError(f"--detector haar: OpenCV cannot read its own {self._file}; install OpenCV anew")

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        return self._search(image, 0, math.inf)

    def find_again(self, image: np.ndarray, faces: Sequence[Face]) -> list[Face] | None:
        """What is in a frame shortly after one with `faces`: looks for faces of about their sizes only, which finds the
        same and costs less the larger they are. None where there are fewer: look for all."""
        if not faces:
            return []
        sides = [face.box[2] for face in faces]
        found = self._search(image, _SMALLER * min(sides), _LARGER * max(sides))
        return found if len(found) >= len(faces) else None

    def _search(self, image: np.ndarray, smallest: float, largest: float) -> list[Face]:
        """smallest, largest: sides of faces in `image`."""
        import cv2

        small, scale = _shrunk(cv2, check_crop(image), self.working_side)
        # Dark faces get contrast, and bright specks (whites of eyes, glints on glasses) shrink: a face is dark eyes.
        grey = cv2.erode(cv2.LUT(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), _SQUARE_ROOT), _CROSS)
        side = max(grey.shape)
        least = max(_CASCADE_WINDOW, round(self.min_face * side), math.floor(smallest / scale))
        most = math.ceil(min(largest / scale, side))
        boxes, neighbours = self._per_thread().detectMultiScale2(
            grey, scaleFactor=_SCALE_STEP, minNeighbors=_MIN_NEIGHBOURS, minSize=(least, least), maxSize=(most, most)
        )
        found = [Face(_scaled(box, scale), None, float(n)) for box, n in zip(boxes, np.ravel(neighbours))]
        return reading_order(_suppressed(found))


class YuNetDetector:
    """OpenCV's `FaceDetectorYN` with a YuNet model of OpenCV's model zoo. Gives landmarks; score 0 to 1.

    min_score: OpenCV Zoo's own wrapper asks for 0.6. One network per thread: it keeps state while it runs.
    """

    name, crop = "yunet", "margin"

    def __init__(self, path: str | os.PathLike[str], min_score: float = 0.6, working_side: int = WORKING_SIDE):
        cv2 = _opencv("yunet")
        self.path, self.working_side = os.fsdecode(path), working_side
        try:
            with open_regular(path) as file:
                # The real one is below 1 MB; what is this large is something else.
                model = np.frombuffer(file.read(_MAX_MODEL_BYTES), np.uint8)
        except (OSError, ValueError) as error:
            found = (
                "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
            )
            raise DataError(f"--detector yunet: {self.path}: {found}; {_YUNET_TODO}") from None
        create = cv2.FaceDetectorYN.create
        self._per_thread = _PerThread(lambda: create("onnx", model, np.empty(0, np.uint8), (64, 64), min_score, 0.3))
        try:
            # What is no YuNet is found out when its outputs are asked for.
            self.find_faces(np.zeros((64, 64, 3), np.uint8))
        except (cv2.error, BackendError) as error:
            raise DataError(
                f"--detector yunet: {self.path}: no YuNet model ({_one_line(error)}); {_YUNET_TODO}"
            ) from None

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        import cv2

        image = check_crop(image)
        small, scale = _shrunk(cv2, image, self.working_side)
        network = self._per_thread()
        network.setInputSize((small.shape[1], small.shape[0]))
        try:
            _, rows = network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        except cv2.error as error:
            raise BackendError(
                f"--detector yunet: {self.path} failed on a picture of {small.shape[1]} x {small.shape[0]} pixels "
                f"({_one_line(error)}); {_YUNET_TODO}"
            ) from None
        return reading_order([_yunet_face(row, scale) for row in ([] if rows is None else rows)])


class ReadyCrops:
    """Every picture is one face, cut out already."""

    name, crop = "none", "given"

    def find_faces(self, image: np.ndarray, source: str = "", frame: int = 0) -> list[Face]:
        height, width = check_crop(image).shape[:2]
        return [Face((0.0, 0.0, float(width), float(height)))]


class _PerThread:
    """Calls `make` once in each thread."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._local = make, threading.local()

    def __call__(self) -> Any:
        if not hasattr(self._local, "made"):
            self._local.made = self._make()
        return self._local.made


def opencv(who_needs: str, instead: str = "") -> Any:
    """The module, or `BackendError`: "<who_needs> OpenCV, ..; <what brings it><instead>"."""
    try:
        import cv2
    except ImportError as error:
        raise BackendError(
            f"{who_needs} OpenCV, which cannot be imported ({error}); pip install 'tkfnet-engine[faces]'{instead}"
        ) from None
    return cv2


def _opencv(detector: str) -> Any:
    return opencv(f"--detector {detector}: needs", ", or use --detector none for pictures that are face crops already")


def _shrunk(cv2: Any, image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """(the picture, at most `side` long, pixels of the original in one of its pixels)."""
    height, width = image.shape[:2]
    scale = max(height, width) / side
    if scale <= 1:
        return image, 1.0
    size = max(1, round(width / scale)), max(1, round(height / scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scale


def _scaled(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) * scale for v in box)
    return x, y, w, h


def _suppressed(faces: Sequence[Face], most: float = 0.3) -> list[Face]:
    """Without those that overlap a better one: by more than `most` of the union, or lying mostly inside it."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: (-(f.score or 0), f.box)):
        if all(_overlap(face.box, other.box) <= most for other in kept):
            kept.append(face)
    return kept


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union, or half of what part of the smaller one is covered, whichever is more."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared, areas = max(w, 0) * max(h, 0), (a[2] * a[3], b[2] * b[3])
    return max(shared / (sum(areas) - shared), 0.5 * shared / min(areas))


def _yunet_face(row: np.ndarray, scale: float) -> Face:
    """A row of OpenCV's: x, y, w, h, right eye, left eye, nose, right and left corner of the mouth, score.

    Right and left are the person's own, so the first of a pair is left in the image, as ours is: OpenCV itself lays
    them on ArcFace's template in this order (`FaceRecognizerSF`).
    """
    values = row[:14].astype(np.float64) * scale
    landmarks = tuple((float(x), float(y)) for x, y in values[4:].reshape(5, 2))
    return Face(_scaled(values[:4], 1), landmarks, float(row[14]))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
