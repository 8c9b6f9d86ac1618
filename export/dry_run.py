"""`build --dry-run`: the graph of a TensorRT engine, parsed and looked at, and nothing built."""

from __future__ import annotations

from typing import Any

from ..kernels.network import network_of
from ..model.checkpoint import Checkpoint
from ..model.fold import fold
from .engine_from_checkpoint import core_facts, lowered_graph
from .engine_from_onnx import examined
from .request import Request, check_request
from .tensorrt_from_graph import asked_precisions
from .verify import GATED


def examine_engine(checkpoint: Checkpoint, request: Request) -> dict[str, Any]:
    """As `engine_from_onnx.examined`, of what `build_engine` would build. Calibrates for eight bits."""
    name = request.backend
    check_request(name, request)
    network = fold(checkpoint.model, checkpoint.preprocessing)
    if request.precision == "float16":
        network.half()
    quantisation = None
    if request.precision in GATED:
        from .quantisation import calibrated

        quantisation = calibrated(checkpoint, request.precision, request.device, request.calibration)
    graph = lowered_graph(network, name, core_facts(network, checkpoint, request.precision), quantisation)
    asked = asked_precisions(network_of(network), request.precision, quantisation)
    quantised = [product for product, precision in asked.items() if precision == "int8"]
    options = request.tensorrt_options(name)
    return examined(graph, network.preprocessing.size, request.precision, options, quantised, request.log)
