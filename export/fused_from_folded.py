"""The tensors of a fused engine: packed weights, launch plans, and the machine code of each architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..console import say
from ..kernels.network import network_of
from ..kernels.plan import buckets_up_to
from ..kernels.planner import plan_from_network
from ..kernels.weights import packed_weights
from ..model.fold import FoldedTKFNet
from .cubins_from_plan import compile_launches, cubin_tensors
from .layer_precisions import precisions_from_cubins
from .verify import VerificationSet

# Images that an engine asks itself on the first GPU it meets.
GOLDEN_IMAGES = 4


def fused_tensors(
    folded: FoldedTKFNet,
    precision: str,
    max_batch: int,
    archs: Sequence[str],
    golden: VerificationSet,
    scales: Mapping[str, float] | None = None,
    kept_float: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """Engine-file tensors of `folded` (float32) for every bucket up to `max_batch` on each of `archs`; and in which
    precision the machine code computes each product.

    scales, kept_float: of a precision of eight bits; see `packed_weights`. Needs no GPU. Equal inputs and compiler give
    equal tensors. `BackendError` where Triton cannot compile.
    """
    network = network_of(folded)
    weights = packed_weights(folded, network, precision, scales, kept_float)
    answers = golden.first(GOLDEN_IMAGES)
    tensors: dict[str, Any] = {"weights.packed": weights, "golden/pixels": answers.images}
    layers: dict[str, str] = {}
    for arch in archs:
        plans = [
            plan_from_network(network, batch, precision, arch, kept_float=kept_float)
            for batch in buckets_up_to(max_batch)
        ]
        cubins = compile_launches([launch for plan in plans for launch in plan.launches], arch)
        for plan in plans:
            for name, found in precisions_from_cubins(plan, cubins, network).items():
                # One bucket or architecture in float is enough to be listed.
                layers[name] = found if layers.get(name, precision) == precision else layers[name]
        tensors |= {f"plans/{arch}/{plan.batch}": plan.to_json() for plan in plans}
        tensors |= cubin_tensors(cubins, arch)
        say(f"{arch}: {len(plans)} plans of {len(plans[0].launches)} launches, {len(cubins)} kernels")
    tensors["golden/logits"] = answers.reference
    if precision != "float16":
        # The rounding of the maps is exact, so a GPU must come nearer to it than to float32.
        from ..kernels.emulator import Emulator

        plan = plan_from_network(network, len(answers.images), precision, archs[0], kept_float=kept_float)
        tensors["golden/logits"] = Emulator(plan, weights).run(answers.images)
    return tensors, layers
