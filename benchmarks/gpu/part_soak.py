"""A thousand requests from eight threads, of mixed sizes, from host and from GPU memory: equal bits, steady memory."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from gpu_common import Faces, part_parser
from gpu_state import ENGINE, RIGHT, WRONG, write_json

from tkfnet_engine import Engine

THREADS, RUNS = 8, 1000
BATCHES = (1, 2, 3, 5, 8, 13, 16, 33, 64, 100, 256)
# What the driver, the allocators and Python may still take after the warm-up.
MOST_GPU_MIB, MOST_HOST_MIB = 32, 128


def host_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def gpu_mib() -> float:
    """Memory of the GPU that is in use, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


class Requests:
    """Asks an engine for what it has answered before, and counts the answers that are another."""

    def __init__(self, engine: Engine, faces: Faces, batches: list[int]):
        self._engine, self._pixels = engine, faces.pixels
        self._expected = {batch: engine.logits(faces.pixels[:batch]) for batch in batches}
        self._on_gpu = {batch: torch.from_numpy(faces.pixels[:batch]).to("cuda") for batch in batches}
        self._batches = batches
        # The same ones throughout: PyTorch keeps memory for each stream that it has seen.
        self._streams = [torch.cuda.Stream() for _ in range(THREADS)]
        torch.cuda.synchronize()

    def thread(self, seed: int, runs: int) -> list[str]:
        """`runs` requests; what was wrong."""
        draw, wrong = random.Random(seed), []
        stream = self._streams[seed % THREADS]
        for number in range(runs):
            batch = draw.choice(self._batches)
            on_gpu = draw.random() < 0.5
            got = self._from_gpu(batch, stream) if on_gpu else self._engine.logits(self._pixels[:batch])
            if not np.array_equal(got, self._expected[batch]):
                wrong.append(f"thread {seed}, run {number}, batch {batch}, {'GPU' if on_gpu else 'host'} memory")
        return wrong

    def _from_gpu(self, batch: int, stream: torch.cuda.Stream) -> np.ndarray:
        with torch.cuda.stream(stream):
            logits = torch.full(self._expected[batch].shape, float("nan"), device="cuda")
            self._engine.logits_on_device(self._on_gpu[batch], logits, stream.cuda_stream)
            return logits.cpu().numpy()

    def warm(self, threads: ThreadPoolExecutor) -> None:
        """Every size in every buffer that the engine may make, so that nothing new is needed after."""
        for batch in self._batches:
            for _ in range(3):
                list(threads.map(lambda _: self._engine.logits(self._pixels[:batch]), range(THREADS)))  # noqa: B023


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--runs", type=int, default=RUNS)
    args = p.parse_args()
    faces = Faces.read(args.out)
    with Engine.load(args.out / ENGINE) as engine, ThreadPoolExecutor(THREADS) as threads:
        batches = [batch for batch in BATCHES if batch <= min(engine.info["max_batch"], len(faces.pixels))]
        requests = Requests(engine, faces, batches)
        requests.warm(threads)
        each = -(-args.runs // THREADS)
        for _ in threads.map(requests.thread, range(100, 100 + THREADS), [each // 2 + 1] * THREADS):
            pass
        before = host_mib(), gpu_mib()
        wrong = [line for lines in threads.map(requests.thread, range(THREADS), [each] * THREADS) for line in lines]
        growth = [after - was for was, after in zip(before, (host_mib(), gpu_mib()))]
    faults = [f"{len(wrong)} answers differ, such as {wrong[0]}"] if wrong else []
    for where, mib, most in zip(("host", "GPU"), growth, (MOST_HOST_MIB, MOST_GPU_MIB)):
        if mib > most:
            faults.append(f"{where} memory grew by {mib:.0f} MiB, at most {most} are fine")
    result = {
        "summary": f"{each * THREADS} runs, {THREADS} threads, {len(wrong)} differ; memory: host {growth[0]:+.1f} MiB, "
        f"GPU {growth[1]:+.1f} MiB",
        "runs": each * THREADS,
        "threads": THREADS,
        "wrong": wrong[:20],
        "host_growth_mib": round(growth[0], 1),
        "gpu_growth_mib": round(growth[1], 1),
    }
    if faults:
        result["reason"] = "; ".join(faults)
    write_json(args.result, result)
    return WRONG if faults else RIGHT


if __name__ == "__main__":
    sys.exit(main())
