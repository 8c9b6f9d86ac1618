"""NNCF's own flow, in a Python that has nncf, openvino and numpy and needs nothing of this project.

    python benchmarks/int8_nncf.py GRAPH.onnx IMAGES.npy FOLDER

Writes FOLDER/default.xml and mixed.xml (with their .bin), and versions.json.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

# A benchmark tells nobody that it was run.
os.environ["NNCF_CI"] = "1"

import nncf
import numpy as np
import openvino


def main(graph: str, images: str, folder: str) -> None:
    model = openvino.Core().read_model(graph)
    pixels = np.load(images, mmap_mode="r")
    dataset = nncf.Dataset([np.array(pixels[i : i + 1]) for i in range(len(pixels))])
    for name, preset in (("default", None), ("mixed", nncf.QuantizationPreset.MIXED)):
        quantised = nncf.quantize(model, dataset, preset=preset, subset_size=len(pixels))
        openvino.save_model(quantised, Path(folder) / f"{name}.xml")
    versions = {library: version(library) for library in ("nncf", "openvino")}
    (Path(folder) / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main(*sys.argv[1:])
