"""What machine this is, and its clocks: read, never set. Standard library; PyTorch is asked in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_state import ROOT

_PROBE = """
import json, platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version
def named(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
found = {"python": platform.python_version()}
found |= {name: named(name) for name in ("torch", "triton", "numpy", "cuda-bindings")}
# Several packages bring each, by the version of CUDA.
bringing = packages_distributions()
found |= {name: named(bringing[name][0]) for name in ("tensorrt", "tensorrt_rtx") if name in bringing}
try:
    import torch
except ImportError as error:
    found["no_gpu"] = f"PyTorch cannot be imported ({error})"
else:
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"chip": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"multiprocessors": properties.multi_processor_count, "memory_mib": properties.total_memory >> 20}
        found["cuda"] = torch.version.cuda
    else:
        found["no_gpu"] = f"PyTorch {torch.__version__} finds no usable NVIDIA GPU"
print(json.dumps(found))
"""
_CLOCKS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "most_sm_mhz": "clocks.max.sm",
    "celsius": "temperature.gpu",
    "watts": "power.draw",
    "state": "pstate",
}


def probe(variables: Mapping[str, str]) -> dict[str, Any]:
    """Versions, and of the first visible GPU name, capability, size; or under "no_gpu" why there is none. variables:
    the environment's."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd="/", env=variables)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"no_gpu": f"PyTorch could not be asked for a GPU ({type(error).__name__})"}
    if driver := _nvidia_smi(["driver_version"]):
        found["driver"] = driver[0]
    return found


def clocks() -> dict[str, Any] | None:
    """What nvidia-smi says now; None where it says nothing."""
    values = _nvidia_smi(list(_CLOCKS.values()))
    return dict(zip(_CLOCKS, map(_number, values), strict=True)) if values else None


def _nvidia_smi(fields: list[str]) -> list[str] | None:
    """The values of the first GPU that is listed."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    return values if done.returncode == 0 and len(values) == len(fields) else None


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def commit() -> dict[str, Any]:
    """The commit of this tree and whether tracked files differ from it; None where git knows nothing of it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, cwd=ROOT)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


_WHERE = """
import tkfnet_engine, tkfnet_engine.export, tkfnet_engine.kernels
print(*(m.__path__[0] for m in (tkfnet_engine, tkfnet_engine.kernels, tkfnet_engine.export)), sep="\\n")
"""


def make_importable() -> str | None:
    """Installs this tree, editable and without a network, where Python does not import it yet. None, or what failed."""
    if _imports_this_tree():
        return None
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_ROOT_USER_ACTION": "ignore"})
    if done.returncode == 0 and _imports_this_tree():
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return f"`{' '.join(command[1:])}` failed: {said[-1] if said else f'exit code {done.returncode}'}"


def _imports_this_tree() -> bool:
    # -P and a folder of its own: what stands in the working directory must not stand in for the installed package.
    done = subprocess.run([sys.executable, "-P", "-c", _WHERE], capture_output=True, text=True, cwd="/")
    found = [Path(line).resolve() for line in done.stdout.splitlines()]
    return done.returncode == 0 and found == [ROOT / name for name in ("tkfnet_engine", "kernels", "export")]
