"""Quantisation-aware fine-tuning: it learns what eight bits need, keeps the statistics, resumes, and is refused with a
reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tkfnet_engine.data.transforms import Augmentation
from tkfnet_engine.errors import CheckpointError, DataError, UsageError
from tkfnet_engine.export.ranges_from_data import equalising_shifts
from tkfnet_engine.kernels.network import network_of
from tkfnet_engine.kernels.placement import placement_of
from tkfnet_engine.metrics import Scores, confusion_matrix
from tkfnet_engine.model.checkpoint import load_checkpoint, save_checkpoint
from tkfnet_engine.model.equalise import equalise
from tkfnet_engine.model.fake_quantised import Grid, fake_quantised
from tkfnet_engine.model.fold import fold
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import LABELS, Preprocessing, TKFNetConfig
from tkfnet_engine.train import main
from tkfnet_engine.training import loop
from tkfnet_engine.training.quantisation_aware import QuantisationAware
from tkfnet_engine.training.recipe import PRESETS, Recipe

SIDE, SMALLER = 32, 7
# Almost the usual constants, so that the network knows what it sees; and yet others.
FACTS = Preprocessing(size=SIDE, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.22))
TINY = TKFNetConfig(width=0.0625)
RECIPE = Recipe(
    stages=((SIDE, 6),), batch=14, lr=5e-4, final_lr=1e-5, weight_decay=0.0, augmentation=Augmentation(flip=0.5),
    distillation=0.5,
)  # fmt: skip


class _Faces:
    """Stripes of two colours for each class, under noise."""

    def __init__(self, count: int, seed: int):
        self.name, self.seed, self.labels = f"stripes-{count}-{seed}", seed, np.arange(count) % 7

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> np.ndarray:
        label, rng = int(self.labels[i]), np.random.default_rng([self.seed, i])
        colours = np.random.default_rng(label).integers(60, 196, (2, 3))
        stripes = colours[(np.arange(SIDE) // 4) % 2]
        return np.clip(stripes[:, None] + rng.normal(0, 15, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


# A map of one pixel, as 32 x 32 leaves it, has no variance to weigh.
IDLE = "tafe.beta"
TRAIN, VALIDATION = _Faces(84, 1), _Faces(70, 2)


def _pixels(faces: _Faces) -> np.ndarray:
    return np.stack([faces.image(i) for i in range(len(faces))])


def _hostile(model: TKFNet) -> None:
    """Makes most channels inside each block 128 times smaller than one of them, and their weights as much larger: in
    float nothing changes, and one scale for all leaves them a number or none."""
    for block in model.backbone.blocks:
        by = torch.full_like(block.bn1.weight.data, 2.0**-SMALLER)
        by[0] = 1.0
        block.bn1.weight.data *= by
        block.bn1.bias.data *= by
        block.conv2.weight.data /= by[:, None, None]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> TKFNet:
    """A float network that knows the stripes, made hostile to eight bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TKFNet(TINY)
    recipe = replace(RECIPE, stages=((SIDE, 24),), lr=5e-3, distillation=0.0)
    path = str(tmp_path_factory.mktemp("float") / "state")
    trainer = loop.Trainer(model, recipe, TRAIN, VALIDATION, 0, path, {}, Accelerator(cpu=True))
    trainer.run()
    before = trainer.evaluate(_pixels(VALIDATION), VALIDATION.labels)
    _hostile(model)
    assert trainer.evaluate(_pixels(VALIDATION), VALIDATION.labels) == before
    assert before.accuracy > 0.9, before
    return model.eval()


