"""Every limit, on both sides of it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from tkfnet_engine.errors import UsageError
from tkfnet_engine.serving.limits import Limits

from .running import LENGTH, Asking, Running, probabilities, request


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("chunked", [False, True])
def test_bytes_of_a_body(served, chunked):
    for size, expected in ((1_000_000, 400), (1_000_001, 413)):
        body = bytes(size)
        sent = iter([body[:500_000], body[500_000:]]) if chunked else body
        status, content, _ = served.send("POST", "/v2/models/small_jpeg/infer", sent, {LENGTH: "0"})
        assert status == expected, content
        assert (b"not an image" if expected == 400 else b"more than 1000000 bytes") in content


def test_a_body_in_very_small_pieces(served):
    pieces = (b"x" for _ in range(900_000))
    status, content, _ = served.send("POST", "/v2/models/small_jpeg/infer", pieces, {LENGTH: "0"})
    assert status == 400 and b"in too many small pieces" in content


def test_bytes_of_json(served, crops):
    text, headers = request("images", crops[:1])
    text = text[: int(headers[LENGTH])]
    for length, expected in ((16384, 200), (16385, 400)):
        body = text.ljust(length) + crops[:1].tobytes()
        status, content, _ = served.send("POST", "/v2/models/small/infer", body, {LENGTH: str(length)})
        assert status == expected, content
    assert b"expected 0 to 16384" in content


def test_images_of_a_request(served, crops, known):
    status, answer = served.infer("small", "images", crops[:32])
    assert status == 200 and np.allclose(probabilities(answer), known[:32], rtol=0, atol=1e-5)
    status, answer = served.infer("small", "images", crops[:33])
    assert status == 400 and "got 33 images, expected at most 32" in answer["error"]
    pictures = [_png(10, 10)] * 33
    assert served.infer("small_jpeg", "jpeg", pictures[:32])[0] == 200
    assert served.infer("small_jpeg", "jpeg", pictures)[0] == 400


def test_pixels_of_a_picture(served):
    assert served.infer("small_jpeg", "jpeg", [_png(200, 200)])[0] == 200
    status, answer = served.infer("small_jpeg", "jpeg", [_png(9, 9), _png(200, 201)])
    assert status == 400
    assert "picture 1 (counted from 0): <bytes>: its header says 200 x 201 pixels, expected at most 40,000" in str(
        answer
    )


def _joined(threads: list[Asking]) -> list[Asking]:
    for thread in threads:
        thread.join()
    return threads


def test_length_of_the_queue(serve_python, nginx, slow_engine_path, tmp_path, crops, slow_known):
    with Running(serve_python, tmp_path, slow_engine_path, "--threads", "1", "--max-queue", "4") as server:
        asking = _joined([Asking(server, "slow", crops[i : i + 1]) for i in range(40)])
        rejected = [thread for thread in asking if thread.status != 200]
        assert all(t.status == 503 and "Exceeds maximum queue size" in t.answer["error"] for t in rejected)
        # Beside the 4 that wait, one batch runs, and up to two more have left the queue to run next.
        assert rejected and len(asking) - len(rejected) >= 4 + 1
        for number, thread in enumerate(asking):
            if thread not in rejected:
                assert np.allclose(probabilities(thread.answer), slow_known[number], rtol=0, atol=1e-5)
        # A queue that is not full rejects nothing.
        assert [t.status for t in _joined([Asking(server, "slow", crops[:1]) for _ in range(4)])] == [200] * 4


def test_seconds_in_the_queue(serve_python, nginx, slow_engine_path, tmp_path, crops):
    """A request may ask for less than --queue-seconds, not for more."""
    flags = ["--threads", "1", "--queue-seconds", "0.05", "--max-images", "1"]
    with Running(serve_python, tmp_path, slow_engine_path, *flags) as server:
        assert server.infer("slow", "images", crops[:1])[0] == 200
        an_hour = {"timeout": 3_600_000_000}
        asking = _joined([Asking(server, "slow", crops[:1], parameters=p) for p in (None, an_hour) for _ in range(8)])
        # One runs at once. Of 16 at least 12 had to wait for several others, whatever they asked for.
        for half in (asking[:8], asking[8:]):
            late = [t for t in half if t.status == 503]
            assert len(late) >= 4 and all(t.answer["error"] == "Request timeout expired" for t in late)
            assert all(t.status in (200, 503) for t in half)
        assert sum(t.status == 200 for t in asking) >= 1
    with Running(serve_python, tmp_path, slow_engine_path, "--threads", "1", "--max-images", "1") as server:
        asking = _joined(
            [Asking(server, "slow", crops[:1], parameters=p) for p in ({"timeout": 50_000},) * 6 + (None,)]
        )
        assert {t.status for t in asking[:6]} == {200, 503} and asking[6].status == 200


def test_seconds_for_an_answer(serve_python, nginx, slow_engine_path, tmp_path, crops):
    with Running(serve_python, tmp_path, slow_engine_path, "--threads", "1", "--request-seconds", "0.1") as server:
        status, content, headers = server.send("POST", "/v2/models/slow/infer", *request("images", crops[:1]))
        assert status == 503 and headers["retry-after"] == "1"
        assert json.loads(content) == {"error": "the server is not ready or did not answer in time; try again"}


def test_limits_that_are_none():
    for name, value in (
        ("max_queue", 0),
        ("max_body", 2**31),
        ("queue_seconds", float("inf")),
        ("max_images", 1.0),
        ("queue_seconds", float("nan")),
        ("max_pixels", 50_000_001),
        ("connections", True),
    ):
        with pytest.raises(UsageError, match=f"{name}: got .*every limit is finite"):
            Limits(**{name: value})
