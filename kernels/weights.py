"""A folded network's parameters as the kernels read them: one blob, its layout in `planner.weight_layout`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .network import Network
from .planner import weight_buffers, weight_layout
from .stem import PIXEL_SCALE, whole_means

_NUMPY = {"f16": np.float16, "f32": np.float32}


def packed_weights(folded: Any, network: Network) -> bytes:
    """The blob of `folded` (a `model.fold.FoldedTKFNet` in float32) that plans of `network` point into.

    `UsageError` for a weight that FP16 cannot hold, or that is not finite: a broken checkpoint.
    """
    layout, (buffers, size) = weight_layout(network), weight_buffers(network)
    values = dict(_named(folded, network))
    if values.keys() != layout.keys():
        raise AssertionError(f"packed {sorted(values)}, laid out {sorted(layout)}")
    blob = bytearray(size)
    for name, (dtype, shape) in layout.items():
        with np.errstate(over="ignore"):
            value = values[name].detach().reshape(shape).numpy().astype(_NUMPY[dtype])
        if not np.isfinite(value).all():
            raise UsageError(
                f"{name}: got a weight of magnitude {values[name].abs().max():.3g}, expected finite numbers that "
                f"{'FP16' if dtype == 'f16' else 'float32'} holds; the checkpoint is broken, or needs --fp32"
            )
        offset = buffers[name].offset
        blob[offset : offset + value.nbytes] = value.tobytes()
    return bytes(blob)


def _named(folded: Any, network: Network) -> Iterator[tuple[str, Tensor]]:
    yield "stem.w", stem_weight(folded.stem.weight, network.channel_means)
    yield "stem.b", folded.stem.bias
    for block, shape in zip(folded.blocks, network.blocks, strict=True):
        for conv, named in zip(block.convs, shape.convs, strict=True):
            final = named is shape.convs[-1]
            yield f"{named.name}.w", conv_weight(conv.weight)
            yield f"{named.name}.b", conv.bias + block.project.bias if final and block.project else conv.bias
        if shape.project is not None:
            yield f"{shape.project.name}.w", conv_weight(block.project.weight)
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


def _tafe(tafe: Any) -> Iterator[tuple[str, Tensor]]:
    c = tafe.gate.weight.shape[0]
    yield "tafe.split.w", tafe.split.weight
    yield "tafe.split.b", tafe.split.bias
    # Output channel 2 i + j of the depthwise convolution is the j-th of y's channel i; it is stored j by j.
    yield "tafe.dw.w", tafe.detail_dw.weight.reshape(c, 2, 9).permute(1, 2, 0).contiguous()
    yield "tafe.dw.b", tafe.detail_dw.bias.reshape(c, 2).T.contiguous()
    yield "tafe.of_pool", tafe.of_pool
    yield "tafe.of_variance", tafe.of_variance
    yield "tafe.gate.w", tafe.gate.weight
    yield "tafe.gate.b", tafe.gate.bias
    yield "tafe.detail.w", detail_weight(tafe.detail_pw.weight)
    yield "tafe.detail.b", tafe.detail_pw.bias
    merge = tafe.merge.weight.flatten(1)
    yield "tafe.merge.x.w", merge[:, :c].contiguous()
    yield "tafe.merge.h.w", merge[:, c:].contiguous()
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
