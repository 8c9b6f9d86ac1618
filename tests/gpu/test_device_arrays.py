"""Images and logits in GPU memory that PyTorch, CuPy or others hold, in the order of the caller's stream."""

from __future__ import annotations

import numpy as np
import pytest

from .on_gpu import needs_gpu

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine.errors import BackendError, ImageError, UsageError  # noqa: E402

# Clocks of the GPU that a stream is kept busy: some 50 milliseconds, long beside everything here.
BUSY = 100_000_000


class ByDlpack:
    """A tensor that shows nothing but DLPack, and remembers for which stream it was asked."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self.asked = tensor, []

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()

    def __dlpack__(self, stream=None):
        self.asked.append(stream)
        return self._tensor.__dlpack__(stream=stream)


@pytest.fixture
def pixels(faces):
    return torch.from_numpy(faces.pixels[:3]).to("cuda")


@pytest.fixture
def expected(engine, faces):
    return engine.logits(faces.pixels[:3])


@pytest.mark.parametrize("default", [False, True], ids=["a stream", "the default stream"])
def test_work_is_done_in_the_order_of_the_callers_stream(default, engine, pixels, expected):
    """The images are still zeros when the engine is called: a kernel queued before fills them, after a long wait."""
    stream = torch.cuda.default_stream() if default else torch.cuda.Stream()
    late = torch.zeros_like(pixels)
    logits = torch.full(expected.shape, float("nan"), device="cuda")
    engine.logits_on_device(pixels, logits)  # what is made once is made
    torch.cuda.synchronize()
    logits.fill_(float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(BUSY)
        late.copy_(pixels)
        engine.logits_on_device(late, logits, None if default else stream.cuda_stream)
        assert not stream.query(), "the stream was idle before the engine was called: nothing was shown"
        late.zero_()  # after the engine has read them
        copied = logits.clone()
    stream.synchronize()
    assert np.array_equal(copied.cpu().numpy(), expected)


def test_the_answer_goes_where_it_is_wanted(engine, pixels, expected):
    room = torch.full((5, expected.shape[1]), 7.0, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    target = room[:3]
    assert engine.logits_on_device(pixels, target, stream.cuda_stream) is target
    stream.synchronize()
    assert np.array_equal(room[:3].cpu().numpy(), expected)
    assert (room[3:] == 7).all(), "rows beyond the images were written"


def test_a_new_array_is_made_where_none_is_given(engine, pixels, expected):
    answer = engine.logits_on_device(pixels)
    assert np.array_equal(torch.as_tensor(answer, device="cuda").cpu().numpy(), expected)


def test_images_by_dlpack_alone(engine, pixels, expected):
    stream = torch.cuda.Stream()
    logits = torch.empty(expected.shape, device="cuda")
    torch.cuda.synchronize()
    images, target = ByDlpack(pixels), ByDlpack(logits)
    engine.logits_on_device(images, target, stream.cuda_stream)
    stream.synchronize()
    assert np.array_equal(logits.cpu().numpy(), expected)
    assert images.asked == [stream.cuda_stream]


def test_images_of_cupy(engine, faces, expected):
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        images = cupy.asarray(faces.pixels[:3])
        answer = engine.logits_on_device(images, stream=stream.ptr)
        on_host = cupy.asarray(answer).get()
    assert np.array_equal(on_host, expected)


def test_every_size_from_gpu_memory_gives_the_bits_of_host_memory(engine, faces):
    for size in (1, 2, 5, 8, 33):
        images = torch.from_numpy(faces.pixels[:size]).to("cuda")
        answer = torch.as_tensor(engine.logits_on_device(images), device="cuda")
        assert np.array_equal(answer.cpu().numpy(), engine.logits(faces.pixels[:size])), size


def test_what_cannot_be_used_where_it_stands_is_refused(engine, pixels, expected):
    logits = torch.empty(expected.shape, device="cuda")
    shifted = torch.empty(pixels.numel() + 1, dtype=torch.uint8, device="cuda")[1:].view(pixels.shape)
    refusals = [
        (pixels.cpu(), logits, BackendError),
        (pixels.float(), logits, ImageError),
        (pixels[:, :-1], logits, ImageError),
        (pixels[:, :, ::2][:, :, : pixels.shape[2]], logits, ImageError),
        (pixels.permute(0, 2, 1, 3), logits, ImageError),
        (shifted, logits, BackendError),
        (pixels, logits.half(), UsageError),
        (pixels, logits[:2], UsageError),
        (pixels, logits.cpu(), BackendError),
    ]
    for number, (images, target, error) in enumerate(refusals):
        with pytest.raises(error):
            engine.logits_on_device(images, target)
            pytest.fail(f"case {number} was taken")
    # And the engine still works.
    engine.logits_on_device(pixels, logits)
    assert np.array_equal(logits.cpu().numpy(), expected)


def test_more_images_than_the_largest_batch_are_refused(engine):
    limit = engine.info["max_batch"]
    images = torch.zeros((limit + 1, engine.input_size, engine.input_size, 3), dtype=torch.uint8, device="cuda")
    with pytest.raises(BackendError, match=f"got {limit + 1} images .* --max-batch"):
        engine.logits_on_device(images)


def test_a_stream_that_is_captured_is_refused(engine, pixels, expected):
    logits = torch.empty(expected.shape, device="cuda")
    engine.logits_on_device(pixels, logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        logits.zero_()
        with pytest.raises(BackendError, match="captured"):
            engine.logits_on_device(pixels, logits, stream.cuda_stream)
    graph.replay()
    torch.cuda.synchronize()
    assert (logits == 0).all()
