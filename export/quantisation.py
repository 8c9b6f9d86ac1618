"""What an engine in eight bits is made from: the equalised network, its scales, what each unit costs; and the way back
to float, unit by unit, where the engine does not keep its accuracy."""

from __future__ import annotations

import copy
import functools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..bundle import write_bundle
from ..console import say
from ..errors import BackendError, VerificationError
from ..hardware import has_exact_byte_products
from ..kernels.network import Network, network_of
from ..kernels.placement import Placement, placement_of
from ..kernels.precisions import stored_types
from ..kernels.quantise import INT8_MOST, REDUCED_MOST
from ..model.checkpoint import Checkpoint
from ..model.equalise import equalise
from ..model.fold import FoldedTKFNet, fold
from .calibration_table import CalibrationTable, read_table
from .choose import time_engines
from .layer_precisions import silently_float
from .onnx_from_torch import bytes_from_onnx, onnx_from_folded
from .ranges_from_data import cached_table
from .sensitivity import sensitivity
from .verify import VerificationSet

# Which graph each runtime gets. OpenVINO takes symmetric maps too, but was both slower with them and less exact (20.0
# instead of 35.9 dB on the shipped reference, OpenVINO 2026.4): it rounds between a ReLU's two sides.
FLAVOUR_OF = {
    "onnxruntime": "narrow",
    "openvino": "unsigned",
    "tensorrt": "symmetric-half",
    "tensorrt-rtx": "symmetric-half",
}
SENSITIVITY_IMAGES = 128
# The batch at which the cost of a unit in float is told.
TIMED_BATCH = 8


@dataclass(frozen=True)
class Quantisation:
    """folded: equalised, float32. most: magnitude of int8 weights. sensitivity: unit -> SQNR in dB of the logits with
    this unit alone quantised."""

    precision: str
    folded: FoldedTKFNet
    network: Network
    table: CalibrationTable
    most: int
    sensitivity: dict[str, float]

    def placement(self, kept_float: Sequence[str] = ()) -> Placement:
        """What is quantised, without the units in `kept_float` and what this precision keeps in float in any case."""
        return stored_types(self.network, self.precision, kept_float).placement

    def worst_first(self) -> list[str]:
        return sorted(self.sensitivity, key=lambda unit: (self.sensitivity[unit], unit))

    def graph(self, name: str, kept_float: Sequence[str], core: dict[str, Any]) -> bytes:
        """The Q/DQ graph for backend `name`. core: the facts that stand in its metadata."""
        from .qdq_from_onnx import FLAVOURS, qdq_from_onnx  # needs onnx, which fused engines do not

        flavour = FLAVOURS[FLAVOUR_OF[name]]
        exported = _exported(self.folded, json.dumps(core), flavour.half)
        placement = self.placement(kept_float)
        return bytes_from_onnx(
            qdq_from_onnx(exported, self.folded, self.network, placement, self.table, flavour, self.most)
        )

    def facts(self, name: str, kept_float: Sequence[str], layers: dict[str, str], strict: bool) -> dict[str, Any]:
        """For the engine file. What runs in another precision than asked for is said; with `strict` it is refused."""
        placement = self.placement(kept_float)
        asked = [product.name for product in placement.products]
        if astray := silently_float(asked, layers, self.precision):
            listed = ", ".join(f"{layer} in {found}" for layer, found in astray.items())
            if strict:
                raise BackendError(
                    f"backend {name} runs {listed}, expected {self.precision}; choose another backend, or leave out "
                    f"--strict-{self.precision}"
                )
            say(f"{name}: NOT in {self.precision}, though asked for: {listed}")
        data = self.table.data
        return {
            "calibration": {
                "digest": self.table.digest,
                "data": data.name,
                "data_fingerprint": data.fingerprint,
                "images": data.images,
            },
            "weight_bits": 8 if self.most == INT8_MOST else 7,
            "sensitivity_db": {unit: round(value, 2) for unit, value in self.sensitivity.items()},
            "kept_float": [unit for unit in placement_of(self.network).units if unit not in placement.units],
            "layers": layers,
            "not_as_asked": astray,
        }


