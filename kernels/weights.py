"""A folded network's parameters as the kernels read them: one blob, its layout in `layout.weight_layout`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .layout import Layout, weight_buffers, weight_layout
from .network import Network
from .precisions import stored_types
from .quantised_weights import checked_scales, quantised_values
from .stem import PIXEL_SCALE, whole_means

_NUMPY = {"f16": np.float16, "f32": np.float32}


def packed_weights(
    folded: Any,
    network: Network,
    precision: str = "float16",
    scales: Mapping[str, float] | None = None,
    kept_float: Collection[str] = (),
) -> bytes:
    """The blob of `folded` (a `model.fold.FoldedTKFNet` in float32) that plans of `network` point into.

    scales: of every point of `placement.placement_of` that is stored quantised, int8 and float8 only; those of other
    points are not looked at. kept_float: as the plan's. `UsageError` for a weight that its dtype cannot hold, or that
    is not finite: a broken checkpoint; and for a scale that is missing, unknown, or not finite and positive.
    """
    layout = weight_layout(network, precision, kept_float)
    buffers, size = weight_buffers(network, precision, kept_float)
    types = stored_types(network, precision, kept_float)
    of_points = checked_scales(network, precision, types.placement, scales)
    values = dict(_named(folded, network, layout))
    if types.placement is not None:
        for name, value in values.items():
            _check_finite(name, value, value, "float32")
        values = quantised_values(values, network, types, of_points)
    values = _arranged(values, network)
    if values.keys() != layout.keys():
        raise AssertionError(f"packed {sorted(values)}, laid out {sorted(layout)}")
    blob = bytearray(size)
    for name, (dtype, shape) in layout.items():
        raw = _raw(name, values[name].detach().reshape(shape), dtype)
        blob[buffers[name].offset : buffers[name].offset + len(raw)] = raw
    return bytes(blob)


def _raw(name: str, value: Tensor, dtype: str) -> bytes:
    if dtype not in _NUMPY:
        return value.contiguous().view(torch.uint8).numpy().tobytes()
    with np.errstate(over="ignore"):
        array = value.numpy().astype(_NUMPY[dtype])
    _check_finite(name, value, torch.from_numpy(array), "FP16" if dtype == "f16" else "float32")
    return array.tobytes()


def _check_finite(name: str, value: Tensor, held: Tensor, by: str) -> None:
    if not held.isfinite().all():
        raise UsageError(
            f"{name}: got a weight of magnitude {value.abs().max():.3g}, expected finite numbers that {by} holds; the "
            "checkpoint is broken, or needs --fp32"
        )


def _named(folded: Any, network: Network, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by its name in the layout, but for the merge's weight, which is still whole, and the stem's."""
    yield "stem.w", folded.stem.weight
    yield "stem.b", folded.stem.bias
    for block, shape in zip(folded.blocks, network.blocks, strict=True):
        for conv, named in zip(block.convs, shape.convs, strict=True):
            yield f"{named.name}.w", conv_weight(conv.weight)
            # A projection in the same sum has the same bias.
            joined = shape.project and named is shape.convs[-1] and f"{shape.project.name}.b" not in layout
            yield f"{named.name}.b", conv.bias + block.project.bias if joined else conv.bias
        if shape.project is not None:
            yield f"{shape.project.name}.w", conv_weight(block.project.weight)
            if f"{shape.project.name}.b" in layout:
                yield f"{shape.project.name}.b", block.project.bias
    if network.pool is not None:
        yield from _tafe(folded.tafe)
    if network.hidden:
        dcif = folded.dcif
        yield "dcif.squeeze.w", dcif.squeeze.weight
        yield "dcif.squeeze.b", dcif.squeeze.bias
        yield "dcif.expand.w", dcif.expand.weight.T.contiguous()
        yield "dcif.expand.b", dcif.expand.bias
        yield "dcif.spatial", dcif.spatial.weight
    for i, layer in enumerate(folded.head):
        yield f"head.{i}.w", layer.weight.T.contiguous() if i == 1 else layer.weight
        yield f"head.{i}.b", layer.bias


def _arranged(values: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """`_named`'s values, or what is quantised of them, in the layout's parts."""
    values = dict(values)
    if values["stem.w"].is_floating_point():
        values["stem.w"] = stem_weight(values["stem.w"], network.channel_means)
    if network.pool is not None:
        merge, c = values.pop("tafe.merge.w"), network.channels
        values |= {"tafe.merge.x.w": merge[:, :c].contiguous(), "tafe.merge.h.w": merge[:, c:].contiguous()}
    return values


def _tafe(tafe: Any) -> Iterator[tuple[str, Tensor]]:
    c = tafe.gate.weight.shape[0]
    yield "tafe.split.w", tafe.split.weight.flatten(1)
    yield "tafe.split.b", tafe.split.bias
    # Output channel 2 i + j of the depthwise convolution is the j-th of y's channel i; it is stored j by j.
    yield "tafe.dw.w", tafe.detail_dw.weight.reshape(c, 2, 9).permute(1, 2, 0).contiguous()
    yield "tafe.dw.b", tafe.detail_dw.bias.reshape(c, 2).T.contiguous()
    yield "tafe.of_pool", tafe.of_pool.flatten()
    yield "tafe.of_variance", tafe.of_variance.flatten()
    yield "tafe.gate.w", tafe.gate.weight.flatten(1)
    yield "tafe.gate.b", tafe.gate.bias
    yield "tafe.detail.w", detail_weight(tafe.detail_pw.weight)
    yield "tafe.detail.b", tafe.detail_pw.bias
    yield "tafe.merge.w", tafe.merge.weight.flatten(1)
    yield "tafe.merge.b", tafe.merge.bias


def conv_weight(weight: Tensor) -> Tensor:
    """[N, C, taps, taps] -> [N, taps * taps * C]."""
    return weight.permute(0, 2, 3, 1).flatten(1).contiguous()


def detail_weight(weight: Tensor) -> Tensor:
    """[N, 2 C, 1, 1] with inputs 2 i + j -> [N, 2 C] with inputs j C + i, the order in which d is stored."""
    n, doubled = weight.shape[:2]
    return weight.reshape(n, doubled // 2, 2).permute(0, 2, 1).flatten(1).contiguous()


def stem_weight(weight: Tensor, channel_means: tuple[float, ...]) -> Tensor:
    """[N, 3, 7, 7], of pixel - mean -> [N, 8 rows, 8 pixels, 4 channels], of what `pack_pixels_kernel` writes."""
    n = weight.shape[0]
    rest = torch.tensor(whole_means(channel_means), dtype=torch.float64) - torch.tensor(
        channel_means, dtype=torch.float64
    )
    packed = torch.zeros(n, 8, 8, 4, dtype=torch.float64)
    packed[:, :7, :7, :3] = weight.double().permute(0, 2, 3, 1) / PIXEL_SCALE
    packed[:, :7, :7, 3] = (weight.double() * rest[:, None, None]).sum(1)
    return packed.float()