def _copy(model: TKFNet) -> TKFNet:
    copy = TKFNet(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def _quantised(model: TKFNet, facts: Preprocessing | None = None) -> QuantisationAware:
    """On the grids that the largest values of the training images give."""
    facts = facts or Preprocessing(size=SIDE)
    plain = fold(model, facts)
    shifts = equalising_shifts(plain, _pixels(TRAIN))
    equal, peaks = equalise(plain, shifts), {}
    for point in placement_of(network_of(plain)).points:
        module = equal.get_submodule(point.module)

        def note(_module, inputs, *output, point=point):
            peaks[point.name] = float((output[0] if point.of_output else inputs[0]).abs().max())

        (module.register_forward_hook if point.of_output else module.register_forward_pre_hook)(note)
    with torch.inference_mode():
        equal(torch.from_numpy(_pixels(TRAIN)))
    grids = {name: Grid("int8", float(np.float32(peak / 127))) for name, peak in peaks.items()}
    return QuantisationAware(model, facts, shifts, grids)


def _trainer(path: Path, start: TKFNet, recipe: Recipe = RECIPE, facts: Preprocessing | None = None) -> loop.Trainer:
    model = _copy(start)
    return loop.Trainer(
        model, recipe, TRAIN, VALIDATION, 0, str(path), {"seed": 0}, Accelerator(cpu=True), _quantised(model, facts)
    )


def _bytes(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def _scores(folded) -> Scores:
    with torch.inference_mode():
        predicted = folded(torch.from_numpy(_pixels(VALIDATION))).argmax(1).numpy()
    return Scores.from_confusion(confusion_matrix(VALIDATION.labels, predicted, 7))


def _in_eight_bits(model: TKFNet, quantised: QuantisationAware) -> Scores:
    """As a build would make it, of the grids of the start."""
    folded = equalise(fold(model, quantised.preprocessing), quantised.shifts)
    with fake_quantised(folded, placement_of(network_of(folded)), quantised.grids):
        return _scores(folded)


# --- what is trained ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(learnt, tmp_path_factory):
    """(trainer, its final state) of an uninterrupted fine-tuning."""
    trainer = _trainer(tmp_path_factory.mktemp("qat") / "state", learnt)
    return trainer, trainer.run()


def test_it_learns_what_eight_bits_need(learnt, finished):
    trainer, state = finished
    before, after = _in_eight_bits(learnt, trainer.quantised), _in_eight_bits(trainer.raw, trainer.quantised)
    in_float = _scores(fold(learnt, Preprocessing(size=SIDE)))
    assert before.accuracy < in_float.accuracy - 0.3, "nothing to learn"
    assert after.accuracy > before.accuracy + 0.2, (before, after)
    assert state.history[-1]["loss"] < 0.8 * state.history[0]["loss"], state.history


def test_the_accuracy_in_eight_bits_is_what_is_recorded(learnt, finished):
    trainer, state = finished
    assert state.start_accuracy == _in_eight_bits(learnt, trainer.quantised).accuracy
    assert state.best_accuracy == _in_eight_bits(trainer.raw, trainer.quantised).accuracy
    assert state.best_accuracy == max(h["validation_accuracy"] for h in state.history)
    in_float = trainer.evaluate(_pixels(VALIDATION), VALIDATION.labels, in_float=True)
    assert in_float == _scores(fold(trainer.raw, Preprocessing(size=SIDE)))


def test_statistics_stay_and_every_parameter_moves(learnt, finished):
    trainer, _ = finished
    before, after = learnt.state_dict(), trainer.raw.state_dict()
    assert list(before) == list(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name, _ in learnt.named_parameters()} - {IDLE}


def test_the_start_stays_what_it_was(learnt, finished):
    expected = fold(learnt, Preprocessing(size=SIDE)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in finished[0].quantised.start.state_dict().items())


# --- the network that trains -------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [Preprocessing(size=SIDE), FACTS], ids=["", "other pixels"])
def test_at_the_start_it_is_what_is_built(learnt, facts):
    """With the start's own scales for weights as well, bit for bit."""
    model = _copy(learnt)
    quantised, pixels = _quantised(model, facts), torch.from_numpy(_pixels(VALIDATION)[:9])
    with torch.no_grad(), quantised.as_built() as built:
        expected = built(pixels)
    assert torch.equal(quantised(pixels).detach(), expected)
    # Floating-point pixels, as augmentation leaves them, and a gradient for each parameter.
    logits = quantised(pixels.float())
    assert torch.equal(logits.detach(), expected)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [name for name, p in quantised.named_parameters() if p.requires_grad] == [
        f"model.{name}" for name, _ in model.named_parameters()
    ]


def test_in_float_it_sees_the_pixels_of_its_start(learnt, tmp_path):
    pixels = torch.from_numpy(_pixels(VALIDATION))
    with torch.no_grad(), _trainer(tmp_path / "state", learnt, facts=FACTS)._judged(in_float=True) as network:
        got, expected = network(pixels), fold(learnt, FACTS)(pixels)
        usual = fold(learnt, Preprocessing(size=SIDE))(pixels)
    assert (got - expected).abs().max() < 1e-3 < 0.05 < (usual - expected).abs().max()


def test_weights_are_judged_by_the_scales_that_a_build_finds(learnt):
    """Training holds the start's; when the weights have grown, a build measures others."""
    model = _copy(learnt)
    quantised, pixels = _quantised(model), torch.from_numpy(_pixels(VALIDATION)[:9])
    model.backbone.layer2[0].conv1.weight.data *= 3
    with torch.no_grad(), quantised.as_built() as built:
        assert not torch.equal(quantised(pixels), built(pixels))
        folded = equalise(fold(model, quantised.preprocessing), quantised.shifts)
        with fake_quantised(folded, placement_of(network_of(folded)), quantised.grids):
            assert torch.equal(folded(pixels), built(pixels))


def test_divergence_is_from_the_starts_answers_in_float(learnt):
    quantised, pixels = _quantised(_copy(learnt)), torch.from_numpy(_pixels(VALIDATION)[:9])
    with torch.no_grad():
        own = fold(learnt, Preprocessing(size=SIDE))(pixels)
        other = own.roll(1, 1) / 2
    assert quantised.divergence(pixels, own) == pytest.approx(0, abs=1e-6)
    p = F.softmax(own.double(), 1)
    expected = (p * (p.log() - F.log_softmax(other.double(), 1))).sum(1).mean()
    assert float(quantised.divergence(pixels, other)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_shared_between_labels_and_start(learnt, tmp_path, share):
    trainer = _trainer(tmp_path / "state", learnt, replace(RECIPE, distillation=share))
    pixels, labels = torch.from_numpy(_pixels(VALIDATION)[:9]).float(), torch.from_numpy(VALIDATION.labels[:9])
    with torch.no_grad():
        loss = trainer._loss(pixels.permute(0, 3, 1, 2), labels)
        logits = trainer.quantised(pixels)
        parts = F.cross_entropy(logits, labels), trainer.quantised.divergence(pixels, logits)
    assert float(loss) == pytest.approx(float((1 - share) * parts[0] + share * parts[1]), rel=1e-5)
    assert min(parts) > 0.05


# --- stopped -----------------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_stopped_again_and_again_it_continues_to_the_same_parameters(learnt, tmp_path, monkeypatch):
    recipe = replace(RECIPE, stages=((SIDE, 2),))
    whole = _trainer(tmp_path / "whole", learnt, recipe)
    finished = whole.run()
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    augment, left = loop.augment, [0]

    def stopping(*args):
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return augment(*args)

    monkeypatch.setattr(loop, "augment", stopping)
    stops = 0
    # Before the first step, and after 4, 8 and 12 of them: inside an epoch, and at its end.
    for calls in (0, *[4] * 5):
        trainer = _trainer(tmp_path / "state", learnt, recipe)
        assert trainer.resume() == (stops > 1)
        left[0] = calls
        try:
            state = trainer.run()
            break
        except _Killed:
            stops += 1
    assert stops == 3
    assert _bytes(trainer.raw) == _bytes(whole.raw) != _bytes(learnt)
    assert (state.start_accuracy, state.best_accuracy) == (finished.start_accuracy, finished.best_accuracy)
    json.dumps(state.history, allow_nan=False)


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A folder of stripes: 133 to train on, 14 to validate, 14 to test."""
    root = tmp_path_factory.mktemp("faces")
    for split, count, seed in (("train", 133, 1), ("val", 14, 2), ("test", 14, 3)):
        faces = _Faces(count, seed)
        for i in range(count):
            folder = root / split / LABELS[faces.labels[i]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(faces.image(i)).save(folder / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def start_path(learnt, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start") / "float.safetensors"
    save_checkpoint(path, learnt, {"data": "stripes"}, FACTS)
    return path


ARGUMENTS = ["--qat", "--width", "0.0625", "--batch", "14", "--lr", "5e-4", "--device", "cpu"]


def test_the_command_makes_an_ordinary_checkpoint(learnt, data, start_path, tmp_path, capsys):
    out = tmp_path / "qat.safetensors"
    assert main([*ARGUMENTS, "--init", str(start_path), "--data", data, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    told = captured.err.splitlines()
    for beginning in ("the start in eight bits: validation ", "epoch 1/1 at 32x32: ", "test: ", "test in eight bits: "):
        assert sum(line.startswith(beginning) for line in told) == 1, beginning
    assert sorted(p.name for p in tmp_path.iterdir()) == ["qat.confusion.png", "qat.report.json", "qat.safetensors"]

    start, checkpoint = load_checkpoint(start_path), load_checkpoint(out)
    assert checkpoint.preprocessing == FACTS and checkpoint.model.config == TINY and checkpoint.labels == LABELS
    facts = checkpoint.training
    assert facts["recipe"]["stages"] == [[SIDE, 1]] and facts["recipe"]["distillation"] > 0
    assert facts["qat"]["start"] == start.sha256 and facts["qat"]["images"] == 133
    assert len(facts["qat"]["calibration"]) == 64
    assert 0 <= facts["qat"]["validation_accuracy_before"] <= 1
    assert sum(map(sum, facts["qat"]["test"]["confusion"])) == sum(map(sum, facts["test"]["confusion"])) == 14
    assert facts["test"] == json.loads((tmp_path / "qat.report.json").read_text())["test"]

    # As a build opens it, and with other parameters, but the same statistics, than the start.
    fold(checkpoint.model, checkpoint.preprocessing)
    before, after = start.model.state_dict(), checkpoint.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name, _ in learnt.named_parameters()} - {IDLE}


@pytest.fixture
def uncalibrated(monkeypatch):
    """No calibration in the command: the grids of `_quantised`."""

    def quantised(args, model, initial, accelerator):
        return _quantised(model, initial.preprocessing), {}

    monkeypatch.setattr("tkfnet_engine.train._quantised", quantised)


@pytest.mark.parametrize("forgets", [True, False])
def test_less_accurate_than_its_start_is_said(uncalibrated, data, start_path, tmp_path, capsys, monkeypatch, forgets):
    def epoch(self, size):
        for parameter in self.raw.parameters() if forgets else ():
            parameter.data.zero_()
        return 1.0

    monkeypatch.setattr(loop.Trainer, "_epoch", epoch)
    out = tmp_path / "worse.safetensors"
    assert main([*ARGUMENTS, "--init", str(start_path), "--data", data, "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert ("warning: " in told) == forgets
    if forgets:
        assert f"warning: in eight bits {start_path} scored " in told and f"build from {start_path}" in told


def test_half_is_scored_as_it_is_stored(uncalibrated, data, start_path, tmp_path, monkeypatch):
    scored, evaluate = [], loop.Trainer.evaluate

    def noted(self, *args, **options):
        scored.append((_bytes(self.raw), options.get("in_float", False)))
        return evaluate(self, *args, **options)

    monkeypatch.setattr(loop.Trainer, "evaluate", noted)
    out = tmp_path / "half.safetensors"
    assert main([*ARGUMENTS, "--init", str(start_path), "--data", data, "--out", str(out), "--half"]) == 0
    stored = _bytes(load_checkpoint(out).model)
    assert [in_float for _, in_float in scored[-2:]] == [True, False]
    assert [held == stored for held, _ in scored] == [False, False, True, True]


def test_the_preset():
    recipe = PRESETS["qat"]
    assert recipe.epochs == 1 and recipe.lr < PRESETS["reference"].lr / 10 and recipe.weight_decay == 0
    assert recipe.augmentation == Augmentation()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--init", ""], UsageError, "--qat: got no --init, expected the float checkpoint"),
        (["--init", "none.safetensors"], CheckpointError, "none.safetensors: cannot be read"),
        (["--crop", "margin"], UsageError, "--crop: got margin with --qat"),
        (["--preset", "quick"], UsageError, "--preset: got quick with --qat"),
        (["--backbone-weights", "resnet.pth"], UsageError, "--backbone-weights: got resnet.pth with --qat"),
        (["--stages", "64x1"], UsageError, "--stages: got 64x1, expected 32, the size of .*float.safetensors, alone"),
        (["--stages", "32x1,64x1"], UsageError, "expected 32, the size of"),
        (["--width", "0.125"], UsageError, r"got TKFNetConfig.*width=0\.0625.*give the same network's flags"),
        (["--data", "synthetic:n=35"], DataError, "got 35 training images, expected at least 128"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_cannot_be_is_refused_before_training(data, start_path, tmp_path, monkeypatch, more, error, message):
    monkeypatch.setattr(loop.Trainer, "run", lambda self: pytest.fail("it trains"))
    out = tmp_path / "qat.safetensors"
    with pytest.raises(error, match=message):
        main([*ARGUMENTS, "--init", str(start_path), "--data", data, "--out", str(out), *more])
    assert not out.exists()


def test_the_start_is_never_overwritten(data, start_path):
    before = start_path.read_bytes()
    with pytest.raises(UsageError, match=r"--out: got .*float\.safetensors, which is --init"):
        main([*ARGUMENTS, "--init", str(start_path), "--data", data, "--out", str(start_path), "--restart"])
    assert start_path.read_bytes() == before


def test_another_start_does_not_continue_it(uncalibrated, data, start_path, tmp_path, monkeypatch):
    """The state says from which bytes it started, not only from which file."""

    def stopped(self):
        self._save()
        raise _Killed

    monkeypatch.setattr(loop.Trainer, "run", stopped)
    start, out = tmp_path / "float.safetensors", str(tmp_path / "qat.safetensors")
    start.write_bytes(start_path.read_bytes())
    arguments = [*ARGUMENTS, "--init", str(start), "--data", data, "--out", out]
    for _ in range(2):  # the same start continues
        with pytest.raises(_Killed):
            main(arguments)
    save_checkpoint(start, load_checkpoint(start).model, {"data": "other"}, FACTS)
    with pytest.raises(UsageError, match="interrupted training with another qat;"):
        main(arguments)
