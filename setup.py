"""Packaging. `kernels/` and `export/` stand at the top of the tree and install below the package."""

from pathlib import Path

from setuptools import setup

PACKAGES = {
    "tkfnet_engine": "tkfnet_engine",
    "tkfnet_engine.backends": "tkfnet_engine/backends",
    "tkfnet_engine.data": "tkfnet_engine/data",
    "tkfnet_engine.model": "tkfnet_engine/model",
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

setup(
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
        "faces": ["opencv-python-headless>=4.10,<6"],
        "serve": ["tritonclient[http]>=2.50,<3"],
        "dev": [
            *TRAIN,
            *OPENVINO,
            *CUDA,
            *TRITON,
            *TENSORRT_RTX,
            "pytest>=8.2,<10",
            "hypothesis>=6.100,<7",
            "ruff>=0.9",
        ],
    },
    entry_points={"console_scripts": ["tkfnet=tkfnet_engine.__main__:run"]},
)
