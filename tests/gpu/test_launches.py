"""Every launch on the GPU against plain PyTorch, on real faces and what the launches before it made of them."""

from __future__ import annotations

import numpy as np
import pytest

from .on_gpu import Bench, needs_gpu, this_arch, without_pdl

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine.compare import compare  # noqa: E402
from tkfnet_engine.kernels.chips import ARCHS  # noqa: E402
from tkfnet_engine.kernels.network import network_of  # noqa: E402
from tkfnet_engine.model.fold import fold  # noqa: E402
from tkfnet_engine.spec import Preprocessing  # noqa: E402

from .networks import NETWORKS, random_model  # noqa: E402

# Images, and the batch of the plan they run in.
BATCHES = ((1, 1), (2, 2), (3, 3), (7, 8), (33, 33))
WITHOUT_PDL = (1, 8, 33)
REPEATS = 50
SIZES = (64, 97)


def bench_of(folded, plans) -> Bench:
    from tkfnet_engine.kernels.weights import packed_weights

    return Bench(packed_weights(folded, network_of(folded)), plans)


def plan_of(network, batch: int):
    from tkfnet_engine.kernels.planner import plan_from_network  # brings Triton

    return plan_from_network(network, batch, "float16", this_arch())


@pytest.fixture(scope="module")
def reference(checkpoint):
    """The shipped reference: its plans by (batch, dependent launch), and memory for them."""
    folded = fold(checkpoint.model, checkpoint.preprocessing)
    network = network_of(folded)
    plans = {(batch, True): plan_of(network, batch) for _, batch in BATCHES}
    if ARCHS[this_arch()].pdl:
        plans |= {(batch, False): without_pdl(plans[batch, True]) for batch in WITHOUT_PDL}
    return bench_of(folded, list(plans.values())), plans


@pytest.mark.parametrize(("images", "batch"), BATCHES)
def test_every_launch_of_the_reference_is_right(images, batch, reference, faces):
    bench, plans = reference
    plan = plans[batch, True]
    pixels = faces.pixels[:images]
    by_launch = bench.run_checked(plan, pixels)
    assert torch.equal(bench.run(plan, pixels), by_launch), "as one graph the plan gives other bits"
    assert not bench.logits(plan, batch)[:images].isnan().any()
    if images >= 7:
        found = compare(faces.logits[:images], by_launch.cpu().numpy(), 40.0)
        assert found.sqnr_db >= 40, found


def test_a_spare_slot_is_packed_as_zeros(reference, faces):
    bench, plans = reference
    plan = plans[8, True]
    first = plan.launches[0]
    bench.place(plan, faces.pixels[:7])
    bench.memory.run(plan, [first])
    packed = bench.memory.read(dict(first.args)["packed_ptr"]).reshape(8, -1)
    assert packed[:7].isfinite().all() and not packed[7].any()


@pytest.mark.parametrize("batch", WITHOUT_PDL)
def test_dependent_launch_changes_no_bit(batch, reference, faces):
    bench, plans = reference
    if (batch, False) not in plans:
        pytest.skip(f"{this_arch()} has no dependent launch")
    pixels = faces.pixels[:batch]
    in_order = bench.run(plans[batch, False], pixels)
    for repeat in range(REPEATS):
        assert torch.equal(bench.run(plans[batch, True], pixels), in_order), f"repeat {repeat}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_right(name, size):
    preprocessing = Preprocessing(size=size)
    model = random_model(NETWORKS[name], preprocessing)
    folded = fold(model, preprocessing)
    plan = plan_of(network_of(folded), 2)
    bench = bench_of(folded, [plan])
    pixels = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), np.uint8)
    by_launch = bench.run_checked(plan, pixels)
    assert torch.equal(bench.run(plan, pixels), by_launch), "as one graph the plan gives other bits"
    on_gpu = torch.from_numpy(pixels).to("cuda")
    exact = folded.to("cuda")(on_gpu)
    half = fold(model, preprocessing).half().to("cuda")(on_gpu)
    error, allowed = (by_launch - exact).abs().max(), 4 * (half - exact).abs().max() + 0.02 * exact.abs().max()
    assert error <= allowed, f"logits: error {error:.3g}, allowed {allowed:.3g}"
