"""An engine on the GPU: the same answer in every bucket, every time, in every thread and on every stream."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .on_gpu import needs_gpu

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine import Engine  # noqa: E402
from tkfnet_engine.backends.registry import CLOSED  # noqa: E402
from tkfnet_engine.compare import compare  # noqa: E402
from tkfnet_engine.errors import BackendError  # noqa: E402

SIZES = (1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 33, 64)
REPLAYS = 2000


@pytest.mark.parametrize("size", SIZES)
def test_the_answer_is_the_networks_in_every_bucket(size, engine, faces):
    parts = [engine.logits(faces.pixels[i : i + size]) for i in range(0, len(faces.pixels), size)]
    found = compare(faces.logits, np.concatenate(parts), 40.0)
    assert found.sqnr_db >= 40 and found.disagreements <= found.near_ties, found


def test_spare_slots_hold_nothing_of_the_batch_before(engine, faces, noise):
    fresh = engine.logits(faces.pixels[:5])
    for seed in range(5):
        engine.logits(noise(8, engine.input_size, seed))
        assert np.array_equal(engine.logits(faces.pixels[:5]), fresh)


def test_equal_requests_give_equal_bits(engine, faces):
    for size in (1, 3, 8, 33):
        first = engine.logits(faces.pixels[:size])
        for repeat in range(100):
            assert np.array_equal(engine.logits(faces.pixels[:size]), first), f"batch {size}, repeat {repeat}"


def test_more_images_than_the_largest_batch_run_in_parts(engine, faces):
    limit = engine.info["max_batch"]
    count = limit + 3
    pixels = faces.pixels[np.arange(count) % len(faces.pixels)]
    expected = np.concatenate([engine.logits(pixels[:limit]), engine.logits(pixels[limit:])])
    assert np.array_equal(engine.logits(pixels), expected)


def test_many_threads_get_their_own_answers(engine, faces):
    expected = {size: engine.logits(faces.pixels[:size]) for size in SIZES}

    def work(seed: int) -> bool:
        draw = random.Random(seed)
        sizes = [draw.choice(SIZES) for _ in range(25)]
        return all(np.array_equal(engine.logits(faces.pixels[:size]), expected[size]) for size in sizes)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))


def test_many_streams_get_their_own_answers(engine, faces):
    """More streams than the engine has buffers, all at once, each with images and sizes of its own."""
    jobs = []
    for number in range(12):
        size, stream = SIZES[number % 6], torch.cuda.Stream()
        pixels = torch.from_numpy(faces.pixels[number : number + size]).to("cuda")
        logits = torch.full((size, len(engine.labels)), float("nan"), device="cuda")
        jobs.append((stream, pixels, logits, engine.logits(faces.pixels[number : number + size])))
    torch.cuda.synchronize()
    for repeat in range(20):
        for _, _, logits, _ in jobs:
            logits.fill_(float("nan"))
        torch.cuda.synchronize()
        for stream, pixels, logits, _ in jobs:
            engine.logits_on_device(pixels, logits, stream.cuda_stream)
        torch.cuda.synchronize()
        for number, (_, _, logits, expected) in enumerate(jobs):
            assert np.array_equal(logits.cpu().numpy(), expected), f"stream {number}, repeat {repeat}"


@pytest.mark.parametrize("batch", [1, 8])
def test_thousands_of_replays_in_a_row_give_equal_bits(batch, engine, faces):
    """Split-K counts its parts; a count that is off, or a part that is read too soon, would show in some replay."""
    stream = torch.cuda.Stream()
    classes = len(engine.labels)
    pixels = torch.from_numpy(faces.pixels[:batch]).to("cuda")
    # Rows of which each starts on a boundary that the kernels need.
    room = -(-batch * classes // 4) * 4
    answers = torch.full((REPLAYS, room), float("nan"), device="cuda")
    torch.cuda.synchronize()
    for row in answers:
        engine.logits_on_device(pixels, row[: batch * classes].view(batch, classes), stream.cuda_stream)
    stream.synchronize()
    answers = answers[:, : batch * classes]
    different = (answers != answers[0]).any(1).nonzero().flatten().tolist()
    assert not different, f"{len(different)} of {REPLAYS} replays differ from the first, such as {different[:5]}"
    assert np.array_equal(answers[0].view(batch, classes).cpu().numpy(), engine.logits(faces.pixels[:batch]))


def test_two_engines_do_not_disturb_each_other(engine, engine_path, faces):
    with Engine.load(engine_path) as other:
        expected = {size: engine.logits(faces.pixels[:size]) for size in (1, 4, 33)}

        def work(number: int) -> bool:
            one, size = (engine, other)[number % 2], (1, 4, 33)[number % 3]
            return np.array_equal(one.logits(faces.pixels[:size]), expected[size])

        with ThreadPoolExecutor(6) as threads:
            assert all(threads.map(work, range(60)))
    assert np.array_equal(engine.logits(faces.pixels[:4]), expected[4])


def test_a_closed_engine_says_so_and_frees_its_memory(engine_path, faces):
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(3):
        opened = Engine.load(engine_path)
        opened.logits(faces.pixels[:3])
        opened.close()
        opened.close()
        with pytest.raises(BackendError, match=CLOSED):
            opened.logits(faces.pixels[:1])
        with pytest.raises(BackendError, match=CLOSED):
            opened.logits_on_device(torch.from_numpy(faces.pixels[:1]).to("cuda"))
    # What the driver keeps for machine code and graphs may stay.
    assert free - torch.cuda.mem_get_info()[0] < 64 << 20
