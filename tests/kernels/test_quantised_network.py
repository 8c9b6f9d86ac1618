"""Whole networks of eight bits: the interpreter and the emulator against each other and against PyTorch with rounded
weights and maps, whatever stays FP16."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tkfnet_engine.build import reference_checkpoint
from tkfnet_engine.compare import compare
from tkfnet_engine.data import open_data
from tkfnet_engine.kernels.emulator import Emulator
from tkfnet_engine.kernels.interpret import Interpreter, interpreter_plan
from tkfnet_engine.kernels.network import Network, network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.plan import Buffer, Launch, Plan
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.kernels.quantise import quantised_weight
from tkfnet_engine.kernels.quantised_weights import int8_stem_weight
from tkfnet_engine.kernels.reference import differences
from tkfnet_engine.kernels.weights import packed_weights
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fold import FoldedTKFNet, fold
from tkfnet_engine.preprocess import stack_crops
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from .harness import WRITTEN, scales_of
from .test_whole_network import settled_model


@dataclass(frozen=True)
class Small:
    """A narrow network, its scales for each precision, and images that it tells apart."""

    folded: FoldedTKFNet
    network: Network
    pixels: np.ndarray

    def plan(self, precision: str, kept: tuple[str, ...], batch: int = 2) -> Plan:
        return interpreter_plan(self.network, batch, precision, "sm_90", kept)

    def weights(self, precision: str, kept: tuple[str, ...]) -> bytes:
        scales = scales_of(self.folded, self.network, self.pixels, precision)
        return packed_weights(self.folded, self.network, precision, scales, kept)


@functools.cache
def small(size: int = 40, mean: float | None = None, **config: Any) -> Small:
    pixels = np.random.default_rng(5).integers(0, 256, (12, size, size, 3), np.uint8)
    preprocessing = Preprocessing(size=size, **({} if mean is None else {"mean": (mean,) * 3}))
    folded = fold(settled_model(pixels, preprocessing, TKFNetConfig(**{"width": 0.125} | config)), preprocessing)
    return Small(folded, network_of(folded), pixels)


def judge(run: Interpreter | Emulator, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor]]:
    """The logits, and every output by "launch.argument"; each launch has been judged by what it read."""
    written: dict[str, Tensor] = {}

    def after(launch: Launch) -> None:
        wrong = [str(d) for d in differences(launch, run.view) if not d.right]
        assert not wrong, f"{launch.name}: {wrong}"
        for name, buffer in launch.args:
            if name in WRITTEN[launch.kernel] and isinstance(buffer, Buffer):
                written[f"{launch.name}.{name}"] = run.view(buffer).clone()

    return run.run(pixels, after), written


def drawn_kept(network: Network, count: int, seed: int) -> list[tuple[str, ...]]:
    """Random sets of units that stay FP16, of every size."""
    units, draw = placement_of(network).units, random.Random(seed)
    return [tuple(draw.sample(units, draw.randint(1, len(units) - 1))) for _ in range(count)]


def shape_of(config: dict[str, Any]) -> Network:
    from tkfnet_engine.plan_report import network_of_config

    return network_of_config(TKFNetConfig(**{"width": 0.125} | config), Preprocessing(size=40))


CONFIGS = [{}, {"pool": "nearest", "dcif": False, "size": 33}, {"tafe": False}, {"backbone": "resnet50"}]
MIXTURES = [
    *(("int8", config, ()) for config in CONFIGS),
    ("float8", {}, ()),
    *(("int8", {}, kept) for kept in drawn_kept(shape_of({}), 4, seed=1)),
    *(("float8", {}, kept) for kept in drawn_kept(shape_of({}), 2, seed=2)),
    ("int8", {"backbone": "resnet50"}, drawn_kept(shape_of({"backbone": "resnet50"}), 1, seed=3)[0]),
]


@pytest.mark.parametrize(
    ("precision", "config", "kept"), MIXTURES, ids=lambda v: None if isinstance(v, tuple) else str(v)
)
@torch.no_grad()
def test_the_emulator_is_the_interpreter(precision, config, kept):
    """Map by map while nothing but sums of whole numbers has gone into them; then each launch from what it read."""
    net = small(**config)
    plan, weights = net.plan(precision, kept), net.weights(precision, kept)
    got, interpreted = judge(Interpreter(plan, weights), net.pixels[:2])
    emulated, emulated_maps = judge(Emulator(plan, weights), net.pixels[:2])
    assert interpreted.keys() == emulated_maps.keys()
    exact = 0
    for name, value in interpreted.items():
        launch = next(entry for entry in plan.launches if name.startswith(f"{entry.name}."))
        whole = all(b.dtype == "i8" for n, b in launch.args if n.startswith("w_") and isinstance(b, Buffer))
        if not whole or name.startswith(("tafe.detail", "dcif", "head")):
            break
        if not name.endswith(".s_ptr"):
            assert torch.equal(value, emulated_maps[name]), name
            exact += 1
    placement = placement_of(net.network, kept)
    if precision == "int8" and not kept:
        assert exact == sum(len(block.convs) for block in net.network.blocks) + 2 + 2 * (net.network.pool is not None)
    if precision == "int8" and not kept and net.network.pool is None:
        assert np.abs(got - emulated).max() <= 1e-4 * np.abs(emulated).max()
    # The plan quantises what it was asked to.
    dtype = {"int8": "i8", "float8": "f8"}[precision]
    names = {launch.name: launch for launch in plan.launches}
    for product in placement.products:
        name = f"w_{product.name[5]}_ptr" if product.unit == "tafe.detail_and_gate" else "w_ptr"
        name = "w_x_ptr" if product.name == "tafe.merge" else name
        launch = names.get(product.unit if product.name.startswith("tafe") else product.name)
        if launch is not None and not (precision == "float8" and product.name == "stem"):
            assert dict(launch.args)[name].dtype == dtype
    assert any(launch.quantised for launch in plan.launches)


# --- against PyTorch with rounded weights and maps -----------------------------------------------------------


def fake_quantised(net: Small, kept: tuple[str, ...]) -> nn.Module:
    """The folded network in float64 with weights and maps rounded to int8, or FP16 where they stay so: no code of the
    kernels but what quantises the stem's weight."""
    scales = scales_of(net.folded, net.network, net.pixels, "int8")
    model, whole, placement = (
        copy.deepcopy(net.folded).double(),
        placement_of(net.network),
        placement_of(net.network, kept),
    )

    def rounded(value: Tensor, scale: float | None) -> Tensor:
        if scale is None:
            return value.to(torch.float16).double()
        scale = float(np.float32(scale))
        return (value / scale).round().clamp(-127, 127) * scale

    for product in whole.products:
        module, weight = model.get_submodule(product.module), net.folded.get_submodule(product.module).weight
        if not placement.has_product(product.name):
            module.weight.data = weight.to(torch.float16).double()
            continue
        if product.name == "stem":
            held, scale, _ = int8_stem_weight(weight, net.network.channel_means)
            held = held[:, :7, :7, :3].permute(0, 3, 1, 2)
        else:
            held, scale = quantised_weight(weight)
        module.weight.data = held.double() * scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    for point in whole.points:
        module, scale = model.get_submodule(point.module), None
        if placement.has_point(point.name):
            scale = scales[point.name]
        if not point.of_output:
            module.register_forward_pre_hook(lambda m, i, s=scale: (rounded(i[0], s),))
        elif not point.optional and scale is not None:  # a projection's, which FP16 never rounds
            module.register_forward_hook(lambda m, i, o, s=scale: rounded(o, s))
    return model


