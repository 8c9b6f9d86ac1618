"""The stand-in for the GPU driver, compiled once."""

from __future__ import annotations

import pytest

from tkfnet_engine.backends.registry import why_unavailable

from . import fake_cuda


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory):
    if fake_cuda.compiler() is None:
        pytest.skip("needs a C compiler")
    return fake_cuda.build(tmp_path_factory.mktemp("fake-cuda"))


@pytest.fixture
def trt(gpu, tmp_path, monkeypatch):
    """As `gpu`, with the stand-in for TensorRT for RTX on a GPU that it supports, and the cache folder "cache"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prelude = "from fake_tensorrt import *\ninstall()\n"
    return lambda code, **settings: gpu(prelude + code, **({"cc": 86} | settings))


@pytest.fixture
def gpu(fake_library, tmp_path):
    """gpu(code, free=1000, ..): runs the code in a process that sees the stand-in, in `tmp_path`, and gives its log."""
    if reason := why_unavailable("fused"):
        pytest.skip(reason)
    return lambda code, **settings: fake_cuda.child(fake_library, tmp_path, code, **settings)
