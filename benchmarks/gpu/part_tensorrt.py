"""Builds TensorRT's engines of one precision, and verifies them on this GPU: one tuned for a batch of 1, one for 256.

By the first of `tensorrt` and `tensorrt_rtx` that is here. Where TensorRT for RTX does not name this GPU our build
refuses it; whether it would run all the same is tried in a process of its own and written down.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_common import Faces, part_parser
from gpu_state import LABELLED, RIGHT, SKIPPED, SMALL_MOST, TABLE, TENSORRT_BUILDS, WRONG, tensorrt_file, write_json
from gpu_tensorrt import Library, library
from part_calibrate import read_set
from probe_tensorrt import CAPABILITIES, outcome

from tkfnet_engine import build
from tkfnet_engine.backends.registry import TENSORRT_LAYERS, why_unbuildable
from tkfnet_engine.bundle import read_bundle
from tkfnet_engine.errors import BackendError, VerificationError
from tkfnet_engine.export import engine_from_checkpoint
from tkfnet_engine.export.tensorrt_options import RTX
from tkfnet_engine.export.tensorrt_worker import supported_capabilities
from tkfnet_engine.export.verify import GATED, VerificationSet

# By size of the batches: the batch that it is tuned for, the largest one, and how many requests may run at once.
SIZES = {"small": (1, SMALL_MOST, 2), "large": (256, 256, 1)}
FLAGS = {"float16": "--fp16", "int8": "--int8"}
PROBE = Path(__file__).with_name("probe_tensorrt.py")
PROBE_S = 120.0


def verification(out: Path, precision: str) -> VerificationSet:
    """What earlier parts have drawn."""
    if precision in GATED:
        return read_set(out / LABELLED)
    faces = Faces.read(out)
    return VerificationSet(faces.pixels, "rendered faces", "", faces.logits.argmax(1), faces.logits)


def keeping(lower: Callable[..., Any], graphs: list[bytes]) -> Callable[..., Any]:
    """`lower`, which also keeps the graph that it is given."""

    def kept(graph: bytes, *rest: Any) -> Any:
        graphs.append(graph)
        return lower(graph, *rest)

    return kept


def command(found: Library, precision: str, size: str, out: Path, checkpoint: str, seconds: float) -> list[str]:
    """For `tkfnet_engine.build`."""
    best, most, contexts = SIZES[size]
    flags = [FLAGS[precision], "--device", "cuda", "--backend", found.backend, "--checkpoint", checkpoint]
    flags += ["--opt-batch", str(best), "--max-batch", str(most), "--contexts", str(contexts)]
    flags += ["--timeout", f"{seconds:.0f}", "--log", str(out / "logs" / f"trt-{precision}-{size}.log")]
    if found.backend != RTX:
        flags += ["--timing-cache", str(out / "tensorrt.cache")]
    if precision in GATED:
        flags += ["--calibration", str(out / TABLE)]
    return [*flags, "--out", str(out / tensorrt_file(precision, size))]


def known_of(engine: Path, seconds: float) -> dict[str, Any]:
    """What is known of an engine file of TensorRT's that was built."""
    bundle = read_bundle(engine)
    facts, layers = bundle.facts, json.loads(bytes(bundle.bytes(TENSORRT_LAYERS)))
    return {
        "seconds": round(seconds, 1),
        "megabytes": round(engine.stat().st_size / 1e6, 2),
        "profiles": facts["tensorrt"]["profiles"],
        "options": facts["tensorrt"]["options"],
        "layers": dict(sorted(Counter(layer["precision"] for layer in layers).items())),
        "not_as_asked": facts["tensorrt"]["not_as_asked"],
        "verification": facts["verification"],
        **({"quantisation": facts["quantisation"]} if "quantisation" in facts else {}),
    }


def summary(found: Library, engines: dict[str, dict[str, Any]]) -> str:
    said = []
    for size, one in engines.items():
        report, layers = one["verification"], ", ".join(f"{n} {kind}" for kind, n in one["layers"].items())
        gate = f", accuracy kept {report['gate']['accuracy_kept']:.2%}" if "gate" in report else ""
        astray = f", NOT as asked: {len(one['not_as_asked'])}" if one["not_as_asked"] else ""
        said.append(
            f"{size} {one['megabytes']:.1f} MB in {one['seconds']:.0f} s, SQNR {report['sqnr_db']} dB{gate}, {layers}"
            f"{astray}"
        )
    return f"{found}: {'; '.join(said)}"