@pytest.mark.parametrize(
    "kept",
    [(), ("stem", "layer4.1.conv1"), ("layer1.0.conv1",), ("layer1.0.conv2",), ("layer2.0",), ("layer2.1.conv2",)],
    ids=str,
)
@torch.no_grad()
def test_int8_is_pytorch_with_rounded_weights_and_maps(kept, monkeypatch):
    """Scales, layouts, shortcuts and the stem, from pixels to logits. With means of 128 the stem's fourth channel has
    no weight, so that padding is exactly PyTorch's. The classifier's weights in FP16 are most of what is left, and in
    few images a float sum in another order, which tips a value over to the next step."""
    net = small(tafe=False, mean=128 / 255)
    model = fake_quantised(net, kept)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)  # the folded network's own steps to float32
        expected = model(torch.from_numpy(net.pixels)).numpy()
    plan = plan_from_network(net.network, 4, "int8", "sm_90", kept_float=kept)
    got = Emulator(plan, net.weights("int8", kept)).run(net.pixels)
    of_images = np.abs(expected - got).max(1)
    assert np.abs(expected).max() > 1 and np.median(of_images) <= 0.005, of_images


def test_more_images_than_a_batch_and_fewer():
    net = small()
    weights = net.weights("int8", ())
    whole = Emulator(net.plan("int8", (), batch=12), weights).run(net.pixels)
    assert whole.shape == (12, 7) and whole.dtype == np.float32
    for batch in (1, 5, 32):
        parts = Emulator(net.plan("int8", (), batch), weights).run(net.pixels)
        assert np.abs(parts - whole).max() <= 1e-4 * np.abs(whole).max()
    assert Emulator(net.plan("int8", (), 4), weights).run(net.pixels[:0]).shape == (0, 7)


