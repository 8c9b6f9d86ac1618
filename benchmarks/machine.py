"""What a run was made on: chip, cores, memory, versions, commit, clocks. Read, never set."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tkfnet_engine.hardware import processor_name, usable_cores

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "tkfnet-engine",
    "torch",
    "onnxruntime",
    "openvino",
    "numpy",
    "triton",
    "tensorrt",
    "tensorrt-rtx",
    "pillow",
)


def environment(threads: int) -> dict[str, Any]:
    """The facts of `record.Run.environment`; `finish` adds what is known at the end."""
    chip, cores = processor_name(), usable_cores()
    return {
        "machine": re.sub(r"[^a-z0-9]+", "-", f"{chip} {cores} cores".lower()).strip("-"),
        "chip": chip,
        "cores": cores,
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "driver": None,
        "versions": {"python": platform.python_version(), **{n: v for n in LIBRARIES if (v := _version(n))}},
        "commit": commit(),
        "command": typed(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_before": round(os.getloadavg()[0], 2),
        "clock_mhz_before": clock_mhz(),
    }


def typed(arguments: list[str]) -> str:
    """The command of a run; of absolute paths, which say where and not what, the last part."""
    return " ".join(["pytest", *(Path(one).name if Path(one).is_absolute() else one for one in arguments)])


def finish(facts: dict[str, Any]) -> dict[str, Any]:
    """`facts` with load and clock at the end, and a warning where the clock moved by more than a tenth."""
    before, after = facts["clock_mhz_before"], clock_mhz()
    more: dict[str, Any] = {"load_after": round(os.getloadavg()[0], 2), "clock_mhz_after": after}
    if before and after and abs(after / before - 1) > 0.1:
        more["warning"] = f"the clock moved from {before:.0f} to {after:.0f} MHz"
    return facts | more


def commit() -> str:
    """The checkout's commit, with "+" behind it where files differ from it; "unknown" outside of git."""
    try:
        found = _git("rev-parse", "--short=12", "HEAD").strip()
        return found + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def clock_mhz() -> float | None:
    """The processors' mean clock as the kernel states it."""
    try:
        found = re.findall(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return round(sum(map(float, found)) / len(found), 1) if found else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
