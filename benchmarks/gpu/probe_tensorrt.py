"""Does TensorRT for RTX run on this GPU, though it names no such compute capability? Builds a graph, deserialises the
plan, runs images one by one, compares with ONNX Runtime. A process of its own: it may crash, and what it had written by
then stands.

--result: {"built", "deserialized", "ran": bool, "sqnr_db": float | null, "error": text | null}.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_state import read_json, write_json
from gpu_tensorrt import TensorRtContext, TensorRtPlan, first_line

from tkfnet_engine.compare import compare
from tkfnet_engine.export.tensorrt_from_graph import graph_runner
from tkfnet_engine.export.tensorrt_log import log_to
from tkfnet_engine.export.tensorrt_network import parse

# What the plan is built for: whatever it is for by itself, which NVIDIA's guide calls 8.0, 8.6, 8.9, 12.0 and later, or
# the GPU that is here.
CAPABILITIES = ("default", "current")
IMAGES = 16


def images(size: int) -> np.ndarray:
    """uint8 [16, size, size, 3]: fields of random colours, so that they differ as photographs do."""
    fields = np.random.default_rng(5).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    side = -(-size // 8)
    return np.ascontiguousarray(fields.repeat(side, 1).repeat(side, 2)[:, :size, :size])


def built(module: Any, graph: bytes, capability: str, log_path: Path) -> tuple[bytes, int]:
    """A plan for one image at a time, and the side of the image. `RuntimeError`, `BackendError` with the reason."""
    with open(log_path, "w", encoding="utf-8") as file:
        log = log_to(module, file)
        builder = module.Builder(log)
        network = parse(module, builder, log, graph)
        size = network.get_input(0).shape[1]
        config = builder.create_builder_config()
        if capability == "current":
            config.num_compute_capabilities = 1
            config.set_compute_capability(module.ComputeCapability.CURRENT, 0)
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *[(1, size, size, 3)] * 3)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError((log.errors or ["it gives no reason"])[0])
    return bytes(plan), size


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--graph", type=Path, required=True, help="ONNX")
    p.add_argument("--capability", choices=CAPABILITIES, required=True, help="that the plan is built for")
    p.add_argument("--result", type=Path, required=True, help="JSON to write")
    p.add_argument("--module", default="tensorrt_rtx")
    p.add_argument("--device", default="cuda", help="PyTorch's, whose memory is used")
    args = p.parse_args()
    found: dict[str, Any] = dict.fromkeys(("built", "deserialized", "ran"), False) | {"sqnr_db": None, "error": None}

    def known(**more: Any) -> None:
        found.update(more)
        write_json(args.result, found)

    try:
        graph, module = args.graph.read_bytes(), importlib.import_module(args.module)
        content, size = built(module, graph, args.capability, args.result.with_suffix(".log"))
        known(built=True)
        plan = TensorRtPlan(module, content)
        known(deserialized=True)
        context, pixels = TensorRtContext(plan, 1, args.device), images(size)
        answers = []
        for i in range(IMAGES):
            # On CUDA's default stream, 0, as the copies are.
            logits = context.enqueue(torch.from_numpy(pixels[i : i + 1]).to(args.device), 0)
            answers.append(logits.cpu().numpy().copy())
        known(ran=True)
        expected = graph_runner(graph).run(pixels)
        known(sqnr_db=compare(expected, np.concatenate(answers), 40.0).to_dict()["sqnr_db"])
    except Exception as error:  # whatever it is, it is the answer
        known(error=f"{type(error).__name__}: {first_line(error)}")
    return 0


def outcome(result: Path, ended: str | None) -> dict[str, Any]:
    """What the process found. ended: how, where that was not by itself."""
    found = read_json(result) or dict.fromkeys(("built", "deserialized", "ran"), False) | {"sqnr_db": None}
    if ended:
        return found | {"error": ended}
    return found


if __name__ == "__main__":
    sys.exit(main())
