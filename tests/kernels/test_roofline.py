"""Occupancy as NVIDIA's calculator has it, the roofline, the floor of a network, and the table of chips."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels.chips import ARCHS, CHIPS, arch_named, chip_named, default_chip, has_float8
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.kernels.roofline import (
    blocks_per_multiprocessor,
    floor_bytes,
    image_bytes,
    occupancy,
    product_precision,
    roofline_seconds,
    weight_bytes,
)
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.plan_report import DEPTHS, network_of_config
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

H200 = CHIPS["H200"]


def _network(size=224, **config):
    return network_of_config(TKFNetConfig(**config), Preprocessing(size=size))


# --- chips -----------------------------------------------------------------------------------------------


def test_every_architecture_has_a_default_chip():
    assert [default_chip(arch) for arch in ARCHS] == ["A100-SXM-80GB", "RTX-3090", "L4", "H200", "B200", "RTX-5090"]
    for arch in ARCHS.values():
        assert arch.shared_per_sm - arch.shared_per_block == 1024 and arch.registers_per_sm == 65536
        assert arch.pdl == (arch.name in ("sm_90", "sm_100", "sm_120"))


def test_chips_are_sound_and_sourced():
    for name, chip in CHIPS.items():
        assert name == chip.name and chip.arch in ARCHS and chip.source.startswith("https://")
        # A FLOP per byte that no chip is far from: a wrong unit or a figure with sparsity would stand out.
        assert 50 < chip.fp16_flops / chip.bandwidth < 450 and chip.l2_bytes >= 6 * 1024**2
        # Products per clock and multiprocessor, at the 1.3 to 2.6 GHz these chips run at: 512 FMA or more, FP16.
        assert 0.4e12 < chip.fp16_flops / chip.multiprocessors < 20e12
    assert (H200.multiprocessors, H200.fp16_flops, H200.bandwidth) == (132, 989.4e12, 4800e9)


def test_eight_bits_are_two_or_four_times_as_fast():
    """Twice where FP16 products have float32 sums at full rate; GeForce boards halve that of floats alone."""
    for name, chip in CHIPS.items():
        times = 4 if name.startswith("RTX") else 2
        assert chip.peak("int8") / chip.fp16_flops == pytest.approx(times, rel=2e-3), name
        assert chip.float8_flops is None or chip.float8_flops / chip.fp16_flops == pytest.approx(2, rel=2e-3), name
        assert has_float8(chip.arch) == (chip.float8_flops is not None), "chips of an architecture agree"
    assert [arch for arch in ARCHS if not has_float8(arch)] == ["sm_80", "sm_86"]
    assert (H200.peak("float16"), H200.peak("int8"), H200.peak("float8")) == (989.4e12, 1978.9e12, 1978.9e12)
    with pytest.raises(UsageError, match="'float8' on RTX-3090, expected float16 or int8"):
        CHIPS["RTX-3090"].peak("float8")


def test_names():
    assert chip_named("h200") is H200 and chip_named("H200", "sm_90") is H200
    with pytest.raises(UsageError, match="'H300', expected one: A100"):
        chip_named("H300")
    with pytest.raises(UsageError, match="expected one of sm_89: L4, RTX-4090"):
        chip_named("H200", "sm_89")
    for call in (arch_named, default_chip):
        with pytest.raises(UsageError, match="'sm_75', expected one of sm_80"):
            call("sm_75")


# --- occupancy -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks"),
    [
        ("sm_90", 32, 0, 4, 16),  # threads
        ("sm_90", 16, 0, 1, 32),  # blocks
        ("sm_90", 64, 0, 4, 8),  # registers
        ("sm_90", 65, 0, 4, 7),  # 72 of them: 28 warps
        ("sm_90", 168, 0, 4, 3),
        ("sm_90", 255, 0, 8, 1),
        ("sm_90", 129, 0, 8, 1),  # 136: three warps to a partition, 12 in all
        ("sm_90", 128, 0, 16, 1),
        ("sm_90", 129, 0, 16, 0),  # a block of 16 warps has 128 at most
        ("sm_90", 70, 49152, 4, 4),  # shared memory: 228 KiB of 48 + 1
        ("sm_90", 32, 227 * 1024, 4, 1),
        ("sm_90", 32, 227 * 1024 + 1, 4, 0),
        ("sm_80", 32, 81 * 1024, 8, 2),
        ("sm_80", 32, 81 * 1024 + 1, 8, 1),
        ("sm_86", 32, 0, 4, 12),
        ("sm_86", 16, 0, 1, 16),
        ("sm_89", 16, 0, 1, 24),
        ("sm_120", 40, 33 * 1024, 4, 2),
        ("sm_120", 40, 49 * 1024, 4, 2),
        ("sm_100", 40, 0, 4, 12),
    ],
)
def test_blocks_per_multiprocessor(arch, registers, shared, warps, blocks):
    assert blocks_per_multiprocessor(ARCHS[arch], registers, shared, warps) == blocks


@given(
    st.sampled_from(list(ARCHS.values())),
    st.integers(16, 255),
    st.integers(0, 227 * 1024),
    st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_what_is_resident_fits(arch, registers, shared, warps):
    blocks = blocks_per_multiprocessor(arch, registers, shared, warps)
    assert 0 <= blocks <= arch.blocks_per_sm and blocks * warps * 32 <= arch.threads_per_sm
    assert blocks * warps * 32 * registers <= arch.registers_per_sm
    assert blocks * (shared + 1024) <= arch.shared_per_sm
    assert blocks_per_multiprocessor(arch, registers + 1, shared + 1, warps) <= blocks


def test_occupancy_and_waves():
    found = occupancy(ARCHS["sm_90"], H200, 98, 70, 49152, 4)
    assert (found.blocks, found.warps) == (4, 0.25) and found.waves == pytest.approx(98 / (4 * 132))
    assert occupancy(ARCHS["sm_90"], H200, 132 * 16, 32, 0, 4).waves == 1
    nothing = occupancy(ARCHS["sm_90"], H200, 1, 255, 0, 32)
    assert (nothing.blocks, nothing.warps, nothing.waves) == (0, 0, None)


def test_roofline():
    assert roofline_seconds(H200, 989_400_000, 0) == pytest.approx(1e-6)
    assert roofline_seconds(H200, 0, 4_800_000) == pytest.approx(1e-6)
    assert roofline_seconds(H200, 989_400_000, 9_600_000) == pytest.approx(2e-6)
    assert roofline_seconds(H200, 1_978_900_000, 0, "int8") == pytest.approx(1e-6)
    assert roofline_seconds(H200, 0, 4_800_000, "int8") == pytest.approx(1e-6)


def test_a_launch_is_as_fast_as_its_products_may_be():
    """Of a network whose second block stays FP16, and whose stem does in FP8."""
    network = _network(width=0.125, size=64)
    for precision, stem in (("int8", "int8"), ("float8", "float16")):
        plan = plan_from_network(network, 2, precision, "sm_90", kept_float=("layer1.1.conv1", "tafe.merge"))
        found = {launch.name: product_precision(launch) for launch in plan.launches}
        kept = {plan.launches[0].name, "layer1.1.conv1", "tafe.merge", plan.launches[-1].name}
        assert found.pop("stem") == stem
        assert {name for name, held in found.items() if held == "float16"} == kept
        assert set(found.values()) == {"float16", precision}
    assert {product_precision(launch) for launch in plan_from_network(network, 2, "float16", "sm_90").launches} == {
        "float16"
    }


# --- the floor -------------------------------------------------------------------------------------------


def test_floor_of_the_published_network():
    network = _network()
    assert round(image_bytes(network) / 1e6, 2) == 9.34 and round(weight_bytes(network) / 1e6, 1) == 28.0
    assert (image_bytes(network), weight_bytes(network)) == (9_336_860, 28_030_176)
    assert floor_bytes(network, 256) == 256 * image_bytes(network) + weight_bytes(network)


def test_floor_of_an_image_by_hand():
    """Width 0.125 at 64 x 64: channels 8, 16, 32, 64 on maps of 16, 8, 4, 2 pixels a side."""
    maps = {16: 2 * 16 * 16 * 8, 8: 2 * 8 * 8 * 16, 4: 2 * 4 * 4 * 32, 2: 2 * 2 * 2 * 64}
    total = 3 * 64 * 64 + maps[16]
    total += 2 * (2 * maps[16] + 3 * maps[16])
    for above, side in ((16, 8), (8, 4), (4, 2)):
        total += maps[above] + maps[side] + 2 * maps[side] + maps[above]  # the shortcut reads the block's input again
        total += 5 * maps[side]
    tafe = (3 + 3 + 4) * maps[2] + 2 * 4 * 64
    head = maps[2] + 4 * 7
    assert image_bytes(_network(64, width=0.125)) == total + tafe + head
    assert image_bytes(_network(64, width=0.125, tafe=False)) == total + head
    assert image_bytes(_network(64, width=0.125, tafe=False, dcif=False)) == total + head


CONFIGS = [
    {},
    {"backbone": "resnet34", "width": 0.125},
    {"backbone": "resnet50", "width": 0.125, "classes": 5},
    {"width": 0.25, "tafe": False},
    {"width": 0.25, "dcif": False, "pool": "nearest"},
    {"width": 0.0625, "tafe": False, "dcif": False},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_shapes_without_a_network_are_the_networks(config):
    """Also the weights: each of the folded network's is counted once, in its own width."""
    preprocessing = Preprocessing(size=224 if not config else 96, mean=(0.5, 0.4, 0.3))
    config = TKFNetConfig(**config)
    folded = fold(TKFNet(config).eval(), preprocessing)
    network = network_of_config(config, preprocessing)
    assert network == network_of(folded)
    factors = [b for n, b in folded.named_buffers() if n.endswith(("of_pool", "of_variance"))]
    vectors = [p for p in folded.parameters() if p.dim() == 1] + factors
    matrices = [p for p in folded.parameters() if p.dim() > 1]
    nbytes = 2 * sum(m.numel() for m in matrices) + 4 * sum(v.numel() for v in vectors)
    joined = sum(4 * block.cout for block in network.blocks if block.project)
    assert weight_bytes(network) == nbytes - joined


def test_depths_are_the_backbones():
    from tkfnet_engine.model import backbone

    assert backbone.DEPTHS == DEPTHS
