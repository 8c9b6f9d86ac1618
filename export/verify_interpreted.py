"""Verification of a fused engine where there is no GPU: the same kernels and weights in Triton's interpreter.

Slow (seconds an image), so few images; what it cannot see is the machine code itself, which the engine checks on the
first GPU that opens it.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from ..console import progress, say
from ..hardware import usable_cores
from ..kernels.network import Network
from .verify import VerificationSet, judged

IMAGES = 8
# Images per interpreted run; also exercises a batch of more than one.
BATCH = 2


def verify_interpreted(
    network: Network, weights: bytes, expected: VerificationSet, precision: str, arch: str
) -> dict[str, Any]:
    """The report of the plan of `network` against the reference. `VerificationError` as `verify`."""
    few = VerificationSet(expected.images[:IMAGES], expected.data, expected.fingerprint, expected.reference[:IMAGES])
    say(f"no GPU here: running {len(few.images)} images through the kernels in Triton's interpreter")
    chunks = [few.images[i : i + BATCH] for i in range(0, len(few.images), BATCH)]
    workers = min(usable_cores(), len(chunks))
    # Spawned, not forked: whether Triton interprets is settled when it is imported.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _interpret_here) as pool:
        jobs = [pool.submit(_logits, network, weights, precision, arch, chunk) for chunk in chunks]
        logits = [job.result() for job in progress(jobs, "verifying, interpreted")]
    return judged(few, np.concatenate(logits), precision) | {"executor": "interpreter"}


def _interpret_here() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _logits(network: Network, weights: bytes, precision: str, arch: str, images: np.ndarray) -> np.ndarray:
    import torch

    from ..kernels.interpret import Interpreter, interpreter_plan

    torch.set_num_threads(1)  # one process per core already
    return Interpreter(interpreter_plan(network, len(images), precision, arch), weights).run(images)
