"""What the service survives, and how it ends."""

from __future__ import annotations

import glob
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from .running import Asking, Running, descendants, probabilities, run, until


@pytest.fixture
def server(serve_python, nginx, small_engine_path, tmp_path):
    with Running(serve_python, tmp_path, small_engine_path, "--threads", "1", "--check-seconds", "0.3") as running:
        yield running


def _answers(server: Running, crops: np.ndarray) -> tuple[int, np.ndarray | None]:
    asking = Asking(server, "small", crops)
    asking.join()
    return asking.status, probabilities(asking.answer) if asking.status == 200 else None


def _recovers(server: Running, crops: np.ndarray, known: np.ndarray, because: str) -> None:
    """It says why it restarts, and until it answers right again nothing but 500 and 503 is said."""
    seen = []

    def right() -> bool:
        status, found = _answers(server, crops[:3])
        seen.append(status)
        assert status in (200, 500, 503)
        return status == 200 and np.allclose(found, known[:3], rtol=0, atol=1e-5) and because in server.log()

    until(right)
    # nginx's workers of before may take one more connection.
    until(lambda: server.get("/v2/models/small_jpeg/ready") == 200)
    assert server.process.poll() is None


def _tritonserver(server: Running) -> int:
    (found,) = [p for p in descendants(server.process.pid) if b"bin/tritonserver" in _command(p)]
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


@pytest.mark.parametrize("model", ["small", "small_decode"])
def test_the_backend_process_is_killed(server, crops, known, model):
    before = _tritonserver(server)
    (stub,) = server.stubs(model)
    os.kill(stub, signal.SIGKILL)
    _recovers(server, crops, known, f"process {stub} of its Python backend ended")
    assert _tritonserver(server) != before


def test_the_server_is_killed_again_and_again(server, crops, known):
    for _ in range(3):
        pid = _tritonserver(server)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        _recovers(server, crops, known, "tritonserver ended with -9")
    assert "restarting the server in 0 s" in server.log() and "restarting the server in 1 s" in server.log()


def test_nginx_is_killed(server, crops, known):
    (pid,) = [p for p in descendants(server.process.pid) if b"nginx: master" in _command(p)]
    os.kill(pid, signal.SIGTERM)
    until(lambda: "starting it again" in server.log())
    until(lambda: _answers(server, crops[:1])[0] == 200)
    assert "restarting" not in server.log()


def test_a_process_that_hangs(server, crops, known):
    (stub,) = server.stubs("small")
    os.kill(stub, signal.SIGSTOP)
    _recovers(server, crops, known, "restarting the server")


# --- the end -----------------------------------------------------------------------------------------------


def _left(server: Running) -> list[str]:
    return glob.glob(f"{server.temporary}/*") + glob.glob(f"/dev/shm/tkfnet_{server.process.pid}_*")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain(serve_python, nginx, slow_engine_path, tmp_path, crops, slow_known, number):
    """What is in flight is answered right; new requests are refused; the exit code is 0 and nothing is left."""
    with Running(serve_python, tmp_path, slow_engine_path, "--threads", "1", "--max-images", "2") as server:
        asking = [Asking(server, "slow", crops[i : i + 1]) for i in range(6)]
        until(lambda: server.metric("nv_inference_pending_request_count", model="slow") >= 2)
        server.process.send_signal(number)
        until(lambda: "stopping" in server.log())
        late = until(lambda: (a := Asking(server, "slow", crops[:1])).join() or (a if a.status != 200 else None))
        assert late.status in (0, 503)
        for i, thread in enumerate(asking):
            thread.join()
            assert thread.status == 200 and np.allclose(probabilities(thread.answer), slow_known[i], rtol=0, atol=1e-5)
        assert server.process.wait(60) == 0
        assert _left(server) == [] and "error" not in server.log().rpartition("stopping")[2]


def test_drain_that_takes_too_long_is_forced(serve_python, nginx, slow_engine_path, tmp_path, crops):
    flags = ["--threads", "1", "--max-images", "1", "--drain-seconds", "1"]
    with Running(serve_python, tmp_path, slow_engine_path, *flags) as server:
        asking = [Asking(server, "slow", crops[:1]) for _ in range(12)]
        until(lambda: server.metric("nv_inference_pending_request_count", model="slow") >= 6)
        server.process.terminate()
        assert server.process.wait(60) == 7
        assert "error: stopped by force: requests were still in flight after 1 s" in server.log()
        assert _left(server) == []
        for thread in asking:
            thread.join()


def test_a_killed_supervisor_leaves_no_process(server):
    tree = descendants(server.process.pid)
    assert len(tree) >= 5
    server.process.kill()
    server.process.wait()
    until(lambda: not [pid for pid in tree if _command(pid)])


# --- a start that cannot be --------------------------------------------------------------------------------


def test_a_wrong_answer_keeps_it_from_serving(serve_python, nginx, small_engine_path, tmp_path):
    """Nothing ever listens at the public port, and the command says what came instead of what."""
    script = """
import sys
from tkfnet_engine.serving import canary
from tkfnet_engine.console import run_command
from tkfnet_engine.serve import main
real = canary.expected
def other(*a):
    found = real(*a)
    found[0][sys.argv[1]][0].reverse()
    return found
canary.expected = other
run_command(main, sys.argv[2:])
"""
    for answers in ("crops", "picture"):
        argv = [answers, small_engine_path, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--json"]
        done = run(serve_python, "-c", script, *argv)
        model = "small" if answers == "crops" else "small_jpeg"
        assert done.returncode == 7 and done.stdout == ""
        assert f"error: {model}: the server answers wrong: got probabilities" in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken(serve_python, nginx, small_engine_path, server):
    flags = ["--http-port", str(server.ports["http"]), "--grpc-port", "0", "--metrics-port", "0"]
    done = run(serve_python, "-m", "tkfnet_engine.serve", small_engine_path, *flags)
    assert done.returncode == 64 and "--http-port: cannot listen at 127.0.0.1:" in done.stderr


def test_a_signal_while_it_starts(serve_python, nginx, slow_engine_path, tmp_path):
    with Running(serve_python, tmp_path, slow_engine_path, "--threads", "1", wait=False) as server:
        until(lambda: any(b"bin/tritonserver" in _command(p) for p in descendants(server.process.pid)))
        server.process.terminate()
        assert server.process.wait(60) == 0 and _left(server) == []
        assert "ready" not in server.log()
