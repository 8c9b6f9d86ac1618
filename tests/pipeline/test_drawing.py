"""Pictures with boxes, labels and bars: what is drawn, where, and who can tell it apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkfnet_engine.errors import ImageError
from tkfnet_engine.pipeline import drawing
from tkfnet_engine.pipeline.drawing import COLOURS, PALETTE, colour_of, draw, font_size, ink_on, luminance, text_size
from tkfnet_engine.pipeline.results import FaceResult
from tkfnet_engine.spec import LABELS

from ..scenes import group_picture

SHARES = (0.02, 0.0, 0.01, 0.9, 0.04, 0.03, 0.0)
# What the ground of a panel becomes on a picture that is (200, 200, 200) all over.
GROUND, PANEL = 200, 200 * 44 >> 8


def face(box, label="happiness", track=None, shares=None, labels=LABELS) -> FaceResult:
    shares = dict(zip(labels, shares or (0.9 if name == label else 0.1 / (len(labels) - 1) for name in labels)))
    return FaceResult("x.jpg", 0, None, 0, track, box, None, None, "margin", label, shares)


def plain(width=1280, height=720) -> np.ndarray:
    return np.full((height, width, 3), GROUND, np.uint8)


def panel_of(picture) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of all that has a panel's ground."""
    rows, columns = np.nonzero((picture == PANEL).all(2))
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def extent(x, y, text, size) -> tuple[int, int, int, int]:
    width, height = text_size(text, size)
    return x, y, x + width, y + height


def apart(one, other) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.fixture
def texts(monkeypatch):
    """[(x, y, text, size)] of all text that is put on pictures."""
    put, found = drawing.put_text, []

    def noted(canvas, x, y, text, size, colour):
        found.append((x, y, text, size))
        put(canvas, x, y, text, size, colour)

    monkeypatch.setattr(drawing, "put_text", noted)
    return found


def test_without_faces_it_is_a_copy():
    picture = plain(64, 48)
    drawn = draw(picture, [])
    assert (drawn == picture).all() and not np.shares_memory(drawn, picture)


def test_the_picture_given_is_left_as_it_is():
    picture = plain()
    drawn = draw(picture, [face((500, 200, 200, 200))])
    assert (picture == GROUND).all() and (drawn != GROUND).any()
    picture.flags.writeable = False
    assert (draw(picture, [face((500, 200, 200, 200))]) == drawn).all()


@pytest.mark.parametrize("wrong", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), "x.jpg"])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(ImageError):
        draw(wrong, [])


coordinate = st.floats(-300, 600, allow_nan=False)
boxes = st.tuples(coordinate, coordinate, st.floats(0.01, 500), st.floats(0.01, 500))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 320), st.integers(1, 320), st.lists(boxes, max_size=8), st.sampled_from([None, 0, 12345]))
def test_any_boxes_on_any_picture(width, height, found, track):
    faces = [face(box, LABELS[i % 7], track) for i, box in enumerate(found)]
    picture = plain(width, height)
    drawn = draw(picture, faces)
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8 and (picture == GROUND).all()
    visible = [x < width and y < height and x + w > 0 and y + h > 0 for x, y, w, h in found]
    assert (drawn != GROUND).any() == any(visible)


PLACES = {f"{column} {row}": (x, y) for column, x in (("left", 0), ("middle", 540), ("right", 1080))
          for row, y in (("top", 0), ("middle", 260), ("bottom", 520))}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("over", [0, 60])
def test_the_bars_are_beside_the_box_and_inside_the_picture(place, over):
    """over: how far the box reaches beyond the picture's edges."""
    x, y = PLACES[place]
    drawn = draw(plain(), [face((x - over, y - over, 200 + 2 * over, 200 + 2 * over))])
    x0, y0, x1, y1 = panel_of(drawn)
    assert x1 - x0 > 120 and y1 - y0 > 90
    inside = drawn[max(y - over, 0) + 30 : min(y + 200 + over, 720) - 8, max(x - over, 0) + 8 : x + 192]
    assert (inside == GROUND).all()
    assert x1 <= max(x - over, 0) or x0 >= x + 200 + over or y1 <= max(y - over, 0) or y0 >= y + 200 + over


