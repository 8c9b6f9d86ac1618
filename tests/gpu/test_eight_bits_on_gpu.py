"""Engines in INT8 and FP8 on the GPU: they answer as the emulator does on a CPU, whole numbers to the bit."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .on_gpu import Bench, needs_gpu, this_arch, without_pdl

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine import Engine  # noqa: E402
from tkfnet_engine.compare import compare  # noqa: E402
from tkfnet_engine.kernels.chips import ARCHS, has_float8  # noqa: E402
from tkfnet_engine.kernels.network import network_of  # noqa: E402
from tkfnet_engine.kernels.placement import placement_of  # noqa: E402
from tkfnet_engine.model.fold import fold  # noqa: E402
from tkfnet_engine.spec import Preprocessing  # noqa: E402

from .networks import NETWORKS, random_model  # noqa: E402

# Of the logits beside the emulator's. Sums of int8 products are whole and equal; sums of FP8 products are rounded in
# another order, and what is rounded to eight bits after them may be the neighbouring value.
REQUIRED_SQNR_DB = {"int8": 60.0, "float8": 40.0}
SIZES = (1, 2, 3, 5, 7, 8, 9, 17, 31, 33, 64)
# Images, and the batch of the plan they run in.
BATCHES = ((1, 1), (3, 3), (7, 8), (33, 33))
REPLAYS = 1000
# Shares of the units that stay FP16, drawn at random.
KEPT = {"int8": (0.0, 0.4), "float8": (0.2,)}


@pytest.fixture(autouse=True)
def exact_products():
    """The judge's convolutions of whole numbers come out whole: cuDNN's transforms do not leave them so."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    yield
    torch.backends.cudnn.enabled = before


@pytest.fixture
def engine(eight_bits):
    with Engine.load(eight_bits.path) as opened:
        yield opened


def assert_as_emulated(got: np.ndarray, eight_bits) -> None:
    """got: logits of the first faces."""
    required = REQUIRED_SQNR_DB[eight_bits.precision]
    found = compare(eight_bits.logits[: len(got)], got, required)
    assert found.sqnr_db >= required and found.disagreements <= found.near_ties, found


# --- the engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_is_the_emulators_in_every_bucket(size, engine, eight_bits, faces):
    parts = [engine.logits(faces.pixels[i : i + size]) for i in range(0, len(faces.pixels), size)]
    assert_as_emulated(np.concatenate(parts), eight_bits)


def test_equal_requests_give_equal_bits(engine, faces):
    for size in SIZES:
        first = engine.logits(faces.pixels[:size])
        for repeat in range(20):
            assert np.array_equal(engine.logits(faces.pixels[:size]), first), f"batch {size}, repeat {repeat}"


def test_an_engine_that_is_opened_again_gives_equal_bits(engine, eight_bits, faces):
    with Engine.load(eight_bits.path) as other:
        for size in (1, 3, 33):
            assert np.array_equal(other.logits(faces.pixels[:size]), engine.logits(faces.pixels[:size])), size


def test_spare_slots_hold_nothing_of_the_batch_before(engine, faces, noise):
    fresh = engine.logits(faces.pixels[:5])
    for seed in range(5):
        engine.logits(noise(8, engine.input_size, seed))
        assert np.array_equal(engine.logits(faces.pixels[:5]), fresh)


