"""Which backends exist, what each needs, and opening one. Nothing optional is imported before it is used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import BackendError, TkfnetError, UsageError
from ..hardware import usable_cores

GRAPH = "graph.onnx"
WEIGHTS = "weights/"
PACKED_WEIGHTS = "weights.packed"
TENSORRT_PLAN, TENSORRT_LAYERS = "tensorrt/plan", "tensorrt/layers"
# What a runner says that was closed, maybe by another thread between two calls.
CLOSED = "this engine was closed; load it again"


class Runner(Protocol):
    """An opened backend. `run` may be called from many threads at once."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] RGB, C-contiguous, N >= 1 -> float32 logits [N, classes], a new array."""

    def close(self) -> None:
        """Frees what the backend holds; a second call does nothing."""


class Artefacts(Protocol):
    """What a backend opens: an engine file's tensors (`bundle.Bundle`), or the same before they are written."""

    def pop(self, name: str) -> bytes: ...
    def names(self) -> list[str]: ...
    def array(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class BackendInfo:
    """module: the file here. requires: importable names. install: what brings them. artefact: the tensor (or
    prefix of tensors) it runs from. standalone: needs no PyTorch, so `auto` may choose it for an engine file.
    build_requires, build_install: what making its tensors needs beside PyTorch. ahead: can be built for a device that
    is not here. executable: its artefact is a program that runs on the CPU as well: from trusted files only."""

    name: str
    module: str
    requires: tuple[str, ...]
    install: str
    artefact: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    standalone: bool
    build_requires: tuple[str, ...] = ()
    build_install: str = "pip install 'tkfnet-engine[build]'"
    ahead: bool = False
    executable: bool = False


BACKENDS: dict[str, BackendInfo] = {
    info.name: info
    for info in (
        BackendInfo(
            "onnxruntime",
            "ort",
            ("onnxruntime",),
            "pip install onnxruntime",
            GRAPH,
            ("cpu",),
            ("float32", "float16", "int8"),
            True,
            ("onnx", "onnxscript"),
        ),
        BackendInfo(
            "openvino",
            "openvino",
            ("openvino",),
            "pip install 'tkfnet-engine[openvino]'",
            GRAPH,
            ("cpu",),
            ("float32", "float16", "int8"),
            True,
            ("onnx", "onnxscript"),
        ),
        BackendInfo(
            "eager",
            "eager",
            ("torch",),
            "pip install 'tkfnet-engine[build]'",
            WEIGHTS,
            ("cpu", "cuda"),
            ("float32", "float16"),
            False,
        ),
        BackendInfo(
            "compiled",
            "compiled",
            ("torch",),
            "pip install 'tkfnet-engine[build]'",
            WEIGHTS,
            ("cpu", "cuda"),
            ("float32", "float16"),
            False,
        ),
        BackendInfo(
            "fused",
            "fused",
            ("cuda.bindings",),
            "pip install 'tkfnet-engine[cuda]'",
            PACKED_WEIGHTS,
            ("cuda",),
            ("float16", "int8", "float8"),
            True,
            ("triton",),
            "pip install 'tkfnet-engine[build,triton]'",
            True,
        ),
        BackendInfo(
            "tensorrt",
            "trt",
            ("tensorrt",),
            "pip install 'tkfnet-engine[tensorrt]'",
            TENSORRT_PLAN,
            ("cuda",),
            ("float32", "float16", "int8"),
            True,
            ("onnx", "onnxscript", "tensorrt"),
            "pip install 'tkfnet-engine[build,tensorrt]'",
            executable=True,
        ),
        BackendInfo(
            "tensorrt-rtx",
            "trt",
            ("tensorrt_rtx",),
            "pip install 'tkfnet-engine[tensorrt-rtx]'",
            TENSORRT_PLAN,
            ("cuda",),
            ("float32", "float16", "int8"),
            True,
            ("onnx", "onnxscript", "tensorrt_rtx"),
            "pip install 'tkfnet-engine[build,tensorrt-rtx]'",
            True,
            True,
        ),
    )
}


def backend_info(name: str) -> BackendInfo:
    if name not in BACKENDS:
        raise UsageError(f"backend: got {name!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def why_unavailable(name: str) -> str | None:
    """None if the libraries that the backend runs with are installed here, else what is missing and how to get it."""
    info = backend_info(name)
    return _missing(info.requires, info.install)


def why_unbuildable(name: str) -> str | None:
    """The same of the libraries that make its tensors."""
    info = backend_info(name)
    return _missing(info.build_requires, info.build_install)


def _missing(requires: tuple[str, ...], install: str) -> str | None:
    missing = [r for r in requires if not _importable(r)]
    return f"it needs {', '.join(missing)}, which is not installed; {install}" if missing else None


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of "cuda.bindings", not even "cuda" is there
        return False


class _Named:
    """A runner whose failures say which backend failed: each library has exception classes of its own."""

    def __init__(self, name: str, runner: Runner):
        self._name, self._runner = name, runner

    def run(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._runner.run(images)
        except TkfnetError:
            raise
        except Exception as error:
            raise self._failure(f"on {len(images)} images", error) from error

    def run_device(self, pixels: Any, logits: Any = None, stream: Any = None) -> Any:
        """As `fused.FusedRunner.run_device`; `BackendError` where the backend has no such thing."""
        if not hasattr(self._runner, "run_device"):
            raise BackendError(
                f"backend {self._name} takes images from host memory only; copy them there, or build an engine with "
                "`python -m tkfnet_engine.build --fp16 --device cuda --backend fused`"
            )
        try:
            return self._runner.run_device(pixels, logits, stream)
        except TkfnetError:
            raise
        except Exception as error:
            raise self._failure("on images in GPU memory", error) from error

    def profile(self, batch: int, runs: int) -> list[tuple[str, float]]:
        """As `trt.TrtRunner.profile`; `BackendError` where the backend has no such thing."""
        return self._told("profile", batch, runs)

    def layers(self) -> list[dict[str, Any]]:
        """As `trt.TrtRunner.layers`; `BackendError` where the backend has no such thing."""
        return self._told("layers")

    def _told(self, method: str, *arguments: Any) -> Any:
        if not hasattr(self._runner, method):
            able = " or ".join(name for name, info in BACKENDS.items() if info.executable)
            raise BackendError(f"backend {self._name} tells nothing of its layers; build an engine for {able}")
        try:
            return getattr(self._runner, method)(*arguments)
        except TkfnetError:
            raise
        except Exception as error:
            raise self._failure("while asked about its layers", error) from error

    def _failure(self, what: str, error: Exception) -> BackendError:
        return BackendError(
            f"backend {self._name} failed {what}: {_first_line(error)}; try a smaller batch, or another backend"
        )

    def close(self) -> None:
        self._runner.close()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def open_backend(name: str, facts: Mapping[str, Any], artefacts: Artefacts, device: str, threads: int | None) -> Runner:
    """Opens `name` on what `artefacts` holds. device: "cpu" or "cuda". threads: for the CPU, default all cores.

    `BackendError` if it is not installed, lacks its tensors, cannot run on `device`, or refuses the graph.
    """
    info = backend_info(name)
    if reason := why_unavailable(name):
        raise BackendError(f"backend {name}: {reason}")
    if device not in info.devices:
        raise BackendError(
            f"backend {name}: got device {device!r}, expected {' or '.join(info.devices)}; leave device out, or choose "
            "another backend"
        )
    if not any(n.startswith(info.artefact) for n in artefacts.names()):
        raise BackendError(
            f"backend {name}: this engine was built for {facts['backend']} and lacks {info.artefact!r}; build one "
            f"with `python -m tkfnet_engine.build --backend {name}`"
        )
    if info.executable and facts["backend"] != name:
        raise BackendError(
            f"backend {name}: this engine's plan is one of {facts['backend']}, which only that runs; build one with "
            f"`python -m tkfnet_engine.build --backend {name}`"
        )
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads: got {threads}, expected 1 to 1024; leave it out for every core")
    try:
        module = importlib.import_module(f".{info.module}", __package__)
        runner = module.open_runner(facts, artefacts, device, threads or usable_cores())
    except TkfnetError:
        raise
    except Exception as error:  # a broken install fails here in ways of its own
        raise BackendError(
            f"backend {name} cannot be opened: {_first_line(error)}; repair it with {info.install}"
        ) from error
    return _Named(name, runner)
