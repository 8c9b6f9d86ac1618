"""Faces are found where they are and nowhere else, in reading order, by every detector and from many threads."""

from __future__ import annotations

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tkfnet_engine.errors import BackendError, DataError, ImageError, UsageError
from tkfnet_engine.face_crops import cut_face
from tkfnet_engine.faces import (
    YUNET_FILE,
    BoxesFromFile,
    Face,
    HaarDetector,
    ReadyCrops,
    YuNetDetector,
    open_detector,
    reading_order,
)
from tkfnet_engine.preprocess import decode_image

from . import scenes

cv2 = pytest.importorskip("cv2")
BLANK = np.full((480, 640, 3), 127, np.uint8)
# Of matplotlib's sample portrait, 512 x 600: from the middle of the forehead to the chin, drawn by hand.
PORTRAIT = (165.0, 135.0, 190.0, 198.0)


def overlap(a, b) -> float:
    """Intersection over union."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    cbook = pytest.importorskip("matplotlib.cbook")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return decode_image(file)


# ---- the cascade


def test_the_portrait_of_a_person(portrait):
    (face,) = HaarDetector().find_faces(portrait)
    assert overlap(face.box, PORTRAIT) > 0.6 and face.landmarks is None and face.score >= 2
    # The crop holds the face: marked by hand, nothing of it is lost.
    marked = portrait.copy()
    x, y, w, h = map(int, PORTRAIT)
    marked[y : y + h, x : x + w] = (255, 0, 255)
    crop = cut_face(marked, face, 224)
    side = 224 / face.box[2]
    assert (crop == (255, 0, 255)).all(2).sum() == pytest.approx(w * h * side**2, rel=0.03)


@pytest.mark.parametrize(
    ("count", "seed"),
    [(1, 0), (1, 1), (2, 0), (2, 1), (5, 0), (5, 2), (12, 1), (12, 3), (40, 1), (40, 4)],
)
def test_a_group_is_found_in_reading_order(count, seed):
    image, boxes = scenes.group_picture(count, seed)
    found = HaarDetector().find_faces(image)
    assert len(found) == count
    for face, box in zip(found, boxes, strict=True):
        assert overlap(face.box, box) > 0.45


def test_how_many_are_found_at_worst():
    # Pictures with faces that are missed. In 52 pictures, good and bad, it is 654 of 680 and 2 that are none.
    hits = others = 0
    for count, seed in ((1, 2), (2, 2), (5, 4), (12, 0), (40, 0), (40, 2)):
        image, boxes = scenes.group_picture(count, seed)
        best = [max(overlap(face.box, box) for box in boxes) for face in HaarDetector().find_faces(image)]
        hits += sum(value > 0.45 for value in best)
        others += sum(value <= 0.45 for value in best)
    assert hits >= 93 and others <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (23, 23), (24, 24), (480, 640), (7, 4000)], ids=str)
def test_nothing_is_found_where_nothing_is(shape):
    detector = HaarDetector()
    noise = np.random.default_rng(3).integers(0, 256, (*shape, 3), np.uint8)
    for image in (np.zeros((*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8), noise):
        assert detector.find_faces(image) == []


def test_one_detector_for_sixteen_threads():
    pictures = [scenes.group_picture(count, 1)[0] for count in (1, 5, 12)] * 8
    detector = HaarDetector()
    want = [detector.find_faces(picture) for picture in pictures[:3]] * 8
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(detector.find_faces, pictures)) == want


def test_coordinates_are_those_of_the_whole_picture():
    image, boxes = scenes.group_picture(2, 1)
    twice = np.repeat(np.repeat(image, 2, 0), 2, 1)
    for face, box in zip(HaarDetector().find_faces(twice), boxes, strict=True):
        assert overlap(np.array(face.box) / 2, box) > 0.5
    half = np.array(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    for face, box in zip(HaarDetector().find_faces(half), boxes, strict=True):
        assert overlap(np.array(face.box) * 2, box) > 0.5


def test_the_smallest_face():
    image, boxes = scenes.group_picture(12, 1)
    assert len(HaarDetector(min_face=0.05).find_faces(image)) == len(boxes)
    assert HaarDetector(min_face=0.4).find_faces(image) == []
    for bad in ({"min_face": 0}, {"min_face": 1.1}, {"min_face": float("nan")}, {"working_side": 63}):
        with pytest.raises(UsageError, match="HaarDetector: got"):
            HaarDetector(**bad)


def test_pictures_stay_as_they_are():
    image, _ = scenes.group_picture(1, 0)
    before = image.copy()
    image.setflags(write=False)
    for detector in (HaarDetector(), ReadyCrops()):
        detector.find_faces(image)
        with pytest.raises(ImageError, match="expected an array uint8"):
            detector.find_faces(image[..., 0])
    np.testing.assert_array_equal(image, before)


def test_opencv_5_has_no_cascade(monkeypatch):
    monkeypatch.delattr(cv2, "CascadeClassifier")
    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    with pytest.raises(BackendError, match=r"OpenCV 5\.0\.0 has no CascadeClassifier.*<5'.*yunet:FILE"):
        open_detector("haar")


def test_a_package_without_its_cascade(monkeypatch, tmp_path):
    monkeypatch.setattr(cv2.data, "haarcascades", str(tmp_path))
    with pytest.raises(BackendError, match=r"no CascadeClassifier with haarcascade.*<5'"):
        open_detector("haar")


@pytest.mark.parametrize("text", ["haar", "yunet:x.onnx"])
def test_without_opencv(monkeypatch, text):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"needs OpenCV.*tkfnet-engine\[faces\].*--detector none"):
        open_detector(text)
    assert open_detector("none").find_faces(BLANK) == [Face((0.0, 0.0, 640.0, 480.0))]


# ---- YuNet

BOX, SHIFT = (0.5, 0.25, 1.0, 1.5), (0.1, 0.2)
MARKS = np.array([[-0.9, -0.8], [0.8, -0.7], [0.1, 0.2], [-0.6, 0.9], [0.7, 1.0]])


def yunet_like(path, names=("cls", "obj", "bbox", "kps")) -> str:
    """A network with YuNet's twelve outputs that takes every cell of pure red (input in BGR) for a face."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []
    for stride in (8, 16, 32):
        for name, biases in zip(names, ([0.0], [0.0], BOX, MARKS.ravel())):
            n, tag = len(biases), f"{name}_{stride}"
            weights = np.zeros((n, 3, stride, stride), np.float32)
            if n == 1:
                weights[0, 2], weights[0, :2] = 1 / (255 * stride**2), -1 / (255 * stride**2)
            constants += [
                numpy_helper.from_array(weights, f"{tag}.w"),
                numpy_helper.from_array(np.array(biases, np.float32), f"{tag}.b"),
                numpy_helper.from_array(np.array([1, -1, n], np.int64), f"{tag}.shape"),
            ]
            nodes += [
                helper.make_node(
                    "Conv", ["input", f"{tag}.w", f"{tag}.b"], [f"{tag}.map"],
                    kernel_shape=[stride] * 2, strides=[stride] * 2,
                ),
                helper.make_node("Transpose", [f"{tag}.map"], [f"{tag}.last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{tag}.last", f"{tag}.shape"], [tag]),
            ]  # fmt: skip
            outputs.append(helper.make_tensor_value_info(tag, TensorProto.FLOAT, [1, None, n]))
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "yunet_like", [entry], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    onnx.save(model, path)
    return str(path)


