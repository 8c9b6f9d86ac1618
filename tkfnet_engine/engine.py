"""`Engine.load(path).predict(images)`: an engine file, opened and ready."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backends.registry import BACKENDS, CLOSED, Runner, backend_info, open_backend
from .backends.trt_compatibility import rebuild_command
from .bundle import Bundle, read_bundle
from .errors import BackendError, BundleError, ImageError, TrustError, UsageError
from .hardware import has_exact_byte_products
from .preprocess import stack_crops
from .spec import PRECISIONS, Preprocessing, TKFNetConfig
from .trust import why_not_own

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Prediction:
    """What the network says of N images. probabilities: float32 [N, classes]; class_names: its columns."""

    probabilities: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image."""
        return [self.class_names[i] for i in self.probabilities.argmax(1)]

    def top(self, k: int = 3) -> list[list[tuple[str, float]]]:
        """For each image the `k` most probable (label, probability), best first."""
        if not 1 <= k <= len(self.class_names):
            raise UsageError(f"top: got k={k}, expected 1 to {len(self.class_names)}")
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [[(self.class_names[i], float(row[i])) for i in best] for row, best in zip(self.probabilities, order)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 probabilities of float logits [N, classes]; rows sum to 1."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return (shifted / shifted.sum(1, keepdims=True)).astype(np.float32)


class Engine:
    """An opened engine. Safe to call from many threads; `close` (or a `with` block) frees what it holds."""

    def __init__(self, facts: dict[str, Any], runner: Runner, backend: str, device: str):
        self._facts, self._runner = facts, runner
        self._preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        self.backend, self.device = backend, device

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        backend: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        trusted: bool = False,
    ) -> Engine:
        """Opens an engine file, after checking every byte of it.

        backend: another than the file's own, if the file holds what it runs from. device: "auto" is the one the
        engine was built for. threads: of the CPU, default every core this process may use. trusted: also run a program
        that this user did not build on this machine, as a TensorRT plan is one; `TrustError` without. Raises
        `BundleError` for a bad file, `BackendError` where the backend or device is not there, `UsageError` for a bad
        argument.
        """
        if device not in DEVICES:
            raise UsageError(f"device: got {device!r}, expected one of {', '.join(DEVICES)}")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
            raise UsageError(f"threads: got {threads!r}, expected a whole number or None for every core")
        if type(trusted) is not bool:
            raise UsageError(f"trusted: got {trusted!r}, expected True or False; True lets the file run as a program")
        bundle = read_bundle(path)
        facts = checked_facts(path, bundle.facts)
        name = facts["backend"] if backend is None else backend_info(backend).name
        chosen = facts["device"] if device == "auto" else device
        _check_bytes(facts, name)
        if not trusted:
            _check_origin(path, name, bundle)
        return cls(facts, open_backend(name, facts, bundle, chosen, threads), name, chosen)

    @property
    def input_size(self) -> int:
        """The side, in pixels, of the network's square input."""
        return self._preprocessing.size

    @property
    def info(self) -> dict[str, Any]:
        """The facts of the engine file, and under "running" what was opened of it."""
        return {**self._facts, "running": {"backend": self.backend, "device": self.device}}

    def logits(self, batch: np.ndarray) -> np.ndarray:
        """uint8 RGB [N, S, S, 3], S the engine's input size -> float32 [N, classes]; N of any size.

        More than the engine's `max_batch` images run in parts. `ImageError` for another shape or dtype,
        `BackendError` if the answer is not finite or the engine is closed.
        """
        size, classes = self.input_size, len(self.labels)
        if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.shape[1:] != (size, size, 3):
            got = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise ImageError(
                f"batch: got {got}, expected a uint8 array [N, {size}, {size}, 3] of RGB pixels; "
                "predict() takes crops of any size"
            )
        runner = self._held()
        limit = self._facts["max_batch"]
        parts = [runner.run(np.ascontiguousarray(batch[i : i + limit])) for i in range(0, len(batch), limit)]
        logits = np.concatenate(parts) if parts else np.empty((0, classes), np.float32)
        if logits.shape != (len(batch), classes) or not np.isfinite(logits).all():
            raise BackendError(
                f"backend {self.backend} gave an answer that is not finite numbers [{len(batch)}, {classes}]; "
                "the engine file is not at fault if it verifies: python -m tkfnet_engine.info"
            )
        return logits

    def logits_on_device(self, pixels: Any, logits: Any = None, stream: Any = None) -> Any:
        """Images in GPU memory -> logits in GPU memory, without a copy and in the order of the caller's stream.

        pixels: uint8 RGB [N, S, S, 3], C-contiguous, N at most the engine's `max_batch`; logits: where to write,
        float32 [N, classes], by default a new array. Both with `__cuda_array_interface__` or `__dlpack__`, as PyTorch,
        CuPy and JAX have them. stream: its handle as an integer (torch.cuda.current_stream().cuda_stream), or an object
        with `__cuda_stream__`; by default CUDA's default stream. Returns the logits once the work is queued: leave
        `pixels` alone until the stream has done it. Unlike `logits` it does not look whether the answer is finite.
        `ImageError` or `UsageError` for another shape or dtype, `BackendError` for memory that is not this GPU's, and
        from every backend but fused and TensorRT.
        """
        return self._held().run_device(pixels, logits, stream)

    def predict(self, images: Sequence[np.ndarray] | np.ndarray) -> Prediction:
        """Expressions of uint8 RGB face crops: a list of [H, W, 3] of any size, or an array [N, H, W, 3]."""
        batch = stack_crops(images, self.input_size)
        return Prediction(softmax(self.logits(batch)), self.labels)

    def layers(self) -> list[dict[str, Any]]:
        """What TensorRT's inspector says of the running engine's layers, as it says it ("Name", "LayerType", "Inputs"
        ..). `BackendError` from every other backend."""
        return self._held().layers()

    def profile(self, batch: int = 1, runs: int = 20) -> list[tuple[str, float]]:
        """Each layer of a TensorRT engine and its median milliseconds in `runs` runs of `batch` random images. Being
        watched slows it: the sum is more than `bench` measures. `BackendError` from every other backend."""
        if not 1 <= batch <= self._facts["max_batch"] or runs < 1:
            limit = self._facts["max_batch"]
            raise UsageError(f"profile: got batch {batch} and {runs} runs, expected 1 to {limit}, and runs from 1")
        return self._held().profile(batch, runs)

    def _held(self) -> Any:
        if (runner := self._runner) is None:
            raise BackendError(CLOSED)
        return runner

    def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_bytes(facts: dict[str, Any], backend: str) -> None:
    """Refuses an INT8 engine where it would not be what its build has proven."""
    if facts["precision"] != "int8":
        return
    if backend != facts["backend"]:
        raise UsageError(
            f"backend: got {backend}, expected {facts['backend']}: an INT8 engine is made for one runtime, and another "
            f"may compute it in float; build one with --int8 --backend {backend}"
        )
    if facts["device"] == "cpu" and facts["quantisation"]["weight_bits"] == 8 and not has_exact_byte_products():
        raise BackendError(
            "this processor sums products of bytes in 16 bits, which saturate, and the engine was built for one that "
            "does not: its accuracy is not what the build proved; build it again on this machine"
        )


