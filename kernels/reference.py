"""What one launch of a plan must write, by plain PyTorch from what it read: the judge of every executor. What a launch
with quantised values must write is in `quantised_reference.py`.

A launch's inputs are still in place after it ran (buffers alive together never share memory), so a launch can be
checked where it stands in a plan, on real data: in the interpreter, on a GPU, before `tune` times a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .classify import classify_reference
from .conv import IDENTITY, NO_SHORTCUT, conv_reference
from .plan import QUANTISED_DTYPES, Buffer, Launch
from .quantised_reference import Reader, quantised_outputs
from .tafe import detail_and_gate_reference, merge_reference, split_reference

# Half a unit in the last place of an FP16 value, relative to it.
HALF_UNIT = 2.0**-11
# Of a quantised map after a float sum, the share that may be the neighbouring value instead.
OTHERWISE_ROUNDED = 0.01


@dataclass(frozen=True)
class Difference:
    """An output of a launch against plain PyTorch in float32. error, allowed: largest absolute differences; of a
    quantised map in steps from one value to the next. unequal, allowed_unequal: how many elements differ at all.

    allowed: in FP16, twice what plain PyTorch errs in FP16 on the same inputs, plus one rounding of the largest value
    to FP16. Where values are quantised, nothing, if only int8 products and what is rounded in order go into the output;
    else one step in few elements, or two roundings to FP16.
    """

    output: str
    error: float
    allowed: float
    unequal: int = 0
    allowed_unequal: int = 0

    @property
    def right(self) -> bool:
        return self.error <= self.allowed and self.unequal <= self.allowed_unequal


def differences(launch: Launch, read: Reader) -> list[Difference]:
    """Compares the outputs of `launch`, which has run, with the reference. read: a buffer's elements, flat."""
    if launch.quantised:
        return _quantised_differences(launch, read)
    exact, rounded = expected_outputs(launch, read, torch.float32), expected_outputs(launch, read, torch.float16)
    args, found = dict(launch.args), []
    for name, value in exact.items():
        got = read(args[name]).to(torch.float32)[: value.numel()].reshape(value.shape)
        error = (got - value).abs().max()
        allowed = 2 * (rounded[name].to(torch.float32) - value).abs().max() + 2 * HALF_UNIT * value.abs().max()
        # A NaN is larger than anything allowed.
        found.append(Difference(name, float(torch.nan_to_num(error, nan=float("inf"))), float(allowed)))
    return found


def _quantised_differences(launch: Launch, read: Reader) -> list[Difference]:
    args, found = dict(launch.args), []
    for name, (value, exact) in quantised_outputs(launch, read).items():
        got = read(args[name])[: value.numel()].reshape(value.shape)
        if args[name].dtype in QUANTISED_DTYPES:
            error, allowed = (_rank(got) - _rank(value)).abs(), 0.0 if exact else 1.0
        else:
            # NaN beside NaN is right: what overflowed FP16 must show.
            error = (got.float() - value.float()).abs().masked_fill(got.isnan() & value.isnan(), 0.0)
            allowed = 0.0 if exact else 4 * HALF_UNIT * float(value.float().abs().max())
        quantised = args[name].dtype in QUANTISED_DTYPES and not exact
        most = 1 + int(OTHERWISE_ROUNDED * value.numel()) if quantised else 0 if exact else value.numel()
        worst = float(torch.nan_to_num(error.float().max(), nan=float("inf")))
        found.append(Difference(name, worst, allowed, int((error != 0).sum()), most))
    return found


def _rank(values: Tensor) -> Tensor:
    """int32: neighbours of the dtype differ by one."""
    if values.dtype == torch.int8:
        return values.int()
    bits = values.view(torch.uint8).int()
    return torch.where(bits < 128, bits, 128 - bits)


def expected_outputs(launch: Launch, read: Reader, dtype: torch.dtype) -> dict[str, Tensor]:
    """By parameter name, what `launch` writes if it computes in `dtype` (float32 or float16) from its own inputs."""
    buffers = {name: value for name, value in launch.args if isinstance(value, Buffer)}
    facts = dict(launch.constexprs) | {name: value for name, value in launch.args if not isinstance(value, Buffer)}

    def get(name: str, *shape: int) -> Tensor:
        value = read(buffers[name])
        return (value if value.dtype == torch.uint8 else value.to(dtype)).reshape(shape)

    outputs = _BY_KERNEL[launch.kernel](get, facts)
    return {name: value.contiguous() for name, value in outputs.items()}


