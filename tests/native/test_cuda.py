"""The C library on a stand-in for the GPU driver: what it launches, and its answers, as the Python backend's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tkfnet_engine.backends.registry import why_unavailable
from tkfnet_engine.kernels.plan import Buffer, bucket_for, buckets_up_to
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.plan_report import network_of_config
from tkfnet_engine.spec import Preprocessing, TKFNetConfig

from ..backends import fake_cuda
from ..backends.fake_cuda import CLASSES, SIZE, answers, faces, freed, runs
from .cuda_engines import entry_of, expected_runs, ran, real_tensors, run_engine, write_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_engine(tmp_path_factory.mktemp("engine") / "e.tkf", fake_cuda.tensors(golden=2))


@pytest.fixture
def run(native_build, fake_library, tmp_path):
    """run(engine, images, "--counts", "1,2", free=1000): the program over the stand-in."""
    program = native_build / "programs" / "run_engine"
    return lambda path, images, *flags, **settings: run_engine(
        program, fake_library, tmp_path, path, images, *flags, **settings
    )


def expected(images: np.ndarray, counts: list[int]) -> np.ndarray:
    return np.concatenate([answers(images[:count]).reshape(-1) for count in counts])


# --- launches --------------------------------------------------------------------------------------------

# Architecture, precision, the network's width and size, the largest batch.
REAL = [
    ("sm_80", "int8", 0.125, 64, 256),
    ("sm_86", "float16", 0.125, 64, 256),
    ("sm_89", "float8", 0.125, 64, 256),
    ("sm_90", "float16", 0.125, 64, 256),
    ("sm_90", "float16", 1.0, 224, 8),
    ("sm_100", "int8", 0.125, 64, 256),
    ("sm_120", "float8", 0.125, 64, 256),
]


@pytest.mark.parametrize(("arch", "precision", "width", "size", "most"), REAL)
def test_every_launch_is_the_plans_and_the_python_backends(
    arch, precision, width, size, most, run, fake_library, tmp_path
):
    model, preprocessing = TKFNetConfig(width=width), Preprocessing(size=size)
    network = network_of_config(model, preprocessing)
    plans = {b: plan_from_network(network, b, precision, arch) for b in buckets_up_to(most)}
    facts = {"precision": precision, "max_batch": most, "quantisation": {"weight_bits": 8}}
    facts |= {"model": model.to_dict(), "preprocessing": preprocessing.to_dict()}
    path = write_engine(tmp_path / "real.tkf", real_tensors(plans.values()), **facts)
    signatures = {
        entry_of(one): "".join("p" if isinstance(value, Buffer) else "i" for _, value in one.args)
        for plan in plans.values()
        for one in plan.launches
    }
    # Every bucket full, twice in another order, and some that are not full.
    counts = [*plans, *reversed(plans), *(n for n in (3, 7, 100, 255) if n < most)]
    images = np.zeros((most, size, size, 3), np.uint8)
    settings = {"cc": arch.removeprefix("sm_")}
    found = run(path, images, "--counts", ",".join(map(str, counts)), **settings)
    assert set(found.statuses) == {"TKF_OK"}
    native = ran(found.log, plans, signatures)
    assert native == [one for n in counts for one in expected_runs(plans[bucket_for(n, tuple(plans))], n)]
    assert freed(found.log) == [[0] * 7]
    # Each bucket was captured once, each kernel loaded once, and asked for its shared memory if that is much.
    assert [e["nodes"] for e in found.log if "instantiated" in e] == [22] * len(plans)
    modules = [e["module"] for e in found.log if "module" in e]
    assert len(modules) == len(set(modules)) and set(modules) == set(signatures)
    large = {e["kernel"] for e in found.log if "shared_opt_in" in e}
    assert large == {name for name, *_, shared, _, _ in native if shared > 49152} and 0 < len(large) < len(modules)

    if reason := why_unavailable("fused"):
        pytest.skip(reason)
    code = f"""
with Engine.load({str(path)!r}) as engine:
    for count in {counts}:
        engine.logits(np.zeros((count, {size}, {size}, 3), np.uint8))
"""
    log = fake_cuda.child(fake_library, tmp_path, code, **settings)
    assert ran(log, plans, signatures) == native
    # The nodes that it changes are the same, too, and so is what goes over the bus.
    for kind in ("set", "copy"):
        assert [e[kind] for e in log if kind in e] == [e[kind] for e in found.log if kind in e]


def test_the_calls_of_the_stand_ins_engine_are_the_python_backends(run, fake_library, tmp_path, engine):
    counts = [4, 4, 3, 1, 2, 4]
    found = run(engine, faces(4), "--counts", ",".join(map(str, counts)))
    signatures = fake_cuda.SIGNATURES
    plans = {b: fake_cuda.plan(b) for b in (1, 2, 4)}
    if reason := why_unavailable("fused"):
        pytest.skip(reason)
    code = f"""
with Engine.load({str(engine)!r}) as engine:
    for count in {counts}:
        engine.logits(faces(4)[:count])
