"""Ahead-of-time compilation: a plan's launches -> one cubin per distinct kernel and architecture. No GPU, no driver.

Equal launches give equal cubins, wherever and by whomever they are compiled: each compilation runs in a process with
settings of its own and an empty cache (`cubin_worker`), without line information, which would name source files.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from ..console import progress
from ..errors import BackendError
from ..hardware import usable_cores
from ..kernels.chips import ARCHS, arch_named
from ..kernels.plan import Launch
from .cubin_facts import tritons_tool

LIBRARY = "tkfnet_engine.kernels.library"
# Settings of Triton, LLVM and the assembler that change what they make, or what they print.
_SETTINGS = re.compile(
    r"(TRITON|LLVM|MLIR|PTXAS|NVPTX)_.*|DISABLE_(LLVM_OPT|PTXAS_OPT|MMA_V3|MMA_V5)|USE_IR_LOC"
    r"|ALLOW_LHS_TMEM_LAYOUT_CONVERSION"
)


@dataclass(frozen=True)
class Cubin:
    """The machine code of one kernel variant for one architecture.

    code: an ELF file. entry: its kernel's name. registers: per thread. spilled_bytes: per thread, 0 if nothing spills.
    shared_bytes: of dynamic shared memory that a launch must ask for. tensor_core: instruction -> how often it stands
    in the code ("HGMMA": wgmma). ptx: what the assembler was given.
    """

    code: bytes
    entry: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core: dict[str, int]
    ptx: str


def compile_launches(
    launches: Iterable[Launch],
    arch: str,
    jobs: int | None = None,
    library: str = LIBRARY,
    failed: dict[str, BackendError] | None = None,
) -> dict[str, Cubin]:
    """`Launch.variant` -> its cubin for `arch` ("sm_90"), each compiled once, however many launches share it.

    jobs: processes, default one per core. library: the module whose `kernel_named` finds the kernels. `UsageError` for
    an unknown architecture, `BackendError` where a kernel does not compile or asks for more shared memory than there
    is; with `failed` such kernels are entered there, by variant, and left out.
    """
    arch_named(arch)
    if find_spec("triton") is None:
        raise BackendError("compiling kernels needs triton, which is not installed; pip install triton")
    variants = {launch.variant: launch for launch in launches}
    workers = min(jobs or usable_cores(), len(variants))
    with tempfile.TemporaryDirectory(prefix="tkfnet-cubins-") as folder:
        answers = _answers([_request(v, arch, library) for v in variants.values()], workers, folder)
        cubins = {}
        for variant, answer in zip(
            variants, progress(answers, f"compiling kernels for {arch}", len(variants)), strict=True
        ):
            if isinstance(answer, Cubin):
                cubins[variant] = answer
            elif failed is None:
                raise answer
            else:
                failed[variant] = answer
    return cubins


def _request(launch: Launch, arch: str, library: str) -> dict[str, Any]:
    return {
        "library": library,
        "kernel": launch.kernel,
        "signature": launch.signature,
        "constexprs": launch.constexprs,
        "warps": launch.warps,
        "stages": launch.stages,
        "fp_fusion": launch.fp_fusion,
        "arch": arch,
    }


def _answers(requests: list[dict[str, Any]], count: int, folder: str) -> Iterator[Cubin | BackendError]:
    """Cubins, or why there is none, in the order of `requests`, compiled by `count` processes at a time."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(folder) for _ in range(count)]
    for worker in workers:
        idle.put(worker)

    def one(request: dict[str, Any]) -> Cubin | BackendError:
        worker = idle.get()
        try:
            return worker.compile(request)
        except BackendError as error:
            return error
        finally:
            if not worker.alive:  # a compiler that crashed took its process along
                workers.append(worker := _Worker(folder))
            idle.put(worker)

    pool = ThreadPoolExecutor(max(1, count))
    try:
        yield from pool.map(one, requests)
    finally:
        # An interrupted compilation is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.close()
        pool.shutdown()


