"""One engine in a process of its own, which answers and times itself when it is told to.

    python -m benchmarks.engines.worker '{"opener": "eager", "threads": 2, ..}'

Each line of standard input is a command, each line of standard output its answer, both JSON:

    {"do": "answer", "pixels": FILE.npy, "logits": FILE.npy}    logits of uint8 [N, S, S, 3], in batches of 8
    {"do": "time", "mode": "network", "batch": 8, "seconds": 0.5, "jpegs": [..]}    -> {"ms": [..]}: one a call
    {"do": "first", "batch": 1}                                 -> {"seconds": .., "rss_mib": ..}: one call on the host
    {"do": "serve", "clients": 4, "seconds": 2, "rate": null}   -> {"ms": [..], "seconds": ..}: see `concurrency.py`

The first answer is {"open_s": .., "rss_mib": ..}. An exception is {"error": TEXT}, and the process goes on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Answers are given in such batches, one that is timed later anyway: compilers work for each size.
ANSWERED = 8
LEAST_SAMPLES, MOST_SAMPLES = 2, 400


def softmax(logits: Any) -> Any:
    import numpy as np

    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def call_of(opened: Any, mode: str, batch: int, size: int, jpegs: list[str]) -> Callable[[int], Any]:
    """What is timed, as a function of the number of the call; inputs differ from call to call, and are never zero."""
    import numpy as np

    draw = np.random.default_rng(batch)
    images = [draw.integers(0, 256, (batch, size, size, 3), np.uint8) for _ in range(4)]
    if mode == "network":
        inputs = [opened.prepare(one) for one in images]
        return lambda i: opened.network(inputs[i % 4])
    if mode == "host":
        return lambda i: opened.host(images[i % 4])
    from tkfnet_engine.preprocess import decode_image, stack_crops

    files = [Path(path).read_bytes() for path in jpegs]

    def from_jpeg(i: int) -> Any:
        crops = [decode_image(files[(i * batch + k) % len(files)]) for k in range(batch)]
        return softmax(opened.host(stack_crops(crops, size)))

    return from_jpeg


class Worker:
    """An opened engine, and the calls that are warm already."""

    def __init__(self, settings: dict[str, Any]):
        from benchmarks.engines import openers

        opener = getattr(openers, settings.pop("opener"))
        self._size = settings.pop("size")
        self.opened = opener(**settings)
        self._calls: dict[tuple[str, int], tuple[Callable[[int], Any], float]] = {}

    def answer(self, pixels: str, logits: str) -> dict[str, Any]:
        import numpy as np

        images = np.load(pixels)
        parts = [self.opened.host(images[i : i + ANSWERED]) for i in range(0, len(images), ANSWERED)]
        np.save(logits, np.concatenate(parts))
        return {"images": len(images)}

    def time(self, mode: str, batch: int, seconds: float, jpegs: list[str]) -> dict[str, Any]:
        call, each = self._warm(mode, batch, jpegs)
        count = int(min(MOST_SAMPLES, max(LEAST_SAMPLES, seconds / each)))
        call(0)  # what ran before in other processes left other clocks and caches
        taken = []
        for i in range(count):
            start = time.perf_counter()
            call(i)
            taken.append((time.perf_counter() - start) * 1e3)
        return {"ms": taken}

    def _warm(self, mode: str, batch: int, jpegs: list[str]) -> tuple[Callable[[int], Any], float]:
        """The call, and about how many seconds it takes. Compilation, where there is any, is over."""
        if (mode, batch) not in self._calls:
            call = call_of(self.opened, mode, batch, self._size, jpegs)
            start = time.perf_counter()
            call(0)
            first = time.perf_counter() - start
            spent, each = 0.0, first
            while spent < min(0.3, 10 * first):
                start = time.perf_counter()
                call(1)
                each = time.perf_counter() - start
                spent += each
            self._calls[mode, batch] = (call, each)
        return self._calls[mode, batch]

    def first(self, batch: int) -> dict[str, Any]:
        import numpy as np

        images = np.random.default_rng(0).integers(0, 256, (batch, self._size, self._size, 3), np.uint8)
        start = time.perf_counter()
        self.opened.host(images)
        return {"seconds": time.perf_counter() - start, "rss_mib": resident_mib()}

    def serve(self, clients: int, seconds: float, rate: float | None) -> dict[str, Any]:
        from benchmarks.engines.concurrency import serve

        return serve(self.opened.host, self._size, clients, seconds, rate)


def resident_mib() -> float:
    """The most memory that this process has had resident."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))


def main() -> None:
    settings = json.loads(sys.argv[1])
    # Answers alone go to standard output: libraries print there too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        start = time.perf_counter()
        worker = Worker(settings)
        say({"open_s": time.perf_counter() - start, "rss_mib": resident_mib()})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        command = json.loads(line)
        try:
            say(getattr(worker, command.pop("do"))(**command))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
