"""matplotlib's SVG, made fit to stand inside a page: its style sheet's colours, text as text, ids of its own."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from .tables import clean

# Native width in pixels: a phone shows it one to one.
WIDTH = 360
FONT_PX = 11
# Drawn in these, which matplotlib writes as they are; shown in the page's variables of the same names.
INK, MUTED, LINE, PAPER, OURS, OTHER, PALE = (f"#00f00{i}" for i in range(7))
_VARIABLES = dict(
    zip((INK, MUTED, LINE, PAPER, OURS, OTHER, PALE), ("ink", "muted", "line", "paper", "ours", "other", "pale"))
)
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tkfnet",
    "font.family": "DejaVu Sans",
    "font.size": FONT_PX,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1.0,
    "axes.unicode_minus": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "hatch.linewidth": 1.0,
}
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def svg(draw: Callable[[], Figure], says: str, prefix: str) -> str:
    """The drawing as an `<svg>` without a document's head. says: it in words. prefix: of every id, so that
    charts of one page differ."""
    file = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Not what the user's matplotlibrc says.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        # The page's fonts draw the text, not matplotlib's, which may lack a letter.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = draw()
        figure.patch.set_visible(False)
        figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    _strip(root)
    _rename(root, prefix)
    for element in root.iter():
        _restyle(element)
    _, _, width, height = root.get("viewBox").split()
    heading = ElementTree.Element("title")
    heading.text = clean(says)
    root.insert(0, heading)
    root.attrib = {"role": "img", "aria-label": clean(says), "viewBox": f"0 0 {width} {height}"}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _strip(root: ElementTree.Element) -> None:
    """Removes namespaces, which HTML does not need, metadata, and a style sheet that would hold for the whole page."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        if element.tag != "text":
            element.text = None
        element.tail = None
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in ("metadata", "style"):
                parent.remove(child)
    _drop_empty(root)


def _drop_empty(element: ElementTree.Element) -> None:
    for child in list(element):
        _drop_empty(child)
        if child.tag in ("g", "defs") and not len(child):
            element.remove(child)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    used = {value[1:] for e in root.iter() if (value := e.get("href"))}
    for element in root.iter():
        used.update(found for value in element.attrib.values() for found in _REFERENCE.findall(value))
    for element in root.iter():
        if (name := element.get("id")) in used:
            element.set("id", f"{prefix}-{name}")
        else:
            element.attrib.pop("id", None)
        for key, value in element.attrib.items():
            if key == "href":
                element.set(key, f"#{prefix}-{value[1:]}")
            else:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))


def _restyle(element: ElementTree.Element) -> None:
    """Placeholders become variables, numbers lose digits that no screen shows, text takes the page's font."""
    for key, value in element.attrib.items():
        for colour, name in _VARIABLES.items():
            value = value.replace(colour, f"var(--{name})")
        if key in ("d", "x", "y", "width", "height", "transform"):
            value = re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), 1):g}", " ".join(value.split()))
        element.set(key, value)
    # An attribute cannot hold a variable.
    for key in ("fill", "stroke"):
        if (value := element.get(key, "")).startswith("var("):
            del element.attrib[key]
            element.set("style", f"{key}: {value}; {element.get('style', '')}".rstrip("; "))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag == "text":
        # Until 3.10 matplotlib writes weight, size and family as one.
        style = re.sub(r"font: (?:(\w+) )?([\d.]+px) [^;]*", _font, element.get("style", ""))
        style = re.sub(r"font-family:[^;]*(?:;|$)\s*", "", style)
        element.set("style", style.strip().rstrip(";"))


def _font(found: re.Match[str]) -> str:
    return f"font-size: {found[2]}" + (f"; font-weight: {found[1]}" if found[1] else "")
