"""`part_launches` on plans in eight bits, with the emulator as the GPU."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
# Not imported yet: tests/kernels chooses first whether Triton interprets.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

KEPT = {"int8": ("layer1.1.conv2",), "float8": ("stem", "tafe.merge")}
CUBIN = {"code": b"", "entry": "k", "registers": 90, "spilled_bytes": 0, "shared_bytes": 1024, "tensor_core": {}}


@pytest.fixture(scope="module")
def small(small_checkpoint_path, noise):
    """small(precision): network, packed weights, images and logits of an engine in `precision` that keeps one unit
    float."""
    from tkfnet_engine.kernels.emulator import Emulator
    from tkfnet_engine.kernels.network import network_of
    from tkfnet_engine.kernels.planner import plan_from_network
    from tkfnet_engine.kernels.weights import packed_weights
    from tkfnet_engine.model.checkpoint import load_checkpoint
    from tkfnet_engine.model.fold import fold

    from ..kernels.harness import scales_of

    checkpoint = load_checkpoint(small_checkpoint_path)
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    network, pixels = network_of(folded), noise(40, 64, seed=8)

    def make(precision):
        scales = scales_of(folded, network, pixels, precision)
        weights = packed_weights(folded, network, precision, scales, KEPT[precision])
        plan = plan_from_network(network, 8, precision, "sm_90", kept_float=KEPT[precision])
        logits = Emulator(plan, weights).run(pixels)
        return SimpleNamespace(network=network, weights=weights, pixels=pixels, logits=logits)

    return make


@pytest.fixture
def checked(small, monkeypatch, scripts_importable):
    """checked(precision, batch, after=None): what `part_launches` finds of a plan that the emulator runs."""
    import part_launches

    from tkfnet_engine.export.cubins_from_plan import Cubin
    from tkfnet_engine.kernels.chips import CHIPS
    from tkfnet_engine.kernels.plan import SPACES
    from tkfnet_engine.kernels.planner import plan_from_network

    from ..emulated_gpu import EmulatedGpu

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def run(precision, batch, after=None):
        held = small(precision)
        plan = plan_from_network(held.network, batch, precision, "sm_90", kept_float=KEPT[precision])
        cubins = {launch.variant: Cubin(**CUBIN, ptx="") for launch in plan.launches}
        parts = part_launches.EngineParts({batch: plan}, cubins, held.weights, KEPT[precision])
        memory = EmulatedGpu({space: plan.nbytes(space) for space in SPACES}, held.weights, after)
        memory.load(cubins, part_launches.threads_of(plan.launches))
        faces = part_launches.Faces(held.pixels, held.logits)
        return part_launches.run_plan(memory, plan, parts, faces, CHIPS["H200"]), memory, plan

    return run


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_every_launch_is_checked_and_timed_beside_the_roofline_of_its_products(precision, checked):
    from tkfnet_engine.kernels.chips import CHIPS

    found, memory, plan = checked(precision, 33)
    assert not found["wrong"] and found["worst"] <= {"int8": 0, "float8": 0.5}[precision] and found["sqnr_db"] > 60
    rows = {row["name"]: row for row in found["launches"]}
    assert [(row["name"],) for row in found["launches"]] == memory.timed[:-1]
    assert memory.timed[-1] == tuple(launch.name for launch in plan.launches)
    in_float = {name for name, row in rows.items() if row["precision"] == "float16"}
    assert in_float == {plan.launches[0].name, *KEPT[precision], plan.launches[-1].name}
    for launch in plan.launches:  # so narrow that bytes decide
        least = 1e6 * launch.bytes / CHIPS["H200"].bandwidth
        assert rows[launch.name]["roofline_us"] == pytest.approx(least, abs=6e-4)


@pytest.mark.parametrize(("dtype", "us"), [("f16", 2.0), ("i8", 1.0), ("f8", 1.0)])
def test_the_roofline_is_at_the_peak_of_the_products(dtype, us, scripts_importable):
    from part_launches import timed

    from tkfnet_engine.kernels.chips import CHIPS
    from tkfnet_engine.kernels.plan import Buffer, Launch

    args = (("x_ptr", Buffer("arena", 0, dtype, 1)), ("w_ptr", Buffer("weights", 0, dtype, 1)))
    launch = Launch("a", "conv_kernel", (1, 1, 1), args, (), 4, 3, 1_978_800_000, 16, 16, 0)
    memory = SimpleNamespace(time_us=lambda plan, launches: 4.0)
    found = timed(memory, None, launch, CHIPS["H200"])
    assert (found["roofline_us"], found["fraction"]) == (pytest.approx(us, rel=1e-3), pytest.approx(us / 4, rel=1e-3))


@pytest.mark.parametrize(
    ("precision", "count", "is_wrong"),
    [("int8", 1, True), ("float8", 1, False), ("float8", 400, True)],
    ids=["one value of int8", "one value of FP8", "many values of FP8"],
)
def test_a_quantised_map_that_is_another_is_wrong(precision, count, is_wrong, checked):
    """Neighbouring values in one map: of int8 none is right; of FP8, whose sums have no order, few are."""

    def spoil(launch, memory):
        if launch.name == "layer1.0.conv1":
            written = memory.read(dict(launch.args)["y_ptr"]).view(torch.uint8)
            written[:count] += torch.where(written[:count] >= 0x7E, 255, 1).to(torch.uint8)

    found, _, _ = checked(precision, 3, spoil)
    named = [line for line in found["wrong"] if line.startswith("layer1.0.conv1.y_ptr: error 1 of")]
    assert bool(named) == is_wrong, found["wrong"]
    if is_wrong:
        assert f", {count} of" in named[0]
    (row,) = (row for row in found["launches"] if row["name"] == "layer1.0.conv1")
    assert f"{count} of" in row["error"]["y_ptr"]


@pytest.mark.parametrize(("noise_db", "is_wrong"), [(25.0, False), (15.0, True)])
def test_logits_that_are_no_longer_the_networks_are_wrong(noise_db, is_wrong, checked):
    """By what a precision in eight bits is held to, which is not what FP16 is."""

    def spoil(launch, memory):
        if launch.kernel == "classify_kernel":
            logits = memory.read(dict(launch.args)["logits_ptr"])
            clean = logits.clone()
            noise = torch.randn(len(logits), generator=torch.Generator().manual_seed(1))
            logits += noise * 10 ** (-noise_db / 20) * clean.view(-1, 7).std(0).mean()

    found, _, _ = checked("int8", 33, spoil)
    assert any(line.startswith("logits: SQNR") for line in found["wrong"]) == is_wrong


def test_an_engine_file_says_what_stays_float(small, small_checkpoint_path, tmp_path, scripts_importable):
    """And the plan of a batch that is no bucket is planned as the file's are."""
    import part_launches

    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.kernels.planner import plan_from_network

    held, kept = small("int8"), KEPT["int8"]
    plan = plan_from_network(held.network, 2, "int8", "sm_90", kept_float=kept)
    index = {launch.variant: {k: v for k, v in CUBIN.items() if k != "code"} for launch in plan.launches}
    tensors = {"weights.packed": held.weights, "plans/sm_90/2": plan.to_json()}
    tensors |= {f"cubins/sm_90/{variant}": b"code" for variant in index}
    tensors["cubins/sm_90/index"] = json.dumps({"driver": 12000, "cubins": index}).encode()
    write_bundle(tmp_path / "engine-int8.tkf", tensors, {"quantisation": {"kept_float": list(kept)}})
    write_bundle(tmp_path / "engine.tkf", tensors, {})
    parts = part_launches.EngineParts.read(tmp_path, "sm_90", "int8")
    assert parts.kept_float == kept and parts.plans[2] == plan and parts.weights == held.weights
    assert part_launches.EngineParts.read(tmp_path, "sm_90").kept_float == ()
    args = SimpleNamespace(checkpoint=small_checkpoint_path, precision="int8")
    odd = part_launches._exact_plan(args, 3, "sm_90", parts.kept_float)
    assert (odd.batch, odd.precision, odd.weight_bytes) == (3, "int8", plan.weight_bytes)
