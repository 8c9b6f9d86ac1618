"""What this processor can do at most, measured: products in three precisions, and memory bandwidth.

Products are PyTorch's square matrix products, whose kernels (oneDNN, MKL) are the best that a CPU is known to have. A
fraction of such a peak is a fraction of what somebody has reached, not of a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SIZE = 2048
COPIED = 1 << 28  # bytes, far beyond the caches


def rates(threads: int, rounds: int) -> dict[str, tuple[str, list[float]]]:
    """By name: unit and a rate for each round; one round is at least a tenth of a second. Empty where it cannot run."""
    import torch

    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    wide = [torch.randn(SIZE, SIZE, generator=draw) for _ in range(2)]
    whole = [torch.randint(-128, 128, (SIZE, SIZE), dtype=torch.int8, generator=draw) for _ in range(2)]
    half = [one.bfloat16() for one in wide]
    source = torch.ones(COPIED // 4)
    target = torch.empty_like(source)
    products = 2 * SIZE**3 / 1e9
    work: dict[str, tuple[str, float, Callable[[], object]]] = {
        "float32 products": ("GFLOP/s", products, lambda: torch.mm(*wide)),
        "bfloat16 products": ("GFLOP/s", products, lambda: torch.mm(*half)),
        "int8 products": ("GFLOP/s", products, lambda: torch._int_mm(*whole)),
        # Read and written.
        "memory bandwidth": ("GB/s", 2 * COPIED / 1e9, lambda: target.copy_(source)),
    }
    return {name: (unit, [_rate(amount, call) for _ in range(rounds)]) for name, (unit, amount, call) in work.items()}


def _rate(amount: float, call: Callable[[], object]) -> float:
    call()
    start, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < 0.1 or not calls:
        call()
        calls += 1
    return calls * amount / spent if spent else 0.0


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(rates(int(sys.argv[1]), int(sys.argv[2]))))
