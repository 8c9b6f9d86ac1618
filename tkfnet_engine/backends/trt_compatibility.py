"""Whether a TensorRT plan runs here: its engine file's facts against this machine, before TensorRT is called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BackendError, BundleError

# By backend: the Python module and the name of the product.
MODULES = {"tensorrt": ("tensorrt", "TensorRT"), "tensorrt-rtx": ("tensorrt_rtx", "TensorRT for RTX")}
RTX_MODULE = "tensorrt_rtx"
# The oldest GPUs that a hardware-compatible plan of TensorRT runs on.
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Profile:
    """Numbers of images that one context takes, and the one that its kernels were chosen for."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class PlanFacts:
    """What an engine file says of its plan (docs/engine-file.md, `tensorrt`). machine, driver, gpu: of the one that
    built it; driver and gpu are None if it had no GPU. capabilities: compute capabilities that it is for."""

    module: str
    product: str
    version: str
    machine: str
    driver: int | None
    gpu: str | None
    capabilities: tuple[tuple[int, int], ...]
    profiles: tuple[Profile, ...]
    version_compatible: bool
    hardware_compatible: bool

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> PlanFacts:
        """`BundleError` where they are incomplete or contradict each other."""
        try:
            module, product = MODULES[facts["backend"]]
            found, options = facts["tensorrt"], facts["tensorrt"]["options"]
            profiles = tuple(Profile(p["min"], p["opt"], p["max"]) for p in found["profiles"])
            made = cls(
                module,
                product,
                found["version"],
                facts["hardware"]["machine"],
                found["driver"],
                found["gpu"],
                tuple(map(_capability, found["capabilities"])),
                profiles,
                options["version_compatible"],
                options["hardware_compatible"],
            )
            made._check_types()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"the engine file does not say what its TensorRT plan is for ({error!r}); build it again", "plan"
            ) from None
        made._check_profiles(facts["max_batch"])
        return made

    @property
    def least(self) -> int:
        return self.profiles[0].least

    @property
    def most(self) -> int:
        return self.profiles[0].most

    @property
    def static(self) -> bool:
        """Whether it takes one number of images only. Then any number of contexts may run at once."""
        return len(self.profiles) == 1 and self.least == self.most

    def _check_types(self) -> None:
        texts, flags = (self.version, self.machine), (self.version_compatible, self.hardware_compatible)
        numbers = [n for p in self.profiles for n in (p.least, p.best, p.most)]
        fine = all(isinstance(t, str) for t in texts) and all(isinstance(f, bool) for f in flags)
        if not (fine and self.capabilities and all(type(n) is int for n in numbers)):
            raise TypeError("a value of another type than its key's")
        if self.driver is not None and type(self.driver) is not int:
            raise TypeError("driver")

    def _check_profiles(self, max_batch: int) -> None:
        listed = ", ".join(f"{p.least} to {p.most}" for p in self.profiles)
        # Any context may be asked for any request, so all have to take the same.
        fine = len(set(self.profiles)) == 1 and all(1 <= p.least <= p.best <= p.most for p in self.profiles)
        if not fine or self.most != max_batch:
            raise BundleError(
                f"the engine file's profiles (batches of {listed or 'nothing'}) do not fit its largest batch, "
                f"{max_batch}, or each other; it was put together from several builds: build it again",
                "plan",
            )


@dataclass(frozen=True)
class Here:
    """This machine. version: of the library that is installed. known: the compute capabilities that the library
    supports, None where it does not tell."""

    version: str
    machine: str
    gpu: str
    capability: tuple[int, int]
    driver: int
    known: tuple[tuple[int, int], ...] | None


def known_capabilities(module: Any) -> tuple[tuple[int, int], ...] | None:
    """Of TensorRT for RTX, which names each in `ComputeCapability` (SM75, SM120); None of the full TensorRT."""
    if module.__name__ != RTX_MODULE:
        return None
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in module.ComputeCapability.__members__)
    return tuple(sorted((int(m[1]), int(m[2])) for m in names if m))


def rebuild_command(path: str | None) -> str:
    """The command that builds the same engine for this machine."""
    return f"python -m tkfnet_engine.build --from {shlex.quote(path or 'ENGINE.tkf')} --out NEW.tkf"


def check_compatible(plan: PlanFacts, here: Here, rebuild: str) -> None:
    """`BackendError` that names every mismatch, both sides of it, and how to come to an engine that runs here."""
    gpu = f"{here.gpu} has compute capability {_text(here.capability)}"
    if here.known is not None and here.capability not in here.known:
        raise BackendError(
            f"{gpu}, which {plan.product} {here.version} does not support (it supports "
            f"{', '.join(map(_text, here.known))}); build an engine with `python -m tkfnet_engine.build --device cuda "
            "--backend fused`, or with `--backend tensorrt`"
        )
    wrong = []
    if not _version_fits(plan, here.version):
        wrong.append(f"{plan.product} {plan.version} built it, and {here.version} is installed")
    if plan.machine != here.machine:
        wrong.append(f"it was built on {plan.machine}, and this machine is {here.machine}")
    if not _capability_fits(plan, here.capability):
        held = ", ".join(map(_text, plan.capabilities)) + (" and later" if _any_ampere(plan) else "")
        on = f" ({plan.gpu})" if plan.gpu else ""
        wrong.append(f"it is for compute capability {held}{on}, and {gpu}")
    if plan.driver is not None and here.driver < plan.driver:
        wrong.append(
            f"it was built with a driver for CUDA {_cuda(plan.driver)}, and the one here is for {_cuda(here.driver)}"
        )
    if wrong:
        raise BackendError(
            f"this engine's TensorRT plan does not fit this machine: {'; '.join(wrong)}; build it for this machine: "
            f"`{rebuild}`"
        )


def _version_fits(plan: PlanFacts, here: str) -> bool:
    """A plan runs with the very version that built it. A version-compatible one also with later ones, up to the end of
    the next major version."""
    if not plan.version_compatible or plan.version == here:
        return plan.version == here
    built, found = (tuple(map(int, re.findall(r"\d+", text)[:4])) for text in (plan.version, here))
    return built <= found and found[0] <= built[0] + 1


def _capability_fits(plan: PlanFacts, here: tuple[int, int]) -> bool:
    return here in plan.capabilities or (_any_ampere(plan) and here >= _AMPERE)


def _any_ampere(plan: PlanFacts) -> bool:
    return plan.hardware_compatible and all(c >= _AMPERE for c in plan.capabilities)


def _capability(text: str) -> tuple[int, int]:
    """(8, 6) of "8.6"."""
    major, minor = text.split(".")
    return int(major), int(minor)


def _text(capability: tuple[int, int]) -> str:
    return "{}.{}".format(*capability)


def _cuda(number: int) -> str:
    """13000 -> "13.0"."""
    return f"{number // 1000}.{number % 1000 // 10}"
