"""One engine or peer in a process of its own: its times, or its answers. `compare_int8.py` starts it.

python benchmarks/int8_run.py ENGINE.tkf --batch 1 8 32 --samples 20           {"p50_ms": {"1": ..}} on stdout
python benchmarks/int8_run.py PEER.onnx --like ENGINE.tkf --answer F.npy OUT.npy
python benchmarks/int8_run.py torch._int_mm --samples 20
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from int8_tables import INT_MM, INT_MM_SIZE

from tkfnet_engine.backends.registry import Runner
from tkfnet_engine.bench import time_batch
from tkfnet_engine.bundle import SUFFIX, read_facts
from tkfnet_engine.console import Parser, emit_json, progress, run_command
from tkfnet_engine.engine import Engine
from tkfnet_engine.errors import UsageError
from tkfnet_engine.hardware import usable_cores

ANSWERED_BATCH = 32


def opened(path: str, like: str | None) -> Engine:
    """The engine of a file: `.tkf`; or a peer's `.onnx` or OpenVINO `.xml`, run by the runners that engines run on.

    like: an engine file of the same network, whose facts a peer takes.
    """
    if path.endswith(SUFFIX):
        return Engine.load(path)
    if like is None or not path.endswith((".onnx", ".xml")):
        raise UsageError(f"got {path} like {like}, expected {SUFFIX}, or .onnx or .xml with --like ENGINE")
    runner, name = _runner(path, usable_cores())
    return Engine(read_facts(like) | {"precision": "int8"}, runner, name, "cpu")


def _runner(path: str, threads: int) -> tuple[Runner, str]:
    if path.endswith(".onnx"):
        from tkfnet_engine.backends.ort import OrtRunner

        return OrtRunner(Path(path).read_bytes(), threads), "onnxruntime"
    from tkfnet_engine.backends.openvino import OpenVinoRunner

    # OpenVINO finds the weights by the path of the graph.
    return OpenVinoRunner(path, threads), "openvino"


def int_mm(samples: int) -> float:
    """Milliseconds of PyTorch's product of int8 matrices on every core, sampled as engines are."""
    import torch

    torch.set_num_threads(usable_cores())
    a, b = torch.randint(-128, 128, (2, INT_MM_SIZE, INT_MM_SIZE), dtype=torch.int8)
    product = SimpleNamespace(input_size=1, logits=lambda _: torch._int_mm(a, b))
    return time_batch(product, 1, samples)["p50_ms"]


def answer(engine: Engine, images: str, out: str) -> None:
    """Writes the logits of images (`.npy`, uint8 [N, S, S, 3]) to `out` (`.npy`, float32 [N, classes])."""
    pixels = np.load(images, mmap_mode="r")
    starts = progress(range(0, len(pixels), ANSWERED_BATCH), "answering")
    np.save(out, np.concatenate([engine.logits(np.array(pixels[i : i + ANSWERED_BATCH])) for i in starts]))


def main(argv: Sequence[str] | None = None) -> int:
    p = Parser(prog="int8_run.py", description=__doc__.partition("\n")[0])
    p.add_argument("path", help=f"an engine file, a peer's .onnx or .xml, or {INT_MM}")
    p.add_argument("--like", metavar="ENGINE", help="an engine file of the same network, for a peer")
    p.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    p.add_argument("--samples", type=int, default=20)
    p.add_argument("--answer", nargs=2, metavar=("IMAGES", "OUT"), help="no times: the logits of IMAGES, to OUT")
    args = p.parse_args(argv)
    times: dict[str, Any] = {}
    if args.path == INT_MM:
        times = {str(INT_MM_SIZE): int_mm(args.samples)}
    else:
        with opened(args.path, args.like) as engine:
            if args.answer:
                answer(engine, *args.answer)
            else:
                times = {str(batch): time_batch(engine, batch, args.samples)["p50_ms"] for batch in args.batch}
    if not args.answer:
        emit_json({"p50_ms": times})
    return 0


if __name__ == "__main__":
    run_command(main)
