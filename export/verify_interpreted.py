"""Verification of a fused engine where there is no GPU: the same kernels and weights in Triton's interpreter.

Slow (seconds an image), so few images. Thousands, which eight bits are judged on, run in the emulator, which gives the
interpreter's answer. What neither can see is the machine code itself, which the engine checks on the first GPU that
opens it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from ..compare import compare
from ..console import progress, say
from ..errors import VerificationError
from ..hardware import usable_cores
from ..kernels.network import Network
from .verify import GATED, VerificationSet, judged

IMAGES = 8
# Beside the emulator, which sees them all.
QUANTISED_IMAGES = 4
# Images per interpreted run; also exercises a batch of more than one.
BATCH = 2
EMULATED_BATCH = 32
# Emulator and interpreter differ in sums of floats alone, and in what these tip over to the next step.
EMULATOR_SQNR_DB = 40.0


def verify_interpreted(
    network: Network,
    weights: bytes,
    expected: VerificationSet,
    precision: str,
    arch: str,
    kept_float: Collection[str] = (),
) -> dict[str, Any]:
    """The report of the plan of `network` against the reference. `VerificationError` as `verify`."""
    if precision not in GATED:
        few = expected.first(IMAGES)
        return judged(few, _interpreted(network, weights, few, precision, arch), precision) | {
            "executor": "interpreter"
        }
    few = expected.first(QUANTISED_IMAGES)
    got = _interpreted(network, weights, few, precision, arch, kept_float)
    emulated = _emulated(network, weights, expected, precision, arch, kept_float)
    found = compare(emulated[: len(got)], got, EMULATOR_SQNR_DB)
    if found.sqnr_db < EMULATOR_SQNR_DB:
        raise VerificationError(
            f"the kernels do not answer as their emulator: {found}; expected {EMULATOR_SQNR_DB:.0f} dB", found.to_dict()
        )
    return judged(expected, emulated, precision) | {
        "executor": "emulator",
        "interpreted": {"images": len(got), "sqnr_db": round(found.sqnr_db, 2)},
    }


def _emulated(
    network: Network,
    weights: bytes,
    expected: VerificationSet,
    precision: str,
    arch: str,
    kept_float: Collection[str],
) -> np.ndarray:
    from ..kernels.emulator import Emulator
    from ..kernels.planner import plan_from_network

    emulator = Emulator(plan_from_network(network, EMULATED_BATCH, precision, arch, kept_float=kept_float), weights)
    starts = progress(range(0, len(expected.images), EMULATED_BATCH), f"verifying, emulated in {precision}")
    return np.concatenate([emulator.run(expected.images[start : start + EMULATED_BATCH]) for start in starts])


def _interpreted(
    network: Network,
    weights: bytes,
    few: VerificationSet,
    precision: str,
    arch: str,
    kept_float: Collection[str] = (),
) -> np.ndarray:
    say(f"no GPU here: running {len(few.images)} images through the kernels in Triton's interpreter")
    chunks = [few.images[i : i + BATCH] for i in range(0, len(few.images), BATCH)]
    workers = min(usable_cores(), len(chunks))
    # Spawned, not forked: whether Triton interprets is settled when it is imported.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _interpret_here) as pool:
        jobs = [pool.submit(_logits, network, weights, precision, arch, kept_float, chunk) for chunk in chunks]
        logits = [job.result() for job in progress(jobs, "verifying, interpreted")]
    return np.concatenate(logits)


def _interpret_here() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _logits(
    network: Network, weights: bytes, precision: str, arch: str, kept_float: Collection[str], images: np.ndarray
) -> np.ndarray:
    import torch

    from ..kernels.interpret import Interpreter, interpreter_plan

    torch.set_num_threads(1)  # one process per core already
    return Interpreter(interpreter_plan(network, len(images), precision, arch, kept_float), weights).run(images)
