"""What is to be built, and whether it can be: which backends a request means, and why one of them does not do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..backends.registry import BACKENDS, PACKED_WEIGHTS, TENSORRT_PLAN, backend_info, why_unavailable, why_unbuildable
from ..errors import BackendError, UsageError
from .engine_from_onnx import check_target
from .tensorrt_options import TensorRtOptions


@dataclass(frozen=True)
class Request:
    """What is to be built. backend: a name or "auto". device: "cpu" or "cuda".

    archs: GPU architectures ("sm_90") that a fused engine is for; none where the GPU is too old for one. ahead: built
    for a GPU that is not here. calibration: the path of a table for a precision of eight bits; by default one is made.
    strict: then no unit goes back to float. tensorrt: what `TensorRtOptions` is given beside backend and batch. log:
    where TensorRT's whole log goes.
    """

    precision: str
    backend: str
    device: str
    max_batch: int
    verification_data: str | None = None
    archs: tuple[str, ...] = ()
    ahead: bool = False
    calibration: str | None = None
    strict: bool = False
    tensorrt: Mapping[str, Any] = field(default_factory=dict)
    log: str = os.devnull

    def tensorrt_options(self, backend: str) -> TensorRtOptions:
        """`UsageError` for what does not go together."""
        return TensorRtOptions(backend, self.max_batch, **self.tensorrt)


def candidates(request: Request) -> list[str]:
    """What `auto` tries: on a CPU every installed backend that runs without PyTorch, on CUDA every one there is."""
    return [name for name in _suitable(request) if _why_not_buildable(name, request) is None]


def _suitable(request: Request) -> list[str]:
    """What `auto` would try if everything were installed."""
    return [
        info.name
        for info in BACKENDS.values()
        if request.device in info.devices
        and request.precision in info.precisions
        and (request.device == "cuda" or info.standalone)
        # Ahead, TensorRT for RTX would be the choice for GPUs that it does not name: only where it is asked for.
        and (info.artefact == PACKED_WEIGHTS or not request.ahead)
        and (request.archs or info.artefact != PACKED_WEIGHTS)
    ]


def nothing_builds(request: Request) -> BackendError | UsageError:
    """Why `candidates` found none."""
    if request.ahead and not _suitable(request):
        return UsageError(
            f"--device cuda: got no usable NVIDIA GPU, and {request.precision} engines cannot be built ahead; add "
            "--fp16, or build with --device cpu"
        )
    reasons = "; ".join(f"{name}: {_why_not_buildable(name, request)}" for name in _suitable(request))
    return BackendError(f"nothing installed here builds {request.precision} for {request.device}: {reasons}")


def _why_not_buildable(name: str, request: Request) -> str | None:
    """None if everything that building (and, unless ahead, verifying) `name` needs is here, else what is not."""
    reason = None if request.ahead else why_unavailable(name)
    if (reason := reason or why_unbuildable(name)) or backend_info(name).artefact != TENSORRT_PLAN:
        return reason
    try:
        check_target(request.tensorrt_options(name))
    except BackendError as error:
        return str(error)
    return None


def check_request(name: str, request: Request) -> None:
    """`UsageError` for what the backend cannot be, `BackendError` for what is not installed here."""
    info = backend_info(name)
    if request.device not in info.devices:
        raise UsageError(
            f"--backend {name} --device {request.device}: this backend runs on {', '.join(info.devices)} only; "
            "leave --device out, or choose another backend"
        )
    if request.precision not in info.precisions:
        raise UsageError(
            f"--backend {name}: got precision {request.precision}, expected {' or '.join(info.precisions)}; choose one "
            "of them, or another backend"
        )
    if request.ahead and not info.ahead:
        raise UsageError(
            f"--backend {name} --device cuda: got no usable NVIDIA GPU, expected one to verify on; build "
            f"{'with --device cpu, or ' if 'cpu' in info.devices else ''}one of those that can be built ahead: "
            f"{', '.join(other.name for other in BACKENDS.values() if other.ahead)}"
        )
    if reason := _why_not_buildable(name, request):
        raise BackendError(f"backend {name}: {reason}")
