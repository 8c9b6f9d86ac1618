"""The checkpoint: a safetensors file with the network's parameters and, as metadata, what they are.

Facts (one JSON object under the metadata key "tkfnet"): format, model (TKFNetConfig), labels, preprocessing,
training (command, data, seed, scores ..). Opening one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors

from ..atomic import write_atomically
from ..errors import CheckpointError, UsageError
from ..spec import LABELS, Preprocessing, TKFNetConfig
from .net import LoadReport, TKFNet, load_backbone

FORMAT = "tkfnet-checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its facts, and the SHA-256 of the file (hex)."""

    model: TKFNet
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    training: dict[str, Any]
    sha256: str


def save_checkpoint(
    path: str | os.PathLike,
    model: TKFNet,
    training: dict[str, Any],
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = LABELS,
    half: bool = False,
) -> None:
    """Writes the checkpoint atomically. half: convolution and linear weights in float16 (vectors stay float32)."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensors[name] = _stored(name, tensor.detach().cpu().contiguous(), half)
    facts = {
        "format": FORMAT,
        "model": model.config.to_dict(),
        "labels": list(labels),
        "preprocessing": (preprocessing or Preprocessing()).to_dict(),
        "training": training,
    }
    # One metadata key: the library writes several in random order, and equal inputs should give equal bytes.
    metadata = {"tkfnet": json.dumps(facts, sort_keys=True, allow_nan=False)}
    write_atomically(path, bytes_from_tensors(tensors, metadata))


def _stored(name: str, tensor: torch.Tensor, half: bool) -> torch.Tensor:
    return tensor.half() if half and tensor.dim() > 1 and name.endswith(".weight") else tensor


def round_to_half(model: TKFNet) -> None:
    """Gives `model` the parameters that a checkpoint saved with `half` gives back."""
    state = model.state_dict()
    model.load_state_dict({name: _stored(name, tensor, True).to(tensor.dtype) for name, tensor in state.items()})


def _read(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); expected a checkpoint written by "
            "`python -m tkfnet_engine.train --out ..`"
        ) from None


def _facts(path: str | os.PathLike, data: bytes) -> dict[str, Any]:
    """The "tkfnet" metadata of a safetensors file, or `CheckpointError`."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        facts = json.loads(header["__metadata__"]["tkfnet"])
        if facts["format"] == FORMAT:
            return facts
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(
        f"{path}: is not a tkfnet-engine checkpoint (no such facts in its metadata); expected the output of "
        "`python -m tkfnet_engine.train`. An engine file (.tkf) is built from a checkpoint, not the other way"
    )


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint; the model comes in float32, evaluation mode. `CheckpointError` where anything is off."""
    data = _read(path)
    facts = _facts(path, data)
    try:
        model = TKFNet(TKFNetConfig.from_dict(facts.get("model")))
        preprocessing = Preprocessing.from_dict(facts.get("preprocessing"))
        tensors = tensors_from_bytes(data)
    except (UsageError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    labels = facts.get("labels")
    if not isinstance(labels, list) or len(labels) != model.config.classes or any(type(n) is not str for n in labels):
        raise CheckpointError(f"{path}: got labels {labels!r}, expected {model.config.classes} names")
    expected = model.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors are missing, unknown or of another shape than the model its metadata "
            f"names, such as {', '.join(wrong[:3])}; the file was edited or written by another version"
        )
    if not all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(f"{path}: some parameters are NaN or infinite; the training diverged, train again")
    model.load_state_dict({name: tensors[name].to(value.dtype) for name, value in expected.items()})
    return Checkpoint(
        model.eval(), tuple(labels), preprocessing, facts.get("training", {}), hashlib.sha256(data).hexdigest()
    )


def load_backbone_file(model: TKFNet, path: str | os.PathLike) -> LoadReport:
    """Loads torchvision / MS-Celeb-1M ResNet weights (.pth, .pt or .safetensors) into the backbone.

    A pickle is opened with `weights_only=True`: it can hold tensors, not code.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such file; expected ResNet weights (.pth, .pt or .safetensors)")
    try:
        if str(path).endswith(".safetensors"):
            weights = tensors_from_bytes(_read(path))
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for a damaged or unsafe file
        raise CheckpointError(
            f"{path}: cannot be read as tensors only ({type(error).__name__}); save the state_dict alone "
            "with torch.save(model.state_dict(), ..) or safetensors"
        ) from error
    if isinstance(weights, dict) and isinstance(weights.get("state_dict"), dict):
        weights = weights["state_dict"]
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: got {type(weights).__name__}, expected a dictionary of tensors")
    return load_backbone(model, {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)})
