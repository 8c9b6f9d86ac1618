"""Opening one engine, in a process of its own: as its users would, with every thread that the run allows.

Each function gives an `Opened`. host: uint8 [N, S, S, 3] -> float32 logits [N, classes], both in host memory. prepare:
the same images -> whatever the engine wants them as; network: that -> its answer, wherever that is.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Opened:
    """The functions that the module's docstring tells of."""

    host: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray], Any]
    network: Callable[[Any], Any]


def _takes_pixels(host: Callable[[np.ndarray], np.ndarray]) -> Opened:
    """An engine that wants what `host` gets."""
    return Opened(host, np.ascontiguousarray, host)


def ours(threads: int, engine: str, **_: Any) -> Opened:
    """An engine file by `Engine.load`."""
    from tkfnet_engine import Engine

    return _takes_pixels(Engine.load(engine, threads=threads, trusted=True).logits)


def libtkfnet(threads: int, engine: str, **_: Any) -> Opened:
    """An engine file by the C library, called as from C."""
    from tkfnet_engine.bundle import read_facts
    from tkfnet_engine.native import LIBRARY, lib_dir, openvino_library

    class EngineOptions(ctypes.Structure):
        _fields_ = (
            ("struct_size", ctypes.c_size_t),
            *((name, ctypes.c_int32) for name in ("device", "threads", "allow_native_code", "cpu_math")),
            ("openvino_library", ctypes.c_char_p),
        )

    class SessionOptions(ctypes.Structure):
        _fields_ = (("struct_size", ctypes.c_size_t), ("output", ctypes.c_int32))

    library = ctypes.CDLL(str(lib_dir() / LIBRARY))
    library.tkf_last_error.restype = ctypes.c_char_p
    opened, held = ctypes.c_void_p(), threading.local()

    def check(status: int, of: ctypes.c_void_p | None = None) -> None:
        if status:
            raise RuntimeError(library.tkf_last_error(of).decode())

    options = EngineOptions(ctypes.sizeof(EngineOptions), 0, threads, 1, 0, str(openvino_library()).encode())
    check(library.tkf_engine_open(engine.encode(), ctypes.byref(options), ctypes.byref(opened)))
    classes = len(read_facts(engine)["labels"])

    def session() -> ctypes.c_void_p:
        """One for each thread, for logits."""
        if not hasattr(held, "session"):
            made, logits = ctypes.c_void_p(), SessionOptions(ctypes.sizeof(SessionOptions), 1)
            check(library.tkf_session_open(opened, ctypes.byref(logits), ctypes.byref(made)))
            held.session = made
        return held.session

    def host(images: np.ndarray) -> np.ndarray:
        answer = np.empty((len(images), classes), np.float32)
        pixels, count = images.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(images))
        own = session()
        check(library.tkf_run(own, pixels, count, answer.ctypes.data_as(ctypes.c_void_p)), own)
        return answer

    return _takes_pixels(host)


def _network(threads: int, checkpoint: str, perturb: str = "0") -> tuple[Any, Any]:
    """The trained network as plain PyTorch, not folded, and its preprocessing."""
    import torch

    from tkfnet_engine.model.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    if float(perturb):
        with torch.no_grad():
            for weight in loaded.model.parameters():
                weight *= 1 + float(perturb) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return loaded.model.eval(), loaded.preprocessing


def _torch(model: Any, preprocessing: Any, layout: Any, run: Callable[[Any], Any]) -> Opened:
    import torch

    from tkfnet_engine.model.net import normalise

    def prepare(images: np.ndarray) -> Any:
        return normalise(torch.from_numpy(images), preprocessing).contiguous(memory_format=layout)

    def network(inputs: Any) -> Any:
        with torch.inference_mode():
            return run(inputs)

    return Opened(lambda images: network(prepare(images)).float().numpy(), prepare, network)


def eager(threads: int, checkpoint: str, layout: str, precision: str, perturb: str = "0", **_: Any) -> Opened:
    import torch

    model, preprocessing = _network(threads, checkpoint, perturb)
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    model = model.to(memory_format=memory)

    def run(inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return model(inputs)

    return _torch(model, preprocessing, memory, run)


def compiled(threads: int, checkpoint: str, mode: str, cache: str, **_: Any) -> Opened:
    # Read when PyTorch is imported.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    import torch

    model, preprocessing = _network(threads, checkpoint)
    # One program for each batch size: the default gives up on that after a few, without a word.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    model = model.to(memory_format=torch.channels_last)
    return _torch(model, preprocessing, torch.channels_last, torch.compile(model, dynamic=False, mode=mode))


def onnxruntime(threads: int, graph: str, preprocessing: dict[str, Any], provider: str, **_: Any) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=[f"{provider}ExecutionProvider"])
    prepare = _normaliser(preprocessing)
    return Opened(lambda i: session.run(None, {"x": prepare(i)})[0], prepare, lambda x: session.run(None, {"x": x})[0])


def openvino(threads: int, graph: str, preprocessing: dict[str, Any], hint: str, **_: Any) -> Opened:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    model = openvino.Core().compile_model(graph, "CPU", settings)
    if model.get_property("INFERENCE_PRECISION_HINT").to_string() != hint:
        raise RuntimeError(f"this processor has no {hint}")
    held, prepare = threading.local(), _normaliser(preprocessing)

    def network(inputs: np.ndarray) -> np.ndarray:
        if not hasattr(held, "request"):
            held.request = model.create_infer_request()
        request = held.request
        request.infer({0: inputs}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return Opened(lambda images: network(prepare(images)), prepare, network)


def _normaliser(preprocessing: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [N, S, S, 3] -> float32 [N, 3, S, S], as users of these runtimes write it with numpy."""
    mean, std = (np.array(preprocessing[name], np.float32) for name in ("mean", "std"))
    scale, shift = 1 / (255 * std), mean / std
    return lambda images: np.ascontiguousarray((images * scale - shift).transpose(0, 3, 1, 2))


def sleepy(threads: int, slow: str, **options: Any) -> Opened:
    """Another opener's engine, `slow` times as slow: what the tests of the comparison measure."""
    import time

    of = {"eager": eager, "ours": ours, "onnxruntime": onnxruntime}[options.pop("of")]
    opened = of(threads, **options)

    def host(images: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        answer = opened.host(images)
        time.sleep((float(slow) - 1) * (time.perf_counter() - start))
        return answer

    return Opened(host, np.ascontiguousarray, host)


def export(checkpoint: str, path: Path) -> None:
    """The network as peers' users export it: not folded, float32 [N, 3, S, S] -> logits, any batch."""
    import torch

    model, preprocessing = _network(torch.get_num_threads(), checkpoint)
    example = torch.zeros(2, 3, preprocessing.size, preprocessing.size)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.onnx.export(
        model, (example,), dynamo=True, verbose=False, input_names=["x"], output_names=["logits"], dynamic_shapes=shapes
    )
    program.save(str(path))
