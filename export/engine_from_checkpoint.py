"""The build: checkpoint -> fold -> lower to a backend -> verify -> engine file."""

from __future__ import annotations

import functools
import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..backends.registry import GRAPH, PACKED_WEIGHTS, TENSORRT_PLAN, WEIGHTS, backend_info, open_backend
from ..bundle import read_facts, write_bundle
from ..console import say
from ..errors import BackendError, VerificationError
from ..hardware import processor_name
from ..kernels.network import network_of
from ..model.checkpoint import Checkpoint
from ..model.fold import FoldedTKFNet, fold
from .choose import fastest, time_engines
from .draft import Draft
from .layer_precisions import PRECISIONS_OF_GRAPH
from .onnx_from_torch import bytes_from_onnx, onnx_from_folded
from .request import Request, candidates, check_request, nothing_builds
from .tensorrt_from_graph import UNVERIFIED, asked_precisions, golden_tensors, graph_runner, note_as_own, tensorrt_parts
from .verify import GATED, VerificationSet, verification_set, verify
from .verify_interpreted import verify_interpreted

if TYPE_CHECKING:
    from .quantisation import Quantisation


def build_engine(checkpoint: Checkpoint, request: Request, out: str | os.PathLike) -> dict[str, Any]:
    """Builds, verifies and writes `out`; returns the facts it holds. Nothing is written unless it verifies.

    Raises `VerificationError`, `BackendError` where a backend cannot be built here, `UsageError` for a request
    that makes no sense.
    """
    names = [request.backend] if request.backend != "auto" else candidates(request)
    if not names:
        raise nothing_builds(request)
    for name in names:
        check_request(name, request)
    network = fold(checkpoint.model, checkpoint.preprocessing)
    if request.precision == "float16":
        network.half()
    expected = verification_set(
        checkpoint.model, checkpoint.preprocessing, request.verification_data, request.precision
    )
    quantisation = None
    if request.precision in GATED:
        from .quantisation import quantisation_of

        quantisation = quantisation_of(checkpoint, request.precision, request.device, expected, request.calibration)
    drafts, failed = {}, {}
    for name in names:
        try:
            drafts[name] = _verified_draft(network, name, checkpoint, request, expected, quantisation)
        except (VerificationError, BackendError) as error:
            if request.backend != "auto":
                raise
            say(f"{name}: left out: {error}")
            failed[name] = error
    if not drafts:
        raise next(iter(failed.values()))
    # What is built ahead cannot be timed here; then auto has one candidate.
    if request.backend == "auto" and not request.ahead:
        chosen, choice = _choose(drafts, request)
        choice["left_out"] |= {name: str(error) for name, error in failed.items()}
        drafts[chosen].facts["choice"] = choice
    else:
        chosen = next(iter(drafts))
    if TENSORRT_PLAN in drafts[chosen].tensors:
        note_as_own(out, drafts[chosen].tensors[TENSORRT_PLAN])
    write_bundle(out, drafts[chosen].tensors, drafts[chosen].facts)
    return read_facts(out)


def _verified_draft(
    network: FoldedTKFNet,
    name: str,
    checkpoint: Checkpoint,
    request: Request,
    expected: VerificationSet,
    quantisation: Quantisation | None,
) -> Draft:
    def lower(kept_float: Sequence[str] = ()) -> Draft:
        return _lower(network, name, checkpoint, request, expected, quantisation, kept_float)

    def judge(draft: Draft) -> dict[str, Any]:
        return _verified(network, draft, expected, request)

    if quantisation is not None:
        from .quantisation import lower_until_it_passes

        return lower_until_it_passes(quantisation, name, lower, judge, request.strict, timed=not request.ahead)
    draft = lower()
    draft.facts["verification"] = judge(draft)
    return draft


def _lower(
    network: FoldedTKFNet,
    name: str,
    checkpoint: Checkpoint,
    request: Request,
    expected: VerificationSet,
    quantisation: Quantisation | None = None,
    kept_float: Sequence[str] = (),
) -> Draft:
    """The engine's tensors for one backend: its graph, its weights or its kernels, nothing else."""
    core = core_facts(network, checkpoint, request.precision)
    facts = core | {
        "backend": name,
        "device": request.device,
        "max_batch": request.max_batch,
        "versions": _versions(name),
        "hardware": _hardware(request),
        "checkpoint": {"sha256": checkpoint.sha256, "test": checkpoint.training.get("test")},
    }
    artefact = backend_info(name).artefact
    if artefact == WEIGHTS:
        return Draft(facts, {WEIGHTS + k: v.numpy() for k, v in network.state_dict().items()})
    if artefact == PACKED_WEIGHTS:
        facts["archs"] = list(request.archs)
        tensors, layers = _fused(checkpoint, request, expected, quantisation, kept_float)
    else:
        graph = lowered_graph(network, name, core, quantisation, kept_float)
        if artefact == GRAPH:
            tensors = {GRAPH: graph}
            layers = PRECISIONS_OF_GRAPH[name](graph) if quantisation else {}
        else:
            products = asked_precisions(network_of(network), request.precision, quantisation, kept_float)
            parts = tensorrt_parts(graph, facts, products, request.tensorrt_options(name), request.log)
            facts["tensorrt"], layers = parts.facts, parts.precisions
            tensors = parts.tensors | golden_tensors(graph, facts, expected)
    if quantisation:
        facts["quantisation"] = quantisation.facts(name, kept_float, layers, request.strict)
    return Draft(facts, tensors)


