"""The folded network as an engine in eight bits computes it, in floating point: every map and every weight that the
placement names is rounded to its grid, and what is multiplied is the value that the rounded number stands for.

Backwards, rounding passes gradients on as they are (straight through), and clipping passes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..kernels.placement import Placement
from ..kernels.quantise import FLOAT8_MOST, INT8_MOST, float8_weight, quantised_weight, to_float8
from .fold import FoldedTKFNet, put

# Least and largest number of a kind.
_ENDS = {"int8": (-INT8_MOST, INT8_MOST), "uint8": (0, 255), "float8": (-FLOAT8_MOST, FLOAT8_MOST)}
KINDS = tuple(_ENDS)


@dataclass(frozen=True)
class Grid:
    """What a map is rounded to: value = scale (q - zero), q a number of `kind`, one of `KINDS`."""

    kind: str
    scale: float
    zero: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"grid: got kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not (0 < self.scale < float("inf") and 0 <= self.zero <= (255 if self.kind == "uint8" else 0)):
            raise UsageError(
                f"grid: got {self}, expected a positive scale and a zero point from 0 to 255, 0 but for uint8; "
                "calibrate again"
            )


class _Rounded(torch.autograd.Function):
    """values [..], scale (a number, or [N, 1 ..]) -> the nearest values of the grid; NaN stays NaN."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Any, zero: int, low: float, high: float, eighth: bool) -> Tensor:
        q = values / scale
        if not eighth:
            q = q.round_().add_(zero)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((q >= low) & (q <= high))
        q = to_float8(q).to(values.dtype) if eighth else q.clamp_(low, high).sub_(zero)
        return q.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return gradient * kept, None, None, None, None, None


def rounded(values: Tensor, grid: Grid) -> Tensor:
    """`values` of any shape, float32 or float64, as they are once they were stored on `grid`."""
    return _Rounded.apply(values, grid.scale, grid.zero, *_ENDS[grid.kind], grid.kind == "float8")


def rounded_weight(weight: Tensor, kind: str, most: int = INT8_MOST, scale: Tensor | None = None) -> Tensor:
    """[N, ..] -> the same shape, as `quantised_weight` or `float8_weight` stores it.

    kind: of the maps it is multiplied with. most: the largest magnitude of its integers. scale: float32 [N], instead of
    the best one.
    """
    eighth = kind == "float8"
    if scale is None:
        scale = weight_scale(weight, kind, most)
    # In float64, as `quantised_weight` divides: the same integers.
    wide = weight if eighth else weight.double()
    by_row = scale.to(wide).reshape(-1, *[1] * (weight.dim() - 1))
    end = FLOAT8_MOST if eighth else most
    return _Rounded.apply(wide, by_row, 0, -end, end, eighth).to(weight.dtype)


def weight_scale(weight: Tensor, kind: str, most: int = INT8_MOST) -> Tensor:
    """[N, ..] -> float32 [N], the scale of each channel."""
    return (float8_weight(weight) if kind == "float8" else quantised_weight(weight, most))[1]


@contextmanager
def fake_quantised(
    folded: FoldedTKFNet,
    placement: Placement,
    grids: Mapping[str, Grid],
    *,
    most: int = INT8_MOST,
    weight_scales: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """While it lasts, `folded` computes as an engine with `placement`'s maps and products in eight bits does.

    folded: in float32 or float64, equalised if the engine is; of `fold`, or of `fold_live` to train through it. grids:
    by point, all of one kind; float8 makes weights float8 too. most, weight_scales (by product): of `rounded_weight`.
    Pixels are left as they are: eight bits hold them. So are maps at optional points, which few engines store.
    `UsageError` for a network in FP16, or where a grid is missing.
    """
    points = [point for point in placement.points if not point.optional]
    if missing := [point.name for point in points if point.name not in grids]:
        raise UsageError(f"fake quantisation: got no grid for {', '.join(missing)}; calibrate this network again")
    kinds = {grid.kind for grid in grids.values()}
    if len(kinds) != 1:
        raise UsageError(f"fake quantisation: got grids of {sorted(kinds) or 'nothing'}, expected one kind for all")
    if folded.stem.weight.dtype == torch.float16:
        raise UsageError("fake quantisation: got a network in FP16, expected float32: fold the checkpoint again")
    (kind,) = kinds
    with ExitStack() as restore:
        for product in placement.products:
            layer = folded.get_submodule(product.module)
            scale = None if weight_scales is None else weight_scales[product.name]
            restore.callback(setattr, layer, "weight", layer.weight)
            put(layer, "weight", rounded_weight(layer.weight, kind, most, scale))
        for point in points:
            hook = _round_output if point.of_output else _round_input
            restore.callback(hook(folded.get_submodule(point.module), grids[point.name]).remove)
        yield


def _round_input(module: nn.Module, grid: Grid) -> Any:
    return module.register_forward_pre_hook(lambda _module, inputs: (rounded(inputs[0], grid), *inputs[1:]))


def _round_output(module: nn.Module, grid: Grid) -> Any:
    return module.register_forward_hook(lambda _module, _inputs, output: rounded(output, grid))
