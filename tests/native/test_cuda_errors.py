"""The C library when the GPU driver fails, is missing or too old, and with engine files that it must not run."""

from __future__ import annotations

import json
import subprocess
from collections import Counter

import numpy as np
import pytest

from ..backends import fake_cuda
from ..backends.fake_cuda import CLASSES, answers, faces, freed, runs
from .cuda_engines import environment, write_engine

# --- every driver call fails -----------------------------------------------------------------------------

OUT_OF_MEMORY, ILLEGAL_ADDRESS, INVALID_VALUE = 2, 700, 1
NAMES = {
    OUT_OF_MEMORY: "CUDA_ERROR_OUT_OF_MEMORY",
    ILLEGAL_ADDRESS: "CUDA_ERROR_ILLEGAL_ADDRESS",
    INVALID_VALUE: "CUDA_ERROR_OTHER",  # as the stand-in names all it has no name for
}
STATUSES = {
    OUT_OF_MEMORY: "TKF_ERROR_MEMORY",
    ILLEGAL_ADDRESS: "TKF_ERROR_LOST",
    INVALID_VALUE: "TKF_ERROR_BACKEND",
}
# What is told in words of our own.
OWN_WORDS = {
    (OUT_OF_MEMORY, "cuMemAlloc"): ("TKF_ERROR_MEMORY", "not enough GPU memory"),
    (OUT_OF_MEMORY, "cuMemHostAlloc"): ("TKF_ERROR_MEMORY", "not enough host memory"),
    # So the driver says that an address is none of its own.
    (INVALID_VALUE, "cuPointerGetAttribute"): ("TKF_ERROR_ARGUMENT", "memory that is not a GPU's"),
}
# Where these fail, one thing may be left: only they could have taken it away.
DESTROYERS = {"cuMemFree", "cuMemFreeHost", "cuStreamDestroy", "cuEventDestroy", "cuModuleUnload", "cuGraphDestroy"}
DESTROYERS |= {"cuGraphExecDestroy", "cuCtxPushCurrent", "cuStreamEndCapture"}


