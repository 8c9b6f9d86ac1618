"""Charts of bars and ratios, drawn by matplotlib for a column `svg.WIDTH` pixels wide. They know no records.

Nothing is told by colour alone: ours are filled and bold, lines differ in marker and dashes, all is labelled directly.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from .svg import FONT_PX, INK, LINE, MUTED, OTHER, OURS, PALE, PAPER, WIDTH
from .tables import clean

# Of bars: a name over each, so that long ones fit. Pixels.
ROW, HEADING, BAR = 34, 27, 8
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
# Left and right of what is drawn to scale: strokes are wider than their place.
_EDGE = 1
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")


@dataclass(frozen=True)
class Bar:
    """text: beside its end. low, high: the whisker's."""

    name: str
    value: float
    low: float | None
    high: float | None
    ours: bool
    text: str


@dataclass(frozen=True)
class Line:
    """lows, highs: of each point, or None."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    ours: bool


@dataclass(frozen=True)
class Point:
    name: str
    x: float
    y: float
    ours: bool


@dataclass(frozen=True)
class Stack:
    """parts: values in the order of the chart's steps, None where one was not measured. total: measured as a whole."""

    name: str
    parts: tuple[float | None, ...]
    total: Bar | None
    ours: bool


# --- space -------------------------------------------------------------------------------------------------


