"""Which engines are compared, ours and the peers, and why one is not here.

Each runs in a process of its own (`worker.py`), opened by the function of `openers.py` that it names.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
from dataclasses import dataclass

# Signal over error that a precision must keep, in decibels: what rounding leaves, with room. A wrong weight leaves
# less.
REQUIRED_SQNR_DB = {"float32": 60.0, "float16": 40.0, "bfloat16": 20.0, "int8": 20.0}
# And the share of images that keep float32's label.
REQUIRED_AGREEMENT = {"float32": 1.0, "float16": 0.99, "bfloat16": 0.95, "int8": 0.95}


@dataclass(frozen=True)
class Subject:
    """name: in records and tables. opener: a function of `openers.py`, called with `options`. engine: which engine file
    it runs, as (backend, precision). graph: that it runs the peers' export of the network. needs: importable modules.
    cuda: that it needs an NVIDIA GPU. quick: that `--quick` keeps it."""

    name: str
    opener: str
    precision: str = "float32"
    ours: bool = False
    options: tuple[tuple[str, str], ...] = ()
    engine: tuple[str, str] | None = None
    graph: bool = False
    needs: tuple[str, ...] = ()
    cuda: bool = False
    quick: bool = True

    @property
    def id(self) -> str:
        return f"{self.name} {self.precision}"

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"


def _ours(backend: str, precision: str, needs: tuple[str, ...], cuda: bool = False) -> Subject:
    name = f"tkfnet-engine, {backend}"
    quick = precision == "float32"
    return Subject(name, "ours", precision, True, (), (backend, precision), False, needs, cuda, quick)


def _torch(name: str, opener: str, precision: str = "float32", quick: bool = True, **options: str) -> Subject:
    return Subject(name, opener, precision, options=tuple(options.items()), needs=("torch",), quick=quick)


SUBJECTS = (
    _ours("onnxruntime", "float32", ("onnxruntime",)),
    _ours("openvino", "float32", ("openvino",)),
    _ours("onnxruntime", "int8", ("onnxruntime",)),
    _ours("openvino", "int8", ("openvino",)),
    Subject("libtkfnet", "libtkfnet", "float32", True, (), ("openvino", "float32"), False, ("openvino",), False, True),
    Subject("libtkfnet", "libtkfnet", "int8", True, (), ("openvino", "int8"), False, ("openvino",), False, False),
    _torch("PyTorch eager, NCHW", "eager", quick=False, layout="nchw"),
    _torch("PyTorch eager, channels-last", "eager", layout="channels-last"),
    _torch("PyTorch eager, channels-last, autocast", "eager", "bfloat16", quick=False, layout="channels-last"),
    _torch("torch.compile", "compiled", quick=False, mode="default"),
    _torch("torch.compile, max-autotune", "compiled", quick=False, mode="max-autotune-no-cudagraphs"),
    Subject("ONNX Runtime", "onnxruntime", graph=True, needs=("onnxruntime",), options=(("provider", "CPU"),)),
    Subject("OpenVINO", "openvino", graph=True, needs=("openvino",), options=(("hint", "f32"),)),
    Subject("OpenVINO", "openvino", "bfloat16", False, (("hint", "bf16"),), None, True, ("openvino",), False, False),
    _ours("fused", "float16", ("cuda.bindings",), True),
    _ours("fused", "int8", ("cuda.bindings",), True),
    _ours("tensorrt", "float16", ("tensorrt",), True),
    _ours("tensorrt-rtx", "float16", ("tensorrt_rtx",), True),
    Subject("ONNX Runtime, CUDA", "onnxruntime", cuda=True, needs=("onnxruntime",), options=(("provider", "CUDA"),)),
    Subject("ONNX Runtime, TensorRT", "onnxruntime", "float32", False, (("provider", "Tensorrt"),), cuda=True),
)  # fmt: skip
# What speed-ups are over.
BASELINE = "PyTorch eager, channels-last float32"


def why_absent(subject: Subject, quick: bool = False) -> str | None:
    """What this machine lacks for it, or None."""
    if missing := [name for name in subject.needs if not _importable(name)]:
        return f"{', '.join(missing)} is not installed"
    if subject.cuda:
        return why_not_on_a_gpu()
    if subject.opener == "libtkfnet":
        from tkfnet_engine.errors import BackendError
        from tkfnet_engine.native import lib_dir

        try:
            lib_dir()
        except BackendError as error:
            return str(error)
    if quick and not subject.quick:
        return "left out by --quick"
    return None


def why_not_on_a_gpu() -> str:
    """What runs on a GPU is measured by another command; whether there is one here."""
    here = "" if ctypes.util.find_library("cuda") else "no NVIDIA GPU here; on one, "
    return f"{here}`make gpu` measures it, and its results feed the same report"


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