@pytest.mark.parametrize("batch", [1, 5])
def test_a_thousand_replays_in_a_row_give_equal_bits(batch, engine, faces):
    """Split-K counts its parts; a count that is off, or a part that is read too soon, would show in some replay."""
    stream, classes = torch.cuda.Stream(), len(engine.labels)
    pixels = torch.from_numpy(faces.pixels[:batch]).to("cuda")
    # Rows of which each starts on a boundary that the kernels need.
    room = -(-batch * classes // 4) * 4
    answers = torch.full((REPLAYS, room), float("nan"), device="cuda")
    torch.cuda.synchronize()
    for row in answers:
        engine.logits_on_device(pixels, row[: batch * classes].view(batch, classes), stream.cuda_stream)
    stream.synchronize()
    answers = answers[:, : batch * classes]
    different = (answers != answers[0]).any(1).nonzero().flatten().tolist()
    assert not different, f"{len(different)} of {REPLAYS} replays differ from the first, such as {different[:5]}"
    assert np.array_equal(answers[0].view(batch, classes).cpu().numpy(), engine.logits(faces.pixels[:batch]))


def test_many_threads_get_their_own_answers(engine, faces):
    expected = {size: engine.logits(faces.pixels[:size]) for size in SIZES}

    def work(seed: int) -> bool:
        draw = random.Random(seed)
        sizes = [draw.choice(SIZES) for _ in range(20)]
        return all(np.array_equal(engine.logits(faces.pixels[:size]), expected[size]) for size in sizes)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


# --- its launches ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(eight_bits):
    """Plans of the engine's weights by (batch, dependent launch), and memory for them."""
    from tkfnet_engine.kernels.planner import plan_from_network  # brings Triton

    def plan(batch: int):
        kept = eight_bits.kept_float
        return plan_from_network(eight_bits.network, batch, eight_bits.precision, this_arch(), kept_float=kept)

    plans = {(batch, True): plan(batch) for _, batch in BATCHES}
    if ARCHS[this_arch()].pdl:
        plans |= {(batch, False): without_pdl(plans[batch, True]) for batch in (1, 8)}
    return Bench(eight_bits.weights, list(plans.values())), plans


@pytest.mark.parametrize(("images", "batch"), BATCHES)
def test_every_launch_of_the_reference_is_right(images, batch, reference, eight_bits, faces):
    """What int8 products alone go into is so to the bit."""
    bench, plans = reference
    pixels = faces.pixels[:images]
    by_launch = bench.run_checked(plans[batch, True], pixels)
    assert torch.equal(bench.run(plans[batch, True], pixels), by_launch), "as one graph the plan gives other bits"
    if images >= 7:
        assert_as_emulated(by_launch.cpu().numpy(), eight_bits)


@pytest.mark.parametrize("batch", [1, 8])
def test_dependent_launch_changes_no_bit(batch, reference, faces):
    bench, plans = reference
    if (batch, False) not in plans:
        pytest.skip(f"{this_arch()} has no dependent launch")
    in_order = bench.run(plans[batch, False], faces.pixels[:batch])
    for repeat in range(50):
        assert torch.equal(bench.run(plans[batch, True], faces.pixels[:batch]), in_order), f"repeat {repeat}"


@pytest.fixture(scope="module", params=["int8", "float8"])
def mixtures(request):
    """mixtures(name): (plan, weights, images) of `NETWORKS[name]`, some units of which stay FP16; and all cubins,
    compiled at once."""
    from tkfnet_engine.export.cubins_from_plan import compile_launches
    from tkfnet_engine.kernels.planner import plan_from_network
    from tkfnet_engine.kernels.weights import packed_weights

    from ..kernels.harness import scales_of

    precision, arch, made = request.param, this_arch(), {}
    if precision == "float8" and not has_float8(arch):
        pytest.skip(f"{arch} has no FP8")
    preprocessing = Preprocessing(size=97)
    pixels = np.random.default_rng(5).integers(0, 256, (3, 97, 97, 3), np.uint8)
    for name, config in NETWORKS.items():
        folded = fold(random_model(config, preprocessing), preprocessing)
        network = network_of(folded)
        scales, units = scales_of(folded, network, pixels, precision), placement_of(network).units
        for share in KEPT[precision]:
            kept = sorted(random.Random(name).sample(units, round(share * len(units))))
            plan = plan_from_network(network, len(pixels), precision, arch, kept_float=kept)
            made.setdefault(name, []).append((plan, packed_weights(folded, network, precision, scales, kept), pixels))
    cubins = compile_launches([x for cases in made.values() for plan, _, _ in cases for x in plan.launches], arch)
    return made.__getitem__, cubins


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_and_mixtures_with_fp16_are_right(name, mixtures):
    cases, cubins = mixtures
    for plan, weights, pixels in cases(name):
        bench = Bench(weights, [plan], cubins)
        by_launch = bench.run_checked(plan, pixels)
        assert by_launch.isfinite().all() and len(by_launch.unique(dim=0)) == len(pixels)
        assert torch.equal(bench.run(plan, pixels), by_launch), "as one graph the plan gives other bits"
