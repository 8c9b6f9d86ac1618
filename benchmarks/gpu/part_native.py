"""libtkfnet on this GPU: the Python engine's logits to the bit, cold start, latency beside the bare graph, memory.

The library is this tree's (`make native`, which may have been run on another machine of this kind), or is built here
where CMake and nlohmann-json are; else the part is left out.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gpu_common import EngineParts, Faces, PlanReplay, part_parser, this_arch
from gpu_state import ENGINE, RIGHT, ROOT, SKIPPED, WRONG, write_json
from part_cold_start import over
from part_sanitizer import tool_path

PROCESSES, BLOCKS, ROUNDS = 5, 9, 3
NATIVE = ROOT / "tkfnet_engine" / "native"


def program(out: Path) -> Path | str:
    """native_engine, compiled into `out`, or why that cannot be."""
    if not (NATIVE / "lib" / "libtkfnet.so").is_file():
        if shutil.which("cmake") is None:
            return "libtkfnet is not built here and there is no CMake: run make native elsewhere, carry native/lib"
        done = subprocess.run(["make", "native"], cwd=ROOT)
        if done.returncode:
            return "make native fails here; see the log"
    if (compiler := shutil.which("c++") or shutil.which("g++")) is None:
        return "there is no C++ compiler"
    made = out / "native_engine"
    source = Path(__file__).with_name("native_engine.cpp")
    lib = NATIVE / "lib"
    flags = ["-O2", "-std=c++17", "-I", NATIVE / "include", "-L", lib, f"-Wl,-rpath,{lib}"]
    command = [compiler, *flags, "-o", made, source, "-ltkfnet", "-ldl"]
    subprocess.run([str(part) for part in command], check=True)
    return made


def told(made: Path, *arguments: Any) -> dict[str, Any]:
    """What one run of native_engine prints."""
    command = [str(made), *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout)


def same_bits(made: Path, out: Path) -> bool:
    """Whether the golden faces' logits are those of the Python engine: in the largest batch, and in a rest."""
    from tkfnet_engine import Engine

    pixels = Faces.read(out).pixels
    (out / "native-pixels").write_bytes(pixels.tobytes())
    told(made, "answers", out / ENGINE, out / "native-pixels", out / "native-logits")
    got = np.frombuffer((out / "native-logits").read_bytes(), np.float32).reshape(len(pixels), -1)
    with Engine.load(out / ENGINE) as engine:
        return bool((got == engine.logits(pixels)).all())


def replay_us(out: Path) -> list[float]:
    """The bare graph of batch 1, queued 200 times, as native_engine queues requests."""
    import time

    import torch

    from tkfnet_engine.backends.cuda_driver import Gpu

    parts = EngineParts.read(out, this_arch())
    stream = torch.cuda.Stream()
    found = []
    with Gpu():
        bare = PlanReplay(parts, parts.plans[1])
        size, classes = bare.plan.size, bare.plan.classes
        pixels = torch.full((1, size, size, 3), 100, dtype=torch.uint8, device="cuda")
        logits = torch.empty(1, classes, device="cuda")
        torch.cuda.synchronize()
        for _ in range(BLOCKS + 3):
            start = time.perf_counter()
            for _ in range(200):
                bare.replay(stream.cuda_stream, pixels.data_ptr(), logits.data_ptr())
            stream.synchronize()
            found.append((time.perf_counter() - start) * 1e6 / 200)
    return found[3:]


def sanitized(made: Path, out: Path) -> str | None:
    """What compute-sanitizer's memcheck finds, or None if nothing. Not run where it is not installed."""
    if (tool := tool_path()) is None:
        return None
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", str(made), "cold", str(out / ENGINE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    print(done.stdout[-4000:], flush=True)
    return f"memcheck ends with {done.returncode}" if done.returncode else None


def main() -> int:
    args = part_parser(__doc__).parse_args()
    out = args.out
    made = program(out)
    if isinstance(made, str):
        write_json(args.result, {"reason": made})
        return SKIPPED
    wrong = [] if same_bits(made, out) else ["logits differ from the Python engine's"]
    starts = [told(made, "cold", out / ENGINE) for _ in range(PROCESSES)]
    native, bare = {"device_us": [], "host_us": []}, []
    for _ in range(ROUNDS):
        found = told(made, "latency", out / ENGINE, BLOCKS)
        for name, values in native.items():
            values.append(statistics.median(found[name]))
        bare.append(statistics.median(replay_us(out)))
    beyond = [one - other for one, other in zip(native["device_us"], bare)]
    result = {
        "same_bits": not wrong,
        "first_ms": over([one["first_ms"] for one in starts]),
        "load_ms": over([one["load_ms"] for one in starts]),
        "resident_mib": over([(one["resident_kib"] - one["context_kib"]) / 1024 for one in starts]),
        "process_mib": over([one["resident_kib"] / 1024 for one in starts]),
        "device_us": over(native["device_us"]),
        "host_us": over(native["host_us"]),
        "replay_us": over(bare),
        "beyond_replay_us": over(beyond),
        "sanitizer": "not installed" if tool_path() is None else "clean",
    }
    if found := sanitized(made, out):
        wrong.append(found)
        result["sanitizer"] = found
    result["summary"] = (
        f"first answer {result['first_ms']['median']} ms after the context, {result['beyond_replay_us']['median']} us "
        f"beyond the replay, {result['process_mib']['median']} MiB"
    )
    if wrong:
        result["reason"] = "; ".join(wrong)
    write_json(args.result, result)
    return WRONG if wrong else RIGHT


if __name__ == "__main__":
    sys.exit(main())