def decoded(column: int, row: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """(box, landmarks) that YuNet's outputs stand for in that cell."""
    w, h = np.exp(BOX[2]) * stride, np.exp(BOX[3]) * stride
    box = np.array([(column + BOX[0]) * stride - w / 2, (row + BOX[1]) * stride - h / 2, w, h])
    return box, (MARKS + np.array([column, row])) * stride


@pytest.fixture(scope="module")
def yunet(tmp_path_factory) -> str:
    return yunet_like(tmp_path_factory.mktemp("yunet") / "yunet.onnx")


def red_cells(width: int, height: int, *cells: tuple[int, int, int]) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for column, row, stride in cells:
        image[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride, 0] = 255
    return image


def test_yunet_decodes_to_known_places(yunet):
    detector = open_detector(f"yunet:{yunet}")
    cells = [(2, 3, 8), (12, 3, 8), (4, 15, 8)]
    # 130 x 150 is no multiple of 32: OpenCV pads it.
    faces = detector.find_faces(red_cells(130, 150, *cells))
    for face, cell in zip(faces, cells, strict=True):
        box, landmarks = decoded(*cell)
        np.testing.assert_allclose(face.box, box, atol=0.01)
        np.testing.assert_allclose(face.landmarks, landmarks, atol=0.01)
        assert face.score == pytest.approx(1, abs=0.01)
        # Each pair from left to right in the image.
        assert face.landmarks[0][0] < face.landmarks[1][0] and face.landmarks[3][0] < face.landmarks[4][0]


def test_yunet_shrinks_large_pictures_and_says_where_in_the_whole(yunet):
    image = np.repeat(np.repeat(red_cells(640, 320, (9, 5, 32)), 3, 0), 3, 1)
    faces = YuNetDetector(yunet).find_faces(image)
    box, landmarks = decoded(9, 5, 32)
    best = max(faces, key=lambda face: overlap(face.box, box * 3))
    np.testing.assert_allclose(best.box, box * 3, atol=0.1)
    np.testing.assert_allclose(best.landmarks, landmarks * 3, atol=0.1)


def test_yunet_finds_nothing(yunet):
    detector = YuNetDetector(yunet)
    blue = red_cells(64, 64, (2, 3, 8))[..., ::-1]
    for image in (BLANK, np.zeros((1, 1, 3), np.uint8), np.zeros((1, 300, 3), np.uint8), blue):
        assert detector.find_faces(image) == []


def test_yunet_from_sixteen_threads_with_pictures_of_all_sizes(yunet):
    detector = YuNetDetector(yunet)
    pictures = [red_cells(40 + 16 * i, 200 - 8 * i, (1 + i % 3, 2, 8), (2, 9, 8)) for i in range(12)] * 4
    want = [detector.find_faces(picture) for picture in pictures[:12]] * 4
    assert all(len(faces) == 2 for faces in want)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(detector.find_faces, pictures)) == want


