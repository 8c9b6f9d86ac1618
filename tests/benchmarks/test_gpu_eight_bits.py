"""What the GPU parts make of engines in eight bits, with the emulator as the GPU."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
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


# --- launches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_every_launch_is_checked_and_timed_beside_the_roofline_of_its_products(precision, checked):
    from tkfnet_engine.kernels.chips import CHIPS

    found, memory, plan = checked(precision, 33)
    assert not found["wrong"] and found["worst"] <= {"int8": 0, "float8": 0.5}[precision] and found["sqnr_db"] > 60
    rows = {row["name"]: row for row in found["launches"]}
    assert [(row["name"],) for row in found["launches"]] == memory.timed[:-1]
    assert memory.timed[-1] == tuple(launch.name for launch in plan.launches)
    kept = {"int8": ["layer1.1.conv2"], "float8": ["stem", "tafe.merge"]}[precision]
    in_float = {name for name, row in rows.items() if row["precision"] == "float16"}
    assert in_float == {plan.launches[0].name, *kept, plan.launches[-1].name}
    for launch in plan.launches:
        flops = 1978.9e12 if rows[launch.name]["precision"] == precision else 989.4e12
        least = 1e6 * max(launch.flops / flops, launch.bytes / CHIPS["H200"].bandwidth)
        assert rows[launch.name]["roofline_us"] == pytest.approx(least, abs=6e-4)


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


# --- building --------------------------------------------------------------------------------------------

GATE = {"images": 2100, "float32_accuracy": 0.9, "accuracy": 0.899, "accuracy_kept": 0.9989, "agreement": 0.991}
GATE |= {"recall_lost": [0.0, 0.004, -0.001]}
REPORT = {"sqnr_db": 32.7, "images": 2100, "top1_agreement": 0.991, "gate": GATE}
QUANTISED = {"layers": {"stem": "int8"}, "not_as_asked": {}, "back_to_float": [], "kept_float": [], "weight_bits": 8}
FACTS = {"precision": "int8", "verification": REPORT, "quantisation": QUANTISED}


def test_what_was_built_is_recorded(scripts_importable):
    from part_build import result_of

    found = result_of(FACTS, {"a": CUBIN, "b": CUBIN | {"spilled_bytes": 8}}, 17.25, 88.8)
    assert "reason" not in found and found["quantisation"] == QUANTISED and found["verification"]["gate"] == GATE
    assert (found["kernels"], found["kernels_that_spill"], found["megabytes"]) == (2, 1, 17.25)
    for said in ("2 kernels, 1 spill", "32.7 dB", "accuracy kept 99.89%", "labels kept 99.10%", "back to FP16: none"):
        assert said in found["summary"], said
    half = result_of({"precision": "float16", "verification": REPORT}, {"a": CUBIN}, 30.0, 60.0)
    assert half["summary"].endswith("top-1 99.10%") and "quantisation" not in half


def test_units_that_went_back_to_float_are_named_and_are_no_fault(scripts_importable):
    from part_build import result_of

    steps = [{"unit": "tafe.merge", "sqnr_db": 20.0, "slower": 0.01}]
    found = result_of(FACTS | {"quantisation": QUANTISED | {"back_to_float": steps}}, {"a": CUBIN}, 1.0, 1.0)
    assert "reason" not in found and found["summary"].endswith("back to FP16: tafe.merge")


def test_a_product_that_is_silently_float_is_wrong(scripts_importable):
    from part_build import result_of

    astray = {"layer1.0.conv1": "float16", "tafe.gate": "absent"}
    found = result_of(FACTS | {"quantisation": QUANTISED | {"not_as_asked": astray}}, {"a": CUBIN}, 1.0, 1.0)
    assert found["reason"] == "not in int8, though asked for: layer1.0.conv1 in float16, tafe.gate in absent"


@pytest.fixture
def labelled(tmp_path, scripts_importable):
    """What `calibrate` has left in the output folder."""
    from part_calibrate import write_set

    from tkfnet_engine.export.verify import VerificationSet

    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (5, 4, 4, 3), np.uint8), draw.integers(0, 7, 5)
    drawn = VerificationSet(images, "faces", "ab12", labels, draw.normal(size=(5, 7)).astype(np.float32))
    write_set(tmp_path / "labelled.npz", drawn)
    return drawn


def test_labelled_faces_are_read_as_they_were_written(labelled, tmp_path):
    from part_calibrate import read_set

    found = read_set(tmp_path / "labelled.npz")
    assert (found.data, found.fingerprint) == ("faces", "ab12")
    for name in ("images", "labels", "reference"):
        a, b = getattr(found, name), getattr(labelled, name)
        assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.fixture
def built(monkeypatch, tmp_path, scripts_importable):
    """built(*flags, arch=.., fails=..): part_build's `main`, whose engine is a file of `FACTS`: its exit code, what it
    asked the build for, the set that the build verified on, and its result."""
    import part_build

    from tkfnet_engine.bundle import write_bundle
    from tkfnet_engine.export import engine_from_checkpoint

    def run(*flags, arch="sm_90", facts=FACTS, fails=None):
        seen = SimpleNamespace(argv=None, drawn=None)

        def build(argv):
            seen.argv = argv
            if fails is not None:
                raise fails
            seen.drawn = engine_from_checkpoint.verification_set("model", "preprocessing", None, "int8")
            index = {"driver": 12000, "cubins": {"a": {k: v for k, v in CUBIN.items() if k != "code"}}}
            tensors = {f"cubins/{arch}/index": json.dumps(index).encode()}
            write_bundle(argv[argv.index("--out") + 1], tensors, facts)

        monkeypatch.setattr(part_build.build, "main", build)
        monkeypatch.setattr(part_build, "this_arch", lambda: arch)
        monkeypatch.setattr(engine_from_checkpoint, "verification_set", lambda *_, **__: "drawn anew")
        argv = ["part_build.py", "--out", str(tmp_path), "--result", str(tmp_path / "result.json"), *flags]
        monkeypatch.setattr(part_build.sys, "argv", argv)
        code = part_build.main()
        return code, seen, json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.mark.parametrize(("precision", "flag"), [("int8", "--int8"), ("float8", "--fp8")])
def test_eight_bits_are_built_for_this_gpu_from_what_calibrate_has_left(precision, flag, built, labelled, tmp_path):
    code, seen, result = built("--precision", precision)
    assert code == 0 and result["verification"]["gate"] == GATE
    assert seen.argv[0] == flag and "--calibration" in seen.argv and str(tmp_path / "calibration.json") in seen.argv
    asked = dict(zip(seen.argv[1::2], seen.argv[2::2]))
    assert (asked["--device"], asked["--backend"], asked["--max-batch"]) == ("cuda", "fused", "256")
    assert asked["--out"].endswith(f"engine-{precision}.tkf")
    assert np.array_equal(seen.drawn.labels, labelled.labels), "the build is judged on faces of its own"


def test_a_build_that_is_not_as_asked_or_fails_its_gate_is_wrong(built, labelled):
    from tkfnet_engine.errors import VerificationError

    astray = FACTS | {"quantisation": QUANTISED | {"not_as_asked": {"stem": "float16"}}}
    code, _, result = built("--precision", "int8", facts=astray)
    assert code == 10 and "stem in float16" in result["reason"]
    code, _, result = built("--precision", "int8", fails=VerificationError("accuracy 80%", {"gate": GATE}))
    assert code == 10 and result == {"reason": "accuracy 80%", "verification": {"gate": GATE}}


def test_a_gpu_without_fp8_leaves_it_out(built):
    code, seen, result = built("--precision", "float8", arch="sm_86")
    assert (code, seen.argv, result) == (77, None, {"reason": "sm_86 has no FP8"})


def test_calibrate_keeps_a_table_and_what_the_builds_are_judged_on(labelled, monkeypatch, tmp_path):
    import part_calibrate

    asked = []
    table = SimpleNamespace(points=range(21), data=SimpleNamespace(images=512, warnings=("odd",)), digest="d1")
    monkeypatch.setattr(part_calibrate.calibrate, "main", asked.append)
    monkeypatch.setattr(part_calibrate, "read_table", lambda path: table)
    monkeypatch.setattr(part_calibrate, "load_checkpoint", lambda path: SimpleNamespace(model=1, preprocessing=2))
    drawn = replace(labelled, reference=np.eye(7, dtype=np.float32)[labelled.labels])
    monkeypatch.setattr(
        part_calibrate, "verification_set", lambda *a, precision: drawn if precision == "int8" else None
    )
    result = tmp_path / "result.json"
    monkeypatch.setattr(part_calibrate.sys, "argv", ["p", "--out", str(tmp_path), "--result", str(result)])
    assert part_calibrate.main() == 0
    assert asked[0][asked[0].index("--out") + 1] == str(tmp_path / "calibration.json")
    assert np.array_equal(part_calibrate.read_set(tmp_path / "labelled.npz").reference, drawn.reference)
    found = json.loads(result.read_text())
    assert (found["float32_accuracy"], found["digest"], found["warnings"]) == (1.0, "d1", ["odd"])


# --- the network -----------------------------------------------------------------------------------------


@pytest.fixture
def race(monkeypatch, scripts_importable):
    """A race in which an engine's call gives its SQNR, and takes as many microseconds as `us` says."""
    import part_network

    us = {"fused": 30.0, "fused_int8": 20.0, "fused_float8": 24.0, "eager": 90.0}
    monkeypatch.setattr(part_network, "sqnr_db", lambda call, faces, batch, required: call(None))
    monkeypatch.setattr(part_network, "queueing_us", lambda call, inputs: 3.0)
    monkeypatch.setattr(
        part_network, "interleaved", lambda calls, inputs, r, s: {n: [[us[n]] * s for _ in range(r)] for n in calls}
    )
    faces = part_network.Faces(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 7)))
    race = part_network.Race(4, faces, [None])
    race.enter("fused", lambda: lambda pixels: 70.0)
    return race


