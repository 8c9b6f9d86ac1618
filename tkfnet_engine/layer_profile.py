"""`bench ENGINE --layers`: where a TensorRT engine's time goes, layer by layer, as a table, as JSON or as a chart."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from typing import Any

from .engine import Engine
from .errors import UsageError
from .export.tensorrt_layers import plain_name
from .layer_report import kept_layers

_BAR, _WIDEST = 30, 44
# Beyond these a chart cannot be read; the rest is one bar.
_MOST_BARS = 40


def profile_layers(engine: Engine, path: str | os.PathLike, batch: int, runs: int) -> dict[str, Any]:
    """Median milliseconds of each layer at one batch, with what its build said of it."""
    # Names that TensorRT gives occur again; then their order tells them apart.
    known: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
    for layer in kept_layers(path):
        known[layer["name"]].append(layer)
    layers = []
    for name, ms in engine.profile(batch, runs):
        name = plain_name(name)
        built = known[name].popleft() if known[name] else {}
        found = {"name": name, "ms": round(ms, 5), "precision": built.get("precision"), "of": built.get("origin", [])}
        layers.append(found)
    total = sum(layer["ms"] for layer in layers)
    for layer in layers:
        layer["share"] = round(layer["ms"] / total, 4) if total else 0.0
    return {"batch": batch, "runs": runs, "total_ms": round(total, 4), "layers": layers}


def _label(layer: dict[str, Any]) -> str:
    """A name to be read: for one of TensorRT's own that of the first node in it."""
    name = layer["name"].removeprefix("__myl_")
    if layer["of"] and layer["name"].startswith("__my"):
        name = f"{layer['of'][0]} ({name})"
    return name if len(name) <= _WIDEST else f"{name[: _WIDEST - 2]}.."


def text_of_profile(found: dict[str, Any]) -> str:
    """The profile as a table with a bar for each layer."""
    layers = found["layers"]
    width = max((len(_label(layer)) for layer in layers), default=5)
    most = max((layer["share"] for layer in layers), default=0.0) or 1.0
    lines = [f"{'layer':<{width}}  {'precision':<9}  {'ms':>8}  share"]
    for layer in layers:
        bar = "#" * round(_BAR * layer["share"] / most)
        precision = layer["precision"] or "-"
        lines.append(
            f"{_label(layer):<{width}}  {precision:<9}  {layer['ms']:>8.4f}  {layer['share']:>5.1%} {bar}".rstrip()
        )
    return "\n".join(
        [*lines, f"batch {found['batch']}: {found['total_ms']:.3f} ms in all, while every layer is watched"]
    )


def draw_profile(found: dict[str, Any], path: str) -> None:
    """A bar chart, in the format that the name ends in (.svg, .png, .pdf). `UsageError` for another, or without
    matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "--chart: needs matplotlib, which is not installed; pip install 'tkfnet-engine[train]', or take --json"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not path.endswith((".svg", ".png", ".pdf")):
        raise UsageError(f"--chart: got {path!r}, expected a name that ends in .svg, .png or .pdf; change it")
    shown = sorted(found["layers"], key=lambda layer: -layer["ms"])
    rest = sum(layer["ms"] for layer in shown[_MOST_BARS:])
    bars = [(_label(layer), layer["ms"], layer["precision"] or "other") for layer in shown[:_MOST_BARS]]
    bars += [(f"{len(shown) - _MOST_BARS} others", rest, "other")] if rest else []
    kinds = sorted({kind for _, _, kind in bars})
    colours = dict(zip(kinds, pyplot.get_cmap("tab10").colors))
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(bars)), layout="constrained")
    for i, (_, ms, kind) in enumerate(bars):
        axes.barh(i, ms, color=colours[kind])
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("median ms")
    axes.set_title(f"batch {found['batch']}: {found['total_ms']:.3f} ms in all, while every layer is watched")
    axes.legend([pyplot.Rectangle((0, 0), 1, 1, color=colours[kind]) for kind in kinds], kinds, loc="lower right")
    figure.savefig(path)
    pyplot.close(figure)
