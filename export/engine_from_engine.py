"""A TensorRT engine file -> another for this machine, from the graph that it carries. No checkpoint and no PyTorch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..backends.golden import LOGITS, PIXELS
from ..backends.registry import GRAPH, TENSORRT_PLAN, backend_info, open_backend, why_unavailable
from ..bundle import SUFFIX, read_bundle, write_bundle
from ..console import say
from ..engine import checked_facts
from ..errors import BackendError, UsageError
from ..hardware import processor_name
from .draft import Draft
from .engine_from_onnx import gpu_here
from .tensorrt_from_graph import UNVERIFIED, note_as_own, tensorrt_parts
from .tensorrt_options import TensorRtOptions


def rebuilt_engine(
    source: str | os.PathLike,
    out: str | os.PathLike | None,
    backend: str | None,
    settings: Mapping[str, Any],
    log_path: str | None,
) -> dict[str, Any]:
    """Builds the graph in `source` again, with its batches and options, and writes `out`; returns the new facts.

    backend: another of TensorRT's two than the file's. settings: what of `TensorRtOptions` is to be otherwise.
    Nothing of the old plan is run, so the file need not be trusted with more than its graph. `UsageError` for a file
    without one, `BackendError` where it cannot be built or, on a GPU, does not answer as the old one had to.
    """
    bundle = read_bundle(source)
    facts = checked_facts(source, bundle.facts)
    if not backend_info(facts["backend"]).executable:
        raise UsageError(
            f"--from {source}: got an engine of backend {facts['backend']}, expected one of TensorRT; build from the "
            "checkpoint instead"
        )
    if out is None:
        raise UsageError("--out: got none, expected the name of the new engine file; give one")
    name = backend or facts["backend"]
    if reason := why_unavailable(name):
        raise BackendError(f"backend {name}: {reason}")
    changes = {key: value for key, value in settings.items() if value is not None}
    options = TensorRtOptions.from_facts(name, facts.get("tensorrt", {}), **changes)
    graph = bytes(bundle.bytes(GRAPH))
    asked = facts["tensorrt"]["asked"]
    parts = tensorrt_parts(graph, facts, asked, options, log_path or f"{str(out).removesuffix(SUFFIX)}.tensorrt.log")
    made = facts | {
        "backend": name,
        "tensorrt": parts.facts,
        "versions": {"tkfnet-engine": __version__, name: parts.facts["version"]},
        "hardware": {"machine": platform.machine(), "processor": processor_name()},
    }
    if "quantisation" in facts:
        found = {"layers": parts.precisions, "not_as_asked": parts.facts["not_as_asked"]}
        made["quantisation"] = facts["quantisation"] | found
    draft = Draft(made, parts.tensors | {kept: bundle.array(kept) for kept in (PIXELS, LOGITS)})
    made["verification"] = _verification(draft, facts["verification"])
    note_as_own(out, draft.tensors[TENSORRT_PLAN])
    write_bundle(out, draft.tensors, made)
    return made


def _verification(draft: Draft, before: Mapping[str, Any]) -> dict[str, Any]:
    """The graph's is still what it was. The new plan's own: where there is a GPU it opens, and answers as the file says
    it has to; where there is none, the first one that opens it asks."""
    graph = before.get("graph", before)
    if gpu_here() is None:
        say(f"{draft.facts['backend']}: {UNVERIFIED}")
        return {"state": UNVERIFIED, "graph": graph}
    runner = open_backend(draft.facts["backend"], draft.facts, draft, draft.facts["device"], None)
    runner.close()
    return {"state": f"rebuilt: answers as it has to on {len(draft.array(PIXELS))} images", "graph": graph}
