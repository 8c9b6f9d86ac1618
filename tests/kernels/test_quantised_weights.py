"""The blob of eight bits: what lies in it, which scales are folded where, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels.memory import TORCH_DTYPES
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.plan import ALIGNMENT
from tkfnet_engine.kernels.planner import plan_from_network, weight_buffers, weight_layout
from tkfnet_engine.kernels.quantise import float8_weight, quantised_weight
from tkfnet_engine.kernels.weights import conv_weight, detail_weight, packed_weights
from tkfnet_engine.model.fold import FoldedTKFNet

from .test_network_plan import folded_of

KEPT = ("layer1.0.conv2", "layer3.0", "tafe.split")


def drawn_scales(folded: FoldedTKFNet) -> dict[str, float]:
    """Different ones for every point, none of them a power of two."""
    return {p.name: 0.011 * 1.07**i for i, p in enumerate(placement_of(network_of(folded)).points)}


def unpacked(
    folded: FoldedTKFNet, precision: str, kept: tuple[str, ...] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Every weight of the blob, in its shape, and the scales as float32 holds them."""
    scales = drawn_scales(folded)
    network = network_of(folded)
    blob = packed_weights(folded, network, precision, scales, kept)
    layout, (buffers, size) = weight_layout(network, precision, kept), weight_buffers(network, precision, kept)
    assert len(blob) == size and buffers.keys() == layout.keys()
    values = {}
    for name, (dtype, shape) in layout.items():
        at = buffers[name]
        raw = torch.frombuffer(bytearray(blob[at.offset : at.offset + at.nbytes]), dtype=torch.uint8)
        values[name] = raw.view(TORCH_DTYPES[dtype]).reshape(shape)
    return values, {name: float(np.float32(scale)) for name, scale in scales.items()}


@pytest.mark.parametrize("kept", [(), KEPT, ("stem",)], ids=str)
@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_weights_are_laid_out_without_overlap(precision, kept):
    network = network_of(folded_of(width=0.0625))
    buffers, size = weight_buffers(network, precision, kept)
    end = 0
    for buffer in sorted(buffers.values(), key=lambda b: b.offset):
        assert buffer.offset % ALIGNMENT == 0 and buffer.offset >= end
        end = buffer.offset + buffer.nbytes
    assert end <= size
    for batch, arch in ((1, "sm_90"), (64, "sm_89")):
        plan = plan_from_network(network, batch, precision, arch, kept_float=kept)
        used = {b for launch in plan.launches for _, b in launch.args if getattr(b, "space", "") == "weights"}
        # Nothing is packed that no launch reads, and nothing moves.
        assert used == set(buffers.values())