def _pack_pixels(get, facts):
    size, padding = facts["SIZE"], facts["PADDING"]
    pixels = get("pixels_ptr", -1, size, size, 3)[: facts["images"]].float()
    means = torch.tensor([facts[f"MEAN_{c}"] for c in "RGB"], device=pixels.device, dtype=torch.float32)
    four = torch.cat([(pixels - means) / 64, torch.ones_like(pixels[..., :1])], -1)
    after = facts["SIDE"] - size - padding
    return {"packed_ptr": F.pad(four, (0, 0, padding, after, padding, after))}


def _stem(get, facts):
    packed = get("packed_ptr", -1, facts["SIDE"], facts["SIDE"], 4).permute(0, 3, 1, 2)
    w = get("w_ptr", facts["N"], 8, 8, 4).permute(0, 3, 1, 2)
    y = F.relu(F.conv2d(packed, w, get("b_ptr", -1), stride=2)[:, :, : facts["HC"], : facts["WC"]])
    return {"y_ptr": F.max_pool2d(y, 3, 2, 1).permute(0, 2, 3, 1)}


def _conv(get, facts):
    taps, c, n, kind = facts["TAPS"], facts["C"], facts["N"], facts["SHORTCUT"]
    w = get("w_ptr", n, taps, taps, c).permute(0, 3, 1, 2)
    shortcut = project = None
    if kind != NO_SHORTCUT:
        shortcut = get("shortcut_ptr", -1, facts["SH"], facts["SW"], facts["SC"])
        project = None if kind == IDENTITY else get("project_ptr", n, facts["SC"], 1, 1)
    x = get("x_ptr", -1, facts["H"], facts["W"], c)
    return {"y_ptr": conv_reference(x, w, get("b_ptr", -1), facts["STRIDE"], shortcut, project, facts["S_STRIDE"])}


def _split(get, facts):
    h, w, c = facts["H"], facts["W"], facts["C"]
    # Stored j by j, in PyTorch channel 2 i + j.
    dw_w = get("dw_w_ptr", 2, 9, c).permute(2, 0, 1).reshape(2 * c, 1, 3, 3)
    dw_b = get("dw_b_ptr", 2, c).T.reshape(2 * c)
    x, d, s = split_reference(
        get("f_ptr", -1, h, w, c), get("w_ptr", 2 * c, c), get("b_ptr", -1), dw_w, dw_b,
        get("of_pool_ptr", -1), get("of_variance_ptr", -1), "nearest" if facts["NEAREST"] else "max",
    )  # fmt: skip
    return {"x_ptr": x, "d_ptr": d.unflatten(-1, (c, 2)).transpose(-1, -2).flatten(-2), "s_ptr": s}


def _detail_and_gate(get, facts):
    c = facts["C"]
    h, g = detail_and_gate_reference(
        get("d_ptr", -1, 2 * c), get("w_d_ptr", 2 * c, 2 * c), get("b_d_ptr", -1),
        get("s_ptr", -1, c), get("w_g_ptr", c, c), get("b_g_ptr", -1),
    )  # fmt: skip
    return {"h_ptr": h, "g_ptr": g}


def _merge(get, facts):
    c, hw = facts["C"], facts["HW"]
    w = torch.cat([get("w_x_ptr", c, c), get("w_h_ptr", c, 2 * c)], 1)
    x, h = get("x_ptr", -1, 1, hw, c), get("h_ptr", -1, 1, hw, 2 * c)
    return {"z_ptr": merge_reference(x, get("g_ptr", -1, c), h, w, get("b_ptr", -1))}


def _classify(get, facts):
    c, wide, narrow, hidden = facts["C"], facts["WIDE"], facts["NARROW"], facts["HIDDEN"]
    dcif = None
    if hidden:
        dcif = (
            get("squeeze_w_ptr", hidden, c), get("squeeze_b_ptr", -1),
            get("expand_w_ptr", hidden, c).T, get("expand_b_ptr", -1), get("spatial_ptr", 1, 2, 7, 7),
        )  # fmt: skip
        dcif = tuple(t.float() for t in dcif)
    head = [
        (get("w0_ptr", wide, c), get("b0_ptr", -1)),
        (get("w1_ptr", wide, narrow).T, get("b1_ptr", -1)),
        (get("w2_ptr", facts["CLASSES"], narrow), get("b2_ptr", -1)),
    ]
    z = get("z_ptr", -1, facts["H"], facts["W"], c)[: facts["images"]]
    return {"logits_ptr": classify_reference(z, dcif, [(w.float(), b.float()) for w, b in head])}


_BY_KERNEL = {
    "pack_pixels_kernel": _pack_pixels,
    "stem_kernel": _stem,
    "conv_kernel": _conv,
    "split_kernel": _split,
    "detail_and_gate_kernel": _detail_and_gate,
    "merge_kernel": _merge,
    "classify_kernel": _classify,
}
