"""Which environments are refused, and that the message says what to do."""

from __future__ import annotations

import os
import re
import sys

import pytest

from tkfnet_engine.errors import BackendError
from tkfnet_engine.serving import environment, front, models
from tkfnet_engine.serving.environment import find_environment


@pytest.fixture
def package(tmp_path):
    """The facts of an environment with all that is needed."""
    base = tmp_path / "pytriton" / "tritonserver"
    for path in ("bin/tritonserver", "backends/python/libtriton_python.so",
                 "python_backend_stubs/3.11/triton_python_backend_stub", "../../lib/libpython3.11.so.1.0"):  # fmt: skip
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).touch()
    return {
        "version": "3.11", "numpy": "1.26.4", "pytriton": str(tmp_path / "pytriton"), "tkfnet_engine": "x",
        "path": ["/a", "/b"], "home": str(tmp_path), "library": [str(tmp_path / "lib"), "libpython3.11.so.1.0", "/"],
    }  # fmt: skip


def _found(monkeypatch, facts):
    monkeypatch.setattr(environment, "_probed", lambda python: facts)
    return find_environment("/e/bin/python")


def test_all_is_there(monkeypatch, package, tmp_path):
    found = _found(monkeypatch, package)
    assert found.server.endswith("pytriton/tritonserver/bin/tritonserver")
    found.write_backends(tmp_path / "backends")
    names = os.listdir(tmp_path / "backends" / "python")
    assert sorted(names) == ["libtriton_python.so", "triton_python_backend_stub"]
    assert found.variables["PATH"].startswith("/e/bin:") and str(tmp_path / "lib") in found.variables["LD_LIBRARY_PATH"]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"numpy": "2.4.6"}, ("got NumPy 2.4.6", "empty and wrong", "'numpy<2'", "--python")),
        ({"numpy": None}, ("lacks numpy", "pip install 'tkfnet-engine[serve]'")),
        ({"pytriton": None}, ("lacks pytriton", "pip install 'tkfnet-engine[serve]'")),
        ({"tkfnet_engine": None}, ("lacks tkfnet_engine",)),
        ({"version": "3.13"}, ("got Python 3.13, expected 3.11 or 3.12", "NumPy 1.26")),
        ({"version": "3.12"}, ("got Python 3.12, expected one of 3.11",)),
        ({"library": ["/none", "libpython3.11.a", "/none"]}, ("libpython3.11.so.1.0", "apt-get install libpython3.11")),
    ],
)
def test_what_is_refused(monkeypatch, package, changes, words):
    monkeypatch.setattr(environment, "_SYSTEM", ())
    with pytest.raises(BackendError) as raised:
        _found(monkeypatch, {**package, **changes})
    assert all(word in str(raised.value) for word in words), raised.value


def test_this_interpreter_and_no_interpreter():
    with pytest.raises(BackendError, match=re.escape(sys.executable)):
        find_environment()  # tests run with NumPy 2, and without the server
    for path in ("/nothing", "/bin/false", "/bin/true"):
        with pytest.raises(BackendError, match=f"{path} does not run as a Python"):
            find_environment(path)


def test_without_nginx(monkeypatch, tmp_path):
    monkeypatch.setattr(front.shutil, "which", lambda *a, **k: None)
    with pytest.raises(BackendError, match=r"apt-get install nginx-light libnginx-mod-http-js\. Or give --direct"):
        front.find_nginx()
    # One without its module for JavaScript checks nothing.
    plain = tmp_path / "nginx"
    plain.write_text("#!/bin/sh\necho configure arguments: --modules-path=/nothing >&2\n")
    plain.chmod(0o755)
    monkeypatch.setattr(front.shutil, "which", lambda *a, **k: str(plain))
    with pytest.raises(BackendError, match="nginx with njs"):
        front.find_nginx()


def test_a_model_refuses_numpy_2_wherever_it_is_loaded(monkeypatch):
    monkeypatch.setattr(models.importlib, "import_module", lambda name: None)
    monkeypatch.setattr(models.np, "__version__", "2.0.0")
    for kind in (models.EngineModel, models.DecodeModel, models.AnswerModel):
        with pytest.raises(BackendError, match=r"got NumPy 2\.0\.0 in the Python of Triton's Python backend"):
            kind().initialize({})
