"""What `tune` measures a tile with: launches on maps that mean something in every precision, judged before they are
timed. The GPU is the emulator here."""

from __future__ import annotations

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from tkfnet_engine.errors import BackendError
from tkfnet_engine.export import tiles_from_gpu
from tkfnet_engine.export.cubins_from_plan import Cubin
from tkfnet_engine.export.tiles_from_gpu import TileBench, draw_maps
from tkfnet_engine.kernels.emulator import emulated_outputs
from tkfnet_engine.kernels.plan import SPACES
from tkfnet_engine.kernels.tile_tasks import plan_with, tasks_of
from tkfnet_engine.kernels.tiles import ranked_candidates

from ..emulated_gpu import US, EmulatedGpu

ARCH, BATCH = "sm_90", 2
GOOD = Cubin(b"", "k", 90, 0, 1024, {}, "")


@pytest.fixture
def bench(small_checkpoint_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    # Which it turns off to judge whole numbers; and it turns TF32 off.
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    monkeypatch.setattr(tiles_from_gpu, "PlanOnGpu", EmulatedGpu)
    monkeypatch.setattr(tiles_from_gpu, "compile_launches", lambda launches, arch, failed: cubins_of(launches))
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield TileBench(str(small_checkpoint_path))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def cubins_of(launches, without=()):
    return {launch.variant: GOOD for launch in launches if launch.variant not in without}


def tasks(bench, precision):
    return tasks_of(bench.network, [BATCH], [precision], ARCH)


@pytest.mark.parametrize("precision", ["float16", "int8", "float8"])
def test_every_product_is_right_and_timed(precision, bench):
    for task in tasks(bench, precision):
        tiles = ranked_candidates(task.product, ARCH, task.rows)[:2]
        assert bench.measure(task, tiles) == [(tile, US) for tile in tiles], task.name
        assert torch.backends.cudnn.enabled == (task.precision == "float16")


@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_the_maps_it_draws_keep_every_output_within_its_range(precision, bench):
    """An output of nothing but zeros and largest values would hide what is wrong."""
    for task in tasks(bench, precision):
        plan = plan_with(bench.network, task, ranked_candidates(task.product, ARCH, task.rows)[0], ARCH)
        launch = next(one for one in plan.launches if one.name == task.name)
        memory = EmulatedGpu({space: plan.nbytes(space) for space in SPACES}, bench._packed(task.precision))
        draw_maps(memory, launch)
        for name, values in emulated_outputs(launch, memory.read).items():
            most = {"i8": 127, "f8": 448, "f16": 65504}[dict(launch.args)[name].dtype]
            values = values.float()
            assert values.isfinite().all(), f"{task.name}.{name}"
            assert (values.abs() == most).float().mean() < 0.3, f"{task.name}.{name} is saturated"
            assert len(values.unique()) > 20, f"{task.name}.{name} is almost constant"


@pytest.mark.parametrize("precision", ["float16", "int8", "float8"])
def test_what_is_wrong_spills_or_does_not_compile_gets_no_time(precision, bench, monkeypatch, capsys):
    task = next(t for t in tasks(bench, precision) if t.name == "layer1.0.conv1")
    tiles = ranked_candidates(task.product, ARCH)[:4]

    def compiled(launches, arch, failed):
        failed[launches[0].variant] = BackendError("too large")
        spilling = Cubin(b"", "k", 255, 8, 1024, {}, "")
        return cubins_of(launches, {launches[0].variant}) | {launches[1].variant: spilling}

    def spoil(launch, memory):
        if launch.variant == variants[2]:
            written = memory.read(dict(launch.args)["y_ptr"])
            written[: len(written) // 4] = 3

    plans = [plan_with(bench.network, task, tile, ARCH) for tile in tiles]
    variants = [next(x for x in plan.launches if x.name == task.name).variant for plan in plans]
    monkeypatch.setattr(tiles_from_gpu, "compile_launches", compiled)
    monkeypatch.setattr(tiles_from_gpu, "PlanOnGpu", partial(EmulatedGpu, after=spoil))
    assert bench.measure(task, tiles) == [(tiles[3], US)]
    assert f"in {precision}: {tiles[2]} is wrong" in capsys.readouterr().err
