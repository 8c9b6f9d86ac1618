"""What a TensorRT engine is built for and how: shapes, GPUs, effort. Flags that one of the two libraries does not know
are refused here, in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BackendError, UsageError

RTX = "tensorrt-rtx"
# Requests that run at once over dynamic shapes: each needs a profile of its own, and each profile build time and space.
CONTEXTS = 2
OPT_BATCH = 8
MIB = 1 << 20
LEVELS = range(6)


@dataclass(frozen=True)
class TensorRtOptions:
    """backend: "tensorrt" or "tensorrt-rtx". min_batch, opt_batch, max_batch: of every optimisation profile; equal
    ones make static shapes. contexts: requests that can run at once.

    capabilities: compute capabilities ("8.6") that a TensorRT for RTX engine is for, none for this GPU's. workspace:
    bytes, None for all memory. timing_cache: its path, None for none. timeout_s: None for no limit.
    """

    backend: str
    max_batch: int
    min_batch: int = 1
    opt_batch: int | None = None
    contexts: int = CONTEXTS
    capabilities: tuple[str, ...] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: str | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.opt_batch is None:
            object.__setattr__(self, "opt_batch", min(max(OPT_BATCH, self.min_batch), self.max_batch))
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                f"batches: got --min-batch {self.min_batch}, --opt-batch {self.opt_batch}, --max-batch "
                f"{self.max_batch}, expected 1 or more and none below the one before"
            )
        if not 1 <= self.contexts <= 16:
            raise UsageError(f"--contexts: got {self.contexts}, expected 1 to 16")
        if self.optimization_level is not None and self.optimization_level not in LEVELS:
            raise UsageError(f"--optimization-level: got {self.optimization_level}, expected 0 to {LEVELS[-1]}")
        if self.workspace is not None and self.workspace < MIB:
            raise UsageError(f"--workspace: got {self.workspace / MIB:.3g} MiB, expected 1 or more")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise UsageError(f"--timeout: got {self.timeout_s:g} seconds, expected more than 0")
        if self.backend == RTX:
            self._refuse_what_rtx_lacks()
        elif self.capabilities:
            raise UsageError(
                f"--arch: a TensorRT engine is for the GPU that builds it; leave it out, or give --backend {RTX}"
            )

    def _refuse_what_rtx_lacks(self) -> None:
        reasons = {
            "--version-compatible": (self.version_compatible, "it ships without the runtime that would carry"),
            "--hardware-compatible": (self.hardware_compatible, "name the GPUs it is for with --arch"),
            "--timing-cache": (self.timing_cache, "it times nothing while it builds; where it runs it keeps a cache"),
        }
        for flag, (given, why) in reasons.items():
            if given:
                raise UsageError(f"{flag}: TensorRT for RTX has no such thing: {why}; leave it out")

    @property
    def static(self) -> bool:
        return self.min_batch == self.max_batch

    @property
    def profiles(self) -> list[dict[str, int]]:
        one = {"min": self.min_batch, "opt": self.opt_batch, "max": self.max_batch}
        return [one] * (1 if self.static else self.contexts)

    def facts(self) -> dict[str, Any]:
        """For the engine file: what a rebuild elsewhere has to be given."""
        kept = ("workspace", "optimization_level", "version_compatible", "hardware_compatible")
        return {"profiles": self.profiles, "options": {name: asdict(self)[name] for name in kept}}

    @classmethod
    def from_facts(cls, backend: str, facts: Mapping[str, Any], **changes: Any) -> TensorRtOptions:
        """Of an engine file's `facts["tensorrt"]`, as `facts` wrote them."""
        try:
            first, options = facts["profiles"][0], dict(facts["options"])
            batches = {"min_batch": first["min"], "opt_batch": first["opt"], "max_batch": first["max"]}
            contexts = max(len(facts["profiles"]), 1)
            return cls(**{"backend": backend, "contexts": contexts, **batches, **options, **changes})
        except (KeyError, IndexError, TypeError) as error:
            raise BackendError(
                f"the engine file does not say how its TensorRT engine was built ({error!r}); build it from its "
                "checkpoint again"
            ) from None
