"""What one quantised launch of a plan writes, by plain PyTorch from what it read: the kernels' formulas operation by
operation, in float32, each rounded once.

Sums of int8 products are exact, so what a launch makes of them alone is so to the bit, whoever computes it. Float sums
are not: their order is each executor's own, and the error function's last bit; what is quantised after them may be the
neighbouring value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .conv import IDENTITY, PROJECT, PROJECT_ROUNDED
from .memory import TORCH_DTYPES
from .plan import Buffer, Launch
from .quantise import FLOAT8_MOST, INT8_MOST
from .stem import INT8_MEAN, INT8_REAL

Reader = Callable[[Buffer], Tensor]
# Whole numbers up to here are exact in float32; what int8 holds.
_EXACT, _LARGEST = 2**24, 128
# Sums of one part of a launch.
_AT_ONCE = 2**20
_SQRT_HALF = 0.7071067811865476


def quantised_outputs(launch: Launch, read: Reader) -> dict[str, tuple[Tensor, bool]]:
    """By parameter name, what `launch`, which is quantised, writes from its own inputs, as it is stored, and whether
    that is so to the bit. read: a buffer's elements, flat."""
    inputs, found = _Inputs(launch, read), []
    for inputs.part in _parts(launch):
        outputs = _BY_KERNEL[launch.kernel](inputs).items()
        found.append({name: (stored(value, inputs.dtype(name)), exact) for name, (value, exact) in outputs})
    whole = {name: torch.cat([part[name][0] for part in found]).contiguous() for name in found[0]}
    return {name: (value, found[0][name][1] and inputs.exact) for name, value in whole.items()}


