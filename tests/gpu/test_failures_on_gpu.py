"""What an engine says when the GPU's memory is full, and after an error that the GPU context does not survive."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from .on_gpu import needs_gpu

pytestmark = pytest.mark.gpu
needs_gpu()

import torch  # noqa: E402

from tkfnet_engine import Engine  # noqa: E402
from tkfnet_engine.backends.cuda_driver import OutOfMemory  # noqa: E402

# Less than the weights and one request's buffers take.
LEFT_FREE = 32 << 20

POISONED = """
import dataclasses, json, sys
import numpy as np
from cuda.bindings import driver
from tkfnet_engine import Engine
from tkfnet_engine.backends.cuda_driver import Gpu
from tkfnet_engine.backends.cuda_graph import BucketGraph, Kernel
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import BackendError
from tkfnet_engine.kernels.plan import SPACES, Plan

path, arch = sys.argv[1:]
engine = Engine.load(path)
images = np.zeros((1, engine.input_size, engine.input_size, 3), np.uint8)
engine.logits(images)

# Somebody's kernel, on a stream of its own, with addresses that are nobody's.
bundle = read_bundle(path)
plan = Plan.from_json(bytes(bundle.pop(f"plans/{arch}/1")))
launch = plan.launches[-1]
facts = json.loads(bytes(bundle.pop(f"cubins/{arch}/index")))["cubins"][launch.variant]
gpu = Gpu()
with gpu:
    code = bytes(bundle.pop(f"cubins/{arch}/{launch.variant}"))
    _, function = gpu.function(code, facts["entry"], facts["shared_bytes"], 32 * launch.warps)
    status, stream = driver.cuStreamCreate(1)
    assert not status, status
    kernels = {launch.variant: Kernel(function, facts["shared_bytes"])}
    bad = BucketGraph(gpu, dataclasses.replace(plan, launches=(launch,)), kernels, dict.fromkeys(SPACES, 256), stream)
    bad.replay(stream, 256, 256, 1)
    (status,) = driver.cuStreamSynchronize(stream)
    assert int(status) in (700, 716, 717, 718, 719), f"expected an illegal address, got {status}"

def refused(call):
    try:
        call()
    except BackendError as error:
        assert "unusable from now on" in str(error) and "new process" in str(error), error
    else:
        raise AssertionError("it was taken")

for _ in range(2):
    refused(lambda: engine.logits(images))
refused(lambda: Engine.load(path))
engine.close()
print("refused as it should")
"""


def test_full_memory_is_an_error_of_its_own_and_passes(engine_path, faces):
    torch.cuda.empty_cache()
    hog = None
    left = LEFT_FREE
    while hog is None:
        free, _ = torch.cuda.mem_get_info()
        try:
            hog = torch.empty(free - left, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:  # not in one piece
            left *= 2
    with pytest.raises(OutOfMemory, match=r"not enough GPU memory: .* needs .* MiB"):
        Engine.load(engine_path)
    del hog
    torch.cuda.empty_cache()
    with Engine.load(engine_path) as engine:
        assert np.isfinite(engine.logits(faces.pixels[:1])).all()


def test_after_an_error_that_ends_the_context_everything_is_refused(engine_path):
    from .on_gpu import this_arch

    command = [sys.executable, "-c", POISONED, str(engine_path), this_arch()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "refused as it should" in done.stdout, done.stderr[-3000:]