def test_any_driver_call_may_fail(native_build, fake_library, tmp_path):
    """Each of some 200 calls that opening, asking in every way and closing make, with three kinds of errors: the status
    and the words are right, nothing crashes, nothing is left, and the same call succeeds the next time - unless the
    error is one after which there is no next time in this process."""
    engine = write_engine(tmp_path / "e.tkf", fake_cuda.tensors(golden=2))
    images = faces(4)
    (tmp_path / "pixels").write_bytes(images.tobytes())
    program = native_build / "programs" / "fail_driver"

    def cases(first: int, last: int, *codes: int) -> list[dict]:
        command = [program, engine, tmp_path / "pixels", first, last, *codes]
        settings = environment(fake_library)
        done = subprocess.run([*map(str, command)], env=settings, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and not done.stderr, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    (clean,) = cases(0, 0, 0)
    expected = np.concatenate([answers(images[:n]).reshape(-1) for n in (3, 1, 2, 3, 1, 2)]).tolist()
    assert (clean["status"], clean["answer"], clean["left"]) == ("TKF_OK", expected, [0] * 7)
    assert clean["calls"] > 150

    seen = Counter()
    for case in cases(1, clean["calls"], *NAMES):
        call, code = case["driver_call"], case["code"]
        assert "crashed" not in case, case
        seen[call, code, case["step"]] += 1
        if code == ILLEGAL_ADDRESS:
            # Whatever comes after it ends the same way, with the same words.
            told = {(case["status"], case["error"]), *map(tuple, case["then"])} if case["step"] else set()
            assert len(told) <= 1 and all(status == "TKF_ERROR_LOST" for status, _ in told), case
            assert all(NAMES[code] in error and "start a new process" in error for _, error in told), case
            continue
        assert sum(case["left"]) <= (call in DESTROYERS), case
        assert case["answer"] == expected, case
        assert all(status == "TKF_OK" for status, _ in case["then"]), case
        if case["step"]:
            usual = (STATUSES[code], NAMES[code])
            status, words = OWN_WORDS.get((code, call), usual)
            assert (case["status"] == status and words in case["error"]) or (
                (code, call) == (INVALID_VALUE, "cuPointerGetAttribute")
                and case["status"] == usual[0]
                and usual[1] in case["error"]
            ), case
        else:  # quiet, because nothing was lost by it
            assert call in DESTROYERS | {"cuPointerGetAttribute"}, case
    # It was no small set of calls, and each was made at several steps.
    assert len({call for call, _, _ in seen}) >= 35
    steps = {step for _, _, step in seen}
    assert steps == {"open", "session", "run", "submit", "stream", "device", ""}


# The second request fails, in the middle of its capture or of the request itself.
@pytest.mark.parametrize("fail", ["cuMemcpyDtoHAsync:2:719", "cuLaunchKernelEx:5:700", "cuStreamEndCapture:2:702"])
def test_after_an_error_that_sticks_the_driver_is_left_alone(fail, run_fused):
    found = run_fused(None, "--counts", "1,2,3,4", settings={"fail": fail})
    assert found.statuses == ["TKF_OK"] * 3 + ["TKF_ERROR_LOST"] * 3
    assert len({call["error"] for call in found.calls if call.get("error")}) == 1
    assert not [entry for entry in found.log if "after" in entry]


def test_a_kernel_that_leaves_its_memory_loses_the_context(run_fused):
    """Found at the wait, not at the launch."""
    from dataclasses import replace

    small = fake_cuda.plan(4)
    logits = small.launches[2].args[1][1]
    wild = {"x_ptr": 12345, "logits_ptr": logits, "images": 4, "classes": CLASSES}
    launches = (*small.launches[:2], fake_cuda.launch("classify_kernel", 4, wild, {"PDL": True}, 1))
    found = run_fused(fake_cuda.tensors([replace(small, launches=launches)]), "--counts", "4,4")
    assert found.statuses == ["TKF_OK", "TKF_OK", "TKF_ERROR_LOST", "TKF_ERROR_LOST"]


# --- what it refuses to open -----------------------------------------------------------------------------

REFUSALS = {
    "no code": ({}, {"cc": 100}, "DEVICE", ["holds machine code for sm_90", "10.0", "--arch sm_100"]),
    "too old a GPU": ({}, {"cc": 75}, "DEVICE", ["7.5", "8.0 or later", "--backend openvino"]),
    "old driver": ({"driver": 12080}, {"driver": 12040}, "BACKEND", ["CUDA 12.4", "needs 12.8", "update the driver"]),
    "driver before graphs": ({}, {"driver": 12020}, "BACKEND", ["CUDA 12.2", "needs 12.3", "update the driver"]),
    "no device": ({}, {"devices": 0}, "DEVICE", ["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]),
    "fork": ({}, {"fail": "cuInit:1:3"}, "BACKEND", ["fork"]),
    "busy": ({}, {"fail": "cuDevicePrimaryCtxRetain:1:46"}, "BACKEND", ["another process", "nvidia-smi"]),
    "memory": ({}, {"free": 10000}, "MEMORY", ["for batches of up to 4, needs 0.0 MiB", "0.0 MiB of 0.0 MiB free"]),
    "memory taken since": ({}, {"fail": "cuMemAlloc:1:2"}, "MEMORY", ["weights needs", "in one piece", "--max-batch"]),
    "second allocation": ({}, {"fail": "cuMemAlloc:2:2"}, "MEMORY", ["one request's buffers", "--max-batch"]),
    "upload": ({}, {"fail": "cuMemcpyHtoDAsync:1:1"}, "BACKEND", ["CUDA_ERROR_OTHER", "nvidia-smi"]),
    "module": ({"golden": 2}, {"fail": "cuModuleLoadData:2:200"}, "BACKEND", ["machine code is damaged"]),
    "shared memory": ({"golden": 2, "shared_bytes": 98305}, {"shared": 98304}, "BACKEND", ["98305 bytes", "98304"]),
    "threads": ({"golden": 2}, {"threads": 96}, "BACKEND", ["blocks of 128 threads", "allow 96", "build the engine"]),
    "lacks": ({}, {"lacks": "cuGraphLaunch"}, "BACKEND", ["libcuda.so.1 has no cuGraphLaunch", "reinstall"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_run_here_is_refused_with_the_remedy_and_nothing_is_left(case, run_fused):
    made, settings, status, words = REFUSALS[case]
    found = run_fused(fake_cuda.tensors(**made), settings=settings)
    assert found.statuses[-1] == f"TKF_ERROR_{status}" and all(word in found.error for word in words), found.error
    assert not runs(found.log)
    early = {"no device", "fork", "busy", "lacks", "driver before graphs"}
    assert freed(found.log) == ([] if case in early else [[0] * 7])


@pytest.mark.parametrize("device", [1, 7, 4095])
def test_a_gpu_that_is_not_there_is_refused(device, run_fused):
    found = run_fused(None, "--device", device)
    assert found.statuses == ["TKF_ERROR_DEVICE"]
    assert f"got GPU {device}, and this process sees 1; expected 0 to 0; CUDA_VISIBLE_DEVICES" in found.error
    assert run_fused(None, "--device", 1, settings={"devices": 2}).statuses[0] == "TKF_OK"


def test_without_a_driver_the_remedy_is_named(run_fused, tmp_path):
    found = run_fused(library=tmp_path)
    assert found.statuses == ["TKF_ERROR_BACKEND"]
    assert found.error.startswith("no NVIDIA driver answers here (libcuda.so.1: cannot open")
    assert found.error.endswith("install the GPU's driver, or open an engine for the CPU")


STUBS = {
    "": ("libcuda.so.1 has no cuDriverGetVersion", "12.3", "reinstall"),
    "int cuDriverGetVersion(int *v) { *v = 13000; return 0; }": ("has no cuGetProcAddress_v2", "12.3", "reinstall"),
    "int cuDriverGetVersion(int *v) { *v = 11080; return 0; }": ("is for CUDA 11.8", "needs 12.3", "update the driver"),
    "int cuDriverGetVersion(int *v) { *v = 0; return 34; }": ("error 34", "toolkit's stub", "library path"),
}


@pytest.mark.parametrize("code", STUBS)
def test_a_library_that_is_no_driver_is_refused(code, run_fused, tmp_path):
    (tmp_path / "stub.c").write_text(code)
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", tmp_path / "libcuda.so.1", tmp_path / "stub.c"]
    subprocess.run([fake_cuda.compiler(), *options], check=True)
    found = run_fused(library=tmp_path)
    assert found.statuses == ["TKF_ERROR_BACKEND"] and all(words in found.error for words in STUBS[code]), found.error
