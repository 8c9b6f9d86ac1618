"""The folded network as an ONNX model: `images` uint8 [batch, S, S, 3] -> `logits` float32 [batch, classes].

The same network gives the same bytes on any machine with the same torch, onnx and onnxscript.
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BackendError
from ..kernels.network import network_of
from ..model.fold import FoldedTKFNet
from .node_names import name_nodes

if TYPE_CHECKING:
    import onnx

# The newest opset that every consumer (TensorRT, OpenVINO, ONNX Runtime) is known to take.
OPSET = 18
PRODUCER = "tkfnet-engine"


def onnx_from_folded(network: FoldedTKFNet, facts: dict[str, Any]) -> onnx.ModelProto:
    """Exports `network` in the precision it is in; `facts` (JSON) stand in the model's metadata under "tkfnet".

    Checked with `onnx.checker`, shapes inferred. `BackendError` if the exporter fails.
    """
    import onnx

    size = network.preprocessing.size
    # Two images: the exporter takes a batch of one for a constant.
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                opset_version=OPSET,
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            )
    except Exception as error:  # the exporter's exception classes change with every torch
        raise BackendError(f"torch {torch.__version__} could not export the network to ONNX: {error}") from error
    finally:
        exporter_log.setLevel(level)
    model = program.model_proto
    name_nodes(model, network_of(network))
    _forget_the_exporter(model)
    model.producer_name, model.producer_version = PRODUCER, ""
    onnx.helper.set_model_props(model, {"tkfnet": json.dumps(facts, sort_keys=True, allow_nan=False)})
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def bytes_from_onnx(model: onnx.ModelProto) -> bytes:
    """Equal models give equal bytes."""
    return model.SerializeToString(deterministic=True)


def _forget_the_exporter(model: onnx.ModelProto) -> None:
    """Drops what the exporter notes of itself: source paths and stack traces differ from machine to machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "tkfnet", ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
