"""What eight bits cost in accuracy: answers to the faces that builds are judged on, beside the float32 reference's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from int8_peers import Contestant
from int8_process import output

from tkfnet_engine.compare import compare
from tkfnet_engine.console import progress
from tkfnet_engine.export.accuracy_gate import GATES, gate_report
from tkfnet_engine.export.quantisation import lower_until_it_passes, quantisation_of
from tkfnet_engine.export.verify import REQUIRED_SQNR_DB, VerificationSet, judged
from tkfnet_engine.kernels.emulator import Emulator
from tkfnet_engine.kernels.planner import plan_from_network
from tkfnet_engine.kernels.weights import packed_weights
from tkfnet_engine.model.checkpoint import Checkpoint

RUN_SCRIPT = Path(__file__).with_name("int8_run.py")
EMULATED_BATCH = 32
# The emulator's answer is the same for every architecture that has the precision.
EMULATED_ARCH = "sm_90"


def answers(name: str, path: Path, like: Path, images: Path, folder: Path) -> np.ndarray:
    """float32 [N, classes] of the engine or peer at `path`, from a process of its own. images: `.npy`."""
    out = folder / "answers.npy"
    command = [sys.executable, RUN_SCRIPT, path, "--like", like, "--answer", images, out]
    output(f"{name}: answering the gate set", command)
    return np.load(out)


def emulated(checkpoint: Checkpoint, precision: str, expected: VerificationSet) -> tuple[Contestant, np.ndarray]:
    """A fused engine as the build would make it, units back in float included, and its answers: plan and weights in
    the emulator, no kernel compiled. `VerificationError` where it never passes the gate."""
    quantisation = quantisation_of(checkpoint, precision, "cuda", expected, None)
    network = quantisation.network

    def lower(kept_float: Sequence[str]) -> SimpleNamespace:
        asked = {product.name: precision for product in quantisation.placement(kept_float).products}
        return SimpleNamespace(facts={"quantisation": quantisation.facts("fused", kept_float, asked, False)})

    def judge(draft: SimpleNamespace) -> dict[str, Any]:
        kept = draft.facts["quantisation"]["kept_float"]
        weights = packed_weights(quantisation.folded, network, precision, quantisation.table.scales(precision), kept)
        plan = plan_from_network(network, EMULATED_BATCH, precision, EMULATED_ARCH, kept_float=kept)
        draft.logits = _run(Emulator(plan, weights), expected.images, f"fused {precision}, emulated")
        return judged(expected, draft.logits, precision)

    draft = lower_until_it_passes(quantisation, "fused", lower, judge, strict=False, timed=False)
    facts = draft.facts["quantisation"]
    # In what a GPU computes is read from machine code, and none is made here.
    del facts["layers"], facts["not_as_asked"]
    how = f"the {EMULATED_ARCH} plan and its packed weights, in the emulator; judged, not timed"
    return Contestant({"kind": "emulated", "backend": "fused", "how": how} | facts), draft.logits


def _run(emulator: Emulator, images: np.ndarray, what: str) -> np.ndarray:
    starts = progress(range(0, len(images), EMULATED_BATCH), what)
    return np.concatenate([emulator.run(images[start : start + EMULATED_BATCH]) for start in starts])


def row(expected: VerificationSet, logits: np.ndarray, precision: str) -> dict[str, Any]:
    """What `logits` [N, classes] kept of the reference; passed is None where `precision` has no gate."""
    gate = precision if precision in GATES else None
    report, faults = gate_report(gate or "float16", expected.labels, expected.reference, logits)
    lost = report["recall_lost"]
    return {
        **{key: report[key] for key in ("accuracy", "accuracy_kept", "agreement", "recall_lost")},
        "worst_recall_lost": max(lost),
        "sqnr_db": round(compare(expected.reference, logits, REQUIRED_SQNR_DB[precision]).sqnr_db, 2),
        "gate": gate,
        "passed": None if gate is None else not faults,
        "faults": faults if gate else [],
    }


def agreement(logits: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The share of images to which two of them give the same label, for every pair."""
    labels = {name: values.argmax(1) for name, values in logits.items()}
    return {one: {other: round(float((labels[one] == labels[other]).mean()), 6) for other in labels} for one in labels}