class _Worker:
    """One compiler process and its standard error."""

    def __init__(self, folder: str):
        self._log = tempfile.TemporaryFile("w+", dir=folder, errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: a module in the working directory must not stand in for a library.
            [sys.executable, "-P", "-m", "tkfnet_engine.export.cubin_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(folder),
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def compile(self, request: dict[str, Any]) -> Cubin:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if error := answer.get("error"):
            raise BackendError(
                f"kernel {request['kernel']}, {request['arch']}: it does not compile ({_gist(error)}); try another "
                "tile or other warps for this launch, or another version of Triton"
            )
        cubin = Cubin(**{**answer, "code": base64.b64decode(answer["code"])})
        if cubin.shared_bytes > (limit := ARCHS[request["arch"]].shared_per_block):
            raise BackendError(
                f"kernel {request['kernel']}, {request['arch']}: needs {cubin.shared_bytes} bytes of shared memory, a "
                f"block has {limit}; choose a smaller tile or fewer stages"
            )
        return cubin

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read().strip().splitlines()
        return f"the compiler's process ended with {code}: {said[-1] if said else 'it said nothing'}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            try:
                stream.close()
            except BrokenPipeError:
                continue


def _gist(error: str) -> str:
    """Of a compiler's message its first line; the assembler's and the Python front end's say later what is wrong."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    if said := next((line for line in lines if re.match(r"ptxas.*\berror\s*:", line)), None):
        return said
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def _environment(folder: str) -> dict[str, str]:
    """The compiler's: the caller's without its settings for compilers."""
    settings = {name: value for name, value in os.environ.items() if not _SETTINGS.fullmatch(name)} | {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path),
        "PYTHONHASHSEED": "0",
        # Line information would put the paths of the source files into the cubin.
        "TRITON_DISABLE_LINE_INFO": "1",
        # Nobody else's cache, so that concurrent builds cannot meet and an old Triton's result cannot be taken.
        "TRITON_HOME": folder,
        "TRITON_CACHE_DIR": os.path.join(folder, "cache"),
        "TMPDIR": folder,
    }
    # Triton may bring two assemblers, and from 9.0 on takes the newer. Of CUDA 12's the cubins load on drivers from
    # 12.0 or 12.8 on instead of from 13.0 on; registers and instructions hardly differ (Triton 3.9, 2026-11).
    if own := tritons_tool("ptxas"):
        settings["TRITON_PTXAS_BLACKWELL_PATH"] = own
    return settings


# The first driver (cuDriverGetVersion) that knows an architecture at all, where that is later than CUDA 12.0.
_FIRST_DRIVER = {"sm_100": 12080, "sm_120": 12080}


def least_driver(arch: str, ptx: str) -> int:
    """The least cuDriverGetVersion() that loads a cubin for `arch` whose PTX is `ptx`.

    Minor-version compatibility: what the assembler of CUDA 12.x makes loads on every driver from 12.0 on, and likewise
    13.x on 13.0 (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html), unless the
    architecture is younger. Triton writes the newest PTX that its assembler knows: version 8.y is CUDA 12's, 9.y 13's.
    """
    version = re.search(r"^\.version (\d+)\.\d+$", ptx, re.MULTILINE)
    if version is None:
        raise BackendError(f"{arch}: the compiler's PTX names no version; install another Triton")
    return max(1000 * (int(version[1]) + 4), _FIRST_DRIVER.get(arch, 0))


def cubin_tensors(cubins: Mapping[str, Cubin], arch: str) -> dict[str, bytes]:
    """The engine file's tensors: each cubin, and an index of them as canonical JSON."""
    index = {
        "driver": max(least_driver(arch, cubin.ptx) for cubin in cubins.values()),
        "cubins": {
            variant: {name: value for name, value in asdict(cubin).items() if name not in ("code", "ptx")}
            for variant, cubin in cubins.items()
        },
    }
    tensors = {f"cubins/{arch}/{variant}": cubin.code for variant, cubin in sorted(cubins.items())}
    text = json.dumps(index, sort_keys=True, separators=(",", ":"))
    return {f"cubins/{arch}/index": text.encode(), **tensors}
