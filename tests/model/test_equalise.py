"""Equalisation changes no bit of what is computed in float32, and brings channels to like ranges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels.quantise import INT8_MOST, quantised_weight
from tkfnet_engine.model.equalise import MOST_SHIFT, Shifts, equalise, equalise_in_place, shifts_from_peaks
from tkfnet_engine.model.fold import FoldedTKFNet, fold, fold_live
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.spec import TKFNetConfig

SMALL = TKFNetConfig(width=0.125)
CHANNELS = SMALL.features
# Larger than any other by far; a power of two, so that what it is scaled by cancels exactly.
LOUD, LOUD_BY = 5, 64.0


def _images(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _model(config: TKFNetConfig = SMALL) -> TKFNet:
    """Batch norms that know the images; the gate reads the variance, too."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        model = TKFNet(config)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
        if config.tafe:
            model.tafe.beta.copy_(torch.rand(model.tafe.beta.shape) - 0.3)
        model.train()(normalise(_images(24, 1)))
    return model.eval()


def _random_shifts(seed: int = 0) -> Shifts:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (2, CHANNELS), generator=generator)
    return Shifts(*(tuple(row) for row in drawn.tolist()))


def _read(folded: FoldedTKFNet) -> tuple[torch.Tensor, torch.Tensor]:
    """What merge [N, 3 C, H, W] and gate [N, C, 1, 1] read."""
    found = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: found.__setitem__(module, inputs[0]))
        for module in (folded.tafe.merge, folded.tafe.gate)
    ]
    with torch.no_grad():
        folded(_images())
    for hook in hooks:
        hook.remove()
    return found[folded.tafe.merge], found[folded.tafe.gate]


def _measured(folded: FoldedTKFNet) -> Shifts:
    return shifts_from_peaks(folded, *(values.abs().amax((0, 2, 3)) for values in _read(folded)))


# --- nothing changes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dcif", [True, False])
@pytest.mark.parametrize("pool", ["max", "nearest"])
@torch.no_grad()
def test_the_logits_keep_every_bit(pool, dcif):
    folded = fold(_model(replace(SMALL, pool=pool, dcif=dcif)))
    expected = folded(_images())
    for shifts in (_random_shifts(), _measured(folded)):
        assert len(set(shifts.gated)) > 1 and len(set(shifts.statistics)) > 1
        assert torch.equal(equalise(folded, shifts)(_images()), expected)
    assert expected.std(0).min() > 1e-3


@torch.no_grad()
def test_without_tafe_there_is_nothing_to_shift():
    folded = fold(_model(replace(SMALL, tafe=False)))
    equal = equalise(folded, Shifts())
    assert equal is not folded and torch.equal(equal(_images()), folded(_images()))
    with pytest.raises(UsageError, match="got 1 and 1 shifts, expected 0 of each"):
        equalise(folded, Shifts((0,), (0,)))


@torch.no_grad()
def test_the_network_given_stays_as_it_was():
    folded = fold(_model())
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    equal = equalise(folded, _random_shifts())
    assert list(equal.state_dict()) == list(before)
    for value in equal.state_dict().values():  # nor does it share memory with the copy
        value.fill_(float("nan"))
    assert all(torch.equal(value, before[name]) for name, value in folded.state_dict().items())


def test_gradients_keep_every_bit_as_well():
    model, found = _model(), []
    for shifts in (Shifts((0,) * CHANNELS, (0,) * CHANNELS), _random_shifts()):
        model.zero_grad()
        live = fold_live(model)
        equalise_in_place(live, shifts)
        live(_images()).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert found[0]["tafe.split.weight"].abs().max() > 0


# --- shifts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gated", "statistics"), [(CHANNELS - 1, CHANNELS), (CHANNELS, CHANNELS + 1), (0, 0)], ids=str)
def test_other_widths_are_refused(gated, statistics):
    message = f"got {gated} and {statistics} shifts, expected {CHANNELS} of each; calibrate again"
    with pytest.raises(UsageError, match=message):
        equalise(fold(_model()), Shifts((0,) * gated, (0,) * statistics))


