"""What an engine's network attends to, read from inside its ONNX graph while ONNX Runtime runs it.

filter   m = sigmoid(conv7x7(..)) of DCIF, how much of each position passes to the classifier    of [N, 1, side, side]
texture  mean over channels c of |x g|_c |W_c|, how strongly TAFE's gated branch enters the map    of [N, C, side, side]

x is TAFE's map and g its gate, which has one value a channel on maps below 16 x 16, so that it is seen where it acts.
|W_c| is the length of the column of the merge that reads channel c: between the two lies a factor that no answer
depends on, and that eight-bit builds choose anew (`model.equalise`). Source of both blocks: arXiv 2505.09967.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.registry import GRAPH
from ..bundle import Bundle, read_bundle
from ..engine import checked_facts
from ..errors import BackendError, UsageError
from ..hardware import usable_cores
from ..preprocess import stack_crops
from ..spec import Preprocessing, TKFNetConfig
from .graph_nodes import Node, graph_nodes, graph_weight, with_outputs

# Names that the export gives to products (`export.node_names`), which stay through quantisation.
SPATIAL_FILTER, MERGE = "dcif.spatial", "tafe.merge"
# Between what is looked for and the product it is found by: rounding to eight or sixteen bits and back.
_TRANSPARENT = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass(frozen=True)
class Explanation:
    """Of one crop, float32 [side, side] each (7 x 7 at 224). filter: DCIF's m, 0 to 1, None for a network without DCIF.
    texture: the strength of TAFE's gated branch, from 0, None for a network without TAFE."""

    filter: np.ndarray | None
    texture: np.ndarray | None


