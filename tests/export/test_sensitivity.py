"""What one unit costs: measured with this unit alone in eight bits, on the grids of the calibration table."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tkfnet_engine.compare import compare
from tkfnet_engine.errors import UsageError
from tkfnet_engine.export.grids_from_table import grids_from_table
from tkfnet_engine.export.sensitivity import sensitivity
from tkfnet_engine.kernels.network import Network, network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.quantise import float8_weight, quantised_weight
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.fake_quantised import Grid
from tkfnet_engine.model.fold import FoldedTKFNet, fold

# More than one batch of 32, the second not full.
COUNT = 35


@dataclass(frozen=True)
class Table:
    """What is asked of a `CalibrationTable`."""

    points: dict[str, float]

    def scales(self, kind: str) -> dict[str, float]:
        if kind not in ("int8", "float8"):
            raise UsageError(f"scales: got kind {kind!r}")
        most = 127 if kind == "int8" else 448
        return {name: float(np.float32(peak / most)) for name, peak in self.points.items()}

    def affine(self, point: str) -> tuple[float, int]:
        return self.points[point] / 255, 7


@pytest.fixture(scope="module")
def folded(small_checkpoint_path) -> FoldedTKFNet:
    checkpoint = load_checkpoint(small_checkpoint_path)
    return fold(checkpoint.model, checkpoint.preprocessing)


@pytest.fixture(scope="module")
def network(folded) -> Network:
    return network_of(folded)


@pytest.fixture(scope="module")
def images(noise) -> np.ndarray:
    return noise(COUNT, 64, seed=8)


def _run(folded: FoldedTKFNet, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return folded(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def reference(folded, images) -> np.ndarray:
    return _run(folded, images)


@pytest.fixture(scope="module")
def table(folded, network, images) -> Table:
    """The largest magnitude at each point."""
    peaks, hooks = {}, []
    for point in placement_of(network).points:
        module = folded.get_submodule(point.module)

        def note(_module, inputs, *output, point=point):
            peaks[point.name] = float((output[0] if point.of_output else inputs[0]).abs().max())

        register = module.register_forward_hook if point.of_output else module.register_forward_pre_hook
        hooks.append(register(note))
    _run(folded, images)
    for hook in hooks:
        hook.remove()
    return Table({point.name: peaks[point.name] for point in placement_of(network).points})


@pytest.fixture(scope="module")
def found(folded, network, table, images, reference) -> dict[str, float]:
    return sensitivity(folded, network, table, "int8", images, reference)


def test_every_unit_in_the_networks_order(found, network):
    assert list(found) == list(placement_of(network).units) and len(found) == 17
    assert all(10 < value < 90 for value in found.values()), found


def _by_hand(folded, images, scale: float, name: str, precision: str) -> np.ndarray:
    """With one convolution's weights and input rounded, nothing else."""
    folded = copy.deepcopy(folded)
    layer = folded.get_submodule(name)
    if precision == "int8":
        integers, of_weight = quantised_weight(layer.weight)
    else:
        integers, of_weight = float8_weight(layer.weight)
    layer.weight.data = integers.float() * of_weight[:, None, None, None]

    def rounded(_module, inputs):
        units = inputs[0] / scale
        if precision == "int8":
            return (units.round().clamp(-127, 127) * scale,)
        return (units.clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale,)

    layer.register_forward_pre_hook(rounded)
    return np.concatenate([_run(folded, images[:32]), _run(folded, images[32:])])


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_a_unit_is_measured_alone(folded, network, table, images, reference, precision):
    found = sensitivity(folded, network, table, precision, images, reference)
    for unit, module in (("layer3.1.conv2", "blocks.5.convs.1"), ("tafe.merge", "tafe.merge")):
        got = _by_hand(folded, images, table.scales(precision)[unit], module, precision)
        assert found[unit] == compare(reference, got, 20).sqnr_db, unit


def test_float8_leaves_the_stem_in_float(folded, network, table, images, reference, found):
    eighth = sensitivity(folded, network, table, "float8", images, reference)
    assert list(eighth) == [unit for unit in found if unit != "stem"]


def test_a_bad_scale_is_laid_at_the_door_of_those_who_read_the_map(folded, network, table, images, reference, found):
    worse = replace(table, points=table.points | {"tafe.split": table.points["tafe.split"] * 30})
    again = sensitivity(folded, network, worse, "int8", images, reference)
    assert again["tafe.split"] < found["tafe.split"] - 10 and min(again, key=again.__getitem__) == "tafe.split"
    assert {unit for unit in found if again[unit] != found[unit]} == {"tafe.split"}


def test_fewer_bits_for_weights_cost_more(folded, network, table, images, reference, found):
    fewer = sensitivity(folded, network, table, "int8", images, reference, most=15)
    assert all(fewer[unit] < found[unit] for unit in found)


def test_the_network_is_left_as_it_was(folded, images, reference, found):
    assert np.array_equal(_run(folded, images), reference)


@pytest.mark.parametrize("precision", ["float16", "uint8", "int4"])
def test_other_precisions_are_refused(folded, network, table, images, reference, precision):
    with pytest.raises(UsageError, match=f"got .*{precision}"):
        sensitivity(folded, network, table, precision, images, reference)


def test_grids_are_the_tables():
    table = Table({"a": 127.0, "b": 2.54})
    assert grids_from_table(table, "int8") == {"a": Grid("int8", 1.0), "b": Grid("int8", float(np.float32(0.02)))}
    assert grids_from_table(table, "uint8")["a"] == Grid("uint8", 127 / 255, 7)
    assert grids_from_table(table, "float8")["a"].kind == "float8"
    with pytest.raises(UsageError, match="int4"):
        grids_from_table(table, "int4")
