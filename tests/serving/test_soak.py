"""Twenty minutes under load, with bad requests among the good."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from .running import LENGTH, Running, descendants, probabilities

SECONDS, CLIENTS = 20 * 60, 8
MOST_GROWTH = 100 * 2**20


def _memory(server: Running) -> int:
    """Bytes resident in all its processes; what they share is counted once for each."""
    total = 0
    for pid in [server.process.pid, *descendants(server.process.pid)]:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


@pytest.mark.soak
def test_memory_over_twenty_minutes(serve_python, nginx, small_engine_path, tmp_path, crops, known):
    with Running(serve_python, tmp_path, small_engine_path, "--check-seconds", "5") as server:
        start, wrong, done = time.monotonic(), [], [0] * CLIENTS

        def client(number: int) -> None:
            draw = np.random.default_rng(number)
            while time.monotonic() - start < SECONDS and not wrong:
                chosen = draw.integers(0, len(crops), draw.integers(1, 9))
                status, answer = server.infer("small", "images", crops[chosen])
                if status != 200 or np.abs(probabilities(answer) - known[chosen]).max() > 1e-5:
                    wrong.append(f"{status}: {str(answer)[:300]}")
                bad = server.send("POST", "/v2/models/small_jpeg/infer", draw.bytes(3000), {LENGTH: "0"})
                if bad[0] != 400:
                    wrong.append(f"{bad[:2]}")
                done[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            samples.append(_memory(server))
        assert not wrong, wrong[0]
        late = samples[len(samples) // 2 :]
        print(f"{sum(done)} rounds, {late[0] / 1e6:.0f} MB at half time, at most {max(late) / 1e6:.0f} MB after")
        assert max(late) - late[0] <= MOST_GROWTH
        assert "restarting" not in server.log()