def test_a_file_that_is_no_yunet(tmp_path):
    (text := tmp_path / "text.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    (empty := tmp_path / "empty.onnx").write_bytes(b"")
    other = yunet_like(tmp_path / "other.onnx", names=("score", "obj", "bbox", "kps"))
    for path in (text, empty, other, tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(DataError, match=rf"--detector yunet: .*{YUNET_FILE}.*download it, or use --detector haar"):
            open_detector(f"yunet:{path}")
    with pytest.raises(DataError, match=r"absent\.onnx: no such file"):
        YuNetDetector(tmp_path / "absent.onnx")


# ---- boxes from a file

LANDMARKS = [[10, 10], [30, 12], [20, 20], [12, 30], [28, 31]]


def boxes(tmp_path, content) -> BoxesFromFile:
    path = tmp_path / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return BoxesFromFile(path)


def test_boxes_by_source_and_frame(tmp_path):
    file = boxes(
        tmp_path,
        {
            "photo.jpg": [[300, 10, 50, 60], [20, 12, 50.5, 60]],
            "/data/photo.jpg": [[1, 2, 3, 4]],
            "clip.mp4": {"0": [[5, 5, 9, 9]], "25": [], "3": [{"box": [1, 1, 2, 2], "score": 0.5}]},
            "still.mp4": [{"box": [-5, -5, 40, 40], "landmarks": LANDMARKS}],
        },
    )
    find = file.find_faces
    want = [Face((20.0, 12.0, 50.5, 60.0)), Face((300.0, 10.0, 50.0, 60.0))]
    assert find(BLANK, "photo.jpg") == find(BLANK, "some/folder/photo.jpg") == want
    assert find(BLANK, "/data/photo.jpg") == [Face((1.0, 2.0, 3.0, 4.0))]
    assert find(BLANK, "x/clip.mp4", 0) == [Face((5.0, 5.0, 9.0, 9.0))]
    assert find(BLANK, "clip.mp4", 3) == [Face((1.0, 1.0, 2.0, 2.0), None, 0.5)]
    assert find(BLANK, "clip.mp4", 25) == find(BLANK, "clip.mp4", 7) == find(BLANK, "other.jpg") == find(BLANK) == []
    points = tuple((float(x), float(y)) for x, y in LANDMARKS)
    assert find(BLANK, "still.mp4", 0) == find(BLANK, "still.mp4", 9) == [Face((-5.0, -5.0, 40.0, 40.0), points)]
    assert file.crop == "given"


def test_sources_that_nobody_asked_for(tmp_path):
    file = boxes(tmp_path, {f"{i}.jpg": [] for i in range(8)})
    for i in range(7):
        file.find_faces(BLANK, f"folder/{i}.jpg")
    assert "no source is named 7.jpg; give names" in file.warning()
    file.find_faces(BLANK, "7.jpg")
    assert file.warning() is None
    assert boxes(tmp_path, {}).warning() is None
    assert "and 3 more" in boxes(tmp_path, {f"{i}.jpg": [] for i in range(8)}).warning()


BAD = {
    "not json": "{",
    "twice": '{"a.jpg": [], "a.jpg": []}',
    "not a number": '{"a.jpg": [[0, 0, NaN, 1]]}',
    "a list": [[1, 2, 3, 4]],
    "a text": {"a.jpg": "1,2,3,4"},
    "null": {"a.jpg": None},
    "a box, no list of boxes": {"a.jpg": [1, 2, 3, 4]},
    "three numbers": {"a.jpg": [[1, 2, 3]]},
    "five numbers": {"a.jpg": [[1, 2, 3, 4, 5]]},
    "text in box": {"a.jpg": [[1, 2, 3, "4"]]},
    "true in box": {"a.jpg": [[1, 2, 3, True]]},
    "no width": {"a.jpg": [[1, 2, 0, 4]]},
    "negative": {"a.jpg": [[1, 2, 3, -4]]},
    "far away": {"a.jpg": [[1, 2, 3, 1e9]]},
    "unknown field": {"a.jpg": [{"box": [1, 2, 3, 4], "label": "x"}]},
    "no box": {"a.jpg": [{"score": 1}]},
    "box null": {"a.jpg": [{"box": None}]},
    "score": {"a.jpg": [{"box": [1, 2, 3, 4], "score": "1"}]},
    "four landmarks": {"a.jpg": [{"box": [1, 2, 3, 4], "landmarks": LANDMARKS[:4]}]},
    "landmarks flat": {"a.jpg": [{"box": [1, 2, 3, 4], "landmarks": list(range(10))}]},
    "landmarks mirrored": {"a.jpg": [{"box": [1, 2, 3, 4], "landmarks": [LANDMARKS[i] for i in (1, 0, 2, 4, 3)]}]},
    "landmarks in one": {"a.jpg": [{"box": [1, 2, 3, 4], "landmarks": [[1, 1]] * 5}]},
    "frame name": {"a.jpg": {"first": []}},
    "frame negative": {"a.jpg": {"-1": []}},
    "frame zero-padded": {"a.jpg": {"007": []}},
    "frame in other digits": {"a.jpg": {"\u0663": []}},
    "frame squared": {"a.jpg": {"\u00b2": []}},
    "frame huge": {"a.jpg": {"9" * 5000: []}},
    "frame value": {"a.jpg": {"0": [1, 2, 3, 4]}},
    "frame in frame": {"a.jpg": {"0": {"0": []}}},
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_boxes(tmp_path, name):
    with pytest.raises(DataError, match=r"--boxes: .*boxes\.json: .*expected") as caught:
        boxes(tmp_path, BAD[name])
    text = str(caught.value)
    assert len(text) < 500 and "\n" not in text
    if isinstance(BAD[name], dict):
        assert '"a.jpg"' in text and "got" in text


def test_files_that_are_no_boxes(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match=rf"--boxes: {path}: .*expected a JSON file"):
            open_detector(f"boxes:{path}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no UTF-8"):
        open_detector(f"boxes:{tmp_path / 'binary'}")


@pytest.mark.parametrize("box", [[640, 0, 5, 5], [0, 480, 5, 5], [-5, 0, 5, 5], [0, -9, 5, 5]], ids=str)
def test_a_box_of_another_picture(tmp_path, box):
    file = boxes(tmp_path, {"a.jpg": [[0, 0, 5, 5], box]})
    with pytest.raises(ImageError, match=r'boxes\.json: "a\.jpg", face 1 .*outside the 640 x 480'):
        file.find_faces(BLANK, "a.jpg")


# ---- what is common to all


def test_detectors_by_name(tmp_path):
    boxes(tmp_path, {})
    assert isinstance(open_detector("haar"), HaarDetector) and isinstance(open_detector("none"), ReadyCrops)
    named = open_detector(f"boxes:{tmp_path / 'boxes.json'}")
    assert (named.name, open_detector("haar").name, open_detector("none").name) == ("boxes", "haar", "none")
    assert (open_detector("haar").crop, open_detector("none").crop) == ("margin", "given")
    for text in ("", "Haar", "yunet", "yunet:", "boxes", "boxes:", "haar:x", "none:", "retinaface", "yunet.onnx"):
        with pytest.raises(UsageError, match=r"--detector: got .*expected haar, yunet:FILE, boxes:FILE or none"):
            open_detector(text)


def test_reading_order():
    rows = [
        [(10, 20, 50, 60), (100, 35, 40, 50), (200, 5, 60, 70), (300, 25, 50, 50)],
        [(0, 120, 50, 60), (90, 100, 50, 60), (240, 130, 30, 30)],
        [(50, 210, 80, 90)],
    ]
    want = [Face(tuple(map(float, box))) for row in rows for box in row]
    for seed in range(20):
        mixed = want.copy()
        random.Random(seed).shuffle(mixed)
        assert reading_order(mixed) == want
    assert reading_order([]) == []
    # The same box twice stays twice.
    assert reading_order([want[0], want[0]]) == [want[0], want[0]]


@pytest.mark.parametrize("count", [1, 2, 5, 12, 40])
def test_the_order_of_the_scenes_is_the_reading_order(count):
    for seed in range(3):
        _, truth = scenes.group_picture(count, seed, size=(320, 240))
        faces = [Face(box) for box in truth]
        mixed = faces.copy()
        random.Random(seed).shuffle(mixed)
        assert reading_order(mixed) == faces, seed


def test_find_again_finds_what_was_there_or_says_that_it_did_not():
    detector = HaarDetector()
    image, _ = scenes.group_picture(2, seed=1)
    faces = detector.find_faces(image)
    assert len(faces) == 2 and detector.find_again(image, faces) == faces
    moved = np.roll(image, (6, -9), (0, 1))
    again = detector.find_again(moved, faces)
    assert again is not None and len(again) == 2
    # One face is gone; and no face of such a size is there.
    alone = image.copy()
    x, y, w, h = (round(v) for v in faces[0].box)
    alone[y : y + h, x : x + w] = 128
    assert detector.find_again(alone, faces) is None
    assert detector.find_again(image, [Face((0.0, 0.0, 20.0, 20.0))]) is None
    assert detector.find_again(image, []) == []