def ours(sqnr, same=True):
    return SimpleNamespace(
        replay=lambda pixels: sqnr, same=lambda pixels: same, engine=SimpleNamespace(close=lambda: None)
    )


def test_engines_in_eight_bits_race_with_ours_in_fp16(race):
    from part_network import enter_eight_bits

    made = {"int8": ours(32.0), "float8": ours(25.0)}
    enter_eight_bits(race, ["build-int8", "build-float8"], made.__getitem__, None)
    found = race.run(7, 2)
    assert not race.wrong and found["engines"]["fused_int8"] == found["engines"]["fused_int8"] | {
        "median_us": 20.0,
        "images_per_s": 200_000.0,
        "sqnr_db": 32.0,
    }
    assert found["speedups"]["fused_int8"] == {"median": 1.5, "lowest": 1.5, "highest": 1.5}
    assert found["speedups"].keys() == {"fused_int8", "fused_float8"}
    assert found["ratios"]["fused_int8"]["median"] == 0.667


def test_what_was_not_built_is_left_out_and_is_no_fault(race):
    from part_network import enter_eight_bits

    enter_eight_bits(race, ["build-float8"], {"float8": ours(25.0)}.__getitem__, None)
    found = race.run(5, 2)
    assert not race.wrong and found["speedups"].keys() == {"fused_float8"}
    assert found["engines"]["fused_int8"] == {"median_us": None, "reason": "left out: build-int8 is not done"}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (ours(19.9), "fused_int8: wrong: SQNR 19.9 dB"),
        (ours(32.0, same=False), "fused_int8: wrong: RuntimeError: logits_on_device and the graph's replay differ"),
        (None, "fused_int8: wrong: TypeError: .*"),
    ],
    ids=["it errs", "two answers", "it fails"],
)
def test_an_engine_in_eight_bits_that_is_wrong_makes_the_part_wrong_and_the_others_are_timed(made, reason, race):
    from part_network import enter_eight_bits

    def make(precision):
        if made is None:
            raise TypeError("no such plan")
        return made

    enter_eight_bits(race, ["build-int8"], make, None)
    (wrong,) = race.wrong
    assert wrong == reason or (reason.endswith(".*") and wrong.startswith(reason[:-2]))
    found = race.run(5, 2)
    assert found["engines"]["fused"]["median_us"] == 30.0 and found["engines"]["fused_int8"]["median_us"] is None


@pytest.mark.parametrize("other", [None, "call", "replay"])
def test_an_engine_must_give_equal_bits_twice_however_it_is_called(other, scripts_importable):
    from part_network import Ours

    asked = []

    def answer(name):
        asked.append(name)
        return torch.tensor([1.0, 2.0 if name != other or asked.count(name) < 2 else 3.0])

    engine = SimpleNamespace(replay=lambda pixels: answer("replay"), call=lambda pixels: answer("call"))
    assert Ours.same(engine, None) == (other is None)


# --- tests -----------------------------------------------------------------------------------------------


def test_the_gpu_tests_are_told_which_engines_there_are(tmp_path, scripts_importable):
    from part_tests import engines_of

    assert engines_of(tmp_path, []) == {"TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf")}
    assert engines_of(tmp_path, ["build-float8"]) == {
        "TKFNET_GPU_ENGINE": str(tmp_path / "engine.tkf"),
        "TKFNET_GPU_ENGINE_FLOAT8": str(tmp_path / "engine-float8.tkf"),
    }
