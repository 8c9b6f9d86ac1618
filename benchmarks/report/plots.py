"""Charts with two axes: lines, points, the roofline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from .charts import DASHES, MARKERS, Line, Point, axes_of, shortened, spread_out, width_of, wrapped
from .figures import number
from .svg import INK, LINE, MUTED, OTHER, OURS, PAPER, WIDTH

HEIGHT = 250
TOP, BOTTOM = 26, 38
# Of a line's name, and between two of them.
MOST_LABEL, TEXT, _GAP = 112, 13, 2
# An axis whose ends are further apart than this is logarithmic.
LOG_FROM = 12.0

Box = tuple[float, float, float, float]


# --- axes --------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between the ends; four or so of a linear axis."""
    if not log:
        return [t for t in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high * 1.0001]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]
        if len(found) <= 6:
            break
    return found if len(found) <= 6 else found[:: -(-len(found) // 6)]


def short(value: float) -> str:
    """Of a tick: without zeros that say nothing."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _panel(
    xs: Sequence[float], ys: Sequence[float], right: float, height: float, labels: tuple[str, str],
    log: tuple[bool, bool], x_ticks: Sequence[float] | None = None, y_text: Callable[[float], str] = short,
    from_zero: bool = True,
) -> Axes:  # fmt: skip
    """Two axes with room for all of xs and ys. labels: of x and y. x_ticks: at these instead of round numbers."""
    (x_low, x_high), (y_low, y_high) = _range(xs, log[0], False), _range(ys, log[1], from_zero)
    y_ticks = ticks(y_low, y_high, log[1])
    left = max((width_of(y_text(t)) for t in y_ticks), default=0) + 9
    figure, axes = axes_of(height, left, right, TOP, BOTTOM)
    axes.set(xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    found = ticks(x_low, x_high, log[0]) if x_ticks is None else _apart(axes, sorted(set(x_ticks)))
    axes.set_xticks(found, [short(t) for t in found])
    axes.set_yticks(y_ticks, [y_text(t) for t in y_ticks])
    axes.grid(axis="y", color=LINE, lw=1)
    axes.set_axisbelow(True)
    figure.text(0, 1 - 10 / height, labels[1], color=MUTED, va="center")
    middle = (left + WIDTH - right) / 2
    half = width_of(labels[0]) / 2
    figure.text(
        min(max(middle, half), WIDTH - half) / WIDTH, 8 / height, labels[0], color=MUTED, ha="center", va="center"
    )
    return axes


def _range(values: Sequence[float], log: bool, from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        room = max((high / low) ** 0.06, 1.05)
        return low / room, high * room
    if from_zero:
        return 0.0, (high * 1.05) or 1.0
    room = (high - low) * 0.08 or abs(high) * 0.01 or 1.0
    return low - room, high + room


def _apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Those of the values whose texts do not meet; the last one stays."""
    kept: list[tuple[float, float, float]] = []
    for value in reversed(values):
        middle, half = axes.transData.transform((value, axes.get_ylim()[1]))[0], width_of(short(value)) / 2
        if not kept or middle + half + 4 <= kept[-1][1]:
            kept.append((value, middle - half, middle + half))
    return [value for value, _, _ in reversed(kept)]


def far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


# --- lines -------------------------------------------------------------------------------------------------


def lines(
    series: Sequence[Line], x_label: str, y_label: str, same_kind: bool = False, y_log: bool | None = None
) -> Figure:
    """Each line is named at its right end. same_kind: all of one engine, so that none is set apart. y_log: by the
    values, where it is not said."""
    xs = [x for line in series for x in line.xs]
    ys = [v for line in series for part in (line.ys, line.lows, line.highs) for v in part if v is not None]
    log = (min(xs) > 0 and max(xs) / min(xs) >= 8, far_apart(ys) if y_log is None else y_log)
    names = [wrapped(line.name, MOST_LABEL, line.ours) for line in series]
    right = max(width_of(part, line.ours) for line, name in zip(series, names) for part in name) + 26
    height = max(HEIGHT, sum(TEXT * len(name) + _GAP for name in names) + TOP + BOTTOM)
    axes = _panel(xs, ys, right, height, (x_label, y_label), log, xs)
    for number_, line in enumerate(series):
        colour = OURS if line.ours or same_kind else OTHER
        for x, low, high in zip(line.xs, line.lows, line.highs):
            if low is not None and high is not None:
                axes.plot((x, x), (low, high), color=INK, lw=1, clip_on=False)
        axes.plot(
            line.xs, line.ys, color=colour, ls=DASHES[number_ % len(DASHES)], lw=2 if line.ours else 1.4, clip_on=False,
            marker=MARKERS[number_ % len(MARKERS)], ms=5, mfc=colour if line.ours else PAPER, mec=colour,
        )  # fmt: skip
    _name_lines(axes, series, names, height)
    return axes.figure


def _name_lines(axes: Axes, series: Sequence[Line], names: Sequence[tuple[str, ...]], height: float) -> None:
    ends = [axes.transData.transform((line.xs[-1], line.ys[-1])) for line in series]
    heights = [TEXT * len(name) + _GAP for name in names]
    placed = spread_out([y for _, y in ends], heights, BOTTOM - 6, height - TOP + 8)
    x = axes.transAxes.transform((1, 0))[0] + 24
    pixels = axes.figure.dpi_scale_trans
    for line, name, (end_x, end_y), y in zip(series, names, ends, placed):
        # Level as far as the axes go, then to its name.
        leader = ((end_x + 6, max(end_x + 6, x - 18), x - 3), (end_y, end_y, y))
        axes.plot(
            *([v / 72 for v in part] for part in leader), color=LINE, lw=1, transform=pixels, clip_on=False, zorder=0
        )
        weight = "bold" if line.ours else "normal"
        for number_, part in enumerate(name):
            top = y + TEXT * (len(name) - 1) / 2 - TEXT * number_
            axes.text(x / 72, top / 72, part, transform=pixels, va="center", weight=weight, clip_on=False)


# --- points ------------------------------------------------------------------------------------------------


def points(found: Sequence[Point], x_label: str, y_label: str, y_text: Callable[[float], str] = short) -> Figure:
    """Each named beside itself."""
    xs, ys = [p.x for p in found], [p.y for p in found]
    axes = _panel(xs, ys, 14, HEIGHT + 20, (x_label, y_label), (far_apart(xs), False), None, y_text, from_zero=False)
    for point in found:
        _mark(axes, point)
    _name_points(axes, found, must=True)
    return axes.figure


def roofline(
    found: Sequence[Point], roofs: Sequence[tuple[str, float]], bandwidth: tuple[str, float] | None, y_label: str
) -> Figure:
    """x: operations per byte, y: operations per second in the unit of y_label. roofs: peaks of products. bandwidth: in
    the same unit at one operation per byte."""
    xs, ys = [p.x for p in found], [p.y for p in found] + [peak for _, peak in roofs]
    if bandwidth:
        # As far as the ridges, so that both parts of the roof are seen.
        xs += [peak / bandwidth[1] for _, peak in roofs]
    axes = _panel(xs, ys, 14, HEIGHT + 30, ("operations per byte", y_label), (True, True))
    low, high = axes.get_xlim()
    for name, peak in roofs:
        start = max(low, peak / bandwidth[1]) if bandwidth else low
        axes.plot((start, high), (peak, peak), color=INK, lw=1.4)
        axes.annotate(name, (high, peak), (0, 3), textcoords="offset points", ha="right", va="bottom", color=MUTED)
    if bandwidth:
        _slope(axes, *bandwidth, top=max((peak for _, peak in roofs), default=max(ys)))
    for point in found:
        _mark(axes, point)
    _name_points(axes, found, must=False)
    return axes.figure


def _slope(axes: Axes, name: str, per_byte: float, top: float) -> None:
    """The roof of the memory, named along itself."""
    low, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    start, end = max(low, bottom / per_byte), top / per_byte
    if end <= start:
        return
    axes.plot((start, end), (start * per_byte, top), color=INK, lw=1.4)
    (x0, y0), (x1, y1) = axes.transData.transform([(start, start * per_byte), (end, top)])
    angle = math.degrees(math.atan2(y1 - y0, x1 - x0))
    middle = math.sqrt(start * end)
    text = shortened(name, max(math.hypot(x1 - x0, y1 - y0) - 16, 20))
    across = (-8 * math.sin(math.radians(angle)), 8 * math.cos(math.radians(angle)))
    axes.annotate(
        text, (middle, middle * per_byte), across, textcoords="offset points", rotation=angle, rotation_mode="anchor",
        ha="center", va="center", color=MUTED,
    )  # fmt: skip


def _mark(axes: Axes, point: Point) -> None:
    colour = OURS if point.ours else OTHER
    shape = "o" if point.ours else "s"
    axes.plot(point.x, point.y, shape, ms=6, color=colour if point.ours else PAPER, mec=colour, mew=1.4, clip_on=False)


def _name_points(axes: Axes, found: Sequence[Point], must: bool) -> None:
    """Beside each point where its name meets no other; must: else where it meets the least, not left out."""
    at = [tuple(axes.transData.transform((p.x, p.y))) for p in found]
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in at]
    (x0, y0), (x1, y1) = axes.transAxes.transform([(0, 0), (1, 1)])
    order = sorted(range(len(found)), key=lambda i: (not found[i].ours, -at[i][1], i))
    for i in order:
        name = shortened(found[i].name, 0.6 * WIDTH, found[i].ours)
        width, (x, y) = width_of(name, found[i].ours), at[i]
        spots = [(x + 8, y), (x - 8 - width, y), (x - width / 2, y + 12), (x - width / 2, y - 12)]
        spots += [(x + 6, y + 11), (x + 6, y - 11), (x - 6 - width, y + 11), (x - 6 - width, y - 11)]
        spots += [(x + 8, y + 22), (x + 8, y - 22), (x - 8 - width, y + 22), (x - 8 - width, y - 22)]
        boxes = [(u, v - TEXT / 2, u + width, v + TEXT / 2) for u, v in spots]
        inside = [b for b in boxes if b[0] >= x0 and b[2] <= x1 + 13 and b[1] >= y0 and b[3] <= y1 + 12]
        mine = taken[:i] + taken[i + 1 :]
        best = min(inside or boxes, key=lambda b: sum(_overlap(b, other) for other in mine))
        if not must and any(_overlap(best, other) for other in mine):
            continue
        taken.append(best)
        axes.text(
            best[0] / 72, (best[1] + best[3]) / 144, name, transform=axes.figure.dpi_scale_trans, va="center",
            weight="bold" if found[i].ours else "normal", clip_on=False,
        )  # fmt: skip


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
