"""The checkpoint: round trips, equal bytes, every refusal; ResNet weights of others."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from safetensors.torch import save_file

from tkfnet_engine.bundle import write_bundle
from tkfnet_engine.errors import CheckpointError
from tkfnet_engine.model.checkpoint import load_backbone_file, load_checkpoint, save_checkpoint
from tkfnet_engine.model.net import TKFNet, load_backbone
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig

CONFIG = TKFNetConfig(width=0.125, pool="nearest")
TRAINING = {"seed": 3, "data": "synthetic:n=7", "test": {"accuracy": 0.5}, "history": [{"loss": 1.25}], "é": None}


def _model(config: TKFNetConfig = CONFIG, seed: int = 1) -> TKFNet:
    torch.manual_seed(seed)
    model = TKFNet(config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.25 if "var" in name else torch.randn(tensor.shape) / 8)
            else:
                tensor.fill_(41)
    return model


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "reference.safetensors"
    save_checkpoint(path, _model(), TRAINING)
    return path


def _parts(path) -> tuple[dict, dict]:
    """(tensors, facts) of a checkpoint file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return tensors_from_bytes(data), json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tkfnet"])


def _rewrite(path, tensors: dict, facts) -> None:
    path.write_bytes(bytes_from_tensors(tensors, {"tkfnet": json.dumps(facts)}))


# --- round trips -------------------------------------------------------------------------------------------


def test_float32_round_trip_is_exact(saved):
    expected, checkpoint = _model().state_dict(), load_checkpoint(saved)
    got = checkpoint.model.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name
    assert checkpoint.model.config == CONFIG
    assert not any(module.training for module in checkpoint.model.modules())
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        logits = checkpoint.model(x)
        assert logits.isfinite().all() and torch.equal(logits, _model().eval()(x))


def test_half_rounds_layer_weights_and_nothing_else(tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, _model(), {}, half=True)
    stored, expected = _parts(path)[0], _model().state_dict()
    got = load_checkpoint(path).model.state_dict()
    for name, tensor in expected.items():
        layer_weight = name.endswith(".weight") and tensor.dim() > 1
        assert stored[name].dtype == (torch.float16 if layer_weight else tensor.dtype), name
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor.half().float() if layer_weight else tensor), name
    full = tmp_path / "full.safetensors"
    save_checkpoint(full, _model(), {})
    assert path.stat().st_size < 0.6 * full.stat().st_size


def test_channels_last_and_transposed_storage_change_nothing(tmp_path, saved):
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, _model().to(memory_format=torch.channels_last), TRAINING)
    assert other.read_bytes() == saved.read_bytes()


def test_equal_inputs_give_equal_bytes(tmp_path, saved):
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, _model(), dict(reversed(TRAINING.items())))
    assert again.read_bytes() == saved.read_bytes()
    save_checkpoint(again, _model(seed=2), TRAINING)
    assert again.read_bytes() != saved.read_bytes()