def _fused(
    checkpoint: Checkpoint,
    request: Request,
    expected: VerificationSet,
    quantisation: Quantisation | None,
    kept_float: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    from .fused_from_folded import fused_tensors  # needs Triton, which no other backend does

    target = (request.precision, request.max_batch, request.archs, expected)
    if quantisation:
        return fused_tensors(quantisation.folded, *target, quantisation.table.scales(request.precision), kept_float)
    # From the float32 form: the kernels' packing rounds to FP16 once, and shifts the stem's weights by itself.
    return fused_tensors(fold(checkpoint.model, checkpoint.preprocessing), *target)


def core_facts(network: FoldedTKFNet, checkpoint: Checkpoint, precision: str) -> dict[str, Any]:
    """What every engine says of its network; it stands in a graph's metadata too."""
    return {
        "model": network.config.to_dict(),
        "labels": list(checkpoint.labels),
        "preprocessing": network.preprocessing.to_dict(),
        "precision": precision,
    }


def lowered_graph(
    network: FoldedTKFNet,
    name: str,
    core: dict[str, Any],
    quantisation: Quantisation | None = None,
    kept_float: Sequence[str] = (),
) -> bytes:
    """The ONNX graph for backend `name`. core: its `core_facts`."""
    return quantisation.graph(name, kept_float, core) if quantisation else _graph(network, json.dumps(core))


@functools.lru_cache(maxsize=1)
def _graph(network: FoldedTKFNet, core: str) -> bytes:
    """The ONNX graph, exported once for all backends of a build that run it. core: its facts as JSON."""
    return bytes_from_onnx(onnx_from_folded(network, json.loads(core)))


def _verified(network: FoldedTKFNet, draft: Draft, expected: VerificationSet, request: Request) -> dict[str, Any]:
    if request.ahead and TENSORRT_PLAN in draft.tensors:
        say(f"{draft.facts['backend']}: {UNVERIFIED}; the graph it is built from is verified in ONNX Runtime")
        report = verify(graph_runner(draft.tensors[GRAPH]), expected, request.precision, request.max_batch)
        return {"state": UNVERIFIED, "graph": report}
    if request.ahead:
        shapes, weights = network_of(network), draft.tensors[PACKED_WEIGHTS]
        kept = draft.facts["quantisation"]["kept_float"] if "quantisation" in draft.facts else ()
        return verify_interpreted(shapes, weights, expected, request.precision, request.archs[0], kept)
    runner = open_backend(draft.facts["backend"], draft.facts, draft, request.device, None)
    try:
        report = verify(runner, expected, request.precision, request.max_batch)
    finally:
        runner.close()
    say(f"{draft.facts['backend']}: verified on {report['images']} images, SQNR {report['sqnr_db']} dB")
    return report


def _choose(drafts: Mapping[str, Draft], request: Request) -> tuple[str, dict[str, Any]]:
    """The fastest draft and the record of the race; each runs in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tkfnet-choose-") as folder:
        paths = {}
        for name, draft in drafts.items():
            paths[name] = os.path.join(folder, f"{name}.tkf")
            write_bundle(paths[name], draft.tensors, draft.facts)
        timing, failed = time_engines(paths, request.max_batch)
    for name, reason in failed.items():
        say(f"{name}: left out: {reason}")
    if not timing:
        raise BackendError("; ".join(failed.values()))
    chosen = fastest(timing)
    for name in timing:
        say(f"{name}: " + ", ".join(f"batch {b}: {ms:.2f} ms" for b, ms in timing[name].items()))
    say(f"auto: {chosen} is the fastest here")
    record = {n: {str(b): round(ms, 3) for b, ms in by_batch.items()} for n, by_batch in timing.items()}
    return chosen, {
        "setting": "backend",
        "chosen": chosen,
        "by": "geometric mean over batches of p50 in the best of several rounds",
        "p50_ms": record,
        "left_out": failed,
    }


def _versions(backend: str) -> dict[str, str]:
    """Of what made the file and what its backend runs on."""
    info = backend_info(backend)
    names = ["torch", *info.build_requires, *(r.replace(".", "-") for r in info.requires)]
    found = {"tkfnet-engine": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware(request: Request) -> dict[str, str]:
    """The machine that builds: a verification's last digits and a measured choice are its own."""
    found = {"machine": platform.machine(), "processor": processor_name()}
    if request.device == "cuda" and not request.ahead:
        import torch

        found["accelerator"] = torch.cuda.get_device_name()
    return found
