"""The peers of our INT8 engines: what ONNX Runtime's and OpenVINO's own quantisation make of the same float32 graph
and the same calibration images."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from int8_process import output

from tkfnet_engine.backends.registry import why_unavailable
from tkfnet_engine.console import say
from tkfnet_engine.errors import BackendError, UsageError
from tkfnet_engine.hardware import has_exact_byte_products

# Images that ONNX Runtime's calibration runs at a time; it takes the least and the largest value over all of them.
BATCH = 16
NNCF_SCRIPT = Path(__file__).with_name("int8_nncf.py")
GET_NNCF = (
    "nncf is not installed; python3 -m venv nncf && nncf/bin/pip install nncf openvino, and give "
    "--nncf-python nncf/bin/python"
)


@dataclass(frozen=True)
class Contestant:
    """record: of the report, JSON types. path: the file to run, None where there is none."""

    record: dict[str, Any]
    path: Path | None = None


def peer_record(backend: str, how: str, **more: Any) -> dict[str, Any]:
    return {"kind": "peer", "backend": backend, "how": how, **more}


def check_nncf_python(python: str | None) -> str | None:
    """The Python that has NNCF: the one named, else this one, else None. `UsageError` if the one named has not."""
    if python is None:
        return sys.executable if find_spec("nncf") and find_spec("openvino") else None
    try:
        output(f"asking {python} for nncf", [python, "-c", "import nncf, numpy, openvino"])
    except (BackendError, OSError) as error:
        raise UsageError(
            f"--nncf-python {python}: {error}; expected a Python that imports nncf, numpy and openvino: pip install "
            "nncf openvino there, or leave it out"
        ) from None
    return python


def peers(graph: Path, images: Path, folder: Path, nncf_python: str | None) -> dict[str, Contestant]:
    """Every peer, made in `folder`; one that could not be made says why.

    graph: the folded network, float32 ONNX. images: uint8 [N, S, S, 3] as `.npy`. nncf_python: see `check_nncf_python`.
    """
    return _ort_peers(graph, images, folder) | _nncf_peers(graph, images, folder, nncf_python)


# --- ONNX Runtime ------------------------------------------------------------------------------------------


def _ort_peers(graph: Path, images: Path, folder: Path) -> dict[str, Contestant]:
    from onnxruntime.quantization import QuantType

    found, ready, pre_process = {}, *pre_processed(graph, folder / "pre-processed.onnx")
    # Their guide for x86: unsigned maps, and seven bits of weights where pairs of products saturate.
    reduced = not has_exact_byte_products()
    for name, maps, reduce_range, settings in (
        ("ort static", QuantType.QInt8, False, "default settings"),
        ("ort static u8s8", QuantType.QUInt8, reduced, f"uint8 maps{', reduce_range' if reduced else ''}"),
    ):
        say(f"{name}: onnxruntime.quantization.quantize_static")
        how = f"quantize_static: QDQ, per_channel, {settings}; {pre_process}"
        path = folder / f"{name.replace(' ', '-')}.onnx"
        try:
            quantised_by_ort(ready, images, path, maps, reduce_range)
        except Exception as error:  # whatever their code raises, the others are still to be measured
            found[name] = Contestant(peer_record("onnxruntime", how, failed=_told(error)))
        else:
            found[name] = _made("onnxruntime", how, path)
    return found


def pre_processed(graph: Path, out: Path) -> tuple[Path, str]:
    """(the graph to quantise, how it was pre-processed): as far as `quant_pre_process` works on it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    failures = []
    for how, skip in (("quant_pre_process", False), ("quant_pre_process without symbolic shapes", True)):
        try:
            quant_pre_process(str(graph), str(out), skip_symbolic_shape=skip)
        except Exception as error:  # their shape inference fails in ways of its own
            failures.append(f"{how} failed: {_told(error)}")
        else:
            return out, "; ".join([how, *failures])
    return graph, "; ".join(["not pre-processed", *failures])


def quantised_by_ort(graph: Path, images: Path, out: Path, maps: Any, reduce_range: bool = False) -> None:
    """ONNX Runtime's static quantisation of `graph` on every one of `images`, written to `out`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    pixels = np.load(images, mmap_mode="r")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._parts: Iterator[np.ndarray] = (np.array(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            part = next(self._parts, None)
            return None if part is None else {"images": part}

    quantize_static(
        str(graph),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=maps,
        weight_type=QuantType.QInt8,
        reduce_range=reduce_range,
    )


# --- NNCF --------------------------------------------------------------------------------------------------


def _nncf_peers(graph: Path, images: Path, folder: Path, python: str | None) -> dict[str, Contestant]:
    names = {"nncf": "default", "nncf mixed": "mixed"}
    hows = {name: f"nncf.quantize: {preset} preset, otherwise default settings" for name, preset in names.items()}
    if reason := why_unavailable("openvino") or (GET_NNCF if python is None else None):
        return {name: Contestant(peer_record("openvino", hows[name], missing=reason)) for name in names}
    try:
        output("nncf.quantize, both presets", [python, NNCF_SCRIPT, graph, images, folder])
        versions = json.loads((folder / "versions.json").read_text())
    except (BackendError, OSError, ValueError) as error:
        return {name: Contestant(peer_record("openvino", hows[name], failed=_told(error))) for name in names}
    told = ", ".join(f"{library} {version}" for library, version in versions.items())
    return {
        name: _made("openvino", f"{hows[name]}; {told}", folder / f"{preset}.xml") for name, preset in names.items()
    }


def _made(backend: str, how: str, path: Path) -> Contestant:
    files = [path] if path.suffix == ".onnx" else [path, path.with_suffix(".bin")]
    record = peer_record(backend, how, bytes=sum(os.path.getsize(file) for file in files))
    try:
        record["products"] = dict(Counter(products_of(backend, path).values()))
    except Exception as error:  # it will not run either, which says so in its own row
        return Contestant(record | {"failed": _told(error)})
    return Contestant(record, path)


def products_of(backend: str, path: Path) -> dict[str, str]:
    """Product -> the precision in which the runtime computes it."""
    from tkfnet_engine.export.layer_precisions import PRECISIONS_OF_GRAPH

    # OpenVINO finds the weights by the path of the graph.
    return PRECISIONS_OF_GRAPH[backend](path.read_bytes() if path.suffix == ".onnx" else str(path))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
