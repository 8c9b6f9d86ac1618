"""Rounding to eight bits in the kernels, in PyTorch and in the emulator: one rule, to the bit."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tkfnet_engine.kernels.memory import TORCH_DTYPES
from tkfnet_engine.kernels.product import rounded
from tkfnet_engine.kernels.quantise import (
    FLOAT8_MOST,
    INT8_MOST,
    float8_weight,
    quantised_weight,
    to_float8,
    to_int8,
)
from tkfnet_engine.kernels.quantised_reference import stored, whole_product
from tkfnet_engine.kernels.reference import _rank

BLOCK = 1024
FLOAT8_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


@triton.jit
def round_kernel(x_ptr, y_ptr, back_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    y = rounded(tl.load(x_ptr + at), y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y)
    tl.store(back_ptr + at, y.to(tl.float32))


def rounded_by_kernel(values: Tensor, dtype: str) -> Tensor:
    """float32 [n] -> of `dtype` [n]. What a kernel reads of them again must be what PyTorch does."""
    parts = []
    for part in values.split(BLOCK):
        x, y, back = torch.zeros(BLOCK), torch.zeros(BLOCK, dtype=TORCH_DTYPES[dtype]), torch.zeros(BLOCK)
        x[: len(part)] = part
        round_kernel[(1,)](x, y, back, BLOCK)
        assert torch.equal(back, y.float())
        parts.append(y[: len(part)])
    return torch.cat([part.view(torch.uint8) for part in parts]).view(TORCH_DTYPES[dtype])


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.float(), b.float())


def test_int8_to_the_nearest_and_half_to_even():
    values = torch.cat([torch.arange(-600, 601) / 4, torch.linspace(-130, 130, 5001), torch.tensor([-0.0, 1e-30])])
    got = rounded_by_kernel(values, "i8")
    assert torch.equal(got, to_int8(values))
    assert torch.equal(got.double(), torch.tensor([round(v) for v in values.tolist()]).clamp(-127, 127).double())


def test_float8_to_the_nearest_and_half_to_even():
    """Every value, every middle between two, and what is just beside: also where there are fewer than three bits."""
    values = FLOAT8_VALUES[:127].double()
    middles = (values[1:] + values[:-1]) / 2
    near = torch.cat([values, middles, values * (1 + 2**-20), middles * (1 + 2**-20), middles * (1 - 2**-20)]).float()
    near = torch.cat([near, -near, torch.linspace(-500, 500, 3001), torch.logspace(-12, 3, 3001)])
    got = rounded_by_kernel(near, "f8")
    assert same(got, to_float8(near))
    # And by the distances themselves.
    ends = torch.stack([values[:-1], values[1:]])
    for middle, below, above, even in zip(middles.tolist(), *ends.tolist(), range(126)):
        expected = below if even % 2 == 0 else above
        assert rounded_by_kernel_once(middle) == expected


def rounded_by_kernel_once(value: float) -> float:
    return float(_MIDDLES[value])


def _rounded_middles() -> dict[float, float]:
    values = FLOAT8_VALUES[:127].double()
    middles = (values[1:] + values[:-1]) / 2
    return dict(zip(middles.tolist(), rounded_by_kernel(middles.float(), "f8").double().tolist()))


_MIDDLES = _rounded_middles()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("dtype", "most"), [("i8", INT8_MOST), ("f8", FLOAT8_MOST)])
def test_what_is_too_large_and_nan_become_the_largest(dtype, most):
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 3.4e38, -3.4e38, most, -most, most + 20, -most - 20])
    expected = [most, most, -most, most, -most, most, -most, most, -most]
    assert rounded_by_kernel(values, dtype).float().tolist() == expected
    assert stored(values.clone(), dtype).float().tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=200), st.sampled_from(["i8", "f8"]))
def test_the_emulator_rounds_as_the_kernels_do(values, dtype):
    values = torch.tensor(values, dtype=torch.float32)
    assert same(rounded_by_kernel(values, dtype), stored(values.clone(), dtype))


def test_ranks_count_the_values_between():
    ordered = FLOAT8_VALUES[~FLOAT8_VALUES.float().isnan()]
    ranks = _rank(ordered)
    order = ordered.float().argsort(stable=True)
    steps = ranks[order].diff()
    assert ((steps == 1) | (ordered.float()[order].diff() == 0)).all() and (steps >= 0).all()
    assert torch.equal(_rank(torch.tensor([-127, 0, 5], dtype=torch.int8)), torch.tensor([-127, 0, 5]).int())


# --- weights --------------------------------------------------------------------------------------------------


def test_weights_are_what_their_scales_say():
    weight = torch.randn(24, 5, 3, 3, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 2, 24).reshape(
        -1, 1, 1, 1
    )
    weight[7] = 0
    for quantise, most, relative in ((quantised_weight, 127, 0.0), (float8_weight, 448, 2.0**-4)):
        held, scale = quantise(weight)
        error = (held.double() * scale.double().reshape(-1, 1, 1, 1) - weight.double()).abs()
        inside = weight.abs() <= most * scale.reshape(-1, 1, 1, 1)
        assert (error <= 0.501 * scale.reshape(-1, 1, 1, 1) + relative * weight.abs())[inside].all()
        assert inside.double().mean() > 0.95 and not held[7].float().any() and (scale > 0).all()
        assert held.shape == weight.shape and scale.shape == (24,)


# --- sums of whole numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "taps", "stride"), [(7, 3, 1), (64, 1, 1), (512, 3, 2), (1024, 3, 1), (4096, 1, 1), (1, 3, 1)]
)
def test_whole_products_are_exact(channels, taps, stride):
    """Where float32 holds every sum and where it does not: against PyTorch's whole numbers of 64 bits."""
    draw = torch.Generator().manual_seed(channels)
    x = torch.randint(100, 128, (2, channels, 5, 5), generator=draw)
    w = torch.randint(90, 128, (4, channels, taps, taps), generator=draw)
    w[1] *= -1
    got = whole_product(x.float(), w.float(), stride, taps // 2)
    patches = torch.nn.functional.unfold(x.double(), taps, padding=taps // 2, stride=stride).long()
    exact = torch.einsum("nkp,ck->ncp", patches, w.flatten(1)).reshape(got.shape)
    assert torch.equal(got, exact.int().float())  # one rounding, as the kernels convert their int32
    assert channels * taps**2 < 512 or exact.abs().max() > 2**22
    if channels >= 1024:
        plain = torch.nn.functional.conv2d(x.float(), w.float(), None, stride, taps // 2)
        assert exact.abs().max() > 2**24 and not torch.equal(plain, got)  # which plain float32 gets wrong