"""
    log = fake_cuda.child(fake_library, tmp_path, code)
    assert ran(log, plans, signatures) == ran(found.log, plans, signatures)


@pytest.mark.parametrize("pdl", [True, False])
def test_a_launch_is_dependent_where_its_plan_says_so(pdl, run, tmp_path):
    path = write_engine(tmp_path / "e.tkf", fake_cuda.tensors([fake_cuda.plan(4, pdl=pdl)]))
    assert [entry["pdl"] for entry in runs(run(path, faces(4), "--counts", "4").log)] == [0, int(pdl), int(pdl)]


@pytest.mark.parametrize("how", ["run", "device"])
def test_a_buffer_may_begin_inside_the_callers_memory(how, run, tmp_path):
    whole = fake_cuda.plan(4)
    args = (("pixels_ptr", Buffer("pixels", 256, "u8", 1000)), *whole.launches[0].args[1:])
    part = replace(whole, launches=(replace(whole.launches[0], args=args), *whole.launches[1:]))
    path = write_engine(tmp_path / "e.tkf", fake_cuda.tensors([part]))
    found = run(path, faces(4), "--counts", "4,3,4", "--how", how)
    starts = {e["allocated"] for e in found.log if "allocated" in e and not e["pinned"]}
    read = [entry["args"][0] for entry in runs(found.log, "pack_pixels_kernel")]
    assert len(read) == 3 and len(set(read)) == 1 and read[0] - 256 in starts


# --- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "submit", "device", "stream", "mixed"])
def test_answers_are_right_however_they_are_asked_for(how, run, engine):
    images, counts = faces(9), [1, 2, 3, 4, 3, 1, 4, 2]
    if how == "run":
        counts += [5, 9]  # in parts
    found = run(engine, images, "--counts", ",".join(map(str, counts)), "--how", how)
    assert set(found.statuses) == {"TKF_OK"}
    np.testing.assert_array_equal(found.logits, expected(images, counts))
    assert freed(found.log)[-1] == [0] * 7
    assert {"backend": "cuda", "device": "Stand-in GPU"} in found.calls


@pytest.mark.parametrize("how", ["device", "stream"])
def test_images_on_the_gpu_are_read_and_answered_where_they_stand(how, run, tmp_path):
    path = write_engine(tmp_path / "e.tkf")
    found = run(path, faces(4), "--counts", "3,3,4", "--how", how)
    packs, classifies = runs(found.log, "pack_pixels_kernel"), runs(found.log, "classify_kernel")
    blocks = {e["allocated"]: e["bytes"] for e in found.log if "allocated" in e and not e["pinned"]}
    assert {blocks[e["args"][0]] for e in packs} == {4 * SIZE * SIZE * 3}
    assert [blocks[e["args"][1]] for e in classifies] == [n * CLASSES * 4 for n in (3, 3, 4)]
    assert all((e["stream"] == 1) == (how == "device") for e in packs)
    # The library itself copies the weights alone, and needs no page-locked memory.
    assert not any(e["pinned"] for e in found.log if "copy" in e or "allocated" in e)


def test_the_spare_slots_of_a_bucket_do_not_count(run, engine):
    found = run(engine, faces(4), "--counts", "4,3")
    # images, batch: the kernel itself leaves the spare slots empty. The first run is the file's own check.
    assert [entry["args"][2:4] for entry in runs(found.log, "pack_pixels_kernel")] == [[2, 2], [4, 4], [3, 4]]


def test_only_the_modules_of_the_buckets_used_are_loaded(run, tmp_path):
    plans = [fake_cuda.plan(1), fake_cuda.plan(2, warps=8), fake_cuda.plan(4)]
    path = write_engine(tmp_path / "e.tkf", fake_cuda.tensors(plans))
    found = run(path, faces(4), "--counts", "1,4,1,4")
    assert sum("module" in entry for entry in found.log) == 3
    # Weights once, before any image.
    assert [entry["copy"] for entry in found.log if "copy" in entry and not entry["pinned"]] == [512]


def test_an_older_architectures_code_runs_on_a_newer_gpu(run, tmp_path):
    plans = [fake_cuda.plan(4, arch, warps=warps) for arch, warps in (("sm_80", 2), ("sm_86", 8), ("sm_90", 4))]
    path = write_engine(tmp_path / "e.tkf", fake_cuda.tensors(plans))
    found = run(path, faces(4), "--counts", "4", cc=89)
    np.testing.assert_array_equal(found.logits, expected(faces(4), [4]))
    assert runs(found.log, "conv_kernel")[0]["block"] == [256, 1, 1]


# --- threads, devices, closing ---------------------------------------------------------------------------


def test_eight_threads_share_one_engine(run, engine):
    found = run(engine, faces(4), "--counts", "1,2,3,4", "--how", "mixed", "--threads", 8, "--runs", 10)
    assert found.wrong == 0 and freed(found.log)[-1] == [0] * 7
    assert sum("module" in entry for entry in found.log) == 3  # each kernel once for all


def test_engines_run_on_two_gpus_at_once(run, engine):
    found = run(engine, faces(4), "--counts", "1,3,4", "--how", "mixed", "--device", "0,1", "--threads", 4, devices=2)
    assert found.wrong == 0 and set(found.statuses) == {"TKF_OK"}
    assert {entry["device"] for entry in runs(found.log)} == {0, 1}
    last = {entry["released"]: entry["left"] for entry in found.log if "released" in entry}
    assert last == {0: [0] * 7, 1: [0] * 7}


@pytest.mark.parametrize("order", ["0,1,e", "1,0,e", "e,0,1", "e,1,0", "0,e,1", "1,e,0"])
@pytest.mark.parametrize("how", ["run", "stream"])
def test_an_engine_and_its_sessions_close_in_any_order(order, how, run, engine):
    found = run(engine, faces(4), "--counts", "3,4", "--how", how, "--close", order)
    assert found.wrong == 0 and freed(found.log)[-1] == [0] * 7


def test_opening_again_and_again_leaves_nothing(run, engine):
    found = run(engine, faces(4), "--counts", "2,4", "--cycles", 50)
    assert found.wrong == 0 and freed(found.log) == [[0] * 7] * 51