def _check_origin(path: str | os.PathLike, backend: str, bundle: Bundle) -> None:
    """Refuses a program of another's making, before anything of the library that would run it is imported.

    It looks at the very bytes that the backend will take out of `bundle`, and at all it could take.
    """
    info = backend_info(backend)
    if not info.executable:
        return
    for name in bundle.names():
        if name.startswith(info.artefact) and (why := why_not_own(bundle.bytes(name))):
            file = os.fsdecode(path)
            raise TrustError(
                f"{file}: its {name} runs as a program on this machine, with your rights, and {why}; rebuild it from "
                f"the graph inside: {rebuild_command(file)}; or, if it "
                "comes from someone you trust, load it with trusted=True (--trust)"
            )


def checked_facts(path: str | os.PathLike, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts an engine cannot run without, or `BundleError`: model, labels, preprocessing, backend .."""
    try:
        classes = TKFNetConfig.from_dict(facts.get("model")).classes
        Preprocessing.from_dict(facts.get("preprocessing"))
    except UsageError as error:
        raise BundleError(f"{path}: {error}", "facts") from None
    labels, limit, quantised = facts.get("labels"), facts.get("max_batch"), facts.get("quantisation")
    bits = quantised.get("weight_bits") if isinstance(quantised, dict) else None
    # A label ends at a zero where C reads it.
    are_texts = isinstance(labels, list) and all(isinstance(v, str) and "\0" not in v for v in labels)
    checks = {
        "labels": are_texts and len(labels) == classes,
        "backend": isinstance(facts.get("backend"), str) and facts["backend"] in BACKENDS,
        "device": facts.get("device") in DEVICES[1:],
        "precision": facts.get("precision") in PRECISIONS,
        "max_batch": type(limit) is int and 1 <= limit <= 65536,
        "quantisation": facts.get("precision") != "int8" or (type(bits) is int and bits in (7, 8)),
    }
    if wrong := [name for name, fine in checks.items() if not fine]:
        raise BundleError(
            f"{path}: its {', '.join(wrong)} ({', '.join(repr(facts.get(n)) for n in wrong)}) mean nothing to this "
            "version; it was built by another: build it again, or upgrade tkfnet-engine",
            "facts",
        )
    return facts
