"""Quantised weights, and the scales of maps folded into what the kernels multiply and add anyway.

A product of maps q_x = x / s_x and weights q_w = w / s_w writes y / s_y:

    acc * scale + b        scale = s_x s_w / s_y, per output channel        b = bias / s_y

and adds a map q_r, of scale s_r, times s_r / s_y. Each factor is computed in float64 and rounded once to float32. A map
that is stored in FP16 has the scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .network import Network
from .placement import STEM, Placement, placement_of
from .precisions import StoredTypes, output_points
from .quantise import INT8_MOST, float8_weight, quantised_weight
from .stem import INT8_MEAN, INT8_REAL


def checked_scales(
    network: Network, precision: str, placement: Placement | None, scales: Mapping[str, float] | None
) -> dict[str, float]:
    """The scale of each stored point, as float32 holds it. `UsageError` as `weights.packed_weights`."""
    if placement is None:
        if scales is not None:
            raise UsageError(f"scales: got {len(scales)}, expected none for {precision}")
        return {}
    if scales is None:
        raise UsageError(
            f"scales: got none, expected one per quantised map for {precision}; calibrate the network first"
        )
    if unknown := sorted(scales.keys() - {point.name for point in placement_of(network).points}):
        raise UsageError(f"scales: got {', '.join(unknown)}, which this network does not have; calibrate this network")
    needed = [point.name for point in placement.points if not point.optional]
    if missing := [name for name in needed if name not in scales]:
        raise UsageError(f"scales: got none of {', '.join(missing)}, expected one each; calibrate the network again")
    held = {}
    for name in needed:
        with np.errstate(over="ignore"):
            held[name] = float(np.float32(scales[name]))
        if not (math.isfinite(held[name]) and held[name] > 0):
            raise UsageError(f"scale of {name}: got {scales[name]!r}, expected a positive number that float32 holds")
    return held


def quantised_values(
    values: Mapping[str, Tensor], network: Network, types: StoredTypes, scales: Mapping[str, float]
) -> dict[str, Tensor]:
    """`values` of `weights.packed_weights` with those of quantised products and maps as `layout.weight_layout` says.

    scales: of every stored point; a point that is not among them is stored in FP16.
    """
    values = dict(values)
    points, reads = output_points(network), {p.name: p.point for p in types.placement.products}

    def fold(name: str, written: float | None) -> None:
        if types.of_product(name) == "f16":
            if written is not None:
                values[f"{name}.scale"] = torch.ones(len(values[f"{name}.b"]))
        elif name == STEM:
            _quantise_stem(values, network)
        else:
            quantise = quantised_weight if types.of_product(name) == "i8" else float8_weight
            values[f"{name}.w"], scale = quantise(values[f"{name}.w"])
            values[f"{name}.scale"] = scale.double() * scales[reads[name]]
        for part in (f"{name}.scale", f"{name}.b"):
            if part in values:
                values[part] = values[part].double() / (written or 1.0)

    fold(STEM, scales.get(points[STEM]))
    for block in network.blocks:
        for conv in block.convs:
            fold(conv.name, scales.get(points[conv.name]))
        shortcut, written = scales.get(block.convs[0].name.rpartition(".")[0]), scales.get(points[conv.name])
        if block.project is not None:
            shortcut = scales.get(f"{block.project.name}.output")
            if shortcut is None:  # a part of the last convolution's sum
                continue
            fold(block.project.name, shortcut)
        if (shortcut, written) != (None, None):
            ratio = (shortcut or 1.0) / (written or 1.0)
            values[f"{conv.name}.shortcut_scale"] = torch.tensor([ratio], dtype=torch.float64)
    if network.pool is not None:
        for name in ("split", "gate", "detail", "merge"):
            fold(f"tafe.{name}", None)
        for name, point in (("dw.w", "detail"), ("dw.b", "detail"), ("of_pool", "gate"), ("of_variance", "gate")):
            values[f"tafe.{name}"] = values[f"tafe.{name}"].double() / scales.get(f"tafe.{point}", 1.0)
        if "tafe.merge" in scales:
            values["tafe.merge.reciprocal"] = torch.tensor([1 / scales["tafe.merge"]], dtype=torch.float64)
    return values


def _quantise_stem(values: dict[str, Tensor], network: Network) -> None:
    values["stem.w"], scale, rest = int8_stem_weight(values["stem.w"], network.channel_means)
    values["stem.scale"] = scale.double()
    values["stem.b"] = values["stem.b"].double() + rest


def int8_stem_weight(weight: Tensor, channel_means: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 3, 7, 7], of pixel - mean -> int8 [N, 8 rows, 8 pixels, 4 channels] of what `pack_pixels_kernel` writes in
    int8, float32 scale [N], and float64 [N] to add to the bias.

    The fourth channel's weight is for the whole difference between the means and `INT8_MEAN`. What is lost as it is
    rounded is in the bias: a window of real pixels alone is exactly that of the rounded weights on pixel - mean.
    """
    n = weight.shape[0]
    offset = INT8_MEAN - torch.tensor(channel_means, dtype=torch.float64)
    four = torch.zeros(n, 7, 7, 4, dtype=torch.float64)
    four[..., :3] = weight.double().permute(0, 2, 3, 1)
    four[..., 3] = four[..., :3] @ offset / INT8_REAL
    quantised, scale = quantised_weight(four)
    wanted = quantised[..., :3].double() @ offset
    fourth = (wanted / INT8_REAL).round().clamp(-INT8_MOST, INT8_MOST)
    rest = scale.double() * (wanted - INT8_REAL * fourth).sum((1, 2))
    packed = torch.zeros(n, 8, 8, 4, dtype=torch.int8)
    packed[:, :7, :7] = quantised
    packed[:, :7, :7, 3] = fourth.to(torch.int8)
    return packed, scale, rest
