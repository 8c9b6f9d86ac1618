"""The fold that gradients pass: the same numbers as `fold`, and the gradients of the model in evaluation mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tkfnet_engine.model.fold import fold, fold_live, put
from tkfnet_engine.model.net import TKFNet, normalise
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

CONFIGS = [
    TKFNetConfig(width=0.125),
    TKFNetConfig("resnet50", width=0.0625, pool="nearest"),
    TKFNetConfig(width=0.125, tafe=False, dcif=False),
]
FACTS = Preprocessing(size=64, mean=(0.3, 0.5, 0.4), std=(0.2, 0.3, 0.25))


def _images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _model(config: TKFNetConfig) -> TKFNet:
    """Batch norms that know the images, and no parameter at a value that hides its gradient."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        model = TKFNet(config)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = None
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
        if config.tafe:
            model.tafe.beta.uniform_(-0.5, 0.5)
        model.train()(normalise(_images(24, 1), FACTS))
    return model


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_computes_what_fold_does_bit_for_bit(config):
    model = _model(config)
    live, fixed = fold_live(model, FACTS), fold(model, FACTS)
    assert not list(live.parameters())
    assert torch.equal(live(_images(4)), fixed(_images(4)))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_gradients_are_those_of_the_model(config):
    """Of the model in float64, within what float32 rounds; every parameter has one."""
    model, images = _model(config), _images(4)
    fold_live(model, FACTS)(images).square().sum().backward()
    wide = TKFNet(config).double().eval()
    wide.load_state_dict(model.state_dict())
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (FACTS.mean, FACTS.std))
    wide(((images.double() / 255 - mean) / std).permute(0, 3, 1, 2)).square().sum().backward()
    expected = dict(wide.named_parameters())
    for name, parameter in model.named_parameters():
        exact = expected[name].grad
        assert parameter.grad is not None and exact.abs().max() > 0, name
        assert float((parameter.grad - exact).norm() / exact.norm()) < 1e-3, name


def test_statistics_stay_whatever_the_mode():
    model = _model(CONFIGS[0]).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    fold_live(model, FACTS)(_images(4)).sum().backward()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_what_needs_no_gradient_is_a_parameter_as_ever():
    model = _model(CONFIGS[0])
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    live = fold_live(model, FACTS)
    names = [name for name, _ in live.named_parameters()]
    assert "stem.weight" in names and "blocks.7.convs.1.bias" in names and "tafe.split.weight" not in names
    live(_images(2)).sum().backward()
    assert model.backbone.conv1.weight.grad is None and model.tafe.split.weight.grad is not None


def test_folding_draws_no_random_number():
    model, state = _model(CONFIGS[0]), torch.get_rng_state()
    fold(model)
    fold_live(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_put_keeps_parameters_in_their_order_and_buffers_registered():
    layer = nn.Linear(2, 3)
    put(layer, "weight", torch.zeros(3, 2))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert not layer.weight.requires_grad and not layer.weight.any()
    layer.register_buffer("of", torch.ones(1))
    put(layer, "of", torch.zeros(1))
    assert dict(layer.named_buffers())["of"] == 0
    alive = torch.ones(3, 2, requires_grad=True) * 2
    put(layer, "weight", alive)
    put(layer, "of", alive.sum())
    assert layer.weight is alive and [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.of.requires_grad