@cache
def width_of(text: str, bold: bool = False) -> float:
    """Pixels."""
    font = FontProperties(family="DejaVu Sans", size=FONT_PX, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def shortened(text: str, most: float, bold: bool = False) -> str:
    """Its middle left out where it is wider than `most`; the table beside the chart has all of it."""
    text = clean(text)
    if width_of(text, bold) <= most:
        return text

    def cut(kept: int) -> str:
        return f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"

    return cut(bisect(range(1, len(text)), most, key=lambda kept: width_of(cut(kept), bold)))


def axes_of(height: float, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """All in pixels. Without a frame."""
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=5)
    return figure, axes


def wrapped(text: str, most: float, bold: bool = False) -> tuple[str, ...]:
    """In at most two lines, broken between words, each as wide as `most` at most."""
    words = clean(text).split(" ")
    fits = [k for k in range(1, len(words) + 1) if width_of(" ".join(words[:k]), bold) <= most]
    first = fits[-1] if fits else 1
    lines = (" ".join(words[:first]), " ".join(words[first:]))
    return tuple(shortened(line, most, bold) for line in lines if line)


def spread_out(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of boxes near the wanted ones, in [low, high], that do not overlap while there is room."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    shrink = min(1.0, (high - low) / max(sum(heights), 1e-9))
    halves = [height * shrink / 2 for height in heights]
    found = list(wanted)
    edge = low
    for i in order:
        found[i] = max(wanted[i], edge + halves[i])
        edge = found[i] + halves[i]
    edge = high
    for i in reversed(order):
        found[i] = min(found[i], edge - halves[i])
        edge = found[i] - halves[i]
    return found


# --- bars --------------------------------------------------------------------------------------------------


def bars(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Figure:
    """Groups under headings; a name and its value over each bar, which tell more than an axis would."""
    top = max(max(bar.value, bar.high or 0) for _, group in groups for bar in group) or 1
    axes, at = _rows(groups, (0, top))
    for y, bar in at:
        _named(axes, y, bar)
        fill, edge = (OURS, OURS) if bar.ours else (PALE, OTHER)
        axes.barh(y + 22.5, bar.value, BAR, color=fill, edgecolor=edge, linewidth=1)
        _whisker(axes, y + 22.5, bar.low, bar.high)
    return axes.figure


def ratios(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Figure:
    """Points with whiskers, and a line from 1."""
    every = [bar for _, group in groups for bar in group]
    ends = [value for bar in every for value in (bar.value, bar.low, bar.high, 1.0) if value is not None]
    # From 0 where that leaves room for the differences.
    first = 0.0 if min(ends) < 0.6 * max(ends) else 0.9 * min(ends)
    axes, at = _rows(groups, (first, max(ends)))
    for y, bar in at:
        _named(axes, y, bar)
        axes.plot((1, 1), (y + 16.5, y + 28.5), color=INK, lw=1)
        axes.plot((1, bar.value), (y + 22.5, y + 22.5), color=OURS if bar.ours else OTHER, lw=2 if bar.ours else 1)
        _whisker(axes, y + 22.5, bar.low, bar.high)
        colour = OURS if bar.ours else OTHER
        axes.plot(
            bar.value, y + 22.5, "o", ms=7, color=colour if bar.ours else PAPER, mec=colour, mew=1.5, clip_on=False
        )
    return axes.figure


def stacks(steps: Sequence[str], found: Sequence[Stack]) -> Figure:
    """Steps one after another, told apart by hatching; the whole as a line at its end."""
    ends = [max(sum(filter(None, one.parts)), *_ends(one.total)) for one in found]
    totals = [Bar(one.name, 0, None, None, one.ours, one.total.text if one.total else "") for one in found]
    axes, at = _rows([("", totals)], (0, max(ends) or 1), above=22)
    pixel, x = (max(ends) or 1) / (WIDTH - 2 * _EDGE), 0.0
    for step, hatch in zip(steps, HATCHES):
        axes.barh(-12, 14 * pixel, 9, left=x * pixel, color=PAPER, edgecolor=OTHER, hatch=hatch, clip_on=False)
        axes.text((x + 19) * pixel, -12, step, va="center", color=MUTED)
        x += 19 + width_of(step) + 16
    for (y, bar), one in zip(at, found):
        _named(axes, y, bar)
        start = 0.0
        for value, hatch in zip(one.parts, HATCHES):
            edge = OURS if one.ours else OTHER
            axes.barh(y + 22.5, value or 0, BAR + 1, left=start, color=PAPER, edgecolor=edge, hatch=hatch, linewidth=1)
            start += value or 0
        if one.total:
            axes.plot((one.total.value,) * 2, (y + 16.5, y + 28.5), color=INK, lw=2, clip_on=False)
            _whisker(axes, y + 22.5, one.total.low, one.total.high)
    return axes.figure


def _ends(bar: Bar | None) -> tuple[float, float]:
    return (bar.value, bar.high or 0.0) if bar else (0.0, 0.0)


def _rows(
    groups: Sequence[tuple[str, Sequence[Bar]]], xlim: tuple[float, float], above: float = 0
) -> tuple[Axes, list[tuple[float, Bar]]]:
    """Axes whose y counts pixels downwards, with the groups' headings, and the top of every bar's row."""
    count, titled = sum(len(group) for _, group in groups), sum(bool(title) for title, _ in groups)
    height = ROW * count + HEADING * titled + above
    _, axes = axes_of(height, _EDGE, _EDGE, above, 0)
    axes.set(xlim=xlim, ylim=(height - above, 0))
    axes.set_axis_off()
    y, at = 0.0, []
    for title, group in groups:
        if title:
            y += HEADING
            _text(axes, -_EDGE, y - 8, shortened(title, WIDTH), color=MUTED, va="baseline")
            axes.plot((0, 1), (y - 3, y - 3), color=LINE, lw=1, transform=axes.get_yaxis_transform(), clip_on=False)
        for bar in group:
            at.append((y, bar))
            y += ROW
    return axes, at


def _text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    """x: pixels from the axes' left."""
    axes.text(x / (WIDTH - 2 * _EDGE), y, text, transform=axes.get_yaxis_transform(), clip_on=False, **style)


def _named(axes: Axes, y: float, bar: Bar) -> None:
    """The name at the left, the value at the right."""
    weight, room = "bold" if bar.ours else "normal", WIDTH - width_of(bar.text, bar.ours) - 12
    _text(axes, -_EDGE, y + 13, shortened(bar.name, room, bar.ours), va="baseline", weight=weight)
    _text(axes, WIDTH - _EDGE, y + 13, bar.text, ha="right", va="baseline", weight=weight)


def _whisker(axes: Axes, y: float, low: float | None, high: float | None) -> None:
    if low is not None and high is not None:
        axes.plot((low, high), (y, y), color=INK, lw=1.2, clip_on=False, solid_capstyle="butt")
        for x in (low, high):
            axes.plot((x, x), (y - 3, y + 3), color=INK, lw=1.2, clip_on=False)