def test_every_scale_is_folded_where_it_belongs():
    folded = folded_of(width=0.0625)
    values, s = unpacked(folded, "int8")
    conv = folded.blocks[0].convs[0]
    held, scale = quantised_weight(conv_weight(conv.weight))
    assert torch.equal(values["layer1.0.conv1.w"], held)
    ratio = s["layer1.0"] / s["layer1.0.conv2"]
    assert torch.equal(values["layer1.0.conv1.scale"], (scale.double() * s["layer1.0"] / s["layer1.0.conv2"]).float())
    assert torch.allclose(values["layer1.0.conv1.scale"], scale * ratio, rtol=1e-6)
    assert torch.equal(values["layer1.0.conv1.b"], (conv.bias.double() / s["layer1.0.conv2"]).float())
    # The block's input is added in units of the next block's.
    assert values["layer1.0.conv2.shortcut_scale"].tolist() == pytest.approx([s["layer1.0"] / s["layer1.1"]])
    # A projection is rounded in units of its own, then added in those of the output.
    project = folded.blocks[2].project
    _, scale = quantised_weight(conv_weight(project.weight))
    expected = scale.double() * s["layer2.0"] / s["layer2.0.project.output"]
    assert torch.equal(values["layer2.0.project.scale"], expected.float())
    assert torch.equal(values["layer2.0.project.b"], (project.bias.double() / s["layer2.0.project.output"]).float())
    assert torch.equal(values["layer2.0.conv2.b"], (folded.blocks[2].convs[1].bias.double() / s["layer2.1"]).float())
    assert values["layer2.0.conv2.shortcut_scale"].item() == pytest.approx(s["layer2.0.project.output"] / s["layer2.1"])
    # The last map is TAFE's input; the split and the merge write FP16.
    assert values["layer4.1.conv2.shortcut_scale"].item() == pytest.approx(s["layer4.1"] / s["tafe.split"])
    _, scale = quantised_weight(folded.tafe.split.weight.flatten(1))
    assert torch.equal(values["tafe.split.scale"], (scale.double() * s["tafe.split"]).float())
    assert torch.equal(values["tafe.split.b"], folded.tafe.split.bias)
    assert torch.allclose(values["tafe.dw.b"].T.flatten() * s["tafe.detail"], folded.tafe.detail_dw.bias, rtol=1e-6)
    assert torch.allclose(values["tafe.of_pool"] * s["tafe.gate"], folded.tafe.of_pool.flatten(), rtol=1e-6)
    assert torch.allclose(values["tafe.of_variance"] * s["tafe.gate"], folded.tafe.of_variance.flatten(), rtol=1e-6)
    assert values["tafe.merge.reciprocal"].item() == pytest.approx(1 / s["tafe.merge"])
    # Both halves of the merge share a scale per output, and the detail's inputs are in the kernel's order.
    held, scale = quantised_weight(folded.tafe.merge.weight.flatten(1))
    assert torch.equal(torch.cat([values["tafe.merge.x.w"], values["tafe.merge.h.w"]], 1), held)
    assert torch.equal(values["tafe.merge.scale"], (scale.double() * s["tafe.merge"]).float())
    held, _ = quantised_weight(detail_weight(folded.tafe.detail_pw.weight))
    assert torch.equal(values["tafe.detail.w"], held)


def test_what_stays_fp16_is_as_in_fp16_but_for_the_units_of_what_it_writes():
    folded = folded_of(width=0.0625)
    values, s = unpacked(folded, "int8", KEPT)
    # Reads FP16 (from a quantised neighbour), adds int8 and writes int8.
    second = folded.blocks[0].convs[1]
    assert torch.equal(values["layer1.0.conv2.w"], conv_weight(second.weight).half())
    assert torch.allclose(values["layer1.0.conv2.scale"], torch.full([8], 1 / s["layer1.1"]))
    assert torch.allclose(values["layer1.0.conv2.b"], second.bias / s["layer1.1"])
    assert values["layer1.0.conv2.shortcut_scale"].item() == pytest.approx(s["layer1.0"] / s["layer1.1"])
    # Its neighbour before writes FP16.
    _, scale = quantised_weight(conv_weight(folded.blocks[0].convs[0].weight))
    assert torch.allclose(values["layer1.0.conv1.scale"], scale * s["layer1.0"], rtol=1e-6)
    assert torch.equal(values["layer1.0.conv1.b"], folded.blocks[0].convs[0].bias)
    # A projected block is one sum again, with one bias.
    block = folded.blocks[4]
    assert "layer3.0.project.b" not in values and "layer3.0.conv2.shortcut_scale" not in values
    assert torch.allclose(values["layer3.0.conv2.b"], (block.convs[1].bias + block.project.bias) / s["layer3.1"])
    assert values["layer3.0.project.w"].dtype == torch.float16
    assert "layer3.0.conv1.scale" not in values
    # The split writes what the quantised detail and gate read.
    assert "tafe.split.scale" not in values and values["tafe.split.w"].dtype == torch.float16
    assert torch.allclose(values["tafe.dw.b"].T.flatten() * s["tafe.detail"], folded.tafe.detail_dw.bias, rtol=1e-6)


def test_float8_keeps_the_stem_and_scales_weights_to_448():
    folded = folded_of(width=0.0625)
    values, s = unpacked(folded, "float8")
    assert values["stem.w"].dtype == torch.float16
    assert torch.allclose(values["stem.scale"], torch.full([8], 1 / s["layer1.0"]))
    held, scale = float8_weight(conv_weight(folded.blocks[0].convs[0].weight))
    assert torch.equal(values["layer1.0.conv1.w"].float(), held.float())
    assert values["layer1.0.conv1.w"].float().abs().amax(1).tolist() == [448.0] * 8
    assert torch.allclose(values["layer1.0.conv1.scale"], scale * s["layer1.0"] / s["layer1.0.conv2"], rtol=1e-6)
    same, _ = unpacked(folded, "float8", ("stem",))
    assert values.keys() == same.keys()


