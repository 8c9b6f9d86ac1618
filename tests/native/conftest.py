"""The native library and its test programs, built once per session (and incrementally from run to run)."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tkfnet_engine" / "native"
NEEDED = "apt-get install cmake g++ ninja-build nlohmann-json3-dev"


def why_unbuildable() -> str | None:
    """What building the library lacks here, and how to get it; None if nothing."""
    missing = [tool for tool in ("cmake", "c++", "ninja") if shutil.which(tool) is None]
    return f"{', '.join(missing)} not found; {NEEDED}" if missing else None


def build(preset: str, *targets: str) -> Path:
    """The build folder of a preset of CMakePresets.json, with `targets` (by default everything) up to date."""
    if reason := why_unbuildable():
        # Whoever runs the tests where the library is not wanted sees why they did not run; CI wants it.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the C library cannot be built: {reason}")
    folder = ROOT / "build" / f"native-{preset}"
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / "lock", "w") as lock:  # two test runs in one tree
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("cmake", "-G", "Ninja", "--preset", preset, cwd=NATIVE)
        _run("cmake", "--build", folder, *(["--target", *targets] if targets else []), cwd=NATIVE)
    return folder


def _run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="session")
def native_build() -> Path:
    """The build folder: libtkfnet.so in it, test programs in `programs/`, examples in `examples/`."""
    return build("tests")


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory) -> Path:
    """The folder of the stand-in for libcuda.so.1."""
    from ..backends import fake_cuda

    return fake_cuda.build(tmp_path_factory.mktemp("fake-cuda"))


@pytest.fixture(scope="session")
def library(native_build):
    from . import c_api

    return c_api.load(native_build / "libtkfnet.so")


@pytest.fixture
def run_fused(native_build, fake_library, tmp_path):
    """run_fused(tensors, max_batch=2, settings={..}): opens an engine of these tensors, facts and settings."""

    from ..backends.fake_cuda import faces
    from .cuda_engines import run_engine, write_engine

    def opened(tensors=None, *flags, library=fake_library, settings=None, **facts):
        path = write_engine(tmp_path / "e.tkf", tensors, **facts)
        program = native_build / "programs" / "run_engine"
        return run_engine(program, library, tmp_path, path, faces(4), *flags, **(settings or {}))

    return opened
