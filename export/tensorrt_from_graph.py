"""The tensors of a TensorRT engine: the plan, its layers, the graph to build it again from, and images that the first
GPU to open it is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import trust
from ..backends.golden import LOGITS, PIXELS
from ..backends.ort import OrtRunner
from ..backends.registry import GRAPH, TENSORRT_LAYERS, TENSORRT_PLAN
from ..console import say
from ..hardware import usable_cores
from ..kernels.network import Network
from ..kernels.placement import placement_of
from ..strict_json import canonical
from .engine_from_onnx import plan_from_onnx
from .layer_precisions import silently_float
from .tensorrt_layers import precisions_of_products
from .tensorrt_options import TensorRtOptions

if TYPE_CHECKING:
    from .quantisation import Quantisation
    from .verify import VerificationSet

UNVERIFIED = "unverified: no GPU"
# An engine that was built without a GPU has no other proof than these, on the first that opens it.
GOLDEN_IMAGES = 16


@dataclass(frozen=True)
class TensorRtParts:
    """tensors: of the engine file. facts: its `facts["tensorrt"]`. precisions: product -> what it runs in."""

    tensors: dict[str, Any]
    facts: dict[str, Any]
    precisions: dict[str, str]


def asked_precisions(
    network: Network, precision: str, quantisation: Quantisation | None = None, kept_float: Sequence[str] = ()
) -> dict[str, str]:
    """Product of the backbone and TAFE -> the precision it is asked to run in."""
    every = [product.name for product in placement_of(network).products]
    if quantisation is None:
        return dict.fromkeys(every, precision)
    quantised = {product.name for product in quantisation.placement(kept_float).products}
    return {name: precision if name in quantised else "float16" for name in every}


def tensorrt_parts(
    graph: bytes, facts: Mapping[str, Any], products: Mapping[str, str], options: TensorRtOptions, log_path: str
) -> TensorRtParts:
    """Builds the engine of a typed graph. facts: the engine file's so far. products: name -> precision asked for."""
    size, precision = facts["preprocessing"]["size"], facts["precision"]
    quantised = [name for name, asked in products.items() if asked == "int8"]
    outcome, built = plan_from_onnx(graph, size, precision, options, quantised, log_path)
    ran = precisions_of_products(outcome.layers, list(products))
    astray = {name: found for name, asked in products.items() for found in silently_float([name], ran, asked).values()}
    if astray and precision != "int8":  # of those `Quantisation.facts` tells
        say(f"{options.backend}: NOT as asked for: {', '.join(f'{name} in {found}' for name, found in astray.items())}")
    layers = canonical([layer.to_dict() for layer in outcome.layers]).encode()
    tensors = {
        GRAPH: graph,
        TENSORRT_PLAN: outcome.plan,
        TENSORRT_LAYERS: np.frombuffer(layers, np.uint8),
    }
    return TensorRtParts(tensors, built | {"asked": dict(products), "not_as_asked": astray}, ran)


def note_as_own(out: Any, plan: bytes) -> None:
    """So that the engine file `out` loads here without a word of trust; why not, if the system refuses."""
    if why := trust.remember(plan):
        say(f"{out}: this machine keeps no record that you built it ({why}); loading it will need --trust")


def golden_tensors(graph: bytes, facts: Mapping[str, Any], expected: VerificationSet) -> dict[str, np.ndarray]:
    """Images and their answers. In eight bits these are the graph's own, which a GPU must come nearer to than to
    float32's."""
    few = expected.first(GOLDEN_IMAGES)
    logits = few.reference if facts["precision"] != "int8" else run_graph(graph, few.images)
    return {PIXELS: few.images, LOGITS: logits}


def run_graph(graph: bytes, images: np.ndarray) -> np.ndarray:
    """What the graph answers: float32 [N, classes]."""
    return graph_runner(graph).run(images)


def graph_runner(graph: bytes) -> OrtRunner:
    """The graph itself, run as it is written, in ONNX Runtime on the CPU."""
    return OrtRunner(graph, usable_cores(), as_written=True)
