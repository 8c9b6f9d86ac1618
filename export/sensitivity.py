"""What each unit costs: the network with this unit alone in eight bits, against float32."""

from __future__ import annotations

import numpy as np
import torch

from ..compare import compare
from ..console import progress
from ..kernels.network import Network
from ..kernels.placement import placement_of
from ..kernels.precisions import stored_types
from ..kernels.quantise import INT8_MOST
from ..model.fake_quantised import fake_quantised
from ..model.fold import FoldedTKFNet
from .calibration_table import CalibrationTable
from .grids_from_table import grids_from_table
from .verify import REQUIRED_SQNR_DB

BATCH = 32


def sensitivity(
    folded: FoldedTKFNet,
    network: Network,
    table: CalibrationTable,
    precision: str,
    images: np.ndarray,
    reference: np.ndarray,
    most: int = INT8_MOST,
) -> dict[str, float]:
    """Unit -> SQNR in dB of the logits with its weights and the maps that it reads in eight bits; units in their order.

    folded: float32, equalised by `table.shifts`. precision: "int8" or "float8"; what it keeps in float in any case is
    left out. images: uint8 [N, S, S, 3], two or more; reference: float32 [N, classes], their logits in float32.
    `UsageError` for another precision.
    """
    grids, placement = grids_from_table(table, precision), stored_types(network, precision).placement
    assert placement is not None, "no grids for a precision that rounds nothing"
    every = placement_of(network).units
    found = {}
    with torch.inference_mode():
        for unit in progress(placement.units, f"one unit in {precision}, {len(images)} images"):
            alone = placement_of(network, set(every) - {unit})
            with fake_quantised(folded, alone, grids, most=most):
                parts = [folded(torch.from_numpy(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
            found[unit] = compare(reference, torch.cat(parts).numpy(), REQUIRED_SQNR_DB[precision]).sqnr_db
    return found