def test_facts_come_back(tmp_path, saved):
    checkpoint = load_checkpoint(saved)
    assert checkpoint.labels == LABELS
    assert checkpoint.preprocessing == Preprocessing()
    assert checkpoint.training == TRAINING
    assert checkpoint.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    path = tmp_path / "three.safetensors"
    facts = Preprocessing(size=96, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
    save_checkpoint(path, _model(TKFNetConfig(width=0.125, classes=3)), {}, facts, ("a", "b", "ç"))
    checkpoint = load_checkpoint(path)
    assert (checkpoint.labels, checkpoint.preprocessing, checkpoint.training) == (("a", "b", "ç"), facts, {})


def test_saving_replaces_whole_files_and_leaves_no_others(tmp_path, saved):
    save_checkpoint(saved, _model(seed=2), {})
    assert load_checkpoint(saved).training == {}
    assert os.listdir(tmp_path) == [saved.name]


# --- refusals ----------------------------------------------------------------------------------------------


def _refused(path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    _refused(tmp_path / "none.safetensors", "No such file")
    _refused(tmp_path, "directory")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"not a safetensors file at all", b"\xff" * 64, struct.pack("<Q", 2**63) + b"{}",
     struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 100_000) + b"[" * 100_000,
     struct.pack("<Q", 20) + b'{"__metadata__":null}', b"PK\x03\x04" + b"\0" * 99],
    ids=["empty", "one byte", "text", "ff", "huge length", "object", "list", "nested", "null", "zip"],
)  # fmt: skip
def test_no_safetensors_or_no_facts(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    _refused(path, "is not a tkfnet-engine checkpoint")


@pytest.mark.parametrize("facts", [None, 3, [], {}, {"format": "tkfnet-engine"}, {"format": None}], ids=str)
def test_other_facts(saved, facts):
    _rewrite(saved, _parts(saved)[0], facts)
    _refused(saved, "is not a tkfnet-engine checkpoint")


def test_safetensors_of_someone_else(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(_model().state_dict(), path)
    _refused(path, "is not a tkfnet-engine checkpoint")


def test_engine_file(tmp_path):
    path = tmp_path / "engine.tkf"
    write_bundle(path, {"graph.onnx": b"onnx"}, {"labels": list(LABELS)})
    _refused(path, "built from a checkpoint")


def test_truncated(saved):
    saved.write_bytes(saved.read_bytes()[:-1])
    _refused(saved, "reference.safetensors")


def test_missing_extra_and_misshaped_tensors(saved):
    tensors, facts = _parts(saved)
    _rewrite(saved, {k: v for k, v in tensors.items() if k != "head.6.bias"}, facts)
    _refused(saved, "1 tensors .* head.6.bias")
    _rewrite(saved, {**tensors, "head.9.bias": torch.zeros(2)}, facts)
    _refused(saved, "1 tensors .* head.9.bias")
    _rewrite(saved, {**tensors, "head.6.bias": torch.zeros(8)}, facts)
    _refused(saved, "1 tensors .* head.6.bias")
    _rewrite(saved, {**tensors, "head.6.bias": torch.zeros(7, 1)}, facts)
    _refused(saved, "1 tensors .* head.6.bias")
    # The metadata names another network than the tensors are of.
    _rewrite(saved, tensors, {**facts, "model": {**facts["model"], "backbone": "resnet34"}})
    _refused(saved, "tensors are missing, unknown or of another shape")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["head.6.bias", "backbone.bn1.running_var", "tafe.alpha"])
def test_nan_and_infinity(saved, name, value):
    tensors, facts = _parts(saved)
    tensors[name].view(-1)[-1] = value
    _rewrite(saved, tensors, facts)
    _refused(saved, "NaN or infinite")


@pytest.mark.parametrize("part", ["model", "preprocessing"])
def test_another_versions_facts(saved, part):
    tensors, facts = _parts(saved)
    _rewrite(saved, tensors, {**facts, part: {**facts[part], "attention": True}})
    _refused(saved, r"unknown fields \['attention'\].*another version")
    shorter = dict(facts[part])
    shorter.popitem()
    _rewrite(saved, tensors, {**facts, part: shorter})
    _refused(saved, "missing fields")
    for wrong in (None, [], "resnet18"):
        _rewrite(saved, tensors, {**facts, part: wrong})
        _refused(saved, "expected an object")


def test_values_of_another_type_or_range(saved):
    tensors, facts = _parts(saved)
    for change in ({"width": "1"}, {"width": True}, {"width": 0}, {"backbone": "vgg"}, {"classes": 7.0}, {"tafe": 1},
                   {"pool": None}, {"classes": 10**6}, {"width": 10**400}):  # fmt: skip
        _rewrite(saved, tensors, {**facts, "model": {**facts["model"], **change}})
        _refused(saved, next(iter(change)))


@pytest.mark.parametrize(
    "labels", [None, [], list(LABELS[:6]), "surprise", [*LABELS, "eighth"], [1, 2, 3, 4, 5, 6, 7]], ids=str
)
def test_labels_that_do_not_fit(saved, labels):
    tensors, facts = _parts(saved)
    _rewrite(saved, tensors, {**facts, "labels": labels})
    _refused(saved, "expected 7 names")


def test_every_prefix_of_the_file_is_refused(saved):
    data = saved.read_bytes()
    for length in (*range(64), *range(64, len(data), len(data) // 40)):
        saved.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)


# --- ResNet weights of others ------------------------------------------------------------------------------


def _weights(seed: int = 5, config: TKFNetConfig = CONFIG) -> dict[str, torch.Tensor]:
    """A state dict as torchvision saves it: with a classifier."""
    weights = {k: v.clone() for k, v in _model(config, seed).backbone.state_dict().items()}
    return weights | {"fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)}


def _holds(model: TKFNet, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, weights[k]) for k, v in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.", "features.", "model.", "module.backbone.", "model.module."]
)
def test_torchvision_names_with_and_without_prefixes(prefix):
    model, weights = _model(), _weights()
    rest = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    report = load_backbone(model, {prefix + k: v for k, v in weights.items()})
    assert _holds(model, weights)
    assert set(report.matched) == set(weights) - {"fc.weight", "fc.bias"} == set(model.backbone.state_dict())
    assert report.unused == (f"{prefix}fc.bias", f"{prefix}fc.weight")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in rest.items())
    assert "fc.bias" in str(report)


def test_batch_counters_may_be_missing():
    weights = {k: v for k, v in _weights().items() if not k.endswith("num_batches_tracked")}
    model = _model()
    load_backbone(model, weights)
    assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"])


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50"])
def test_other_depths(backbone):
    config = TKFNetConfig(backbone, width=0.125)
    model, weights = _model(config), _weights(config=config)
    load_backbone(model, weights)
    assert _holds(model, weights)


def _untouched(weights: dict[str, torch.Tensor], match: str) -> None:
    model = _model()
    with pytest.raises(CheckpointError, match=match):
        load_backbone(model, weights)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), _model().state_dict().values(), strict=True)
    )


