"""The package as a user gets it: a wheel beside the base dependencies alone, and an editable install."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Modules that are PyTorch (or a build tool) by nature, and the library each may ask for.
# A kernel stands beside its PyTorch reference; plans, chips and tiles are read without either.
HAS_KERNELS = (
    "classify",
    "conv",
    "emulator",
    "interpret",
    "layout",
    "memory",
    "planner",
    "product",
    "quantise",
    "quantised_reference",
    "quantised_weights",
    "reference",
    "stem",
    "tafe",
    "tile_tasks",
    "weights",
)
NEEDS_AN_EXTRA = {
    "tkfnet_engine.model.": "torch",
    "tkfnet_engine.training.": "torch",
    "tkfnet_engine.data.transforms": "torch",
    "tkfnet_engine.export.": "torch",
    "tkfnet_engine.export.qdq_from_onnx": "onnx",
    **{f"tkfnet_engine.kernels.{name}": "torch" for name in HAS_KERNELS},
}
COMMANDS = (
    "predict", "build", "evaluate", "info", "bench", "train", "tune", "calibrate", "export_plan", "native", "serve",
)  # fmt: skip

IMPORT_ALL = """
import importlib, json, pkgutil, sys, tkfnet_engine
found = {"tkfnet_engine": ""}
for module in pkgutil.walk_packages(tkfnet_engine.__path__, "tkfnet_engine."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        found[module.name] = ""
    except ImportError as error:
        found[module.name] = error.name
json.dump({"file": tkfnet_engine.__file__, "modules": found, "loaded": sorted(sys.modules)}, sys.stdout)
"""


def run(*command: str | Path, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == expect, f"{command}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The files of this tree that belong to the project, somewhere else."""
    target = tmp_path_factory.mktemp("checkout") / "tkfnet-engine"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "demo-out", "runs", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, target, ignore=ignore)
    return target