class Explainer:
    """An engine file opened to be looked into. Safe to call from many threads; `close` (or `with`) frees it.

    engine: a path, or an opened file that still holds its graph. threads: default every core this process may use.
    `BackendError` for an engine without an ONNX graph or with one whose nodes are not ours, `UsageError` for a network
    with neither TAFE nor DCIF, `BundleError` for a bad file.
    """

    def __init__(self, engine: str | os.PathLike | Bundle, threads: int | None = None):
        bundle = engine if isinstance(engine, Bundle) else read_bundle(engine)
        facts = checked_facts(bundle.path, bundle.facts)
        graph = _graph(bundle, facts["backend"])
        self._size = Preprocessing.from_dict(facts["preprocessing"]).size
        self._max_batch = facts["max_batch"]
        nodes = graph_nodes(graph)
        self._tensors = _tensors(bundle.path, nodes, TKFNetConfig.from_dict(facts["model"]))
        self._lengths = _merge_columns(bundle.path, graph, nodes) if "texture" in self._tensors else None
        # Another runtime's graph, and rounding to bytes, as they are written: what this one would make of them is not
        # what the engine computes.
        as_written = facts["backend"] != "onnxruntime" or facts["precision"] == "int8"
        self._session: Any = _session(with_outputs(graph, self._tensors.values()), threads, as_written)

    def explain(self, crops: Sequence[np.ndarray] | np.ndarray) -> list[Explanation]:
        """One explanation a crop; uint8 RGB [H, W, 3] of any size, or an array [N, H, W, 3], resized as for the engine.
        `ImageError` as `preprocess.stack_crops`."""
        batch = stack_crops(crops, self._size)
        session = self._session
        if session is None:
            raise BackendError("this explainer was closed; open the engine again")
        explanations: list[Explanation] = []
        for start in range(0, len(batch), self._max_batch):
            values = self._run(session, batch[start : start + self._max_batch])
            spatial, gated = values.get("filter"), values.get("texture")
            for i in range(len(batch[start : start + self._max_batch])):
                explanations.append(
                    Explanation(
                        None if spatial is None else spatial[i, 0].astype(np.float32),
                        None if gated is None else _strength(gated[i], self._lengths),
                    )
                )
        return explanations

    def _run(self, session: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
        try:
            arrays = session.run(list(self._tensors.values()), {"images": batch})
        except Exception as error:  # the binding's exception classes share no public base
            raise BackendError(f"onnxruntime failed on {len(batch)} images: {error}; try a smaller batch") from error
        for what, array in zip(self._tensors, arrays):
            if array.ndim != 4 or len(array) != len(batch) or not np.isfinite(array).all():
                raise BackendError(
                    f"the engine's {what} is {array.dtype} {list(array.shape)}, or not finite; expected finite numbers "
                    f"[{len(batch)}, channels, side, side]; build the engine again with this version"
                )
        return dict(zip(self._tensors, arrays))

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Explainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def explain(
    engine: str | os.PathLike | Bundle, crops: Sequence[np.ndarray] | np.ndarray, threads: int | None = None
) -> list[Explanation]:
    """`Explainer(engine, threads).explain(crops)`, for once."""
    with Explainer(engine, threads) as explainer:
        return explainer.explain(crops)


def _graph(bundle: Bundle, backend: str) -> bytes:
    if GRAPH not in bundle:
        raise BackendError(
            f"{bundle.path}: got an engine of backend {backend} without an ONNX graph to read values from; expected "
            "one with it: build it from the same checkpoint with `python -m tkfnet_engine.build --backend onnxruntime`"
        )
    return bundle.bytes(GRAPH)


def _tensors(path: str, nodes: list[Node], config: TKFNetConfig) -> dict[str, str]:
    """ "filter" and "texture" -> the tensor that holds each; only of the blocks that the network has."""
    if not (config.dcif or config.tafe):
        raise UsageError(
            f"{path}: got a network with dcif=False and tafe=False, expected one with either: there is nothing of the "
            "texture key factors to show; train one with them"
        )
    found = {"filter": _filter(nodes) if config.dcif else "", "texture": _texture(nodes) if config.tafe else ""}
    if lost := [what for what, tensor in found.items() if tensor is None]:
        raise BackendError(
            f"{path}: its graph has no {' and no '.join(lost)} where this version's export has them (before and after "
            f"{SPATIAL_FILTER}, {MERGE}); build the engine again with this version"
        )
    return {what: tensor for what, tensor in found.items() if tensor}


def _filter(nodes: list[Node]) -> str | None:
    """The sigmoid of the spatial convolution."""
    made = {output for node in nodes if node.name == SPATIAL_FILTER for output in node.outputs}
    return next((n.outputs[0] for n in nodes if n.kind == "Sigmoid" and made & set(n.inputs)), None)


def _texture(nodes: list[Node]) -> str | None:
    """The product that the merge reads first: concat(x g, detail), or its parts rounded to bytes."""
    producers = {output: node for node in nodes for output in node.outputs}
    node = next((node for node in nodes if node.name == MERGE), None)
    while node is not None and node.kind in ("Conv", "Concat", *_TRANSPARENT):
        node = producers.get(node.inputs[0])
        if node is not None and node.kind == "Conv":
            return None
    return node.outputs[0] if node is not None and node.kind == "Mul" else None


def _merge_columns(path: str, graph: bytes, nodes: list[Node]) -> np.ndarray:
    """float32 [C]: the lengths of the merge's columns that read x g, of its weights or of them in eight bits."""
    producers = {output: node for node in nodes for output in node.outputs}
    tensor = next(node for node in nodes if node.name == MERGE).inputs[1]
    if tensor in producers:
        quantised = producers[tensor].inputs
        weight, scale = graph_weight(graph, quantised[0]), graph_weight(graph, quantised[1])
    else:
        weight, scale = graph_weight(graph, tensor), np.ones(1, np.float32)
    if weight is None or scale is None or weight.ndim != 4 or weight.shape[1] != 3 * weight.shape[0]:
        raise BackendError(
            f"{path}: got other weights for {MERGE} than [C, 3 C, 1, 1] in its graph, expected those of this version's "
            "export; build the engine again"
        )
    columns = weight[:, : len(weight), 0, 0].astype(np.float32) * scale.astype(np.float32).reshape(-1, 1)
    return np.sqrt((columns * columns).sum(0))


def _strength(gated: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """x g [C, side, side] -> float32 [side, side]."""
    if len(gated) != len(lengths):
        raise BackendError(
            f"the engine's gated branch has {len(gated)} channels, expected the merge's {len(lengths)}; build the "
            "engine again with this version"
        )
    return np.tensordot(lengths / len(lengths), np.abs(gated.astype(np.float32)), 1)


def _session(graph: bytes, threads: int | None, as_written: bool) -> Any:
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise UsageError(f"threads: got {threads!r}, expected 1 to 1024; leave it out for every core")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exception classes share no public base
        raise BackendError(
            f"onnxruntime {ort.__version__} refuses the engine's graph with more outputs: {error}; build the engine "
            "again with this version"
        ) from error
