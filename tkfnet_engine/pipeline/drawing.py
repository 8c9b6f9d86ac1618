"""Boxes, labels and bars drawn on a picture, with numpy and Pillow's own font; text is rendered once and kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..preprocess import check_crop
from ..spec import LABELS
from .results import FaceResult

# Okabe and Ito's colours, told apart by readers who do not see all of them; grey for the one that is no expression.
_SKY, _PURPLE, _GREEN, _YELLOW = (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66)
_BLUE, _VERMILION, _GREY, _ORANGE = (0, 114, 178), (213, 94, 0), (187, 187, 187), (230, 159, 0)
PALETTE = (_SKY, _PURPLE, _GREEN, _YELLOW, _BLUE, _VERMILION, _GREY, _ORANGE)
COLOURS = dict(zip(LABELS, PALETTE))
BLACK, WHITE, _FAINT, _TRACK = (0, 0, 0), (255, 255, 255), (200, 200, 200), (84, 84, 84)

# Behind the bars: so much of the picture stays, in 256ths.
_SHINES_THROUGH = 44
# More faces than this have no bars: they would hide each other's.
MOST_PANELS = 6
_SMALLEST, _LARGEST, _CRAMPED = 10, 64, 8
# The share of a face that its bars may cover where nothing beside it is free.
_MAY_COVER = 0.2

Colour = tuple[int, int, int]
# x0, y0, x1, y1 in whole pixels, the last two not in it.
Rectangle = tuple[int, int, int, int]


def draw(image: np.ndarray, faces: Sequence[FaceResult]) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> a copy with a box and the top label on each face, and its track's number if it has one.

    Faces that are neither small nor many have the bars of all probabilities beside their box, inside the picture
    wherever the box is. What of a box is outside the picture is left out; a face wholly outside is.
    """
    canvas = check_crop(image).copy()
    height, width = canvas.shape[:2]
    shown = [(face, box) for face in faces if (box := _inside(face.box, width, height))]
    taken = [box for _, box in shown]
    size = font_size(width, height)
    for face, box in shown:
        _draw_box(canvas, box, max(2, size // 8), colour_of(face))
    tags = [_placed_tag(face, box, taken, number, size, width, height) for number, (face, box) in enumerate(shown)]
    if len(shown) <= MOST_PANELS:
        for number, (face, box) in enumerate(shown):
            _draw_panel(canvas, face, box, taken, number, max(_SMALLEST, size * 7 // 8))
    for (face, _), (x, y, text, small) in zip(shown, tags):
        _draw_tag(canvas, x, y, text, small, colour_of(face))
    return canvas


def font_size(width: int, height: int) -> int:
    """Of labels, in pixels, on a picture of this size: 16 at 1280 x 720."""
    return min(max(min(width, height) // 45, _SMALLEST + 1), _LARGEST)


def colour_of(face: FaceResult) -> Colour:
    """Of its label; labels that are not TKFNet's have theirs by their place."""
    return label_colour(face.label, tuple(face.probabilities))


def label_colour(label: str, labels: Sequence[str]) -> Colour:
    if label in COLOURS:
        return COLOURS[label]
    return PALETTE[labels.index(label) % len(PALETTE)] if label in labels else _ORANGE


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on `colour` (WCAG 2's contrast)."""
    return BLACK if luminance(colour) > 0.179 else WHITE


def luminance(colour: Colour) -> float:
    """Relative, 0 to 1, of sRGB."""
    red, green, blue = ((v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4) for v in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# --- text ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=512)
def _ink(text: str, size: int) -> np.ndarray:
    """uint16 [height, width, 1], 0 to 256: where the text is. One height for every text of a size."""
    font = _font(size)
    ascent, descent = font.getmetrics()
    paper = Image.new("L", (max(1, math.ceil(font.getlength(text))), ascent + descent))
    ImageDraw.Draw(paper).text((0, ascent), text, fill=255, font=font, anchor="ls")
    ink = np.asarray(paper).astype(np.uint16)[..., None]
    return ink + (ink >> 7)


def text_size(text: str, size: int) -> tuple[int, int]:
    """(width, height) in pixels."""
    height, width = _ink(text, size).shape[:2]
    return width, height


def put_text(canvas: np.ndarray, x: int, y: int, text: str, size: int, colour: Colour) -> None:
    """In place, its upper left corner at (x, y); what is outside is left out."""
    ink = _ink(text, size)
    height, width = ink.shape[:2]
    x0, y0, x1, y1 = _clipped((x, y, x + width, y + height), canvas)
    part, ink = canvas[y0:y1, x0:x1], ink[y0 - y : y1 - y, x0 - x : x1 - x]
    part[:] = (part * (256 - ink) + np.array(colour, np.uint16) * ink) >> 8


def fill(canvas: np.ndarray, where: Rectangle, colour: Colour) -> None:
    x0, y0, x1, y1 = _clipped(where, canvas)
    canvas[y0:y1, x0:x1] = colour


def _clipped(where: Rectangle, canvas: np.ndarray) -> Rectangle:
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = where
    x0, y0 = min(max(x0, 0), width), min(max(y0, 0), height)
    return x0, y0, min(max(x1, x0), width), min(max(y1, y0), height)


# --- where things go -------------------------------------------------------------------------------------


def _inside(box: tuple[float, float, float, float], width: int, height: int) -> Rectangle | None:
    """What of a face's box is in the picture, None for nothing."""
    x, y, w, h = box
    x0, y0 = max(math.floor(x), 0), max(math.floor(y), 0)
    x1, y1 = min(math.ceil(x + w), width), min(math.ceil(y + h), height)
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _best(
    places: Sequence[tuple[int, int]], size: tuple[int, int], taken: Sequence[Rectangle], width: int, height: int
) -> tuple[Rectangle, np.ndarray]:
    """The first of the `places` (upper left corners, moved into the picture) that hides least of what is `taken`, and
    how many pixels of each it hides."""
    w, h = size
    obstacles = np.array(taken, np.int64).reshape(-1, 4)
    best, least, hidden = (0, 0, w, h), None, np.zeros(len(taken), np.int64)
    for x, y in places:
        x0, y0 = max(min(x, width - w), 0), max(min(y, height - h), 0)
        across = np.minimum(obstacles[:, 2], x0 + w) - np.maximum(obstacles[:, 0], x0)
        down = np.minimum(obstacles[:, 3], y0 + h) - np.maximum(obstacles[:, 1], y0)
        areas = across.clip(0) * down.clip(0)
        total = int(areas.sum())
        if least is None or total < least:
            best, least, hidden = (x0, y0, x0 + w, y0 + h), total, areas
        if not total:
            break
    return best, hidden


# --- a face ----------------------------------------------------------------------------------------------


def _draw_box(canvas: np.ndarray, box: Rectangle, thickness: int, colour: Colour) -> None:
    """The colour's line between two black ones: seen on any ground."""
    x0, y0, x1, y1 = box
    for inset, line, width in ((0, BLACK, thickness + 2), (1, colour, thickness)):
        a, b, c, d = x0 + inset, y0 + inset, x1 - inset, y1 - inset
        fill(canvas, (a, b, c, min(b + width, d)), line)
        fill(canvas, (a, max(d - width, b), c, d), line)
        fill(canvas, (a, b, min(a + width, c), d), line)
        fill(canvas, (max(c - width, a), b, c, d), line)


def _placed_tag(
    face: FaceResult, box: Rectangle, taken: list[Rectangle], number: int, size: int, width: int, height: int
) -> tuple[int, int, str, int]:
    """(x, y, text, font size) of the label of the face whose box is `taken[number]`; its place becomes taken."""
    x0, y0, x1, y1 = box
    # Small faces have small labels, so that neighbours keep theirs.
    small = min(max((x1 - x0) // 6, _SMALLEST), size)
    track = "" if face.track is None else f"#{face.track} "
    label = face.label if len(face.label) <= 24 else f"{face.label[:22]}.."
    # Two spaces: the font's own is narrow.
    whole = f"{track}{label}  {face.probabilities[face.label]:.0%}"
    others = [*taken[:number], *taken[number + 1 :]]
    for text, used in ((whole, small), (f"{track}{label}", small), (label, min(small, _CRAMPED))):
        while used > 6 and _tag_size(text, used)[0] > width:
            used -= 1
        w, h = _tag_size(text, used)
        places = ((x0, y0 - h), (x0, y1), (x1 - w, y0 - h), (x1 - w, y1), (x0, y0), (x0, y1 - h))
        where, hidden = _best(places, (w, h), others, width, height)
        if used == small and not hidden.any():
            break
    taken.append(where)
    return where[0], where[1], text, used


def _tag_size(text: str, size: int) -> tuple[int, int]:
    width, height = text_size(text, size)
    return width + 2 * _margin(size), height + 2


def _margin(size: int) -> int:
    return max(2, size // 4)


def _draw_tag(canvas: np.ndarray, x: int, y: int, text: str, size: int, colour: Colour) -> None:
    w, h = _tag_size(text, size)
    fill(canvas, (x, y, x + w, y + h), BLACK)
    fill(canvas, (x + 1, y + 1, x + w - 1, y + h - 1), colour)
    put_text(canvas, x + _margin(size), y + 1, text, size, ink_on(colour))


def _draw_panel(
    canvas: np.ndarray, face: FaceResult, box: Rectangle, taken: list[Rectangle], number: int, size: int
) -> None:
    """The bars of the face whose box is `taken[number]`, if there is room; their place becomes taken."""
    height, width = canvas.shape[:2]
    labels = tuple(face.probabilities)
    names = [label if len(label) <= 16 else f"{label[:14]}.." for label in labels]
    gap = max(3, size // 3)
    name_width = max(text_size(name, size)[0] for name in names)
    number_width, row = text_size("100%", size)
    h = row * len(labels) + 2 * gap
    x0, y0, x1, y1 = box
    for bar_width in (5 * size, 3 * size):
        w = name_width + bar_width + number_width + 4 * gap
        if w > width or h > height or 2 * (y1 - y0) < h:
            continue
        right, left = x1 + 2, x0 - 2 - w
        places = (
            (right, y0),
            (left, y0),
            (x0, y1 + 2),
            (x0, y0 - 2 - h),
            (right, y1 - h),
            (left, y1 - h),
            (x0, y1 - h),
        )
        where, hidden = _best(places, (w, h), taken, width, height)
        own = hidden[number]
        if hidden.sum() == own and own <= _MAY_COVER * (x1 - x0) * (y1 - y0):
            break
    else:
        return
    taken.append(where)
    x, y = where[:2]
    part = canvas[y : y + h, x : x + w]
    part[:] = (part.astype(np.uint16) * _SHINES_THROUGH) >> 8
    left, right = x + gap + name_width + gap, x + w - gap
    thick = max(2, row * 5 // 8)
    for at, (label, name) in enumerate(zip(labels, names)):
        probability, ink = face.probabilities[label], WHITE if label == face.label else _FAINT
        percent = f"{probability:.0%}"
        line = y + gap + at * row
        top = line + (row - thick) // 2
        put_text(canvas, x + gap, line, name, size, ink)
        fill(canvas, (left, top, left + bar_width, top + thick), _TRACK)
        long = max(1, round(bar_width * probability))
        fill(canvas, (left, top, left + long, top + thick), label_colour(label, labels))
        put_text(canvas, right - text_size(percent, size)[0], line, percent, size, ink)
