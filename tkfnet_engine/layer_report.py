"""`info ENGINE --layers`: what TensorRT made of the network, layer by layer."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from .backends.registry import TENSORRT_LAYERS
from .bundle import Bundle, read_bundle
from .engine import Engine, checked_facts
from .errors import BundleError, UsageError
from .export.tensorrt_layers import layers_from_inspector
from .strict_json import StrictJsonError, parse

_COLUMNS = ("layer", "kind", "reads", "writes", "tactic", "of")
_MOST = 44


def report_of_layers(path: str | os.PathLike, live: bool = False, trusted: bool = False) -> dict[str, Any]:
    """The layers of a TensorRT engine, how many run in which precision, and which do not run as asked for.

    They are those that its build read back. live: asks TensorRT's inspector on this GPU instead, which runs the file's
    plan: `trusted` as for `Engine.load`. `UsageError` for an engine without layers of TensorRT's.
    """
    bundle = read_bundle(path)
    facts, layers, source = checked_facts(path, bundle.facts), _kept(path, bundle), "the build"
    if live:
        with Engine.load(path, trusted=trusted) as engine:
            found = layers_from_inspector(engine.layers())
            layers, source = [layer.to_dict() for layer in found], "TensorRT's inspector on this GPU"
    return {
        "engine": os.fspath(path),
        "source": source,
        "precisions": dict(sorted(Counter(layer["precision"] for layer in layers).items())),
        "not_as_asked": facts["tensorrt"]["not_as_asked"],
        "layers": layers,
    }


def kept_layers(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The layers as the build of the engine file read them back. `UsageError` for an engine that has none."""
    return _kept(path, read_bundle(path))


def _kept(path: str | os.PathLike, bundle: Bundle) -> list[dict[str, Any]]:
    if TENSORRT_LAYERS not in bundle:
        raise UsageError(
            f"--layers: got an engine of backend {bundle.facts.get('backend')}, expected one of TensorRT; a fused one "
            "shows its kernels with `info --plan`, and a quantised one its products' precisions with `info --json`"
        )
    try:
        layers = parse(bytes(bundle.bytes(TENSORRT_LAYERS)))
        # Whatever wrote it, what follows may rely on these.
        for layer in layers:
            layer["name"], layer["precision"], layer["reads"], layer["writes"], layer["tactic"], layer["origin"]
    except (StrictJsonError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: its list of layers cannot be read ({error}); build it again", "layers") from None
    return layers


def text_of_layers(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = [_COLUMNS, *map(_row, report["layers"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    counts = ", ".join(f"{count} {precision}" for precision, count in report["precisions"].items())
    total = len(report["layers"])
    lines += ["", f"{total} layers by what they compute on: {counts} (read back from {report['source']})"]
    astray = report["not_as_asked"]
    told = ", ".join(f"{name} in {found}" for name, found in astray.items()) if astray else "none"
    return "\n".join([*lines, f"not in the precision asked for: {told}"])


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    def maps(operands: list[dict[str, Any]]) -> str:
        return " ".join(f"{o['type']}[{'x'.join('N' if n < 0 else str(n) for n in o['shape'])}]" for o in operands[:2])

    cells = (
        layer["name"].removeprefix("__myl_"),
        layer["kind"],
        maps(layer["reads"]),
        maps(layer["writes"]),
        layer["tactic"].removeprefix("__myl_"),
        " ".join(layer["origin"]),
    )
    return tuple(cell if len(cell) <= _MOST else f"{cell[: _MOST - 2]}.." for cell in cells)
