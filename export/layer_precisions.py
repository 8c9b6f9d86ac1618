"""In what precision each product of an engine really runs: read back from what the runtime made of the graph, or from
the machine code, never from what was asked for."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping

from ..kernels.network import Network
from ..kernels.placement import placement_of
from ..kernels.plan import Plan
from .cubin_facts import operand_precisions
from .cubins_from_plan import Cubin

# ONNX Runtime appends to the name of a node that it replaces: "stem" -> "stem_token_3", "stem_nchwc".
_ORT_SUFFIX = re.compile(r"(\.relu|_token_\d+|_nchwc|_nhwc)+$")
_ORT_PRODUCTS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_ORT_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
_OPENVINO_PRODUCTS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
_OPENVINO = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def precisions_from_onnxruntime(graph: bytes) -> dict[str, str]:
    """Product -> precision, of every convolution and matrix product that ONNX Runtime's CPU provider would run."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="tkfnet-layers-") as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = os.path.join(folder, "optimised.onnx")
        # It warns that such a graph is for this machine only.
        options.log_severity_level = 4
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    found = {}
    for node in optimised.graph.node:
        if node.op_type in _ORT_PRODUCTS | _ORT_INTEGER:
            name = _ORT_SUFFIX.sub("", node.name or node.output[0]).removeprefix("fused ")
            found[name] = "int8" if node.op_type in _ORT_INTEGER else "float32"
    return found


def precisions_from_openvino(graph: bytes) -> dict[str, str]:
    """The same of OpenVINO's CPU plugin, set up as engines are."""
    from ..backends.openvino import compile_graph

    found = {}
    for node in compile_graph(graph, threads=1).get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) in _OPENVINO_PRODUCTS:
            name = node.get_friendly_name().removesuffix("/WithoutBiases")
            found[name] = _OPENVINO.get(kind := facts["runtimePrecision"].astype(str), kind)
    return found


PRECISIONS_OF_GRAPH = {"onnxruntime": precisions_from_onnxruntime, "openvino": precisions_from_openvino}


def precisions_from_cubins(plan: Plan, cubins: Mapping[str, Cubin], network: Network) -> dict[str, str]:
    """Product -> what the tensor-core instructions of its launch multiply, of those that can be quantised."""
    variants = {launch.name: launch.variant for launch in plan.launches}
    final = {block.project.name: block.convs[-1].name for block in network.blocks if block.project}
    found = {}
    for product in placement_of(network).products:
        # A projection runs in the launch of its block's last convolution, detail and gate in one.
        name = product.name if product.name in variants else final.get(product.name, product.unit)
        kinds = operand_precisions(cubins[variants[name]].tensor_core)
        # Shifts by a pixel are FP16 products with 0 and 1 beside the layer's own.
        found[product.name] = next((kind for kind in ("float8", "int8", "float16") if kind in kinds), "float32")
    return found


def silently_float(asked: Iterable[str], ran: Mapping[str, str], precision: str) -> dict[str, str]:
    """Of the products `asked` for in `precision`, those that run in another, with which; "absent" where one is gone."""
    return {name: ran.get(name, "absent") for name in asked if ran.get(name) != precision}
