"""From a folded network to its plan and its blob of weights: what is planned, what is refused, what is always equal."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tkfnet_engine.errors import UsageError
from tkfnet_engine.kernels.chips import ARCHS
from tkfnet_engine.kernels.network import Network, network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.plan import ALIGNMENT, BUCKETS, Buffer
from tkfnet_engine.kernels.planner import plan_from_network, weight_buffers, weight_layout
from tkfnet_engine.kernels.roofline import floor_bytes
from tkfnet_engine.kernels.weights import packed_weights
from tkfnet_engine.model.fold import FoldedTKFNet, fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from .harness import real_plan


def folded_of(size: int = 224, seed: int = 0, **config: Any) -> FoldedTKFNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fold(TKFNet(TKFNetConfig(**config)), Preprocessing(size=size))


@functools.cache
def network(**config: Any) -> Network:
    return network_of(folded_of(**config))


# --- shapes -----------------------------------------------------------------------------------------------


def test_resnet18_is_read_as_it_is_published():
    net = network()
    facts = net.size, net.stem_side, net.pooled_side, net.side, net.channels, net.classes
    assert facts == (224, 112, 56, 7, 512, 7)
    assert (net.stem, net.pool, net.hidden, net.wide, net.narrow) == (64, "max", 32, 256, 128)
    assert net.channel_means == pytest.approx((123.675, 116.28, 103.53))
    convs = [conv for block in net.blocks for conv in block.convs]
    names = [f"layer{s}.{b}.conv{c}" for s in range(1, 5) for b in (0, 1) for c in (1, 2)]
    assert [conv.name for conv in convs] == names
    assert [conv.name for conv in convs if conv.stride == 2] == [f"layer{s}.0.conv1" for s in (2, 3, 4)]
    projects = {block.project.name: block.project.stride for block in net.blocks if block.project}
    assert projects == {f"layer{s}.0.project": 2 for s in (2, 3, 4)}


def test_resnet50_is_read_as_it_is_published():
    net = network(backbone="resnet50")
    assert [len(b.convs) for b in net.blocks] == [3] * 16 and (net.channels, net.side) == (2048, 7)
    convs = {conv.name: conv for block in net.blocks for conv in block.convs}
    assert [convs[f"layer4.2.conv{i}"].taps for i in (1, 2, 3)] == [1, 3, 1]
    assert [name for name, conv in convs.items() if conv.stride == 2] == [f"layer{s}.0.conv2" for s in (2, 3, 4)]
    projects = {b.project.name: (b.project.cin, b.project.cout, b.project.stride) for b in net.blocks if b.project}
    assert projects["layer1.0.project"] == (64, 256, 1) and projects["layer4.0.project"] == (1024, 2048, 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"tafe": False}, {"pool": None}),
        ({"dcif": False}, {"hidden": 0}),
        ({"pool": "nearest"}, {"pool": "nearest"}),
        ({"width": 0.0625, "classes": 10}, {"stem": 8, "channels": 32, "classes": 10, "hidden": 2}),
        ({"size": 97}, {"stem_side": 49, "pooled_side": 25, "side": 4}),
    ],
)
def test_variants_are_read(config, expected):
    net = network_of(folded_of(**{"width": 0.125} | config))
    assert {name: getattr(net, name) for name in expected} == expected


# --- plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", BUCKETS)
def test_resnet18_takes_22_launches(batch):
    names = [launch.name for launch in real_plan(network(), batch).launches]
    assert len(names) == 22 and len(set(names)) == 22
    assert names[:2] == ["pack_pixels", "stem"]
    assert names[18:] == ["tafe.split", "tafe.detail_and_gate", "tafe.merge", "dcif_and_head"]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("config", "launches"),
    [
        ({"width": 0.125}, 22),
        ({"width": 0.125, "tafe": False}, 19),
        ({"width": 0.125, "tafe": False, "dcif": False, "pool": "nearest"}, 19),
        ({"backbone": "resnet34"}, 38),
        ({"backbone": "resnet50"}, 54),
    ],
)
def test_every_network_is_planned_for_every_architecture(config, launches, arch):
    precisions = ["int8", "float8"] if arch not in ("sm_80", "sm_86") else ["int8"]
    for batch in (1, 3, 33):
        for precision in ["float16", *(precisions if batch == 3 else [])]:
            plan = plan_from_network(network(**config), batch, precision, arch)
            assert len(plan.launches) == launches
            assert (plan.arch, plan.batch, plan.precision) == (arch, batch, precision)
            # All maps and products but those of the first and the last launch, which have none.
            assert [launch.quantised for launch in plan.launches[1:-1]] == [precision != "float16"] * (launches - 2)
            assert plan.weight_bytes == weight_buffers(network(**config), precision)[1]


def test_eight_bits_move_about_half():
    for batch in (1, 256):
        half, int8, float8 = (plan_from_network(network(), batch, p, "sm_90") for p in ("float16", "int8", "float8"))
        assert int8.flops == float8.flops == half.flops
        # At batch 1 the parts of split sums are a third of it, four bytes each in every precision.
        most = 0.7 if batch == 1 else 0.6
        assert 0.5 < int8.bytes / half.bytes <= float8.bytes / half.bytes < most
        assert int8.weight_bytes < 0.53 * half.weight_bytes
        assert floor_bytes(network(), batch, "int8") <= int8.bytes
        assert floor_bytes(network(), batch, "float8") <= float8.bytes
    assert int8.bytes <= 1.15 * floor_bytes(network(), 256, "int8")


def test_a_unit_that_stays_fp16_has_fp16_s_tile_and_machine_code():
    """And its neighbours write what it reads."""
    kept = ("layer3.0", "layer4.1.conv1", "tafe.split")
    half, mixed = plan_from_network(network(), 8, "float16", "sm_90"), None
    mixed = plan_from_network(network(), 8, "int8", "sm_90", kept_float=kept)
    launches = {launch.name: (launch, other) for launch, other in zip(mixed.launches, half.launches, strict=True)}
    for name in ("layer3.0.conv1", "layer4.1.conv1"):
        launch, other = launches[name]
        sizes = [dict(one.constexprs)["BLOCK_K"] for one in (launch, other)]
        assert sizes == [64, 64] and (launch.warps, launch.stages, launch.grid) == (
            other.warps,
            other.stages,
            other.grid,
        )
    dtypes = {
        (name, arg): dict(launches[name][0].args)[f"{arg}_ptr"].dtype
        for name in ("layer2.1.conv2", "layer3.0.conv1", "layer3.0.conv2", "layer4.1.conv1", "layer4.1.conv2")
        for arg in ("x", "w", "y")
    }
    assert dtypes == {
        ("layer2.1.conv2", "x"): "i8", ("layer2.1.conv2", "w"): "i8", ("layer2.1.conv2", "y"): "f16",
        ("layer3.0.conv1", "x"): "f16", ("layer3.0.conv1", "w"): "f16", ("layer3.0.conv1", "y"): "f16",
        ("layer3.0.conv2", "x"): "f16", ("layer3.0.conv2", "w"): "f16", ("layer3.0.conv2", "y"): "i8",
        ("layer4.1.conv1", "x"): "f16", ("layer4.1.conv1", "w"): "f16", ("layer4.1.conv1", "y"): "i8",
        ("layer4.1.conv2", "x"): "i8", ("layer4.1.conv2", "w"): "i8", ("layer4.1.conv2", "y"): "f16",
    }  # fmt: skip
    # A launch with nothing quantised is FP16's own, to the byte.
    assert launches["layer3.0.conv1"][0].variant == launches["layer3.0.conv1"][1].variant
    assert launches["dcif_and_head"][0].variant == launches["dcif_and_head"][1].variant


def test_at_batch_1_every_convolution_fills_an_h200():
    backbone = [launch for launch in real_plan(network(), 1).launches if launch.kernel == "conv_kernel"]
    assert len(backbone) == 16
    assert {launch.name: launch.blocks for launch in backbone if launch.blocks < 96} == {}


def test_at_batch_256_the_plan_moves_hardly_more_than_it_must():
    least = floor_bytes(network(), 256)
    assert least == pytest.approx(9.34e6 * 256 + 28.0e6, rel=0.005)
    assert real_plan(network(), 256).bytes <= 1.15 * least


def test_the_plan_counts_the_network_s_arithmetic():
    """ResNet-18's at 224 x 224 (torchvision: 1.814e9 multiply-accumulates with its classifier), and TAFE's."""
    flops = real_plan(network(), 4).flops / 4
    tafe = 2 * 49 * (10 * 512**2 - 512**2) + 2 * 512**2
    assert flops == pytest.approx(2 * 1.814e9 + tafe, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "sm_70"}, "arch.*'sm_70'.*sm_80"),
        ({"arch": ""}, "arch"),
        ({"precision": "int4"}, "precision.*'int4'.*float16 or int8 or float8"),
        ({"precision": "float32"}, "precision"),
        ({"precision": "float8", "arch": "sm_80"}, "'float8' on sm_80.*sm_89"),
        ({"precision": "float8", "arch": "sm_86"}, "'float8' on sm_86"),
        ({"kept_float": ["tafe.merge"]}, "tafe.merge.*expected nothing with float16"),
        ({"precision": "int8", "kept_float": ["layer9.0", "stem"]}, "got layer9.0, expected some of stem, layer1.0"),
        *(({"batch": batch}, "batch.*1 to 65535") for batch in (0, -1, 65536, True, 1.0, "1", None)),
    ],
    ids=str,
)
def test_what_no_plan_can_be_for_is_refused(changes, message):
    facts = {"batch": 1, "precision": "float16", "arch": "sm_90"} | changes
    with pytest.raises(UsageError, match=message):
        plan_from_network(network(width=0.125), **facts)


DIGEST = """
import hashlib, torch
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.kernels.weights import packed_weights
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import Preprocessing, TKFNetConfig
torch.manual_seed(0)
folded = fold(TKFNet(TKFNetConfig(width=0.125)), Preprocessing())
network = network_of(folded)
digest = hashlib.sha256(packed_weights(folded, network))
for arch, batch in (("sm_90", 1), ("sm_90", 256), ("sm_89", 7)):
    for precision, kept in (("float16", ()), ("int8", ()), ("float8", {"layer1.0.conv1", "tafe.merge"})):
        digest.update(plan_from_network(network, batch, precision, arch, kept_float=kept).to_json())
