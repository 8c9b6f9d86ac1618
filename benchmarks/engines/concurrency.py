"""Many requests at once at one opened engine: clients that wait for their answers, or a stream at a given rate."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def serve(
    host: Callable[[np.ndarray], np.ndarray], size: int, clients: int, seconds: float, rate: float | None
) -> dict[str, Any]:
    """Requests of one image for about `seconds`. Gives {"ms": latency of each, "seconds": in all}.

    Without a rate each of `clients` threads asks anew as soon as it is answered (closed loop). With a rate, requests a
    second, requests come at random moments (Poisson) whatever the answers do, and `clients` threads take them in order:
    latency counts from the moment a request came, so that waiting in the queue is part of it (open loop).
    """
    images = np.random.default_rng(clients).integers(0, 256, (8, 1, size, size, 3), np.uint8)
    host(images[0])
    return _closed(host, images, clients, seconds) if rate is None else _open(host, images, clients, seconds, rate)


def _in_threads(clients: int, work: Callable[[int], list[float]]) -> list[float]:
    """What `work(client)` gives, of all clients; the first exception of one is raised."""
    taken: list[float] = []
    failed: list[BaseException] = []
    lock = threading.Lock()

    def run(client: int) -> None:
        try:
            own = work(client)
        except BaseException as error:
            failed.append(error)
            return
        with lock:
            taken.extend(own)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return taken


def _closed(host: Any, images: np.ndarray, clients: int, seconds: float) -> dict[str, Any]:
    start = time.perf_counter()

    def work(client: int) -> list[float]:
        own = []
        while (begin := time.perf_counter()) - start < seconds:
            host(images[(client + len(own)) % len(images)])
            own.append((time.perf_counter() - begin) * 1e3)
        return own

    taken = _in_threads(clients, work)
    return {"ms": taken, "seconds": time.perf_counter() - start}


def _open(host: Any, images: np.ndarray, clients: int, seconds: float, rate: float) -> dict[str, Any]:
    gaps = np.random.default_rng(0).exponential(1 / rate, max(int(rate * seconds), 1))
    come: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
    start = time.perf_counter()

    def arrive() -> None:
        for number, due in enumerate(start + np.cumsum(gaps)):
            time.sleep(max(0.0, due - time.perf_counter()))
            come.put((number, due))
        for _ in range(clients):
            come.put(None)

    arrivals = threading.Thread(target=arrive)
    arrivals.start()

    def work(_: int) -> list[float]:
        own = []
        while (request := come.get()) is not None:
            number, due = request
            host(images[number % len(images)])
            own.append((time.perf_counter() - due) * 1e3)
        return own

    taken = _in_threads(clients, work)
    arrivals.join()
    return {"ms": taken, "seconds": time.perf_counter() - start}