def _loud() -> FoldedTKFNet:
    """A network in which one channel of x is `LOUD_BY` times what it was, and its columns as much smaller."""
    folded = fold(_model())
    tafe = folded.tafe
    for part in (tafe.split.weight, tafe.split.bias):
        part.data[CHANNELS + LOUD] *= LOUD_BY
    for part in (tafe.merge.weight, tafe.gate.weight):
        part.data[:, LOUD] /= LOUD_BY
    tafe.of_variance[0, LOUD] /= LOUD_BY
    return folded


@torch.no_grad()
def test_the_loud_channel_is_brought_to_the_others():
    quiet, folded = fold(_model()), _loud()
    assert torch.equal(quiet(_images()), folded(_images()))
    shifts, before = _measured(folded), _measured(quiet)
    log = math.log2(LOUD_BY)
    assert shifts.gated[LOUD] == before.gated[LOUD] + log
    assert shifts.statistics[LOUD] == before.statistics[LOUD] + log
    others = [i for i in range(CHANNELS) if i != LOUD]
    assert [shifts.gated[i] for i in others] == [before.gated[i] for i in others]


@torch.no_grad()
def test_every_channel_ends_near_the_middle():
    """Within half a power of two of the median, by the measure of range over column that rounding is blind to."""
    folded = _loud()
    shifts = _measured(folded)
    assert max(map(abs, (*shifts.gated, *shifts.statistics))) < MOST_SHIFT
    equal = equalise(folded, shifts)
    for which, towards in ((0, slice(CHANNELS, None)), (1, None)):
        spreads = []
        for network in (folded, equal):
            values, layer = _read(network)[which], (network.tafe.merge, network.tafe.gate)[which]
            spreads.append((values.abs().amax((0, 2, 3)) / layer.weight.flatten(1).abs().amax(0)).sqrt())
        middle = spreads[0][spreads[0] > 0].median() if towards is None else spreads[0][towards].median()
        away = (spreads[1][:CHANNELS] / middle).log2().abs()
        assert float(away[spreads[1][:CHANNELS] > 0].max()) <= 0.5 + 1e-5
        assert float((spreads[0][:CHANNELS] / middle).log2().abs().max()) > 4.5


def _merge_error(folded: FoldedTKFNet) -> float:
    """Of merge in eight bits, relative to what it gives in float."""
    x, layer = _read(folded)[0], folded.tafe.merge
    step = x.abs().max() / INT8_MOST
    integers, scale = quantised_weight(layer.weight)
    rounded = nn.functional.conv2d((x / step).round() * step, integers * scale[:, None, None, None], layer.bias)
    exact = layer(x)
    return float((rounded - exact).square().mean().sqrt() / exact.std())


@torch.no_grad()
def test_rounding_costs_far_less_afterwards():
    folded = _loud()
    before, after = _merge_error(folded), _merge_error(equalise(folded, _measured(folded)))
    assert after < before / 4 and after < 0.05, (before, after)


@torch.no_grad()
def test_dead_channels_are_left_and_shifts_are_bounded():
    folded = fold(_model())
    merge, gate = (values.abs().amax((0, 2, 3)) for values in _read(folded))
    merge[0], gate[1] = 0.0, 0.0
    folded.tafe.merge.weight.data[:, 2] = 0.0
    folded.tafe.gate.weight.data[:, 3] = 0.0
    merge[4], gate[4] = merge[4] * 2.0**60, gate[4] / 2.0**60
    shifts = shifts_from_peaks(folded, merge, gate)
    assert shifts.gated[0] == shifts.gated[2] == shifts.statistics[1] == shifts.statistics[3] == 0
    assert (shifts.gated[4], shifts.statistics[4]) == (MOST_SHIFT, -MOST_SHIFT)
    # Where all of h is dead there is nothing to bring x g to.
    silent = torch.cat([merge[:CHANNELS], torch.zeros(2 * CHANNELS)])
    assert shifts_from_peaks(folded, silent, gate) == Shifts((0,) * CHANNELS, shifts.statistics)
    nothing = shifts_from_peaks(folded, torch.zeros_like(merge), torch.zeros_like(gate))
    assert nothing == Shifts((0,) * CHANNELS, (0,) * CHANNELS)
