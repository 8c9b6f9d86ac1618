"""What batching gives: one engine behind two servers, one that puts requests together and one that may not.

    python benchmarks/compare_serving.py ENGINE [--serve-python PATH] [--clients 16] [--requests 2000] [--rounds 5]
                                         [--threads N] [--out FILE]

Clients in threads of this process ask for one image at a time, each as soon as it has its answer. The servers are asked
in turn, `--rounds` times over; the ratio is the median of the rounds' ratios. Every answer is compared with the engine.
"""

from __future__ import annotations

import http.client
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tkfnet_engine import Engine
from tkfnet_engine.atomic import write_atomically
from tkfnet_engine.console import Parser, emit_json, run_command, say
from tkfnet_engine.errors import BackendError, VerificationError
from tkfnet_engine.hardware import processor_name, usable_cores

IMAGES = 32
TOLERANCE = 1e-4
# Name -> the flag that makes it: batches of one are no batches.
SERVERS = {"batching": (), "batch 1": ("--max-images", "1")}


def parser() -> Parser:
    p = Parser(prog="benchmarks/compare_serving.py", description=__doc__.partition(":")[0])
    p.add_argument("engine", metavar="ENGINE")
    p.add_argument("--serve-python", default=".venv-serve/bin/python", metavar="PATH", help="with tkfnet-engine[serve]")
    p.add_argument("--clients", type=int, default=16)
    p.add_argument("--requests", type=int, default=2000, help="of all clients, in each round (default 2000)")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, help="of the engine")
    p.add_argument("--out", metavar="FILE", help="the record, as JSON")
    return p


class Server:
    """`python -m tkfnet_engine.serve` with `flags`, on free ports."""

    def __init__(self, python: str, flags: Sequence[str]):
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        command = [python, "-m", "tkfnet_engine.serve", *flags, *ports, "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        text = b""
        while not text.endswith(b"\n}\n"):
            line = self._process.stdout.readline()
            if not line:
                raise BackendError(f"{python} does not serve: it says why above")
            text += line
        self.port = json.loads(text)["ports"]["http"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def rate(server: Server, name: str, crops: np.ndarray, known: np.ndarray, clients: int, requests: int) -> float:
    """Requests in a second. `VerificationError` for an answer that is not the engine's."""
    tensor = {"name": "images", "shape": [1, *crops.shape[1:]], "datatype": "UINT8"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": crops[0].nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    bodies = [head + crop.tobytes() for crop in crops]
    wrong: list[str] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for i in range(number, requests, clients):
            connection.request("POST", f"/v2/models/{name}/infer", bodies[i % len(bodies)], headers)
            response = connection.getresponse()
            content = json.loads(response.read())
            found = [o["data"] for o in content.get("outputs", ()) if o["name"] == "probabilities"]
            if response.status != 200 or np.abs(np.array(found[0]) - known[i % len(bodies)]).max() > TOLERANCE:
                wrong.append(f"{response.status} {str(content)[:200]}")
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if wrong:
        raise VerificationError(f"{len(wrong)} of {requests} answers are wrong, such as {wrong[0]}")
    return requests / seconds


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with Engine.load(args.engine, threads=args.threads) as engine:
        size = engine.input_size
        crops = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), np.uint8)
        known = engine.predict(crops).probabilities
    name = Path(args.engine).stem
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    rates: dict[str, list[float]] = {what: [] for what in SERVERS}
    for number in range(args.rounds):
        for what, flags in SERVERS.items():
            # One at a time: two would share the cores.
            server = Server(args.serve_python, [args.engine, *threads, *flags])
            try:
                rate(server, name, crops, known, args.clients, args.clients * 4)
                rates[what].append(rate(server, name, crops, known, args.clients, args.requests))
            finally:
                server.close()
        say(f"round {number + 1}: " + ", ".join(f"{what} {found[-1]:.0f}/s" for what, found in rates.items()))
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    record: dict[str, Any] = {
        "engine": args.engine, "clients": args.clients, "requests": args.requests, "rates": rates, "ratios": ratios,
        "ratio": statistics.median(ratios), "processor": processor_name(), "cores": usable_cores(),
        "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), "command": sys.argv,
    }  # fmt: skip
    say(f"batching is {record['ratio']:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    emit_json(record)
    if args.out:
        write_atomically(args.out, json.dumps(record, indent=2).encode())
    return 0


if __name__ == "__main__":
    run_command(main)