def test_one_scale_of_one_is_a_scale():
    """A scale of 1.0 is not the absence of one."""
    folded = folded_of(width=0.0625)
    network = network_of(folded)
    scales = dict.fromkeys(drawn_scales(folded), 1.0)
    blobs = [packed_weights(folded, network, "int8", scales, kept) for kept in ((), KEPT)]
    assert [len(blob) for blob in blobs] == [weight_buffers(network, "int8", kept)[1] for kept in ((), KEPT)]


def test_scales_of_what_stays_fp16_are_not_looked_at():
    folded = folded_of(width=0.0625)
    network, scales = network_of(folded), drawn_scales(folded)
    kept = ("layer1.0.conv1", "tafe.merge")
    expected = packed_weights(folded, network, "int8", scales, kept)
    damaged = scales | {"tafe.merge": math.nan, "layer1.0.conv1.output": -1.0, "tafe.split.output": 0.0}
    assert packed_weights(folded, network, "int8", damaged, kept) == expected
    needed = {p.name for p in placement_of(network, kept).points if not p.optional}
    assert packed_weights(folded, network, "int8", {n: scales[n] for n in needed}, kept) == expected


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf, -math.inf, 1e39, 1e-50])
def test_a_scale_that_is_none_is_refused_by_name(value):
    folded = folded_of(width=0.0625)
    with pytest.raises(UsageError, match=r"^scale of layer2\.1\.conv2: got .*expected a positive number"):
        packed_weights(folded, network_of(folded), "int8", drawn_scales(folded) | {"layer2.1.conv2": value})


def test_scales_that_do_not_fit_are_refused():
    folded = folded_of(width=0.0625)
    network, scales = network_of(folded), drawn_scales(folded)

    def refused(match: str, precision: str, given: dict[str, float] | None, kept: tuple[str, ...] = ()) -> None:
        with pytest.raises(UsageError, match=match):
            packed_weights(folded, network, precision, given, kept)

    refused("got none, expected one per quantised map for int8; calibrate", "int8", None)
    refused("expected none for float16", "float16", scales)
    refused("got layer9.0, which this network does not have", "int8", scales | {"layer9.0": 0.1})
    fewer = {name: scale for name, scale in scales.items() if name not in ("layer2.0.project.output", "tafe.gate")}
    refused("got none of layer2.0.project.output, tafe.gate, expected one each", "float8", fewer)
    refused("kept in float: got layer9", "int8", scales, ("layer9",))
    # They would do where those units stay FP16.
    packed_weights(folded, network, "float8", fewer, ("layer2.0", "tafe.detail_and_gate"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "where", ["stem.weight", "blocks.2.project.weight", "tafe.merge.weight", "blocks.0.convs.1.bias"]
)
@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_a_weight_that_is_not_finite_is_refused(precision, where, value):
    """Rounded to eight bits it would pass for a number."""
    folded = folded_of(width=0.0625)
    owner, _, name = where.rpartition(".")
    getattr(folded.get_submodule(owner), name).data.view(-1)[3] = value
    with pytest.raises(UsageError, match="expected finite numbers"):
        packed_weights(folded, network_of(folded), precision, drawn_scales(folded))


def test_eight_bits_hold_what_fp16_cannot():
    folded = folded_of(width=0.0625)
    folded.blocks[0].convs[1].weight.data *= 1e7
    with pytest.raises(UsageError, match="FP16"):
        packed_weights(folded, network_of(folded))
    packed_weights(folded, network_of(folded), "int8", drawn_scales(folded))
    with pytest.raises(UsageError, match=r"^layer1\.0\.conv2\.w: .*FP16"):
        packed_weights(folded, network_of(folded), "int8", drawn_scales(folded), ("layer1.0.conv2",))
