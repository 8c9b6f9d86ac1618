"""The tensors of a fused engine: packed weights, launch plans, and the machine code of each architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..console import say
from ..kernels.network import network_of
from ..kernels.plan import buckets_up_to
from ..kernels.planner import plan_from_network
from ..kernels.weights import packed_weights
from ..model.fold import FoldedTKFNet
from .cubins_from_plan import compile_launches, cubin_tensors
from .verify import VerificationSet

# Images that an engine asks itself on the first GPU it meets.
GOLDEN_IMAGES = 4


def fused_tensors(
    folded: FoldedTKFNet, precision: str, max_batch: int, archs: Sequence[str], golden: VerificationSet
) -> dict[str, Any]:
    """Engine-file tensors of `folded` (float32) for every bucket up to `max_batch` on each of `archs`.

    Needs no GPU. Equal inputs and compiler give equal tensors. `BackendError` where Triton cannot compile.
    """
    network = network_of(folded)
    tensors: dict[str, Any] = {
        "weights.packed": packed_weights(folded, network),
        "golden/pixels": golden.images[:GOLDEN_IMAGES],
        "golden/logits": golden.reference[:GOLDEN_IMAGES],
    }
    for arch in archs:
        plans = [plan_from_network(network, batch, precision, arch) for batch in buckets_up_to(max_batch)]
        cubins = compile_launches([launch for plan in plans for launch in plan.launches], arch)
        tensors |= {f"plans/{arch}/{plan.batch}": plan.to_json() for plan in plans}
        tensors |= cubin_tensors(cubins, arch)
        say(f"{arch}: {len(plans)} plans of {len(plans[0].launches)} launches, {len(cubins)} kernels")
    return tensors
