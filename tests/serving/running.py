"""The real server as a child process of a test, and the plainest of clients."""

from __future__ import annotations

import glob
import http.client
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LENGTH = "Inference-Header-Content-Length"
# A start takes 5 to 10 seconds; the rest is for a machine that does much else.
PATIENCE = 120


class Running:
    """`python -m tkfnet_engine.serve ENGINE.. FLAGS`, on free ports. Leaving the block ends it, whatever it does."""

    def __init__(self, python: str, folder: Path, *argv: str | os.PathLike, wait: bool = True):
        self.log_path = folder / "serve.log"
        # Not in `folder`, which is ours alone: started by root, nginx's workers are another user's.
        self.temporary = tempfile.mkdtemp(prefix="tkfnet-test-")
        os.chmod(self.temporary, 0o711)
        ports = [] if "--http-port" in argv else ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        command = [python, "-m", "tkfnet_engine.serve", *map(os.fspath, argv), "--json", *ports]
        with open(self.log_path, "wb") as log:
            environment = {**os.environ, "TMPDIR": self.temporary}
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, env=environment)
        self.ports: dict[str, int] = {}
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        text = b""
        while not text.endswith(b"\n}\n"):
            line = self.process.stdout.readline()
            assert line, f"the server ended: {self.log()}"
            text += line
        self.ports = json.loads(text)["ports"]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        tree = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        for pid in tree:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.temporary, ignore_errors=True)
        for path in glob.glob(f"/dev/shm/tkfnet_{self.process.pid}_*"):
            os.unlink(path)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, port: str = "http"
    ) -> tuple[int, bytes, dict[str, str]]:
        """(status, content, headers in lower case)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()

    def get(self, path: str, port: str = "http") -> int:
        return self.send("GET", path, port=port)[0]

    def infer(self, model: str, name: str, array: Any, **more: Any) -> tuple[int, dict[str, Any]]:
        """(status, what the answer says)."""
        body, headers = request(name, array, **more)
        status, content, _ = self.send("POST", f"/v2/models/{model}/infer", body, headers)
        return status, json.loads(content)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series with these labels."""
        text = self.send("GET", "/metrics", port="metrics")[1].decode()
        found = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for held, value in found if all(f'{k}="{v}"' in held for k, v in labels.items()))

    def stubs(self, model: str) -> list[int]:
        """The processes of Triton's Python backend that run `model`."""
        found = []
        for pid in descendants(self.process.pid):
            with suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"stub" in command[0] and any(f"/{model}/".encode() in part for part in command[1:]):
                    found.append(pid)
        return found


def request(
    name: str, array: Any, outputs: list | None = None, parameters: dict | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with one tensor, uint8 or pictures' bytes, in binary form."""
    if isinstance(array, np.ndarray):
        shape, kind, data = list(array.shape), "UINT8", array.tobytes()
    else:
        shape, kind = [len(array), 1], "BYTES"
        data = b"".join(struct.pack("<I", len(one)) + one for one in array)
    tensor = {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(data)}}
    head: dict[str, Any] = {"inputs": [tensor]}
    if outputs is not None:
        head["outputs"] = outputs
    if parameters is not None:
        head["parameters"] = parameters
    text = json.dumps(head).encode()
    return text + data, {LENGTH: str(len(text))}


def probabilities(answer: dict[str, Any]) -> np.ndarray:
    """float32 [N, classes]."""
    (found,) = [o for o in answer["outputs"] if o["name"] == "probabilities"]
    return np.array(found["data"], np.float32).reshape(found["shape"])


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, IndexError, ValueError):
            parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
            parents.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


class Asking(threading.Thread):
    """One request to a model, in flight."""

    def __init__(self, server: Running, model: str, array: np.ndarray, **more: Any):
        super().__init__()
        self._ask = lambda: server.infer(model, "images", array, **more)
        self.status, self.answer = 0, {}
        self.start()

    def run(self) -> None:
        with suppress(OSError, http.client.HTTPException):  # then the status stays 0
            self.status, self.answer = self._ask()


def until(what: Any, message: str = "", every: float = 0.05) -> Any:
    """The first true result of `what()`. Fails where there is none in `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, message or "it did not happen"
        time.sleep(every)
    return found


def run(python: str, *argv: str | os.PathLike, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([python, *map(os.fspath, argv)], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