def test_bars_are_as_long_as_the_probabilities():
    shares = (0.30, 0.25, 0.0, 0.28, 0.10, 0.05, 0.02)
    drawn = draw(plain(), [face((540, 260, 200, 200), "surprise", shares=shares)])
    x0, y0, x1, y1 = panel_of(drawn)
    whole = 5 * (font_size(1280, 720) * 7 // 8)
    left = int(np.nonzero((drawn[y0:y1, x0:x1] == COLOURS["surprise"]).all(2).any(0))[0][0])
    panel = drawn[y0:y1, x0 + left : x0 + left + whole]
    rows = []
    for label, share in zip(LABELS, shares):
        of_colour = (panel == COLOURS[label]).all(2)
        assert of_colour.sum(1).max() == max(1, round(whole * share)), label
        rows.append(int(np.nonzero(of_colour.any(1))[0][0]))
    assert rows == sorted(rows), "in the engine's order, from top to bottom"


def test_every_label_and_its_percentage_is_written(texts):
    draw(plain(), [face((540, 260, 200, 200), shares=SHARES)])
    written = [text for _, _, text, _ in texts]
    assert written[-1] == "happiness  90%"
    assert written[:-1] == [part for label, share in zip(LABELS, SHARES) for part in (label, f"{share:.0%}")]


@pytest.mark.parametrize(("track", "expected"), [(None, "anger  90%"), (0, "#0 anger  90%"), (7, "#7 anger  90%")])
def test_the_track_has_its_number(track, expected, texts):
    draw(plain(), [face((540, 260, 200, 200), "anger", track)])
    assert texts[-1][2] == expected


def test_small_faces_and_many_faces_have_no_bars(texts):
    draw(plain(), [face((540, 260, 40, 40))])
    assert len(texts) == 1
    many = [face((20 + 180 * i, 20 + 350 * j, 110, 110)) for i in range(7) for j in range(2)]
    drawn = draw(plain(), many[: drawing.MOST_PANELS])
    assert panel_of(drawn) is not None
    assert panel_of(draw(plain(), many)) is None


def test_bars_hide_no_face_and_no_label(texts):
    for count, seed in itertools.product((2, 3, 5), range(4)):
        picture, truth = group_picture(count, seed=seed)
        texts.clear()
        clean = draw(picture, [face(box) for box in truth])
        panels = [(x, y, text, size) for x, y, text, size in texts[:-count]]
        assert len({name for _, _, name, _ in panels} - {f"{p}%" for p in range(101)}) in (0, 7)
        tags = [extent(*tag) for tag in texts[-count:]]
        for x, y, text, size in panels:
            for other in [*((bx, by, bx + bw, by + bh) for bx, by, bw, bh in truth), *tags]:
                assert apart(extent(x, y, text, size), other), (count, seed, text)
        assert clean.shape == picture.shape


def test_forty_labels_can_all_be_read(texts):
    picture, truth = group_picture(40, seed=1)
    draw(picture, [face(box, LABELS[i % 7], i) for i, box in enumerate(truth)])
    assert len(texts) == 40 and all(LABELS[i % 7] in text for i, (_, _, text, _) in enumerate(texts))
    height, width = picture.shape[:2]
    places = [extent(*tag) for tag in texts]
    assert all(x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height for x0, y0, x1, y1 in places)
    assert all(apart(one, other) for one, other in itertools.combinations(places, 2))


def test_labels_get_shorter_where_neighbours_are_near(texts):
    crowd = [face((10 + 75 * i, 80 * j, 70, 80), "happiness", i) for i in range(8) for j in range(2)]
    draw(plain(620, 160), crowd)
    written = [text for _, _, text, _ in texts]
    assert all("happiness" in text for text in written) and not all("%" in text for text in written)
    assert all(apart(extent(*one), extent(*other)) for one, other in itertools.combinations(texts, 2))


@pytest.mark.parametrize("width", [24, 40, 64])
def test_a_label_fits_a_tiny_picture(width, texts):
    draw(plain(width, 40), [face((2, 2, width - 4, 36))])
    ((x, _, text, size),) = texts
    assert "happiness" in text and (x + text_size(text, size)[0] <= width or size == 6)


def test_labels_of_other_networks(texts):
    labels = tuple(f"class number {i} with a long name of its own" for i in range(12))
    drawn = draw(plain(), [face((500, 100, 300, 500), labels[9], labels=labels)])
    assert panel_of(drawn) is not None and len(texts) == 25
    assert texts[-1][2].startswith("class number 9") and len(texts[-1][2]) < 32
    assert colour_of(face((0, 0, 9, 9), labels[9], labels=labels)) == PALETTE[9 % 8]


# --- who can tell it apart -------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHTS = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, sight) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as a reader with `sight` sees it."""
    linear = np.array([v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour])
    linear = np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / (0.9505, 1, 1.089), 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("sight", SIGHTS)
def test_no_two_labels_look_alike(sight):
    for one, other in itertools.combinations(LABELS, 2):
        distance = np.linalg.norm(lab(COLOURS[one], sight) - lab(COLOURS[other], sight))
        assert distance > 10, (one, other, distance)


def test_labels_can_be_read_on_their_colours():
    assert luminance((255, 255, 255)) == pytest.approx(1) and contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert all(contrast(colour, ink_on(colour)) >= 4.5 for colour in PALETTE)


def test_a_box_stands_out_on_any_ground():
    for level, colour in itertools.product(range(256), PALETTE):
        assert max(contrast((level,) * 3, colour), contrast((level,) * 3, (0, 0, 0))) >= 2


@pytest.mark.parametrize("level", [0, 255])
def test_text_of_a_panel_stands_out_on_any_ground(level):
    drawn = draw(np.full((720, 1280, 3), level, np.uint8), [face((540, 260, 200, 200))])
    ground = (level * 44 >> 8,) * 3
    assert (drawn == ground).all(2).any() and contrast(ground, (200, 200, 200)) >= 4.5
