"""The library under sanitizers and valgrind, over the stand-ins of OpenVINO and of the GPU driver.

Not over the real OpenVINO: its threading library aborts under them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ..backends import fake_cuda
from .conftest import ROOT, build
from .cuda_engines import environment, run_engine, write_engine
from .standins import run_program, standin_engine

PROGRAMS = ("c_api", "stress", "wrapper", "run_engine", "fail_driver", "fake_openvino")
REPLAYS = ("replay_engine_file", "replay_frame", "read_files")
# Of OpenVINO's calls that fail once: each ends another step of opening and running.
FAILING = ("core_create", "core_compile_model", "infer_request_infer", "tensor_data", "infer_request_wait")


@pytest.fixture(scope="module", params=["address", "thread"])
def sanitized(request) -> Path:
    """A build folder in which the library and its programs are sanitized."""
    return build(request.param, *PROGRAMS, *(REPLAYS if request.param == "address" else ()))


def run(folder: Path, name: str, *arguments: object, **settings) -> str:
    return run_program(folder, name, *arguments, openvino=folder / "programs" / "libfake_openvino.so", **settings)


def test_openvinos_half(sanitized, tmp_path):
    engine, damaged = standin_engine(tmp_path / "e.tkf"), tmp_path / "damaged.tkf"
    damaged.write_bytes(engine.read_bytes()[:-1] + b"x")
    run(sanitized, "c_api", engine, damaged)
    run(sanitized, "wrapper", engine)
    run(sanitized, "stress", "threads", engine, 8, 100)
    run(sanitized, "stress", "creating", engine, 8)
    for name in FAILING:
        failed = run(sanitized, "stress", "threads", engine, 1, 2, expect=1, FAKE_OV_FAIL=f"ov_{name}:1:-1")
        assert "OpenVINO failed" in failed and "anitizer" not in failed


@pytest.mark.parametrize("how", ["run", "submit", "mixed"])
def test_cudas_half(sanitized, fake_library, tmp_path, how):
    engine = write_engine(tmp_path / "e.tkf")
    program, flags = sanitized / "programs" / "run_engine", ("--how", how, "--threads", 8, "--runs", 20)
    found = run_engine(program, fake_library, tmp_path, engine, fake_cuda.faces(4), "--counts", "1,2,3,4", *flags)
    assert set(found.statuses) == {"TKF_OK"} and found.wrong == 0
    if how != "mixed":  # in which the program has memory of its own
        assert fake_cuda.freed(found.log) and not any(any(left) for left in fake_cuda.freed(found.log))


def test_every_tenth_driver_call_failing(sanitized, fake_library, tmp_path):
    engine, pixels = write_engine(tmp_path / "e.tkf"), tmp_path / "pixels"
    pixels.write_bytes(fake_cuda.faces(4).tobytes())
    for call in range(1, 200, 10):
        command = [sanitized / "programs" / "fail_driver", engine, pixels, call, call, 1, 2]
        done = subprocess.run(
            [str(part) for part in command], env=environment(fake_library), capture_output=True, text=True
        )
        assert done.returncode == 0 and "anitizer" not in done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["engine_file", "frame"])
def test_the_fuzzers_kept_inputs(name):
    folder = build("address", *PROGRAMS, *REPLAYS)
    kept = sorted((ROOT / "tests" / "native" / "corpus" / name).iterdir())
    assert run_program(folder, f"replay_{name}", *kept) == f"{len(kept)} inputs\n" and len(kept) > 50


def test_valgrind_finds_nothing_in_a_thousand_cycles(native_build, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind not found; apt-get install valgrind")
    engine = standin_engine(tmp_path / "e.tkf")
    # What is still reachable at the end is the loader's record of OpenVINO, which stays loaded.
    leaks = "--errors-for-leak-kinds=definite,indirect,possible"
    command = ["valgrind", "--leak-check=full", leaks, "--error-exitcode=9"]
    command += [str(native_build / "programs" / "stress"), "cycles", str(engine), "1000"]
    library = {"TKFNET_OPENVINO_LIBRARY": str(native_build / "programs" / "libfake_openvino.so")}
    done = subprocess.run(command, env=library, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    reachable = re.search(r"still reachable: ([\d,]+) bytes", done.stderr).group(1)
    assert int(reachable.replace(",", "")) < 4096
    assert len(done.stdout.split()) == 10


def test_valgrind_finds_nothing_over_the_driver(native_build, fake_library, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind not found; apt-get install valgrind")
    engine, pixels, out = write_engine(tmp_path / "e.tkf"), tmp_path / "pixels", tmp_path / "out"
    pixels.write_bytes(fake_cuda.faces(1).tobytes())
    command = ["valgrind", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=9"]
    command += [native_build / "programs" / "run_engine", engine, "--pixels", pixels, "--out", out, "--cycles", 1000]
    done = subprocess.run([str(c) for c in command], env=environment(fake_library), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
