"""The GPU executor over a stand-in for the driver (fake_cuda.c): its launches, and what it refuses to open."""

from __future__ import annotations

import pytest

from tkfnet_engine.backends.fused import chosen_arch
from tkfnet_engine.errors import BackendError

from . import fake_cuda
from .fake_cuda import SIZE, freed, runs

# --- launches --------------------------------------------------------------------------------------------


def test_every_number_of_images_runs_in_the_smallest_bucket_that_holds_it(gpu):
    log = gpu("""
runner = opened()
for count in (1, 2, 3, 4, 3, 1):
    images = faces(count, seed=count)
    assert np.array_equal(runner.run(images), answers(images)), count
refused(lambda: runner.run(faces(5)), BackendError, "got 5 images", "1 to 4", "--max-batch")
assert not {"torch", "triton"} & set(sys.modules)
""")
    first = runs(log, "pack_pixels_kernel")
    assert [entry["grid"][0] for entry in first] == [1, 2, 4, 4, 4, 1]
    # images, batch: the kernel itself leaves the spare slots empty.
    assert [entry["args"][2:4] for entry in first] == [[1, 1], [2, 2], [3, 4], [4, 4], [3, 4], [1, 1]]
    assert [entry["args"][2] for entry in runs(log, "classify_kernel")] == [1, 2, 3, 4, 3, 1]
    # An update leaves the rest of a launch as it was.
    assert all(entry["block"] == [128, 1, 1] and entry["shared"] == 1024 for entry in first)
    assert all(entry["grid"] == other["grid"] for entry, other in zip(runs(log, "classify_kernel"), first))
    # Each bucket was captured once.
    assert [entry["nodes"] for entry in log if "instantiated" in entry] == [3, 3, 3]


def test_a_node_is_updated_only_when_its_values_change(gpu):
    log = gpu("""
runner = opened()
for count in (4, 4, 3, 3, 4):
    runner.run(faces(count))
""")
    events = [entry.get("set") or entry["run"] for entry in log if "set" in entry or entry.get("run") == "conv_kernel"]
    update = ["pack_pixels_kernel", "classify_kernel"]
    assert events == ["conv_kernel", "conv_kernel", *update, "conv_kernel", "conv_kernel", *update, "conv_kernel"]


def test_parameters_are_addresses_scalars_and_two_nulls(gpu):
    log = gpu("opened(tensors([plan(2, warps=8)]), max_batch=2).run(faces(2))")
    weights, session = (entry for entry in log if "allocated" in entry and not entry["pinned"])
    assert weights["bytes"] == 512
    pack, conv, classify = runs(log)
    pixels, logits = session["allocated"], session["allocated"] + 2 * SIZE * SIZE * 3
    arena = logits + 256  # 2 x 7 x 4 bytes, rounded up
    counters = arena + 2 * fake_cuda.STEP
    assert pack["args"] == [pixels, arena, 2, 2, SIZE * SIZE * 3, 0, 0]
    mixed = arena + fake_cuda.STEP
    assert conv["args"] == [arena, weights["allocated"] + 256, mixed, counters + 256, 2, 0, 0]
    assert classify["args"] == [mixed, logits, 2, 7, 0, 0]
    assert session["bytes"] == counters + 512 - pixels
    assert [entry["block"] for entry in runs(log)] == [[256, 1, 1], [256, 1, 1], [32, 1, 1]]
    assert all(entry["grid"] == [2, 1, 1] and entry["shared"] == 1024 for entry in runs(log))


def test_a_buffer_may_begin_inside_the_callers_memory(gpu):
    log = gpu("""
from dataclasses import replace
whole = plan(4)
args = (("pixels_ptr", Buffer("pixels", 256, "u8", 1000)), *whole.launches[0].args[1:])
part = replace(whole, launches=(replace(whole.launches[0], args=args), *whole.launches[1:]))
runner = opened(tensors([part]))
runner.run(faces(4))
runner.run(faces(3))
""")
    _, session = (entry["allocated"] for entry in log if "allocated" in entry and not entry["pinned"])
    assert [entry["args"][0] for entry in runs(log, "pack_pixels_kernel")] == [session + 256] * 2


@pytest.mark.parametrize("pdl", [True, False])
def test_a_launch_is_dependent_where_its_plan_says_so(pdl, gpu):
    log = gpu(f"opened(tensors([plan(4, pdl={pdl})])).run(faces(4))")
    assert [entry["pdl"] for entry in runs(log)] == [0, int(pdl), int(pdl)]


