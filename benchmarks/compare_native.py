"""libtkfnet beside OpenVINO's own C++ API on the same engine: from a frame to probabilities, and per call.

    python benchmarks/compare_native.py [--rounds 7] [--samples 30] [--batch 1 8] [--engine E.tkf ..]

Needs CMake, a C++ compiler, nlohmann-json and OpenVINO's wheel. Every loop runs in a process of its own, in turn,
`--rounds` times over; a ratio is taken within a round. By default the shipped reference is built, float32 and INT8.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.hardware import processor_name, usable_cores
from tkfnet_engine.native import openvino_library

ROOT = Path(__file__).resolve().parents[1]
LOOPS = ("tkfnet", "sample", "bare")
TITLES = {
    "tkfnet": "libtkfnet, frame to probabilities",
    "sample": "OpenVINO's sample loop, the same",
    "bare": "OpenVINO, the network alone",
}


def build_engine(path: Path) -> None:
    """Of the shipped reference, in the precision that the path names."""
    precision = path.stem.replace("float", "fp")
    command = [
        sys.executable,
        "-m",
        "tkfnet_engine.build",
        f"--{precision}",
        "--backend",
        "openvino",
        "--out",
        str(path),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)


def build_loops(folder: Path) -> Path:
    """The program `loops`, of this tree's library and the OpenVINO that is installed."""
    native, prefix = folder / "native", folder / "prefix"
    found = [f"-DOpenVINO_DIR={openvino_library().parents[1] / 'cmake'}", f"-DCMAKE_PREFIX_PATH={prefix}"]
    steps = (
        ["cmake", "-S", ROOT / "tkfnet_engine/native", "-B", native, "-DTKFNET_BUILD_EXAMPLES=OFF"],
        ["cmake", "--build", native, "--parallel"],
        ["cmake", "--install", native, "--prefix", prefix],
        ["cmake", "-S", ROOT / "benchmarks/native", "-B", folder / "loops", *found],
        ["cmake", "--build", folder / "loops"],
    )
    for step in steps:
        subprocess.run([str(part) for part in step], check=True, stdout=sys.stderr)
    return folder / "loops" / "loops"


def times(program: Path, *arguments: object) -> list[list[float]]:
    """What one run prints: lists of milliseconds."""
    environment = os.environ | {"TKFNET_OPENVINO_LIBRARY": str(openvino_library())}
    command = [str(program), *map(str, arguments)]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return [[float(word) for word in line.split()] for line in text.splitlines()]


def compare(program: Path, engine: Path, graph: Path, rounds: int, samples: int, batch: int) -> None:
    medians: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for number in range(rounds):
        turn = number % len(LOOPS)
        for loop in LOOPS[turn:] + LOOPS[:turn]:
            (found,) = times(program, loop, engine if loop == "tkfnet" else graph, batch, samples)
            medians[loop].append(statistics.median(found))
    for loop in LOOPS:
        print(f"  batch {batch}: {TITLES[loop]:<36} {spread(medians[loop])} ms")
    for loop in LOOPS[1:]:
        ratios = [theirs / ours for theirs, ours in zip(medians[loop], medians["tkfnet"])]
        print(f"  batch {batch}: {loop} / tkfnet, paired by round: {spread(ratios)}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--samples", type=int, default=30, help="timed calls per loop and round")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    p.add_argument("--engine", type=Path, nargs="+", help="engine files for OpenVINO")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build_loops(folder)
        engines = args.engine
        if not engines:
            engines = [folder / "float32.tkf", folder / "int8.tkf"]
            for engine in engines:
                build_engine(engine)
        print(f"{processor_name()}, {usable_cores()} cores; median of {args.rounds} rounds (lowest to highest)")
        for engine in engines:
            bundle, graph = read_bundle(engine), folder / "graph.onnx"
            graph.write_bytes(bundle.bytes("graph.onnx"))
            print(f"{bundle.facts['precision']}, {bundle.facts['preprocessing']['size']} pixels")
            for batch in args.batch:
                compare(program, engine, graph, args.rounds, args.samples, batch)
            found = [times(program, "overhead", engine, graph, args.samples) for _ in range(args.rounds)]
            extra = [1000 * (statistics.median(ours) - statistics.median(theirs)) for ours, theirs in found]
            print(f"  tkf_run beyond the bare call, in one process, in turn: {spread(extra)} us")


if __name__ == "__main__":
    main()