@torch.no_grad()
def test_the_tiles_of_a_real_plan_give_the_same_answer():
    """With splits in most layers, the projected ones among them; and again, with other images in between."""
    net = small()
    weights = net.weights("int8", ())
    plan = plan_from_network(net.network, 2, "int8", "sm_90")
    splits = [launch.name for launch in plan.launches if dict(launch.constexprs).get("SPLIT", 1) > 1]
    assert len(splits) >= 8 and {"layer2.0.conv2", "layer4.0.conv2"} & set(splits)
    real, large = Interpreter(plan, weights), Interpreter(net.plan("int8", ()), weights)
    first, maps = judge(real, net.pixels[:2])
    assert np.abs(first - large.run(net.pixels[:2])).max() <= 1e-3 * np.abs(first).max()
    real.run(net.pixels[2:3])
    again, maps_again = judge(real, net.pixels[:2])
    assert (again == first).all() and all(torch.equal(maps_again[name], value) for name, value in maps.items())


# --- the shipped reference --------------------------------------------------------------------------------------


@functools.cache
def reference() -> Small:
    checkpoint = load_checkpoint(reference_checkpoint())
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    faces = open_data("synthetic:n=1400,seed=977", "test")
    pixels = stack_crops([faces.image(i) for i in range(16)], checkpoint.preprocessing.size)
    return Small(folded, network_of(folded), pixels)


@pytest.mark.parametrize("precision", ["int8", "float8"])
@torch.no_grad()
def test_the_shipped_reference_in_eight_bits(precision):
    """Scales from the largest values lose most in TAFE's merge, whose two operands share one: it stays FP16 here."""
    net, kept = reference(), ("tafe.merge",)
    exact = net.folded(torch.from_numpy(net.pixels)).numpy()
    plan = plan_from_network(net.network, 8, precision, "sm_90", kept_float=kept)
    found = compare(exact, Emulator(plan, net.weights(precision, kept)).run(net.pixels), 20.0)
    assert found.sqnr_db >= 20.0 and found.top1_agreement >= 0.9, str(found)


@pytest.mark.full
@pytest.mark.parametrize("precision", ["int8", "float8"])
@torch.no_grad()
def test_the_shipped_reference_in_the_interpreter(precision):
    net = reference()
    weights = net.weights(precision, ())
    plan = net.plan(precision, (), batch=1)
    got, _ = judge(Interpreter(plan, weights), net.pixels[:1])
    emulated = Emulator(plan, weights).run(net.pixels[:1])
    assert np.abs(got - emulated).max() <= 0.01 * np.abs(emulated).max()