def test_shared_memory_beyond_48_kib_is_asked_for(gpu):
    def asked(nbytes, code="opened(tensors([plan(4)], shared_bytes={})).run(faces(4))"):
        return [e["shared_opt_in"] for e in gpu(code.format(nbytes)) if "shared_opt_in" in e]

    assert asked(98304) == [98304] * 3
    assert asked(49152) == []
    assert asked(0) == []
    gpu(
        """
runner = opened(tensors([plan(4)], shared_bytes=98305))
refused(lambda: runner.run(faces(4)), BackendError, "98305 bytes of shared memory", "98304")
""",
        shared=98304,
    )


def test_only_the_modules_of_the_buckets_used_are_loaded(gpu):
    log = gpu("""
runner = opened(tensors([plan(1), plan(2, warps=8), plan(4)]))
for _ in range(2):
    runner.run(faces(1))
    runner.run(faces(4))
""")
    assert sum("module" in entry for entry in log) == 3
    # Weights once, before any image; no clean-up or second upload between the runs.
    assert [entry["copy"] for entry in log if "copy" in entry and not entry["pinned"]] == [512]


# --- what it refuses to open -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "held", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90"], "sm_90"),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], "sm_86"),
        ((8, 9), ["sm_80", "sm_86", "sm_89"], "sm_89"),
        ((8, 7), ["sm_80", "sm_86", "sm_89"], "sm_86"),
        ((8, 0), ["sm_80", "sm_86"], "sm_80"),
        ((10, 0), ["sm_100", "sm_120"], "sm_100"),
        ((12, 0), ["sm_100", "sm_120"], "sm_120"),
        ((8, 0), ["sm_86", "sm_89"], None),
        ((9, 0), ["sm_80", "sm_89", "sm_100"], None),
        ((10, 3), ["sm_100"], None),
        ((12, 1), ["sm_120"], None),
        ((7, 5), ["sm_80"], None),
        ((9, 0), [], None),
    ],
)
def test_the_machine_code_a_gpu_runs(capability, held, expected):
    if expected:
        assert chosen_arch(capability, held, "A GPU") == expected
        return
    with pytest.raises(BackendError, match=r"A GPU has compute capability") as caught:
        chosen_arch(capability, held, "A GPU")
    flag = "--backend eager" if capability < (8, 0) else f"--arch sm_{capability[0]}{capability[1]}`"
    assert flag in str(caught.value) and all(arch in str(caught.value) for arch in held if capability >= (8, 0))


def test_an_older_architectures_plan_and_code_run_on_a_newer_gpu(gpu):
    log = gpu(
        """
runner = opened(tensors([plan(4, "sm_80", warps=2), plan(4, "sm_86", warps=8), plan(4, "sm_90", warps=4)]))
assert np.array_equal(runner.run(faces(3)), answers(faces(3)))
""",
        cc=89,
    )
    assert runs(log, "conv_kernel")[0]["block"] == [256, 1, 1]