def test_wrong_shape_names_the_tensor_and_changes_nothing():
    _untouched(
        _weights() | {"layer2.0.conv1.weight": torch.zeros(16, 8, 1, 1)}, r"layer2.0.conv1.weight: got shape \[16"
    )
    _untouched(_weights(config=TKFNetConfig(width=0.25)), "resnet18 at width 0.125; choose the backbone")


def test_partial_weights_are_refused():
    _untouched(
        {k: v for k, v in _weights().items() if not k.startswith("layer4.1")}, r"only part of resnet18: 10 tensors"
    )


def test_nothing_matches():
    _untouched({"encoder.0.weight": torch.zeros(1)}, "no tensor of the file belongs to resnet18: .*encoder.0.weight")
    _untouched({}, "names such as none")


def test_files_of_both_kinds(tmp_path):
    weights = _weights()
    torch.save(weights, tmp_path / "r.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, tmp_path / "c.pt")
    save_file(weights, tmp_path / "r.safetensors")
    for name in ("r.pth", "c.pt", "r.safetensors"):
        model = _model()
        assert len(load_backbone_file(model, tmp_path / name).matched) == len(weights) - 2
        assert _holds(model, weights)


def test_half_weights_load_as_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({k: v.half() if v.is_floating_point() else v for k, v in _weights().items()}, path)
    model = _model()
    load_backbone_file(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class _Evil:
    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_pickle_cannot_run_code(tmp_path, writer):
    target, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {**_weights(), "state_dict": _Evil(str(target))}
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"conv1.weight": _Evil(str(target))}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    model = _model()
    with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
        load_backbone_file(model, path)
    assert not target.exists()
    # The pickle does what it is meant to where nobody is careful.
    if writer == "pickle":
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_files_that_hold_no_state_dict(tmp_path):
    model = _model()
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone_file(model, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone_file(model, tmp_path)
    torch.save(torch.zeros(3), tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="got Tensor, expected a dictionary"):
        load_backbone_file(model, tmp_path / "t.pth")
    torch.save({"epoch": 3}, tmp_path / "e.pth")
    with pytest.raises(CheckpointError, match="no tensor of the file"):
        load_backbone_file(model, tmp_path / "e.pth")
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(500))
        with pytest.raises(CheckpointError, match="cannot be read as tensors only"):
            load_backbone_file(model, tmp_path / name)
