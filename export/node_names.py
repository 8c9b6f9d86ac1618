"""Names in an exported graph: every node by the part of the network that it is of, every product by its own.

The exporter's names are numbers that change with its version. By these, runtimes report what became of a layer:
`layer_precisions`, `tensorrt_layers`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..kernels.network import Network
from ..kernels.placement import placement_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# What a product's name is followed by where it is its ReLU that is named.
RELU = ".relu"
# The part that turns pixels into the first convolution's input, and what no module of ours holds.
PIXELS, REST = "pixels", "network"
_SCOPES = "pkg.torch.onnx.name_scopes"
_PRODUCTS = ("Conv", "Gemm", "MatMul")


def name_nodes(model: ModelProto, network: Network) -> None:
    """In place, of a graph fresh from the exporter. Nodes and what products and their ReLUs write get names."""
    parts = _parts(network)
    counts: Counter[str] = Counter()
    tensors: dict[str, str] = {}
    part = PIXELS
    for node in model.graph.node:
        module = _module(node)
        if node.op_type in _PRODUCTS and module:
            name = parts.get(module, module)
            part, tensors[node.output[0]] = REST, name
        elif node.op_type == "Relu" and node.input[0] in tensors:
            name = tensors[node.output[0]] = tensors[node.input[0]] + RELU
        else:
            name = f"{parts.get(module, module) or part}.{node.op_type.lower()}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
    for output in model.graph.output:
        tensors.pop(output.name, None)
    for names in _tensor_lists(model):
        for i, tensor in enumerate(names):
            names[i] = tensors.get(tensor, tensor)


def _tensor_lists(model: ModelProto) -> Iterator:
    for node in model.graph.node:
        yield node.input
        yield node.output


def _parts(network: Network) -> dict[str, str]:
    """Module of the folded network -> its name in TKFNet: of each product and, in front of its last dot, its block."""
    parts = {}
    for product in placement_of(network).products:
        parts[product.module] = product.name
        if product.module.startswith("blocks."):
            parts[".".join(product.module.split(".")[:2])] = product.name.rpartition(".")[0]
    return parts


def _module(node: NodeProto) -> str:
    """The module whose `forward` the node comes from; "" where that is the network's own or the exporter does not
    say."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "['']")
    modules = ast.literal_eval(scopes)[:-1]
    return modules[-1] if modules else ""
