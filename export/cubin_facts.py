"""What the assembler made of a kernel, read from the machine code itself: registers, spills, tensor-core instructions.

NVIDIA's cuobjdump and nvdisasm do the reading; Triton's wheel carries both, and they need no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import BackendError

# Of HMMA (FP16), IMMA (INT8), QMMA (FP8) .. per warp, HGMMA .. per four warps (wgmma), UTCHMMA .. per block (tcgen05).
_TENSOR_CORE = re.compile(r"[A-Z]MMA|[A-Z]GMMA|UTC[A-Z]*MMA")
# "/*0150*/  @!P0 HGMMA.64x32x16.F32 R24, gdesc[UR8], .." -> HGMMA.64x32x16.F32
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
# By the letter before MMA or GMMA what an instruction multiplies.
_OPERANDS = {"I": "int8", "Q": "float8", "H": "float16"}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# From 9.0 on the system's own first KiB of a block's shared memory stands among the kernel's in the cubin; it counts
# neither towards what a launch asks for nor towards the block's limit.
_SYSTEM_SHARED = {"sm_90", "sm_100", "sm_120"}
_TIMEOUT_S = 120


@dataclass(frozen=True)
class CubinFacts:
    """registers: per thread. spilled_bytes: of local memory per thread, 0 only if the code never touches any.
    static_shared_bytes: per block, without what a launch asks for. tensor_core: instruction -> how often it stands."""

    registers: int
    spilled_bytes: int
    static_shared_bytes: int
    tensor_core: dict[str, int]


def facts_of_cubin(code: bytes, arch: str) -> CubinFacts:
    """Facts of a cubin with one kernel. `BackendError` if the tools are missing or do not understand it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = _USAGE.findall(_run("cuobjdump", "-res-usage", file.name))
        listing = _run("nvdisasm", "-c", file.name)
    if len(usage) != 1:
        raise BackendError(f"cuobjdump: got {len(usage)} kernels in a cubin, expected 1; install another Triton")
    registers, stack, shared, local = map(int, usage[0])
    instructions = Counter(_INSTRUCTION.findall(listing))
    if not instructions:
        raise BackendError("nvdisasm: found no instruction in a cubin; install another Triton")
    tensor_core: Counter[str] = Counter()
    for name, count in instructions.items():
        if _TENSOR_CORE.fullmatch(base := name.partition(".")[0]):
            tensor_core[base] += count
    return CubinFacts(
        registers,
        max(stack + local, _stored_bytes(instructions)),
        max(0, shared - 1024) if arch in _SYSTEM_SHARED else shared,
        dict(sorted(tensor_core.items())),
    )


def operand_precisions(tensor_core: Iterable[str]) -> set[str]:
    """What tensor-core instructions multiply: "IMMA", "IGMMA", "UTCIMMA" -> {"int8"}; of several kinds all.

    `BackendError` for an instruction of a kind that no kernel here is meant to have.
    """
    found = set()
    for name in tensor_core:
        letter = name.removeprefix("UTC")[0]
        if letter not in _OPERANDS:
            raise BackendError(
                f"tensor-core instruction {name}: got a kind unknown to this version; install another Triton"
            )
        found.add(_OPERANDS[letter])
    return found


def _stored_bytes(instructions: Counter[str]) -> int:
    """What the stores to and loads from local memory in the listing move, whichever is more."""
    moved: Counter[str] = Counter()
    for name, count in instructions.items():
        base, *suffixes = name.split(".")
        if base in ("STL", "LDL"):
            moved[base] += count * {"64": 8, "128": 16}.get(suffixes[-1] if suffixes else "", 4)
    return max(moved.values(), default=0)


def tritons_tool(name: str) -> str | None:
    """The path of one of NVIDIA's binary tools in the installed Triton, None if it brings none."""
    spec = importlib.util.find_spec("triton")
    path = os.path.join(os.path.dirname(spec.origin), "backends", "nvidia", "bin", name) if spec else ""
    return path if os.access(path, os.X_OK) else None


def _run(name: str, *arguments: str) -> str:
    path = tritons_tool(name) or shutil.which(name)
    if path is None:
        raise BackendError(f"{name}: not found; install it with pip install triton, or with the CUDA toolkit")
    command = [path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    if done.returncode:
        first = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[0]
        raise BackendError(f"{name}: ended with {done.returncode} ({first}); install another Triton")
    return done.stdout
