"""Each fused kernel against its roofline and PyTorch's own: on an NVIDIA GPU, by `make gpu` (its parts `launches`)."""

from __future__ import annotations

import pytest

from .engines.subjects import why_not_on_a_gpu
from .record import Measurement

KERNELS = ("pack_pixels", "stem", "conv 3x3", "tafe", "dcif_and_head")


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel(benchmark, recorder, kernel):
    facts = {"suite": "kernels", "subject": kernel, "ours": True, "device": "cuda", "mode": "device"}
    recorder.put(benchmark, "kernels", Measurement(**facts, reason=why_not_on_a_gpu()), [])
