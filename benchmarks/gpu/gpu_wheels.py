"""Packages for a machine without a network, from a folder of wheels: unpacked, not installed. Standard library."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import zipfile
from pathlib import Path

from gpu_state import read_json, write_json

_STAMP = "unpacked.json"


def unpack(folder: Path, target: Path) -> str:
    """Unpacks the wheels in `folder` that fit this Python into `target`, which replaces what was there; what was done,
    in words. The same wheels are unpacked once.

    `ValueError` where there is none, where one package has none that fits or several, or where one is damaged.
    """
    wheels = chosen(sorted(folder.glob("*.whl")))
    stamp = {wheel.name: wheel.stat().st_size for wheel in wheels}
    names = ", ".join("-".join(wheel.name.split("-")[:2]) for wheel in wheels)
    if read_json(target / _STAMP) == stamp:
        return f"{names}: unpacked before"
    fresh = target.with_name(target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(fresh)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel.name} is damaged ({error}); fetch it again") from None
    for scheme in ("purelib", "platlib"):
        for inside in fresh.glob(f"*.data/{scheme}"):
            shutil.copytree(inside, fresh, dirs_exist_ok=True)
    write_json(fresh / _STAMP, stamp)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    return f"{names}: unpacked into {target}"


def chosen(wheels: list[Path]) -> list[Path]:
    """Of each package the one wheel that fits this Python and machine. `ValueError` as of `unpack`."""
    if not wheels:
        raise ValueError("got no wheel, expected files such as tensorrt_rtx_cu13_libs-1.7.1.116-py3-none-any.whl")
    by_package: dict[str, list[Path]] = {}
    for wheel in wheels:
        by_package.setdefault(wheel.name.partition("-")[0].lower(), []).append(wheel)
    found = []
    for package, named in by_package.items():
        fitting = [wheel for wheel in named if _fits(wheel.name)]
        if len(fitting) != 1:
            listed = ", ".join(wheel.name for wheel in fitting or named)
            raise ValueError(
                f"got {listed}, expected one wheel of {package} for Python {_python()} on {platform.machine()}; "
                f"{'keep one' if fitting else 'fetch that one'}"
            )
        found += fitting
    return found


def _fits(name: str) -> bool:
    """Whether a wheel of this name is for this Python and machine, by its tags (packaging.python.org)."""
    pythons, abis, platforms = name.removesuffix(".whl").split("-")[-3:]
    return any(map(_runs, platforms.split("."))) and any(_speaks(tag, abis) for tag in pythons.split("."))


def _runs(tag: str) -> bool:
    return tag == "any" or ("linux" in tag and tag.endswith(f"_{platform.machine()}"))


def _speaks(tag: str, abis: str) -> bool:
    match = re.fullmatch(r"(cp|py)(\d)(\d*)", tag)
    if not match or int(match[2]) != sys.version_info.major:
        return False
    minor = int(match[3] or 0)
    older = match[1] == "py" or "abi3" in abis.split(".")
    return minor <= sys.version_info.minor if older else minor == sys.version_info.minor


def _python() -> str:
    return "{}.{}".format(*sys.version_info[:2])