def make_venv(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def base(checkout, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel and the base dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("base")
    binaries = make_venv(folder / "venv")
    run(binaries / "pip", "wheel", "-q", "--no-deps", "-w", folder, checkout, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(binaries / "pip", "install", "-q", "-c", checkout / "constraints.txt", wheel, cwd=folder)
    return binaries


def test_every_module_imports_with_the_base_dependencies(base, tmp_path):
    found = json.loads(run(base / "python", "-c", IMPORT_ALL, cwd=tmp_path).stdout)
    assert "site-packages" in found["file"]
    modules = found["modules"]
    on_disk = {
        ".".join(["tkfnet_engine", *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__")
        for folder in (ROOT / "tkfnet_engine",)
        for path in folder.rglob("*.py")
        if path.name != "__main__.py"
    }
    for top in ("kernels", "export"):
        on_disk |= {
            ".".join(["tkfnet_engine", top, *path.relative_to(ROOT / top).with_suffix("").parts]).removesuffix(
                ".__init__"
            )
            for path in (ROOT / top).rglob("*.py")
        }
    assert set(modules) == on_disk, "the wheel holds other modules than the tree"
    for name, missing in modules.items():
        allowed = {lib for prefix, lib in NEEDS_AN_EXTRA.items() if name.startswith(prefix)}
        assert missing == "" or missing in allowed or (allowed and missing == "triton"), f"{name} needs {missing}"
    heavy = {"torch", "openvino", "cv2", "pandas", "matplotlib", "onnx", "triton", "cuda", "tritonclient"}
    assert not heavy & set(found["loaded"])


def test_every_help_works_with_the_base_dependencies(base, tmp_path):
    for command in COMMANDS:
        text = run(base / "python", "-m", f"tkfnet_engine.{command}", "--help", cwd=tmp_path).stdout
        assert text.startswith("usage:") and "--help" in text
        assert run(base / "tkfnet", command, "--help", cwd=tmp_path).stdout == text
    assert "predict" in run(base / "tkfnet", "--help", cwd=tmp_path).stdout


def test_what_needs_an_extra_says_which(base, tmp_path):
    build = run(base / "tkfnet", "build", cwd=tmp_path, expect=64)
    assert "tkfnet-engine[build]" in build.stderr and "Traceback" not in build.stderr
    train = run(base / "tkfnet", "train", "--data", "synthetic", "--out", "x.safetensors", cwd=tmp_path, expect=64)
    assert "tkfnet-engine[train]" in train.stderr and "Traceback" not in train.stderr


def test_an_engine_runs_with_the_base_dependencies(base, tmp_path, engine_path):
    script = (
        "import sys, numpy as np; from tkfnet_engine import Engine\n"
        "p = Engine.load(sys.argv[1]).predict([np.zeros((50, 40, 3), np.uint8)])\n"
        "print(p.labels[0]); assert 'torch' not in sys.modules"
    )
    assert run(base / "python", "-c", script, engine_path, cwd=tmp_path).stdout.strip()
    scores = run(
        base / "tkfnet", "evaluate", engine_path, "--data", "synthetic:n=35", "--json", cwd=tmp_path
    )  # fmt: skip
    assert json.loads(scores.stdout)["images"] == 7


def test_ready_crops_need_no_opencv_and_faces_say_what_does(base, tmp_path, engine_path):
    script = (
        "import sys, numpy as np; from PIL import Image; from tkfnet_engine import Pipeline\n"
        "Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save('a.png')\n"
        "print(Pipeline(sys.argv[1], 'none')('a.png')[0].label)"
    )
    label = run(base / "python", "-c", script, engine_path, cwd=tmp_path).stdout.strip()
    shown = run(base / "tkfnet", "predict", engine_path, "a.png", "--detector", "none", cwd=tmp_path)
    assert shown.stdout.split()[:2] == ["a.png", label]
    refused = run(base / "tkfnet", "predict", engine_path, "a.png", cwd=tmp_path, expect=7)
    assert "tkfnet-engine[faces]" in refused.stderr and "--detector none" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_wheel_carries_the_reference(base, tmp_path):
    script = "from tkfnet_engine.build import reference_checkpoint as r; import os; print(os.path.getsize(r()))"
    assert int(run(base / "python", "-c", script, cwd=tmp_path).stdout) > 20_000_000


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake; apt-get install cmake g++ nlohmann-json3-dev")
def test_the_wheel_carries_the_c_library(base, tmp_path):
    (wheel,) = base.parents[1].glob("*.whl")
    assert re.fullmatch(r"tkfnet_engine-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    flags = ("--cmake-dir", "--include-dir", "--lib-dir", "--pkgconfig-dir")
    cmake, include, lib, pkgconfig = run(base / "tkfnet", "native", *flags, cwd=tmp_path).stdout.split()
    assert (Path(cmake) / "tkfnetConfig.cmake").is_file() and (Path(pkgconfig) / "tkfnet.pc").is_file()
    (tmp_path / "a.c").write_text(
        '#include "tkfnet.h"\nint main(void) { return tkf_abi_version() != TKF_ABI_VERSION; }\n'
    )
    run("gcc", "-o", "a", "a.c", "-I", include, "-L", lib, f"-Wl,-rpath,{lib}", "-ltkfnet", cwd=tmp_path)
    run(tmp_path / "a", cwd=tmp_path)
    missing = run(base / "tkfnet", "native", "--openvino-library", cwd=tmp_path, expect=7)
    assert "tkfnet-engine[openvino]" in missing.stderr


def test_a_tree_without_the_c_library_says_how_to_get_it(tmp_path):
    code = "import sys; from pathlib import Path; from tkfnet_engine import native; native.FOLDER = Path(sys.argv[1])"
    run_native = (
        f"{code}\nfrom tkfnet_engine.console import run_command; run_command(lambda _: native.main(['--lib-dir']))"
    )
    assert "make native" in run(sys.executable, "-c", run_native, tmp_path, cwd=tmp_path, expect=7).stderr


def test_an_editable_install_finds_kernels_and_export(checkout, tmp_path):
    binaries = make_venv(tmp_path / "venv")
    run(binaries / "pip", "install", "-q", "--no-deps", "-e", checkout, cwd=tmp_path)
    script = (
        "import importlib.util as u\n"
        "for name in ('tkfnet_engine.kernels', 'tkfnet_engine.export.verify'): print(u.find_spec(name).origin)"
    )
    # find_spec imports the packages on the way, so numpy must be there for tkfnet_engine itself.
    run(
        binaries / "pip",
        "install",
        "-q",
        "-c",
        checkout / "constraints.txt",
        "numpy",
        "pillow",
        "safetensors",
        cwd=tmp_path,
    )
    for cwd in (tmp_path, checkout):
        kernels, verify = run(binaries / "python", "-c", script, cwd=cwd).stdout.split()
        assert Path(kernels) == checkout / "kernels" / "__init__.py"
        assert Path(verify) == checkout / "export" / "verify.py"


def test_no_package_owns_the_bare_names():
    for name in ("kernels", "export"):
        result = run(sys.executable, "-c", f"import {name}", cwd=Path("/"), expect=1)
        assert "ModuleNotFoundError" in result.stderr or "No module named" in result.stderr


def test_the_ranges_hold_the_pinned_versions():
    from packaging.requirements import Requirement

    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if "==" in line and line[0] != "#"
    )
    namespace: dict = {"__file__": str(ROOT / "setup.py")}
    source = (ROOT / "setup.py").read_text().partition("\nsetup(")[0]
    exec(source, namespace)
    for text in (*namespace["BASE"], *namespace["TRAIN"], *namespace["OPENVINO"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), f"{text}: pinned {pinned[requirement.name]}"
    assert not Requirement(namespace["BASE"][3]).specifier.contains("12.3.0"), "Pillow below the JPEG decoder's fix"
    assert "setuptools" in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0]
