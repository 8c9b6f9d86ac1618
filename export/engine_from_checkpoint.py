"""The build: checkpoint -> fold -> lower to a backend -> verify -> engine file."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from .. import __version__
from ..backends.registry import BACKENDS, GRAPH, WEIGHTS, backend_info, open_backend, why_unavailable
from ..bundle import read_facts, write_bundle
from ..console import say
from ..errors import BackendError, UsageError, VerificationError
from ..model.checkpoint import Checkpoint
from ..model.fold import FoldedTKFNet, fold
from .choose import Timing, fastest, time_engines
from .onnx_from_torch import bytes_from_onnx, onnx_from_folded
from .verify import VerificationSet, verification_set, verify


@dataclass
class Draft:
    """An engine before it is a file: what a backend opens (`registry.Artefacts`), and its facts."""

    facts: dict[str, Any]
    tensors: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        return list(self.tensors)

    def array(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def pop(self, name: str) -> bytes:
        # The draft is opened to be verified and written afterwards: it keeps what it gives.
        return self.tensors[name]


@dataclass(frozen=True)
class Request:
    """What is to be built. backend: a name or "auto". device: "cpu" or "cuda"."""

    precision: str
    backend: str
    device: str
    max_batch: int
    verification_data: str | None = None


def build_engine(checkpoint: Checkpoint, request: Request, out: str | os.PathLike) -> dict[str, Any]:
    """Builds, verifies and writes `out`; returns the facts it holds. Nothing is written unless it verifies.

    Raises `VerificationError`, `BackendError` where a backend cannot be built here, `UsageError` for a request
    that makes no sense.
    """
    names = [request.backend] if request.backend != "auto" else candidates(request.device, request.precision)
    if not names:
        raise BackendError(
            f"no backend installed here runs {request.precision} on {request.device}; name one to hear what it lacks"
        )
    for name in names:
        _check(name, request)
    network = fold(checkpoint.model, checkpoint.preprocessing)
    if request.precision == "float16":
        network.half()
    expected = verification_set(checkpoint.model, checkpoint.preprocessing, request.verification_data)
    drafts = {name: _lower(network, name, checkpoint, request) for name in names}
    failed = {}
    for name, draft in list(drafts.items()):
        try:
            draft.facts["verification"] = _verified(draft, expected, request)
        except (VerificationError, BackendError) as error:
            if request.backend != "auto":
                raise
            say(f"{name}: left out: {error}")
            failed[name] = error
            del drafts[name]
    if not drafts:
        raise next(iter(failed.values()))
    if request.backend == "auto":
        chosen, choice = _choose(drafts, request)
        drafts[chosen].facts["choice"] = {**choice, "left_out": {n: str(e) for n, e in failed.items()}}
    else:
        chosen = request.backend
    write_bundle(out, drafts[chosen].tensors, drafts[chosen].facts)
    return read_facts(out)


def candidates(device: str, precision: str) -> list[str]:
    """What `auto` tries: on a CPU every installed backend that runs without PyTorch, on CUDA every one there is."""
    return [
        info.name
        for info in BACKENDS.values()
        if device in info.devices
        and precision in info.precisions
        and (device == "cuda" or info.standalone)
        and why_unavailable(info.name) is None
    ]


def _check(name: str, request: Request) -> None:
    info = backend_info(name)
    if request.device not in info.devices:
        raise UsageError(
            f"--backend {name} --device {request.device}: this backend runs on {', '.join(info.devices)} only; "
            "leave --device out, or choose another backend"
        )
    if request.precision not in info.precisions:
        raise UsageError(f"--backend {name}: got precision {request.precision}, expected {', '.join(info.precisions)}")
    if reason := why_unavailable(name):
        raise BackendError(f"backend {name}: {reason}")


def _lower(network: FoldedTKFNet, name: str, checkpoint: Checkpoint, request: Request) -> Draft:
    """The engine's tensors for one backend: its graph or its weights, nothing else."""
    core = {
        "model": network.config.to_dict(),
        "labels": list(checkpoint.labels),
        "preprocessing": network.preprocessing.to_dict(),
        "precision": request.precision,
    }
    facts = core | {
        "backend": name,
        "device": request.device,
        "max_batch": request.max_batch,
        "versions": _versions(name),
        "hardware": {"machine": platform.machine(), "processor": processor_name()},
        "checkpoint": {"sha256": checkpoint.sha256, "training": _summary(checkpoint.training)},
    }
    if backend_info(name).artefact == GRAPH:
        return Draft(facts, {GRAPH: bytes_from_onnx(onnx_from_folded(network, core))})
    weights = {WEIGHTS + k: v.numpy() for k, v in network.state_dict().items()}
    return Draft(facts, weights)


def _verified(draft: Draft, expected: VerificationSet, request: Request) -> dict[str, Any]:
    runner = open_backend(draft.facts["backend"], draft.facts, draft, request.device, None)
    try:
        report = verify(runner, expected, request.precision, request.max_batch)
    finally:
        runner.close()
    say(f"{draft.facts['backend']}: verified on {report['images']} images, SQNR {report['sqnr_db']} dB")
    return report


def _choose(drafts: Mapping[str, Draft], request: Request) -> tuple[str, dict[str, Any]]:
    """The fastest draft and the record of the race; each runs in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tkfnet-choose-") as folder:
        paths = {}
        for name, draft in drafts.items():
            paths[name] = os.path.join(folder, f"{name}.tkf")
            write_bundle(paths[name], draft.tensors, draft.facts)
        timing: Timing = time_engines(paths, request.max_batch)
    chosen = fastest(timing)
    for name in timing:
        say(f"{name}: " + ", ".join(f"batch {b}: {ms:.2f} ms" for b, ms in timing[name].items()))
    say(f"auto: {chosen} is the fastest here")
    record = {n: {str(b): round(ms, 3) for b, ms in by_batch.items()} for n, by_batch in timing.items()}
    return chosen, {
        "setting": "backend",
        "chosen": chosen,
        "by": "geometric mean of p50 over batches",
        "p50_ms": record,
    }


def _versions(backend: str) -> dict[str, str]:
    """Of what made the file and what its backend runs on."""
    names = ["torch", "onnx", "onnxscript", *(r for r in backend_info(backend).requires)]
    found = {"tkfnet-engine": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _summary(training: dict[str, Any]) -> dict[str, Any]:
    """Of the training record what a user of the engine asks for; the checkpoint keeps the rest."""
    return {k: training[k] for k in ("command", "data", "seed", "test") if k in training}


def processor_name() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
