"""Many clients at once: every answer is the engine's, and requests run together."""

from __future__ import annotations

import http.client
import json
import threading

import numpy as np

from .running import PATIENCE, probabilities, request

REQUESTS, CLIENTS, MOST = 10_000, 16, 8
# A batch of another size moves the last digits of float32.
TOLERANCE = 1e-5


def test_ten_thousand_requests_of_mixed_sizes(served, crops, known):
    before = {name: served.metric(f"nv_inference_{name}", model="small") for name in ("count", "exec_count")}
    wrong: list[str] = []
    images = [0] * CLIENTS

    def client(number: int) -> None:
        draw = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", served.ports["http"], timeout=PATIENCE)
        for _ in range(REQUESTS // CLIENTS):
            chosen = draw.integers(0, len(crops), draw.integers(1, MOST + 1))
            body, headers = request("images", crops[chosen])
            connection.request("POST", "/v2/models/small/infer", body, headers)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                wrong.append(f"{response.status}: {content!r:.200}")
                continue
            answer = json.loads(content)
            got = probabilities(answer)
            if got.shape != (len(chosen), 7) or np.abs(got - known[chosen]).max() > TOLERANCE:
                wrong.append(f"client {number}: {got.tolist()}, expected {known[chosen].tolist()}")
            (classes,) = [o["data"] for o in answer["outputs"] if o["name"] == "class"]
            if classes != got.argmax(1).tolist():
                wrong.append(f"client {number}: class {classes} of {got.tolist()}")
            images[number] += len(chosen)
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} wrong, the first: {wrong[0]}"
    # One run of the network answers several requests.
    assert served.metric("nv_inference_count", model="small") - before["count"] == sum(images)
    executed = served.metric("nv_inference_exec_count", model="small") - before["exec_count"]
    assert executed < REQUESTS * 0.8, f"{executed} runs for {REQUESTS} requests"


def test_the_known_answers_differ(known):
    """Else answers that went to the wrong client would not be noticed."""
    apart = np.abs(known[:, None] - known[None]).max(2) + np.eye(len(known))
    assert apart.min() > 100 * TOLERANCE