# --- a GPU that TensorRT for RTX does not name -----------------------------------------------------------


def this_capability() -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability())


def probed(out: Path, precision: str, graph: bytes, seconds: float) -> list[dict[str, Any]]:
    """What came of running `graph` all the same, for each way to build it; "capability" says which."""
    path, tried = out / f"trt-{precision}.onnx", []
    path.write_bytes(graph)
    for capability in CAPABILITIES:
        result = out / f"trt-{precision}-probe-{capability}.json"
        result.unlink(missing_ok=True)
        run = [sys.executable, str(PROBE), "--graph", str(path), "--capability", capability, "--result", str(result)]
        limit, ended = min(PROBE_S, seconds / len(CAPABILITIES)), None
        try:
            code = subprocess.run(run, stdin=subprocess.DEVNULL, timeout=limit).returncode
            ended = f"its process ended with {code}" if code else None
        except subprocess.TimeoutExpired:
            ended = f"it took longer than {limit:.3g} s"
        tried.append(outcome(result, ended) | {"capability": capability})
    return tried


def left_out(found: Library, here: str, refusal: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The result where the build refuses this GPU, with what came of trying."""
    best = max(tried, key=lambda one: (one["ran"], one["deserialized"], one["built"]))
    if best["ran"] and best["sqnr_db"] is not None:
        said = f"it runs here, SQNR {best['sqnr_db']} dB"
    else:
        stages = {"built": "built", "deserialized": "deserialised", "ran": "run", "sqnr_db": "compared"}
        failed = next(text for stage, text in stages.items() if best[stage] in (False, None))
        said = f"it was not {failed}: {best['error']}"
    reason = f"{found} does not name compute capability {here}; tried all the same, {said}"
    return {"reason": reason, "library": str(found), "refusal": refusal, "probe": best, "probes": tried}


def main() -> int:
    p = part_parser(__doc__)
    p.add_argument("--precision", choices=TENSORRT_BUILDS, default="float16", help="of the engines (default float16)")
    args = p.parse_args()
    deadline = time.monotonic() + args.seconds

    def end(code: int, **result: Any) -> int:
        write_json(args.result, result)
        return code

    found, broken = library()
    if found is None:
        reason = "; ".join(broken) or "neither tensorrt nor tensorrt_rtx is installed"
        return end(SKIPPED, reason=reason)
    if missing := why_unbuildable(found.backend):
        return end(SKIPPED, reason=f"{found}: {missing}", library=str(found))
    graphs: list[bytes] = []
    drawn = verification(args.out, args.precision)
    engine_from_checkpoint.verification_set = lambda *_, **__: drawn
    engine_from_checkpoint.tensorrt_parts = keeping(engine_from_checkpoint.tensorrt_parts, graphs)
    engines: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {"library": str(found), "backend": found.backend, "broken": broken, "engines": engines}
    (args.out / "logs").mkdir(exist_ok=True)
    for size in SIZES:
        start = time.monotonic()
        left = max(deadline - start, 1.0)
        try:
            build.main(command(found, args.precision, size, args.out, str(args.checkpoint), left))
        except VerificationError as error:
            return end(WRONG, **result, reason=f"{size}: {error}", verification=error.report)
        except BackendError as error:
            here = this_capability()
            if found.backend == RTX and graphs and here not in supported_capabilities(found.module):
                tried = probed(args.out, args.precision, graphs[-1], deadline - time.monotonic())
                return end(SKIPPED, **left_out(found, here, str(error), tried))
            return end(WRONG, **result, reason=f"{size}: {error}")
        engines[size] = known_of(args.out / tensorrt_file(args.precision, size), time.monotonic() - start)
        result["summary"] = summary(found, engines)
        write_json(args.result, result)
    return RIGHT


if __name__ == "__main__":
    sys.exit(main())
