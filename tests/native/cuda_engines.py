"""Fused engines for the stand-in of the GPU driver (tests/backends/fake_cuda.c), and the library's programs over it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tkfnet_engine.backends.fused_session import session_bytes
from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.kernels.plan import IMAGES, Buffer, Launch, Plan

from ..backends import fake_cuda


class Run(NamedTuple):
    """calls: what the program printed. logits: what it wrote, flat. log: the stand-in's."""

    calls: list[dict]
    logits: np.ndarray
    log: list[dict]

    @property
    def statuses(self) -> list[str]:
        return [call["status"] for call in self.calls if "status" in call]

    @property
    def error(self) -> str:
        """Of the only call that failed."""
        (error,) = (call["error"] for call in self.calls if call.get("error"))
        return error

    @property
    def wrong(self) -> int:
        """How many answers were not the first ones."""
        return next(call["wrong"] for call in self.calls if "wrong" in call)


def environment(library: Path | None, **settings: object) -> dict[str, str]:
    """For a process that sees the stand-in as the driver."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("FAKE_CUDA_")}
    return (
        found
        | {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
        | {"LD_LIBRARY_PATH": str(library or "")}
    )


def run_engine(
    program: Path,
    library: Path | None,
    folder: Path,
    engine: Path,
    images: np.ndarray,
    *flags: object,
    **settings: object,
) -> Run:
    """The program run_engine in `folder`, over the stand-in."""
    log, pixels, out = folder / "native.jsonl", folder / "pixels", folder / "logits"
    for path in (log, out):
        path.unlink(missing_ok=True)
    pixels.write_bytes(images.tobytes())
    command = [program, engine, "--pixels", pixels, "--out", out, *map(str, flags)]
    settings = environment(library, log=log, **settings)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    logits = np.frombuffer(out.read_bytes() if out.exists() else b"", np.float32)
    lines = log.read_text().splitlines() if log.exists() else []
    return Run([json.loads(line) for line in done.stdout.splitlines()], logits, [json.loads(line) for line in lines])


def fused_parts(native_build: Path, what: str, lines: list[str]) -> list[str]:
    """What the program fused_parts prints for each line that it is given."""
    text = "".join(f"{line}\n" for line in lines)
    command = [native_build / "programs" / "fused_parts", what]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = done.stdout.splitlines()
    assert len(answers) == len(lines)
    return answers


# --- engines ---------------------------------------------------------------------------------------------


def write_engine(path: Path, tensors: Mapping[str, np.ndarray] | None = None, **facts: object) -> Path:
    """An engine whose kernels the stand-in knows; by default for batches 1, 2 and 4 on sm_90."""
    write_bundle(path, tensors or fake_cuda.tensors(), fake_cuda.facts() | facts)
    return path


def shared_bytes_of(launch: Launch) -> int:
    """Some number of its own for each kernel: none, little, and more than a launch may ask for unasked."""
    return int(launch.variant[-4:], 16) % 3 * 40_000


def real_tensors(plans: Iterable[Plan]) -> dict[str, np.ndarray]:
    """An engine's tensors for plans as the planner makes them, with machine code that does nothing: each kernel's name
    is its variant's, and its parameters are the launch's."""
    plans = list(plans)
    made = {"weights.packed": np.zeros(plans[0].weight_bytes, np.uint8)}
    for arch in {plan.arch for plan in plans}:
        launches = {one.variant: one for plan in plans if plan.arch == arch for one in plan.launches}
        index = {}
        for variant, one in launches.items():
            index[variant] = {"entry": entry_of(one), "registers": 32, "shared_bytes": shared_bytes_of(one)}
            signature = "".join("p" if isinstance(value, Buffer) else "i" for _, value in one.args)
            made[f"cubins/{arch}/{variant}"] = np.frombuffer(f"{entry_of(one)} {signature}\0".encode(), np.uint8)
        text = json.dumps({"driver": 12030, "cubins": index}).encode()
        made[f"cubins/{arch}/index"] = np.frombuffer(text, np.uint8)
        for plan in plans:
            if plan.arch == arch:
                made[f"plans/{arch}/{plan.batch}"] = np.frombuffer(plan.to_json(), np.uint8)
    return made


def entry_of(launch: Launch) -> str:
    return launch.variant.replace("-", "_")


# --- what ran --------------------------------------------------------------------------------------------


class Places:
    """Addresses of the stand-in's log as (space, offset), of whichever session they belong to."""

    def __init__(self, log: list[dict], plans: Mapping[int, Plan]):
        self._blocks = [(e["allocated"], e["bytes"]) for e in log if "allocated" in e and not e["pinned"]]
        self._weight_bytes = next(iter(plans.values())).weight_bytes
        self._sizes = session_bytes(plans)

    def of(self, address: int) -> tuple[str, int]:
        start, size = next((start, size) for start, size in self._blocks if start <= address < start + size)
        offset = address - start
        if size == self._weight_bytes:
            return "weights", offset
        assert size == sum(self._sizes.values())
        for space, nbytes in self._sizes.items():
            if offset < nbytes:
                return space, offset
            offset -= nbytes
        raise AssertionError(offset)


def ran(log: list[dict], plans: Mapping[int, Plan], signatures: Mapping[str, str]) -> list[tuple]:
    """Each kernel that ran: its name, grid, block, shared memory, whether it was a dependent launch, and its
    parameters, addresses as (space, offset). signatures: by kernel, "p" and "i"."""
    places = Places(log, plans)

    def one(entry: dict) -> tuple:
        kinds = signatures[entry["run"]]
        assert entry["args"][len(kinds) :] == [0, 0]
        args = [places.of(value) if kind == "p" else value for kind, value in zip(kinds, entry["args"])]
        return entry["run"], entry["grid"], entry["block"], entry["shared"], bool(entry["pdl"]), args

    return [one(entry) for entry in fake_cuda.runs(log)]


def expected_runs(plan: Plan, images: int) -> list[tuple]:
    """What `ran` has to give for one request, in order, for an engine of `real_tensors`."""

    def argument(name: str, value: Any) -> Any:
        if isinstance(value, Buffer):
            return value.space, value.offset
        return images if name == IMAGES else value

    return [
        (
            entry_of(one),
            list(one.grid),
            [32 * one.warps, 1, 1],
            shared_bytes_of(one),
            ("PDL", True) in one.constexprs,
            [argument(*pair) for pair in one.args],
        )
        for one in plan.launches
    ]
