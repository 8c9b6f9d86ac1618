"""Split-K: the same bits in every run and in every order of the programs, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tkfnet_engine.errors import BackendError
from tkfnet_engine.kernels.builder import PlanBuilder
from tkfnet_engine.kernels.conv import add_conv
from tkfnet_engine.kernels.interpret import Interpreter
from tkfnet_engine.kernels.network import Conv
from tkfnet_engine.kernels.plan import Buffer
from tkfnet_engine.kernels.product import split_buffers, split_range
from tkfnet_engine.kernels.tiles import Tile

from .harness import Bench, Draw, assert_as_good_as_pytorch, blob_of, in_float64, in_half, programs_reordered
from .test_conv import Case, bench_of, normal_values, output_of, whole_values

# 75 output pixels, 2 x 2 tiles, 10 K-steps.
CASE = Case(
    Conv("layer1.0.conv1", 24, 40, 3, 1), Tile(64, 32, 32, 4, 4, 2), side=5, batch=3,
    project=Conv("layer1.0.project", 24, 40, 1, 2), project_side=9,
)  # fmt: skip


def with_split(split: int) -> Case:
    return replace(CASE, tile=replace(CASE.tile, split=split))


@pytest.mark.parametrize("split", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("steps", [0, 1, 5, 8, 9, 81])
def test_the_parts_of_a_split_are_all_steps_once(split, steps):
    ranges = [split_range.fn(steps, part, split) for part in range(split)]
    assert [i for first, last in ranges for i in range(first, last)] == list(range(steps))
    assert max(last - first for first, last in ranges) - min(last - first for first, last in ranges) <= 1


@pytest.mark.parametrize("split", [2, 4, 8])
def test_two_runs_give_the_same_bits_and_the_unsplit_sum(split):
    values = normal_values(CASE, Draw(11))
    exact, half = (values.reference(convert, CASE) for convert in (in_float64, in_half))
    bench = bench_of(with_split(split), values)
    first, second = (output_of(bench, values, clean) for clean in (True, False))
    assert torch.equal(first, second)
    assert_as_good_as_pytorch(first.reshape(exact.shape), exact, half, f"split {split}")
    unsplit = output_of(bench_of(with_split(1), values), values).reshape(exact.shape)
    assert_as_good_as_pytorch(unsplit, exact, half, "unsplit")
    # Where float32 holds every sum, the order of the additions makes no difference.
    whole = whole_values(CASE, Draw(12))
    sums = [output_of(bench_of(with_split(n), whole), whole) for n in (1, split)]
    assert torch.equal(*sums)


def test_a_run_leaves_nothing_for_the_next():
    """The parts of the run before are still in the arena, as on a GPU, when other images come."""
    bench = bench_of(CASE, normal_values(CASE, Draw(13)))
    weights = normal_values(CASE, Draw(13))
    for seed in (14, 15):
        other = normal_values(CASE, Draw(seed))
        values = replace(weights, x=other.x, shortcut=other.shortcut)
        alone = output_of(bench_of(CASE, weights), values)
        assert torch.equal(output_of(bench, values, clean=seed == 14), alone)


@pytest.mark.parametrize(
    "permute",
    [lambda i, n: n - 1 - i, lambda i, n: i * 7 % n, lambda i, n: i // (n // 4) + i % (n // 4) * 4],
    ids=["reversed", "scattered", "all-first-parts-last"],
)
def test_the_order_of_the_programs_changes_no_bit(permute):
    values = normal_values(CASE, Draw(16))
    bench = bench_of(CASE, values)
    launch = bench.plan.launches[0]
    assert launch.grid == (4, 4, 1) and sorted(permute(i, 16) for i in range(16)) == list(range(16))
    in_order = output_of(bench, values)
    with programs_reordered(permute):
        assert torch.equal(output_of(bench, values), in_order)


def test_a_tile_is_finished_by_the_program_that_arrives_last():
    """Stopped before its last part, a tile is not written; the counter says how many parts are there."""
    values = normal_values(CASE, Draw(17))
    bench = bench_of(with_split(2), values)
    launch = bench.plan.launches[0]
    tile = int(np.prod(launch.grid)) // 2
    counters = bench.interpreter.view(dict(launch.args)["counter_ptr"])
    counters[:tile] = -1  # as if one part more had to come
    with pytest.raises(AssertionError, match="counters that are not zero"):
        bench.run(x_ptr=values.x, shortcut_ptr=values.shortcut)
    assert (counters[:tile] == 1).all()
    assert bench.interpreter.view(dict(launch.args)["y_ptr"]).isnan().all()


def test_a_split_reserves_a_part_per_program_and_a_counter_per_tile():
    builder = PlanBuilder({}, 1)
    assert split_buffers(builder, 5, Tile(64, 32, 32, 1, 4, 2)) == (None, None, 0)
    partial, counters, nbytes = split_buffers(builder, 5, Tile(64, 32, 32, 8, 4, 2))
    assert nbytes == 5 * 8 * 64 * 32 * 4
    builder.launch(
        {"partial_ptr": partial, "counter_ptr": counters}, {}, name="a", kernel="conv_kernel", grid=(5, 8, 1), warps=4,
        stages=2, flops=0, reads=0, writes=0, loads=0,
    )  # fmt: skip
    plan = builder.finish(batch=1, precision="float16", arch="sm_90", size=1, classes=1)
    held = dict(plan.launches[0].args)
    assert held["partial_ptr"].nbytes == nbytes and held["partial_ptr"].space == "arena"
    assert held["counter_ptr"].count == 5 and held["counter_ptr"].space == "counters"


def test_launches_in_a_row_have_counters_and_parts_of_their_own():
    """A launch may start before the one before it has ended."""
    convs = [Conv(f"layer1.0.conv{i}", 16, 16, 1, 1) for i in (1, 2, 3)]
    draw, weights, buffers = Draw(18), {}, {}
    for i, conv in enumerate(convs):
        weights |= {f"{conv.name}.w": draw.whole(16, 16, largest=2), f"{conv.name}.b": draw.whole(16, largest=9)}
        buffers |= {
            f"{conv.name}.w": Buffer("weights", 1024 * i, "f16", 256),
            f"{conv.name}.b": Buffer("weights", 1024 * i + 512, "f32", 16),
        }
    builder = PlanBuilder(buffers, 3072)
    x = builder.buffer("f16", 25 * 16)
    for conv in convs:
        x = add_conv(builder, conv, Tile(64, 32, 16, 2, 4, 2), 1, x, (5, 5), None, True)
    bench = Bench(builder, blob_of(buffers, 3072, weights), 1)
    assert len({dict(launch.args)["counter_ptr"] for launch in bench.plan.launches}) == 3
    y = draw.whole(25, 16, largest=3)
    held = bench.run(x_ptr=y)
    for conv in convs:
        y = torch.relu(y @ weights[f"{conv.name}.w"].T + weights[f"{conv.name}.b"]).half().double()
        assert torch.equal(held[f"{conv.name}.y"].double(), y.flatten())


def test_the_arena_starts_as_nan():
    """In every type that a buffer may have: otherwise a value that was never written may pass for a result."""
    bench = bench_of(CASE, normal_values(CASE, Draw(19)))
    interpreter = Interpreter(bench.plan, bytes(bench.plan.weight_bytes))
    for dtype, size in (("f16", 2), ("f32", 4)):
        assert interpreter.view(Buffer("arena", 0, dtype, bench.plan.arena_bytes // size)).isnan().all()
    assert interpreter.view(Buffer("logits", 0, "f32", 3)).isnan().all()


def test_the_interpreter_must_be_chosen_before_triton_is_imported(monkeypatch):
    bench = bench_of(CASE, normal_values(CASE, Draw(19)))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match=r"TRITON_INTERPRET.*expected '1'"):
        Interpreter(bench.plan, b"")