scales = {p.name: 0.01 * (1 + i) for i, p in enumerate(placement_of(network).points)}
digest.update(packed_weights(folded, network, "int8", scales, {"stem", "tafe.split"}))
print(digest.hexdigest())
"""


def test_plans_and_weights_are_the_same_bytes_in_another_process(tmp_path):
    """In another folder, with another seed for the order of sets, and with Triton compiling instead of interpreting."""
    folded = folded_of(width=0.125)
    here = hashlib.sha256(packed_weights(folded, network_of(folded)))
    for arch, batch in (("sm_90", 1), ("sm_90", 256), ("sm_89", 7)):
        for precision, kept in (("float16", ()), ("int8", ()), ("float8", {"layer1.0.conv1", "tafe.merge"})):
            here.update(plan_from_network(network_of(folded), batch, precision, arch, kept_float=kept).to_json())
    points = placement_of(network_of(folded)).points
    scales = {p.name: 0.01 * (1 + i) for i, p in enumerate(points)}
    here.update(packed_weights(folded, network_of(folded), "int8", scales, {"stem", "tafe.split"}))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONHASHSEED": "4711"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == here.hexdigest()


# --- weights ----------------------------------------------------------------------------------------------


def stored(blob: bytes, buffer: Buffer) -> torch.Tensor:
    raw = torch.frombuffer(bytearray(blob[buffer.offset : buffer.offset + buffer.nbytes]), dtype=torch.uint8)
    return raw.view({"f16": torch.float16, "f32": torch.float32}[buffer.dtype]).double()


def test_weights_are_laid_out_without_overlap():
    buffers, size = weight_buffers(network(width=0.0625))
    assert buffers.keys() == weight_layout(network(width=0.0625)).keys()
    end = 0
    for buffer in sorted(buffers.values(), key=lambda b: b.offset):
        assert buffer.offset % ALIGNMENT == 0 and buffer.offset >= end
        end = buffer.offset + buffer.nbytes
    assert end <= size


def test_each_weight_is_where_the_layout_says():
    folded = folded_of(width=0.0625)
    buffers, size = weight_buffers(network_of(folded))
    blob = packed_weights(folded, network_of(folded))
    assert len(blob) == size
    first, last = folded.blocks[0].convs[0], folded.blocks[2]
    # [N, C, 3, 3] -> [N, 3, 3, C]; the projection's bias joins the last convolution's.
    assert torch.equal(
        stored(blob, buffers["layer1.0.conv1.w"]), first.weight.permute(0, 2, 3, 1).flatten().half().double()
    )
    joined = last.convs[1].bias + last.project.bias
    assert torch.equal(stored(blob, buffers["layer2.0.conv2.b"]), joined.double())
    # Depthwise outputs 2 i + j are stored j by j, and the product behind them reads them so.
    dw = stored(blob, buffers["tafe.dw.w"]).reshape(2, 9, 32)
    assert dw[1, 5, 3] == folded.tafe.detail_dw.weight[7, 0, 1, 2].double()
    detail = stored(blob, buffers["tafe.detail.w"]).reshape(64, 64)
    assert detail[9, 32 + 3] == folded.tafe.detail_pw.weight[9, 7, 0, 0].half().double()
    assert torch.equal(stored(blob, buffers["head.1.w"]).reshape(16, 8), folded.head[1].weight.T.half().double())


def _damage(folded: FoldedTKFNet, where: str, value: float) -> None:
    owner, _, name = where.rpartition(".")
    getattr(folded.get_submodule(owner), name).data.view(-1)[5] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 70000.0, -1e30])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("stem.weight", "stem.w"),
        ("blocks.2.convs.1.weight", "layer2.0.conv2.w"),
        ("blocks.2.project.weight", "layer2.0.project.w"),
        ("tafe.merge.weight", "tafe.merge.x.w"),
        ("dcif.expand.weight", "dcif.expand.w"),
        ("head.2.weight", "head.2.w"),
    ],
)
def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(where, name, value):
    folded = folded_of(width=0.0625)
    _damage(folded, where, value)
    with pytest.raises(UsageError, match=f"^{name}: .*(finite|FP16)"):
        packed_weights(folded, network_of(folded))


VECTORS = ("blocks.0.convs.0.bias", "tafe.of_pool", "tafe.detail_dw.weight", "dcif.spatial.weight")


@pytest.mark.parametrize("where", VECTORS)
def test_a_vector_keeps_float32(where):
    """What FP16 could not hold is taken where float32 is stored, but never NaN."""
    folded = folded_of(width=0.0625)
    _damage(folded, where, 1e30)
    packed_weights(folded, network_of(folded))
    _damage(folded, where, float("nan"))
    with pytest.raises(UsageError, match="finite"):
        packed_weights(folded, network_of(folded))
