"""The server that the nvidia-pytriton package carries, and the Python that its backend runs: found, checked, joined.

Tried with nvidia-pytriton 0.7.0, whose server is 2.51. Nothing of PyTriton itself is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError

PYTHONS = ("3.11", "3.12")
INSTALL = "pip install 'tkfnet-engine[serve]'"

# Run by the Python that will be served with: it may be another than this one.
_PROBE = """
import importlib.util, json, os, sys, sysconfig
def folder(name):
    spec = importlib.util.find_spec(name)
    return list(spec.submodule_search_locations)[0] if spec and spec.submodule_search_locations else None
try:
    import numpy
    numpy = numpy.__version__
except ImportError:
    numpy = None
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2], "numpy": numpy, "pytriton": folder("pytriton"),
    "tkfnet_engine": folder("tkfnet_engine"), "path": [p for p in sys.path if p], "home": sys.base_prefix,
    "library": [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"), sys.base_prefix],
}))
"""


@dataclass(frozen=True)
class Environment:
    """python: the interpreter's path. server: `tritonserver`. backend: the files of its Python backend, the process for
    this version of Python among them. variables: what its environment has to hold beside what is there."""

    python: str
    server: str
    backend: tuple[str, ...]
    variables: Mapping[str, str]

    def write_backends(self, folder: str) -> None:
        """Makes `folder` the one of its backends: the server looks for all files of one in one place."""
        os.makedirs(os.path.join(folder, "python"))
        for path in self.backend:
            os.symlink(path, os.path.join(folder, "python", os.path.basename(path)))


def find_environment(python: str | None = None) -> Environment:
    """Of `python`, by default this interpreter. `BackendError` says what is missing and the line that brings it."""
    if not sys.platform.startswith("linux"):
        raise BackendError(f"serve: got {sys.platform}, expected Linux, the only system that Triton's wheel is for")
    python = python or sys.executable
    facts = _probed(python)
    _check(python, facts)
    pytriton, version = facts["pytriton"], facts["version"]
    base = os.path.join(pytriton, "tritonserver")
    server, backend = os.path.join(base, "bin", "tritonserver"), os.path.join(base, "backends", "python")
    stub = os.path.join(base, "python_backend_stubs", version, "triton_python_backend_stub")
    if not os.path.isfile(server):
        raise BackendError(f"{python}: its nvidia-pytriton holds no tritonserver; reinstall it: {INSTALL}")
    if not os.path.isfile(stub):
        held = sorted(os.listdir(os.path.dirname(os.path.dirname(stub))))
        raise BackendError(
            f"{python}: got Python {version}, expected one of {', '.join(held)}, which Triton's Python backend is "
            "built for; make an environment of one of these, install tkfnet-engine[serve] there, and give --python PATH"
        )
    libraries = [os.path.join(os.path.dirname(pytriton), "nvidia_pytriton.libs"), _libpython_folder(python, facts)]
    if held := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(held)
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join((os.path.dirname(python), os.environ.get("PATH", os.defpath))),
        "PYTHONPATH": os.pathsep.join(facts["path"]),
        "PYTHONHOME": facts["home"],
        "PYTHONUNBUFFERED": "1",
    }
    files = tuple(os.path.join(backend, name) for name in sorted(os.listdir(backend)) if "stub" not in name)
    return Environment(python, server, (*files, stub), variables)


def _probed(python: str) -> dict[str, Any]:
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"--python: {python} does not run as a Python ({error}); give the path of one") from None


def _check(python: str, facts: Mapping[str, Any]) -> None:
    # There is a backend's process for 3.13, but no NumPy 1.26, without which it answers wrong.
    if facts["version"] not in PYTHONS:
        raise BackendError(
            f"{python}: got Python {facts['version']}, expected {' or '.join(PYTHONS)}: Triton's Python backend needs "
            "NumPy 1.26, which is for these; install tkfnet-engine[serve] in an environment of one, give --python PATH"
        )
    missing = [name for name in ("numpy", "pytriton", "tkfnet_engine") if facts[name] is None]
    if missing:
        raise BackendError(f"{python}: it lacks {', '.join(missing)}, expected an environment to serve with; {INSTALL}")
    if int(facts["numpy"].partition(".")[0]) >= 2:
        raise BackendError(
            f"{python}: got NumPy {facts['numpy']}, expected 1.26: with 2 Triton's Python backend gives empty and "
            "wrong answers. Make an environment of its own: python3 -m venv serve-venv && serve-venv/bin/pip install "
            "'tkfnet-engine[serve]' 'numpy<2', and give --python serve-venv/bin/python"
        )


def _libpython_folder(python: str, facts: Mapping[str, Any]) -> str:
    """Where the interpreter's library is: the backend's process is no `python`, it loads that."""
    folder, name, home = facts["library"]
    for candidate in (folder, os.path.join(home, "lib"), *_SYSTEM):
        if candidate and os.path.isfile(os.path.join(candidate, f"libpython{facts['version']}.so.1.0")):
            return candidate
    raise BackendError(
        f"{python}: there is no libpython{facts['version']}.so.1.0 ({name} in {folder}), which Triton's Python backend "
        f"loads; Debian: apt-get install libpython{facts['version']}; pyenv: build with PYTHON_CONFIGURE_OPTS="
        "--enable-shared"
    )


_SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