REFUSALS = {
    "no code": ("tensors()", {"cc": 100}, ["holds machine code for sm_90", "10.0", "--arch sm_100`"]),
    "too old a GPU": ("tensors()", {"cc": 75}, ["7.5", "8.0 or later", "--backend eager"]),
    "old driver": ("tensors(driver=12080)", {"driver": 12040}, ["CUDA 12.4", "needs 12.8", "update the driver"]),
    "driver before graphs": ("tensors(driver=12000)", {"driver": 12020}, ["CUDA 12.2", "needs 12.3"]),
    "no device": ("tensors()", {"devices": 0}, ["NO_DEVICE", "CUDA_VISIBLE_DEVICES", "--device cpu"]),
    "fork": ("tensors()", {"fail": "cuInit:1:3"}, ["fork", "'spawn'"]),
    "busy": ("tensors()", {"fail": "cuDevicePrimaryCtxRetain:1:46"}, ["another process", "nvidia-smi"]),
    "memory": (
        "tensors()",
        {"free": 10000},
        ["for batches of up to 4, needs 0.0 MiB", "0.0 MiB of 0.0 MiB free", "smaller --max-batch"],
    ),
    "memory taken since": ("tensors()", {"fail": "cuMemAlloc:1:2"}, ["weights", "in one piece", "--max-batch"]),
    "second allocation": ("tensors()", {"fail": "cuMemAlloc:2:2"}, ["one request's buffers", "--max-batch"]),
    "upload": ("tensors()", {"fail": "cuMemcpyHtoDAsync:1:1"}, ["CUDA_ERROR_OTHER", "nvidia-smi"]),
    "golden module": ("tensors(golden=2)", {"fail": "cuModuleLoadData:2:200"}, ["machine code is damaged"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_run_here_is_refused_with_the_remedy_and_nothing_is_left(case, gpu):
    made, settings, words = REFUSALS[case]
    log = gpu(
        f"""
refused(lambda: opened({made}), BackendError, *{words})
""",
        **settings,
    )
    assert not runs(log)
    early = {"no device", "fork", "busy"}
    assert freed(log) == ([] if case in early else [[0] * 7])


def test_without_a_driver_the_remedy_is_named(tmp_path):
    fake_cuda.child(
        None,
        tmp_path,
        """
refused(opened, BackendError, "no NVIDIA driver answers here", "--device cpu")
""",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("made.pop(next(n for n in made if 'conv_kernel' in n))", ["2 kernels"]),
        ("made['weights.packed'] = made['weights.packed'][:256]", ["256 bytes of weights"]),
        ("del made['plans/sm_90/4']", ["batches [1, 2]"]),
        ("given['labels'] = given['labels'][:6]", ["6 labels"]),
        ("given['preprocessing']['size'] = 64", ["images of 64"]),
    ],
)
def test_a_file_put_together_from_several_builds_is_refused(change, words, gpu):
    log = gpu(f"""
from tkfnet_engine.backends.registry import open_backend
made, given = tensors([plan(b, warps=1) for b in (1, 2, 4)]), facts()
{change}
refused(lambda: open_backend("fused", given, artefacts(made), "cuda", None), BundleError, "several builds", *{words})
""")
    assert not any("allocated" in entry for entry in log)


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (b'{"driver": 12030, "driver": 12030, "cubins": {}}', "twice"),
        (b'{"driver": "12030", "cubins": {}}', "driver"),
        (b'{"driver": 12030, "cubins": {"v": {"entry": "a/b", "registers": 1, "shared_bytes": 0}}}', "a/b"),
    ],
)
def test_a_damaged_index_is_refused_before_anything_is_loaded(index, word, gpu):
    log = gpu(f"""
from tkfnet_engine.backends.registry import open_backend
made, given = tensors(), facts()
made['cubins/sm_90/index'] = np.frombuffer({index!r}, np.uint8)
refused(lambda: open_backend("fused", given, artefacts(made), "cuda", None), BundleError, "index of kernels", {word!r})
""")
    assert not any("allocated" in entry for entry in log)


# An image whose logits lie close together, and the spread of all logits that the requirement is about.
DARK = (
    "made['golden/pixels'][0] = 0; made['golden/logits'] = answers(made['golden/pixels']); "
    "spread = float(np.sqrt(((made['golden/logits'] - made['golden/logits'].mean(0)) ** 2).mean()))"
)


@pytest.mark.parametrize(
    ("images", "damage", "words"),
    [
        (5, "", None),
        (1, "", None),
        (1, "made['golden/logits'] *= 1.005", None),
        (5, "made['golden/logits'][2] += 40000", ["SQNR", "at least 40 dB"]),
        (5, "made['golden/logits'] = np.roll(made['golden/logits'], 1, 0)", ["SQNR"]),
        (1, "made['golden/logits'] *= 1.2", ["on one image"]),
        (5, "made['weights.packed'][256:260] = 0x5A", ["does not answer as the network"]),
        # All within 40 dB, but one image's first class is another than the GPU's, and not by rounding.
        (5, f"{DARK}; made['golden/logits'][0, 5] += 0.055 * spread", ["1 of 5 images get another label"]),
        (5, f"{DARK}; made['golden/logits'][0, 5] += 0.035 * spread", None),
    ],
)
def test_the_verification_images_are_answered_before_anything_else(images, damage, words, gpu):
    log = gpu(f"""
made = tensors(golden={images})
{damage}
if words := {words}:
    refused(lambda: opened(made), BackendError, "this GPU does not answer as the network", *words)
else:
    opened(made).close()
""")
    # More images than the largest batch holds run in parts.
    assert [entry["args"][2] for entry in runs(log, "pack_pixels_kernel")] == ([4, 1] if images == 5 else [1])
    assert freed(log) == [[0] * 7]


def test_opening_parses_and_loads_quickly(gpu):
    """Nine buckets of 22 launches, as the real network has: what opening costs beside the driver's own work."""
    gpu("""
import time
from dataclasses import replace
def long(batch):
    short = plan(batch)
    return replace(short, launches=(short.launches[0], *[short.launches[1]] * 20, short.launches[2]))
made = tensors([long(b) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256)], golden=0)
best = 9.0
for _ in range(5):
    start = time.perf_counter()
    runner = opened(made, max_batch=256)
    runner.run(faces(1))
    best = min(best, time.perf_counter() - start)
    runner.close()
assert best < 0.15, best
""")
