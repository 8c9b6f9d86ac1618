"""Packaging. `kernels/` and `export/` stand at the top of the tree and install below the package.

A wheel carries libtkfnet. TKFNET_NATIVE=1 demands it, 0 leaves it out; by default it is built where CMake finds all it
needs. An editable install builds nothing: `make native` does.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path(__file__).parent / "tkfnet_engine" / "native"

PACKAGES = {
    "tkfnet_engine": "tkfnet_engine",
    "tkfnet_engine.backends": "tkfnet_engine/backends",
    "tkfnet_engine.data": "tkfnet_engine/data",
    "tkfnet_engine.explain": "tkfnet_engine/explain",
    "tkfnet_engine.model": "tkfnet_engine/model",
    "tkfnet_engine.native": "tkfnet_engine/native",
    "tkfnet_engine.pipeline": "tkfnet_engine/pipeline",
    "tkfnet_engine.serving": "tkfnet_engine/serving",
    "tkfnet_engine.training": "tkfnet_engine/training",
    "tkfnet_engine.kernels": "kernels",
    "tkfnet_engine.export": "export",
}

BASE = [
    "numpy>=1.26,<3",
    "safetensors>=0.5,<1",
    "onnxruntime>=1.22,<2",
    # 13.0.0 fixes CVE-2026-112403, a heap overflow in the JPEG decoder.
    "pillow>=13.0,<14",
]
# onnxscript before 0.7 lacks what torch 2.13 imports, or exports the same network to other bytes each time.
BUILD = ["torch>=2.11,<3", "onnx>=1.18,<2", "onnxscript>=0.7,<1"]
TRAIN = [*BUILD, "accelerate>=1.10,<2", "matplotlib>=3.9,<4"]
OPENVINO = ["openvino>=2025.2,<2027"]
# To run fused engines, and to build them.
CUDA = ["cuda-bindings>=12.9,<14"]
TRITON = ["triton>=3.6,<3.10"]
# Parses and builds without a GPU. 1.4 to 1.6 cannot build INT8 convolutions.
TENSORRT_RTX = ["tensorrt-rtx>=1.7,<2"]
# Carries Triton's server 2.51, whose Python backend has no stub for Python 3.13, and answers wrong with NumPy 2.
SERVE = ["nvidia-pytriton>=0.7,<0.8; python_version < '3.13'", "numpy<2", "tritonclient[all]>=2.50,<3"]
FACES = ["opencv-python-headless>=4.10,<5"]


def wants_native() -> bool:
    """Whether the wheel that is being built gets the C library."""
    choice = os.environ.get("TKFNET_NATIVE", "auto")
    if choice not in ("0", "1", "auto"):
        sys.exit(f"TKFNET_NATIVE: got {choice!r}, expected 1 (build libtkfnet), 0 (leave it out) or auto")
    return choice == "1" or (choice == "auto" and shutil.which("cmake") is not None)


class BuildWithNative(build_py):
    """Python files, and libtkfnet installed among them."""

    def run(self):
        super().run()
        if self.editable_mode or not wants_native():
            return
        folder = Path(self.get_finalized_command("build").build_temp).absolute() / "native"
        configured = subprocess.run(
            ["cmake", "-S", NATIVE, "-B", folder, "-DTKFNET_BUILD_EXAMPLES=OFF", "-DCMAKE_INSTALL_LIBDIR=lib"]
        )
        if configured.returncode:
            message = "libtkfnet cannot be built here; see above for what CMake lacks (Debian: g++ nlohmann-json3-dev)"
            if os.environ.get("TKFNET_NATIVE") == "1":
                sys.exit(message)
            print(f"warning: {message}. This wheel goes without it.", file=sys.stderr)
            return
        subprocess.run(["cmake", "--build", folder, "--parallel"], check=True)
        target = Path(self.build_lib).absolute() / "tkfnet_engine" / "native"
        subprocess.run(["cmake", "--install", folder, "--prefix", target, "--strip"], check=True)


class PlatformDistribution(Distribution):
    """Not the same on every platform, though no part of it is made for one version of Python."""

    def has_ext_modules(self):
        return wants_native()


class AnyPythonWheel(bdist_wheel):
    """py3-none-PLATFORM: libtkfnet knows nothing of Python."""

    def get_tag(self):
        tag = super().get_tag()
        return ("py3", "none", tag[2])


setup(
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildWithNative, "bdist_wheel": AnyPythonWheel},
    name="tkfnet-engine",
    version="0.1.0",
    description="The fastest and most trustworthy way to run TKFNet, a facial-expression network",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "tkfnet_engine": ["assets/*.safetensors", "py.typed"],
        "tkfnet_engine.kernels": ["tiles.json"],
        "tkfnet_engine.native": ["include/*"],
        "tkfnet_engine.serving": ["front.js"],
    },
    install_requires=BASE,
    extras_require={
        "build": BUILD,
        "train": TRAIN,
        "openvino": OPENVINO,
        "cuda": CUDA,
        "triton": TRITON,
        "tensorrt": ["tensorrt>=10.13,<12"],
        "tensorrt-rtx": TENSORRT_RTX,
        "pycuda": ["pycuda>=2025.1"],
        "faces": FACES,
        "serve": SERVE,
        "dev": [
            *TRAIN,
            *OPENVINO,
            *CUDA,
            *TRITON,
            *TENSORRT_RTX,
            *FACES,
            "pytest>=8.2,<10",
            "pytest-benchmark>=5.1,<6",
            "hypothesis>=6.100,<7",
            "pandas>=2.2,<4",
            "pyyaml>=6,<7",
            "ruff>=0.9",
        ],
    },
    entry_points={"console_scripts": ["tkfnet=tkfnet_engine.__main__:run"]},
)
