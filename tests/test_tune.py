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

    return tasks_of(network, [1, 8], "float16", ARCH)


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
    assert command("tune", "--minutes", "0").code == 64