def _parts(launch: Launch) -> list[slice]:
    """Images that are computed at a time, of a convolution's as many as caches hold."""
    facts = dict(launch.constexprs)
    if launch.kernel not in ("stem_kernel", "conv_kernel"):
        return [slice(None)]
    images = dict(launch.args)["y_ptr"].count // (facts["P"] * facts["Q"] * facts["N"])
    side = (facts["HC"], facts["WC"]) if launch.kernel == "stem_kernel" else (facts["P"], facts["Q"])
    step = max(1, _AT_ONCE // (side[0] * side[1] * facts["N"]))
    return [slice(start, start + step) for start in range(0, images, step)]


def stored(values: Tensor, dtype: str) -> Tensor:
    """float32, in units of the scale -> what the kernels store of it; NaN as the largest value where it is quantised.
    In place. What is stored already stays as it is."""
    if not values.is_floating_point():
        return values
    if dtype == "f16":
        return values.half()
    most = INT8_MOST if dtype == "i8" else FLOAT8_MOST
    values = values.clamp_(-most, most)
    if dtype == "i8":
        values = values.round_()
    # Of many values quickly: NaN is rare.
    if not math.isfinite(float(values.sum())):
        values = values.nan_to_num_(nan=most)
    return values.to(TORCH_DTYPES[dtype])


class _Inputs:
    """A launch's arguments. exact: whether its products are those of int8, or it has none. part: of the images."""

    def __init__(self, launch: Launch, read: Reader):
        self._buffers = {name: value for name, value in launch.args if isinstance(value, Buffer)}
        self.facts: dict[str, Any] = dict(launch.constexprs) | {
            name: value for name, value in launch.args if not isinstance(value, Buffer)
        }
        self._read = read
        self._weights: dict[str, Tensor] = {}
        self.exact = all(b.dtype == "i8" for name, b in self._buffers.items() if name.startswith("w_"))
        self.part = slice(None)

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def dtype(self, name: str) -> str:
        return self._buffers[name].dtype

    def raw(self, name: str, *shape: int) -> Tensor:
        """A map of the images of this part, as it is stored. shape: of one image."""
        return self._read(self._buffers[name]).reshape(-1, *shape)[self.part]

    def map(self, name: str, *shape: int) -> Tensor:
        """In float32, a copy."""
        return self.raw(name, *shape).to(torch.float32, copy=True)

    def weight(self, name: str, *shape: int) -> Tensor:
        """In float32, to be left as it is."""
        if name not in self._weights:
            self._weights[name] = self._read(self._buffers[name]).float()
        return self._weights[name].reshape(shape)

    def biased(self, acc: Tensor, scale: str, bias: str) -> Tensor:
        """acc * scale + b over the second axis, in place; acc + b without a scale."""
        shape = (1, -1, *[1] * (acc.dim() - 2))
        if scale in self:
            acc = acc.mul_(self.weight(scale, *shape))
        return acc.add_(self.weight(bias, *shape))

    def product(self, x: Tensor, w: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        """[n, C, H, W] and [N, C, taps, taps] in float32 -> the accumulator [n, N, P, Q] in float32."""
        return whole_product(x, w, stride, padding) if self.exact else _convolution(x, w, stride, padding)


def whole_product(x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution of whole numbers in float32: exact but for one rounding to float32."""
    return _exact_sum(x, w, stride, padding).float()


def _exact_sum(x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """Exact, in float32 or float64: no sum of some of the products exceeds the largest input times the sum of one
    channel's weights. Where that is more than float32 holds, halves of the input channels are summed by themselves."""
    of_channel = w.flatten(1)
    most = of_channel.abs().sum(1).max()
    if most * _LARGEST >= _EXACT and x.min() >= 0:
        # Positive and negative products apart: a sum of some of them lies between the two.
        positive = of_channel.clamp(min=0).sum(1)
        most = torch.maximum(positive, positive - of_channel.sum(1)).max()
    if most * _LARGEST < _EXACT:
        return _convolution(x, w, stride, padding)
    if w.shape[1] == 1:
        return _convolution(x.double(), w.double(), stride, padding)
    half = -(-w.shape[1] // 2)
    first, second = (_exact_sum(*parts, stride, padding) for parts in zip(x.split(half, 1), w.split(half, 1)))
    return first.double().add_(second)


def _convolution(x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    if x.shape[2:] == w.shape[2:] == (1, 1):
        return F.linear(x.flatten(1), w.flatten(1))[:, :, None, None]
    with torch.backends.nnpack.flags(enabled=False):  # its transforms are not exact
        return F.conv2d(x, w, None, stride, padding)


def _pack_pixels(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    size, padding = inputs.facts["SIZE"], inputs.facts["PADDING"]
    pixels = inputs.raw("pixels_ptr", size, size, 3)[: inputs.facts["images"]]
    # A byte less 128, as a signed one: down to -128, where everything else ends at -127.
    four = F.pad((pixels ^ INT8_MEAN).view(torch.int8), (0, 1), value=INT8_REAL)
    after = inputs.facts["SIDE"] - size - padding
    return {"packed_ptr": (F.pad(four, (0, 0, padding, after, padding, after)), True)}


def _stem(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    facts = inputs.facts
    packed = inputs.map("packed_ptr", facts["SIDE"], facts["SIDE"], 4).permute(0, 3, 1, 2)
    w = inputs.weight("w_ptr", facts["N"], 8, 8, 4).permute(0, 3, 1, 2)
    if not w[:, :, 7].any() and not w[:, :, :, 7].any():
        packed, w = packed[:, :, :-1, :-1], w[:, :, :7, :7]
    acc = inputs.product(packed, w, stride=2)
    # The maximum first: everything after it keeps the order.
    acc = F.max_pool2d(acc[:, :, : facts["HC"], : facts["WC"]], 3, 2, 1)
    return {"y_ptr": (_nhwc(inputs.biased(acc, "scale_ptr", "b_ptr").relu_()), True)}


def _conv(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    facts = inputs.facts
    taps, c, n, kind = facts["TAPS"], facts["C"], facts["N"], facts["SHORTCUT"]
    x = inputs.map("x_ptr", facts["H"], facts["W"], c).permute(0, 3, 1, 2)
    w = inputs.weight("w_ptr", n, taps, taps, c).permute(0, 3, 1, 2)
    acc = inputs.product(x, w, facts["STRIDE"], taps // 2)
    if kind in (PROJECT, PROJECT_ROUNDED):
        shortcut = inputs.map("shortcut_ptr", facts["SH"], facts["SW"], facts["SC"]).permute(0, 3, 1, 2)
        projected = inputs.product(shortcut, inputs.weight("project_ptr", n, facts["SC"], 1, 1), facts["S_STRIDE"])
    if kind == PROJECT:
        acc = acc.add_(projected)
    y = inputs.biased(acc, "scale_ptr", "b_ptr")
    if kind == IDENTITY:
        shortcut = inputs.map("shortcut_ptr", facts["P"], facts["Q"], n).permute(0, 3, 1, 2)
        if "shortcut_scale_ptr" in inputs:
            shortcut = shortcut.mul_(inputs.weight("shortcut_scale_ptr", 1))
        y = y.add_(shortcut)
    elif kind == PROJECT_ROUNDED:
        shortcut = stored(inputs.biased(projected, "project_scale_ptr", "project_b_ptr"), inputs.dtype("project_ptr"))
        y = y.add_(shortcut.float().mul_(inputs.weight("shortcut_scale_ptr", 1)))
    return {"y_ptr": (_nhwc(y.relu_()), True)}


def _split(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    facts = inputs.facts
    height, width, c = facts["H"], facts["W"], facts["C"]
    f = inputs.map("f_ptr", height, width, c).permute(0, 3, 1, 2)
    acc = inputs.product(f, inputs.weight("w_ptr", 2 * c, c, 1, 1))
    y, x = _nhwc(inputs.biased(acc, "scale_ptr", "b_ptr").half().float()).chunk(2, -1)
    # Tap by tap, as the kernel adds them.
    padded = F.pad(y, (0, 0, 1, 1, 1, 1))
    d = torch.zeros(*y.shape[:-1], 2, c, device=y.device)
    for tap in range(9):
        shifted = padded[:, tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width, None]
        d += shifted * inputs.weight("dw_w_ptr", 2, 9, c)[:, tap]
    d += inputs.weight("dw_b_ptr", 2, c)
    pooled = x[:, 0, 0] if facts["NEAREST"] else x.amax((1, 2))
    s = inputs.weight("of_pool_ptr", -1) * pooled + inputs.weight("of_variance_ptr", -1) * x.var((1, 2), correction=0)
    return {"x_ptr": (x, True), "d_ptr": (d.flatten(-2), True), "s_ptr": (s, False)}


def _detail_and_gate(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    c = inputs.facts["C"]
    d = inputs.map("d_ptr", 2 * c, 1, 1)
    s = inputs.map("s_ptr", c, 1, 1)
    h = inputs.biased(inputs.product(d, inputs.weight("w_d_ptr", 2 * c, 2 * c, 1, 1)), "scale_d_ptr", "b_d_ptr")
    g = inputs.biased(inputs.product(s, inputs.weight("w_g_ptr", c, c, 1, 1)), "scale_g_ptr", "b_g_ptr")
    h, g = ((0.5 * v).mul_((v * _SQRT_HALF).erf_().add_(1)) for v in (h, g))
    if "reciprocal_ptr" in inputs:
        h = h.mul_(inputs.weight("reciprocal_ptr", 1))
    return {"h_ptr": (h.flatten(1), False), "g_ptr": (g.flatten(1), False)}


def _merge(inputs: _Inputs) -> dict[str, tuple[Tensor, bool]]:
    c, hw = inputs.facts["C"], inputs.facts["HW"]
    g = inputs.map("g_ptr", 1, c)
    gated = inputs.map("x_ptr", hw, c).mul_(g).mul_(inputs.weight("reciprocal_ptr", 1))
    operands = torch.cat([stored(gated, inputs.dtype("w_x_ptr")).float(), inputs.map("h_ptr", hw, 2 * c)], -1)
    w = torch.cat([inputs.weight("w_x_ptr", c, c), inputs.weight("w_h_ptr", c, 2 * c)], 1)
    acc = inputs.product(operands.reshape(-1, 3 * c, 1, 1), w[:, :, None, None])
    return {"z_ptr": (inputs.biased(acc, "scale_ptr", "b_ptr").reshape(-1, hw, c), True)}


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


_BY_KERNEL: dict[str, Callable[[_Inputs], dict[str, tuple[Tensor, bool]]]] = {
    "pack_pixels_kernel": _pack_pixels,
    "stem_kernel": _stem,
    "conv_kernel": _conv,
    "split_kernel": _split,
    "detail_and_gate_kernel": _detail_and_gate,
    "merge_kernel": _merge,
}
