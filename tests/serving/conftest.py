"""An environment with Triton's server, and one server that tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tkfnet_engine import Engine

from .running import ROOT, Running
from .slow_engine import write_slow_engine


def _missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def serve_python() -> str:
    """The Python of an environment with tkfnet-engine[serve]."""
    python = os.environ.get("TKFNET_SERVE_PYTHON", str(ROOT / ".venv-serve" / "bin" / "python"))
    if not os.path.isfile(python):
        _missing(f"{python} is not there: `make serve-env` makes it, or set TKFNET_SERVE_PYTHON")
    return python


@pytest.fixture(scope="session")
def nginx() -> None:
    if shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        _missing("nginx is not installed: apt-get install nginx-light libnginx-mod-http-js")


@pytest.fixture(scope="session")
def served(serve_python, nginx, small_engine_path, tmp_path_factory):
    """`small_engine_path`, served as "small" with two instances and a small limit for pictures."""
    folder = tmp_path_factory.mktemp("served")
    flags = ["--instances", "2", "--threads", "1", "--max-pixels", "40000", "--max-body", "1000000"]
    flags += ["--check-seconds", "3600"]  # the canary's requests are counted too
    with Running(serve_python, folder, small_engine_path, *flags) as server:
        yield server
        assert "restarting" not in server.log(), server.log()


@pytest.fixture(scope="session")
def crops(noise) -> np.ndarray:
    """uint8 [64, 64, 64, 3]."""
    return noise(64, 64, seed=5)


@pytest.fixture(scope="session")
def known(small_engine_path, crops) -> np.ndarray:
    """What the engine says of `crops`: float32 [64, 7]."""
    with Engine.load(small_engine_path, threads=1) as engine:
        return engine.predict(crops).probabilities


@pytest.fixture(scope="session")
def slow_engine_path(small_engine_path, session_folder) -> Path:
    return write_slow_engine(small_engine_path, session_folder / "slow.tkf")


@pytest.fixture(scope="session")
def slow_known(slow_engine_path, crops) -> np.ndarray:
    """What the slow engine says of `crops`."""
    with Engine.load(slow_engine_path) as engine:
        return engine.predict(crops).probabilities
