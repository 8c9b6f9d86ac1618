"""`tune`: what it measures, what it keeps, and that it goes on where it stopped. The GPU is a table of times here."""

from __future__ import annotations

import json

import pytest

from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.tile_table import Measured, TileTable
from tkfnet_engine.tune import tune

MEASURED = Measured("Chip", "13.0", "2026-01-02", "3.6.0")
ARCH = "sm_90"


@pytest.fixture(scope="module")
def network():
    from tkfnet_engine.model.fold import fold
    from tkfnet_engine.model.net import TKFNet

    return network_of(fold(TKFNet()))


@pytest.fixture(scope="module")
def tasks(network):
    from tkfnet_engine.kernels.tile_tasks import tasks_of

    return tasks_of(network, [1, 8], ["float16"], ARCH)


@pytest.fixture
def table(tmp_path):
    return TileTable.read(tmp_path / "tiles.json", MEASURED)


def last_is_best(task, tiles):
    return [(tile, float(len(tiles) - i)) for i, tile in enumerate(tiles)]


def test_tasks_are_the_distinct_products_of_the_plans(tasks):
    names = [(task.batch, task.name) for task in tasks]
    # Stem; two of layer 1; first, projected, plain and residual of layers 2 to 4; TAFE's three.
    assert len(names) == 2 * (1 + 2 + 3 * 4 + 3)
    assert names[:3] == [(1, "stem"), (1, "layer1.0.conv1"), (1, "layer1.0.conv2")]
    assert (1, "layer1.1.conv1") not in names and (8, "layer4.1.conv2") in names
    assert [task.rows for task in tasks if task.name in ("tafe.split", "tafe.merge")] == [64] * 4


def test_eight_bits_have_tasks_of_their_own_after_those_of_fp16(network, tasks):
    from tkfnet_engine.kernels.tile_tasks import precisions_on, tasks_of

    every = tasks_of(network, [1, 8], precisions_on(ARCH), ARCH)
    assert every[: len(tasks)] == tasks
    of = {p: [task for task in every if task.precision == p] for p in ("float16", "int8", "float8")}
    assert [(t.batch, t.name, t.rows) for t in of["int8"]] == [(t.batch, t.name, t.rows) for t in tasks]
    # FP8 keeps the stem in FP16, which has been measured.
    assert [(t.batch, t.name) for t in of["float8"]] == [(t.batch, t.name) for t in tasks if t.name != "stem"]
    assert [every.index(of[p][0]) for p in of] == [0, len(tasks), 2 * len(tasks)]
    assert all(task.product.precision == task.precision for task in every)
    assert precisions_on("sm_86") == ("float16", "int8") and precisions_on("sm_89") == ("float16", "int8", "float8")


def test_a_tile_of_one_precision_is_no_others(network, table):
    from tkfnet_engine.kernels.tile_tasks import plan_with, tasks_of
    from tkfnet_engine.kernels.tiles import ranked_candidates

    every = tasks_of(network, [8], ["float16", "int8"], ARCH)
    tune([t for t in every if t.precision == "int8"], table, ARCH, last_is_best, lambda: False, candidates=2)
    assert {e["precision"] for e in json.loads(table.path.read_bytes())["tiles"]} == {"int8"}
    assert not any(table.has(t.product.key, "float16", ARCH) for t in every)
    task = next(t for t in every if t.precision == "int8" and t.name == "layer1.0.conv1")
    plan = plan_with(network, task, ranked_candidates(task.product, ARCH)[-1], ARCH)
    assert plan.precision == "int8" and next(x for x in plan.launches if x.name == task.name).quantised


def test_a_plan_with_a_tile_differs_in_the_launches_of_its_product(network, tasks):
    from tkfnet_engine.kernels.planner import plan_from_network
    from tkfnet_engine.kernels.tile_tasks import plan_with
    from tkfnet_engine.kernels.tiles import ranked_candidates

    task = next(t for t in tasks if t.name == "layer1.0.conv1" and t.batch == 8)
    other = ranked_candidates(task.product, ARCH)[-1]
    usual = plan_from_network(network, 8, "float16", ARCH)
    found = plan_with(network, task, other, ARCH)
    changed = [a.name for a, b in zip(usual.launches, found.launches, strict=True) if a.variant != b.variant]
    assert changed == ["layer1.0.conv1", "layer1.1.conv1"]
    assert dict(found.launches[2].constexprs)["BLOCK_N"] == other.block_n


def test_the_fastest_right_tile_is_kept_and_saved(tasks, table):
    assert tune(tasks, table, ARCH, last_is_best, lambda: False, candidates=3) == 0
    saved = json.loads(table.path.read_bytes())["tiles"]
    assert len(saved) == len({t.product.key for t in tasks}) and {e["us"] for e in saved} == {1.0}


def test_it_stops_in_time_and_goes_on_later(tasks, table):
    seen = []

    def measure(task, tiles):
        seen.append(task.product.key)
        return last_is_best(task, tiles)

    left = tune(tasks, table, ARCH, measure, lambda: len(seen) == 4, candidates=2)
    assert left == len(tasks) - 4 and len(json.loads(table.path.read_bytes())["tiles"]) == 4
    again = TileTable.read(table.path, MEASURED)
    assert tune(tasks, again, ARCH, measure, lambda: False, candidates=2) == 0
    assert len(seen) == len(set(seen)) == len(tasks)
    assert tune(tasks, again, ARCH, measure, lambda: False, candidates=2) == 0
    assert len(seen) == len(tasks)
    tune(tasks[:1], again, ARCH, measure, lambda: False, candidates=2, again=True)
    assert len(seen) == len(tasks) + 1


def test_a_product_without_a_right_tile_keeps_the_models_choice(tasks, table, capsys):
    assert tune(tasks[:1], table, ARCH, lambda task, tiles: [], lambda: False, candidates=2) == 0
    assert not table.path.exists() and not table.has(tasks[0].product.key, "float16", ARCH)
    assert "none of 2 tiles is right" in capsys.readouterr().err


def test_tune_without_a_gpu_is_refused(command, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("tune", "--minutes", "1")
    assert done.code == 64 and "no usable NVIDIA GPU" in done.err
    assert command("tune", "--precision", "int4").code == 64
    assert command("tune", "--minutes", "0").code == 64


def test_every_precision_of_the_gpu_is_tuned_or_those_that_are_named(command, monkeypatch, tmp_path, network):
    pytest.importorskip("triton")
    import tkfnet_engine.tune as command_module
    from tkfnet_engine.export import tiles_from_gpu

    class Bench:
        def __init__(self, checkpoint):
            self.arch, self.chip, self.driver, self.triton = "sm_86", "NVIDIA A10", "13.0", "3.6.0"
            self.network, self.measure = network, last_is_best

    seen = []
    monkeypatch.setattr(tiles_from_gpu, "TileBench", Bench)
    monkeypatch.setattr(command_module, "tune", lambda tasks, *_: seen.append({t.precision for t in tasks}) or 0)
    flags = ("--batch", "1", "--table", str(tmp_path / "t.json"))
    assert command("tune", *flags).code == 0 and command("tune", *flags, "--precision", "int8").code == 0
    assert seen == [{"float16", "int8"}, {"int8"}]
    refused = command("tune", *flags, "--precision", "int8", "float8")
    assert refused.code == 64 and "got float8, which NVIDIA A10 does not have" in refused.err
