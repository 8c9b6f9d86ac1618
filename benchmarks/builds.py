"""What the suites run: engine files, the peers' export, faces with the reference's answers. Built once per run."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .engines.race import Faces
from .engines.subjects import Subject
from .machine import ROOT, environment

_FLAGS = {"float32": "--fp32", "float16": "--fp16", "int8": "--int8"}
# What engines are judged on before they are timed: whole batches of eight.
FACES = 120


class Builds:
    """folder: where everything goes, and is found again by a run of the same sources, libraries and checkpoint."""

    def __init__(self, folder: Path, checkpoint: str, threads: int):
        self.checkpoint, self._threads = checkpoint, threads
        self.folder = folder / _key(checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)

    def engine(self, backend: str, precision: str) -> Path:
        """The engine file; built unless it is there. `RuntimeError` with the build's last line."""
        path = self._path(backend, precision)
        if not path.exists():
            self.build(backend, precision, self.folder / "cache")
        return path

    def build(self, backend: str, precision: str, cache: Path) -> float:
        """Builds it anew, by the command that users type; seconds. cache: for what a build keeps for the next."""
        path = self._path(backend, precision)
        path.unlink(missing_ok=True)
        arguments = ["--backend", backend, _FLAGS[precision], "--device", "cpu", "--out", str(path)]
        command = [sys.executable, "-m", "tkfnet_engine.build", "--checkpoint", self.checkpoint, *arguments]
        start = time.perf_counter()
        done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"build {backend} {precision}: {done.stderr.strip().splitlines()[-1]}")
        return time.perf_counter() - start

    def _path(self, backend: str, precision: str) -> Path:
        return self.folder / f"{backend}-{precision}.tkf"

    def graph(self) -> Path:
        """The peers' ONNX export."""
        path = self.folder / "peers.onnx"
        if not path.exists():
            code = "import sys; from pathlib import Path; from benchmarks.engines.openers import export; "
            code += "export(sys.argv[1], Path(sys.argv[2]))"
            partial = path.with_suffix(".part")
            subprocess.run([sys.executable, "-c", code, self.checkpoint, str(partial)], cwd=ROOT, check=True)
            partial.rename(path)
        return path

    def cold_cache(self) -> Path:
        """An empty cache folder."""
        return self.emptied(self.folder / "cold")

    def keep_cache(self, cache: Path) -> None:
        """Later builds find what one has kept."""
        shutil.copytree(cache, self.folder / "cache", dirs_exist_ok=True)

    def emptied(self, folder: Path) -> Path:
        """The folder, there and empty."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def flops(self) -> int:
        """Of one image: two for each multiplication and addition that the network needs."""
        from tkfnet_engine.kernels.network import network_of
        from tkfnet_engine.kernels.planner import plan_from_network
        from tkfnet_engine.model.checkpoint import load_checkpoint
        from tkfnet_engine.model.fold import fold

        loaded = load_checkpoint(self.checkpoint)
        return plan_from_network(network_of(fold(loaded.model, loaded.preprocessing)), 1, "float16", "sm_90").flops

    def faces(self, count: int = FACES) -> Faces:
        """Labelled rendered faces of people that the network has not seen, in turn through the expressions."""
        path = self.folder / f"faces-{count}.npz"
        if not path.exists():
            _render(self.checkpoint, count, path)
        with np.load(path) as held:
            return Faces(held["pixels"], held["labels"], held["logits"])

    def jpegs(self, count: int = 16) -> list[str]:
        """Files of rendered faces at 320 x 320, as a camera's crop would come."""
        from PIL import Image

        folder = self.folder / "jpegs"
        if not folder.exists():
            partial = self.folder / "jpegs.part"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for i, pixels in enumerate(self.faces().pixels[:count]):
                Image.fromarray(pixels).resize((320, 320)).save(partial / f"{i:02d}.jpg", quality=90)
            partial.rename(folder)
        return sorted(str(path) for path in folder.iterdir())

    @functools.cached_property
    def _preprocessing(self) -> dict[str, Any]:
        from tkfnet_engine.model.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint).preprocessing.to_dict()

    def settings(self, subject: Subject) -> dict[str, Any]:
        """What `client.Worker` takes to open the subject."""
        facts = self._preprocessing
        found: dict[str, Any] = {"threads": self._threads, "size": facts["size"], "checkpoint": self.checkpoint}
        found |= {"preprocessing": facts, "precision": subject.precision, **dict(subject.options)}
        if subject.engine:
            found["engine"] = str(self.engine(*subject.engine))
        if subject.opener == "compiled":
            found["cache"] = str(self.folder / f"inductor-{found['mode']}")
        if subject.graph:
            found["graph"] = str(self.graph())
        return found


def _render(checkpoint: str, count: int, path: Path) -> None:
    import torch

    from tkfnet_engine.data import open_data
    from tkfnet_engine.model.checkpoint import load_checkpoint
    from tkfnet_engine.model.net import normalise
    from tkfnet_engine.preprocess import stack_crops

    loaded = load_checkpoint(checkpoint)
    faces = open_data(f"synthetic:n={10 * count},seed=11", "test")
    count = min(count, len(faces))
    pixels = stack_crops([faces.image(i) for i in range(count)], loaded.preprocessing.size)
    with torch.inference_mode():
        parts = [
            loaded.model(normalise(torch.from_numpy(pixels[i : i + 32]), loaded.preprocessing))
            for i in range(0, count, 32)
        ]
    np.savez(path, pixels=pixels, labels=faces.labels[:count], logits=torch.cat(parts).numpy())


def _key(checkpoint: str) -> str:
    """Sixteen digits of sources, checkpoint and versions."""
    digest = hashlib.sha256(Path(checkpoint).read_bytes())
    for folder in ("tkfnet_engine", "kernels", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(repr(environment(0)["versions"]).encode())
    return digest.hexdigest()[:16]