@functools.lru_cache(maxsize=1)
def _exported(folded: FoldedTKFNet, core: str, half: bool) -> Any:
    return onnx_from_folded(copy.deepcopy(folded).half() if half else folded, json.loads(core))


def calibrated(checkpoint: Checkpoint, precision: str, device: str, table_path: str | None) -> Quantisation:
    """Calibrates (or reads `table_path`) and equalises. Raises as `calibrate` and `read_table`."""
    plain = fold(checkpoint.model, checkpoint.preprocessing)
    network = network_of(plain)
    if table_path is None:
        table = cached_table(checkpoint)
    else:
        table = read_table(table_path)
        table.check(checkpoint.sha256, checkpoint.preprocessing, network)
    most = INT8_MOST
    if precision == "int8" and device == "cpu" and not has_exact_byte_products():
        most = REDUCED_MOST
        say("this processor adds products of bytes in 16 bits, which saturate: weights get seven bits")
    return Quantisation(precision, equalise(plain, table.shifts), network, table, most, {})


def quantisation_of(
    checkpoint: Checkpoint, precision: str, device: str, expected: VerificationSet, table_path: str | None
) -> Quantisation:
    """`calibrated`, with the sensitivity of each unit measured."""
    made = calibrated(checkpoint, precision, device, table_path)
    shares = np.linspace(0, len(expected.images) - 1, min(SENSITIVITY_IMAGES, len(expected.images))).astype(np.int64)
    drawn = expected.images[shares], expected.reference[shares]
    found = sensitivity(made.folded, made.network, made.table, precision, *drawn)
    quantisation = replace(made, sensitivity=found)
    say(f"SQNR in dB with one unit alone in {precision}, the worst first:")
    say(", ".join(f"{unit} {found[unit]:.1f}" for unit in quantisation.worst_first()))
    return quantisation


def lower_until_it_passes(
    quantisation: Quantisation,
    name: str,
    lower: Callable[[Sequence[str]], Any],
    judge: Callable[[Any], dict[str, Any]],
    strict: bool,
    timed: bool,
) -> Any:
    """The draft of backend `name` that passes, with its report; the worst units go back to float, one at a time.

    lower: units kept in float -> draft. judge: draft -> report, `VerificationError` where it does not pass. strict:
    that error, instead. timed: whether it can be run here, so that the cost of each unit is measured.
    """
    kept: list[str] = []
    steps: list[dict[str, Any]] = []
    draft = lower(kept)
    while True:
        try:
            draft.facts["verification"] = judge(draft)
        except VerificationError as error:
            left = [unit for unit in quantisation.worst_first() if unit not in kept]
            # With the last unit gone it would be a float engine under another name.
            if strict or len(left) < 2:
                say(f"{name}: fine-tune for {quantisation.precision}: python -m tkfnet_engine.train --qat")
                raise
            say(f"{name}: {error}")
            before, kept = draft, [*kept, left[0]]
            draft = lower(kept)
            cost = _cost(before, draft) if timed else None
            steps.append({"unit": left[0], "sqnr_db": round(quantisation.sensitivity[left[0]], 2), "slower": cost})
            told = "not measured, it cannot run here" if cost is None else f"{cost:+.1%} time at batch {TIMED_BATCH}"
            say(f"{name}: {left[0]} goes back to float ({told})")
            continue
        draft.facts["quantisation"]["back_to_float"] = steps
        return draft


def _cost(before: Any, after: Any) -> float | None:
    """How much longer `after` takes than `before`, as a share; None where one of them does not run."""
    with tempfile.TemporaryDirectory(prefix="tkfnet-cost-") as folder:
        paths = {}
        for name, draft in (("before", before), ("after", after)):
            paths[name] = os.path.join(folder, f"{name}.tkf")
            write_bundle(paths[name], draft.tensors, draft.facts)
        timing, _ = time_engines(paths, TIMED_BATCH)
    if len(timing) < 2:
        return None
    batch = max(timing["before"])
    return round(timing["after"][batch] / timing["before"][batch] - 1, 4)
