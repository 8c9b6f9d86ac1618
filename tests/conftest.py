"""Narrow networks that the engine, build and command tests share: made once per session."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# Read once, as Triton is imported, which other tests do before those of the kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

SMALL = 64


@contextmanager
def _torch_threads_kept():
    """The torch backends set the process's number of threads; other tests should not notice."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def torch_threads():
    with _torch_threads_kept():
        yield


def narrow_checkpoint(path: Path, size: int, seed: int = 0) -> Path:
    """A TKFNet an eighth as wide, random, whose batch norms know faces and noise and whose logits spread."""
    import torch

    from tkfnet_engine.data import open_data
    from tkfnet_engine.model.checkpoint import save_checkpoint
    from tkfnet_engine.model.net import TKFNet, normalise
    from tkfnet_engine.preprocess import stack_crops
    from tkfnet_engine.spec import Preprocessing, TKFNetConfig

    faces, preprocessing = open_data("synthetic:n=35,seed=3", "train"), Preprocessing(size=size)
    pixels = [*(faces.image(i) for i in range(len(faces))), *_noise(len(faces), size, seed=99)]
    pixels = stack_crops(pixels, size)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = TKFNet(TKFNetConfig(width=0.125)).train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.momentum = None  # the plain mean of what it sees
        inputs = normalise(torch.from_numpy(pixels), preprocessing)
        for _ in range(3):
            model(inputs)
        last = model.eval().head[6]
        last.weight /= model(inputs).std(0).mean()
        last.bias -= model(inputs).mean(0)
    save_checkpoint(path, model, {"command": "tests", "seed": seed}, preprocessing)
    return path


def _noise(count: int, size: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, size, size, 3]: coarse blocks under fine noise, so that images differ as photographs do."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, 3)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)
    fine = draw.integers(-40, 41, (count, size, size, 3))
    return (coarse[:, :size, :size] + fine).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def noise():
    return _noise


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def checkpoint_path(session_folder) -> Path:
    """224 x 224 pixels, width 0.125."""
    return narrow_checkpoint(session_folder / "narrow.safetensors", 224)


@pytest.fixture(scope="session")
def small_checkpoint_path(session_folder) -> Path:
    """64 x 64 pixels, width 0.125: for tests that run it often."""
    return narrow_checkpoint(session_folder / "small.safetensors", SMALL, seed=1)


class RememberedFaces:
    """A face set that renders each image once."""

    def __init__(self, faces):
        self._faces, self._images, self._subsets = faces, {}, {}

    def __len__(self) -> int:
        return len(self._faces)

    def __getattr__(self, name):
        return getattr(self._faces, name)

    def subset(self, indices):
        key = indices.tobytes()
        if key not in self._subsets:
            self._subsets[key] = RememberedFaces(self._faces.subset(indices))
        return self._subsets[key]

    def image(self, i: int) -> np.ndarray:
        if i not in self._images:
            self._images[i] = self._faces.image(i)
        return self._images[i]


@pytest.fixture(scope="session")
def remembered_data():
    """`open_data` as the verification calls it; the 256 rendered faces are drawn once per session."""
    from tkfnet_engine.data import open_data

    opened: dict[tuple[str, str], RememberedFaces] = {}

    def remembered(text, split):
        if (text, split) not in opened:
            opened[text, split] = RememberedFaces(open_data(text, split))
        return opened[text, split]

    return remembered


@pytest.fixture(scope="session")
def remembered_export():
    """`onnx_from_folded`, once per network and facts; callers get a copy of their own."""
    import copy
    import hashlib
    import json

    from tkfnet_engine.export.onnx_from_torch import onnx_from_folded

    made = {}

    def remembered(network, facts):
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        if digest.digest() not in made:
            made[digest.digest()] = onnx_from_folded(network, facts)
        return copy.deepcopy(made[digest.digest()])

    return remembered


@pytest.fixture(scope="session")
def build(remembered_data):
    """build(checkpoint path, out, backend, precision, max_batch) -> facts; everything real but the drawing."""

    def run(checkpoint, out, backend="onnxruntime", precision="float32", max_batch=32):
        from tkfnet_engine.export.engine_from_checkpoint import Request, build_engine
        from tkfnet_engine.model.checkpoint import load_checkpoint

        with pytest.MonkeyPatch.context() as patch, _torch_threads_kept():
            patch.setattr("tkfnet_engine.export.verify.open_data", remembered_data)
            return build_engine(load_checkpoint(checkpoint), Request(precision, backend, "cpu", max_batch), out)

    return run


@pytest.fixture
def quick_build(build, remembered_export, monkeypatch):
    """As `build`, but one network is exported once per session."""
    monkeypatch.setattr("tkfnet_engine.export.engine_from_checkpoint.onnx_from_folded", remembered_export)
    return build


@pytest.fixture(scope="session")
def engine_path(build, checkpoint_path, session_folder) -> Path:
    """Of `checkpoint_path`, built for onnxruntime, float32."""
    build(checkpoint_path, session_folder / "narrow.tkf")
    return session_folder / "narrow.tkf"


@pytest.fixture(scope="session")
def small_engine_path(build, small_checkpoint_path, session_folder) -> Path:
    """Of `small_checkpoint_path`, built for onnxruntime, float32."""
    build(small_checkpoint_path, session_folder / "small.tkf")
    return session_folder / "small.tkf"


@pytest.fixture(scope="session")
def reference(checkpoint_path):
    """The PyTorch model that `checkpoint_path` holds, as a function of uint8 [N, 224, 224, 3] -> float32 [N, 7]."""
    return _reference(checkpoint_path)


@pytest.fixture(scope="session")
def small_reference(small_checkpoint_path):
    return _reference(small_checkpoint_path)


def _reference(path):
    import torch

    from tkfnet_engine.model.checkpoint import load_checkpoint
    from tkfnet_engine.model.net import normalise

    checkpoint = load_checkpoint(path)

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return checkpoint.model(normalise(torch.from_numpy(images.copy()), checkpoint.preprocessing)).numpy()

    return logits


@pytest.fixture
def tampered(tmp_path):
    """tampered(path, facts, ..) -> an engine file with other facts and a right digest; a value of ... drops the key."""
    from tkfnet_engine.bundle import read_bundle, write_bundle

    def write(path, **changes) -> Path:
        bundle = read_bundle(path)
        facts = {k: v for k, v in {**bundle.facts, **changes}.items() if v is not ...}
        out = tmp_path / "tampered.tkf"
        write_bundle(out, {name: bundle.array(name) for name in bundle.names()}, facts)
        return out

    return write


@pytest.fixture
def command(capsys):
    """command("predict", ..) -> its exit code, standard output and standard error; runs in this process."""
    from tkfnet_engine.__main__ import main
    from tkfnet_engine.console import run_command

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            run_command(main, [os.fspath(a) for a in argv])
        captured = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code or 0, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, noise):
    """Three sound pictures and some that are not."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for name, side in (("a.png", 80), ("b.jpg", 120), ("c.webp", 64)):
        Image.fromarray(noise(1, side, seed=side)[0]).save(folder / name)
    (folder / "damaged.jpg").write_bytes((folder / "b.jpg").read_bytes()[:900])
    (folder / "text.png").write_text("<html>not found</html>")
    (folder / "empty.png").write_bytes(b"")
    return folder
