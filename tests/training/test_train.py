"""Training: end to end, resumed after a kill, in two processes, and refused with a reason."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tkfnet_engine.data.transforms import Augmentation
from tkfnet_engine.errors import CheckpointError, DataError, UsageError
from tkfnet_engine.model.checkpoint import load_checkpoint
from tkfnet_engine.model.net import TKFNet
from tkfnet_engine.spec import LABELS, TKFNetConfig
from tkfnet_engine.train import main
from tkfnet_engine.training import loop
from tkfnet_engine.training.recipe import PRESETS, Recipe

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
TINY = TKFNetConfig(width=0.0625)
ARGUMENTS = [
    "--data", "synthetic:n=140,seed=1", "--preset", "quick", "--stages", "48x2,64x1", "--batch", "16",
    "--width", "0.125", "--device", "cpu", "--crop", "margin",
]  # fmt: skip


def _run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options
    )


def _parameters(path) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in load_checkpoint(path).model.state_dict().items()}


# --- the whole command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(checkpoint, finished process) of one uninterrupted training."""
    out = tmp_path_factory.mktemp("train") / "x.safetensors"
    return out, _run("-m", "tkfnet_engine.train", *ARGUMENTS, "--out", str(out))


def test_end_to_end(finished):
    out, process = finished
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert lines[0].startswith("140 training, 28 validation, 28 test images; ")
    assert [line[:19] for line in lines[1:4]] == [f"epoch {e}/3 at {s}x{s}:" for e, s in ((1, 48), (2, 48), (3, 64))]
    # The state file is gone, nothing else was left.
    assert sorted(p.name for p in out.parent.iterdir()) == ["x.confusion.png", "x.report.json", "x.safetensors"]

    checkpoint = load_checkpoint(out)
    facts = checkpoint.training
    assert checkpoint.model.config == TKFNetConfig(width=0.125) and checkpoint.labels == LABELS
    assert checkpoint.preprocessing.crop == "margin"
    assert facts["command"] == "python -m tkfnet_engine.train " + " ".join(ARGUMENTS) + f" --out {out}"
    assert (facts["data"], facts["seed"], facts["train_images"]) == ("synthetic:n=140,seed=1", 0, 140)
    assert facts["recipe"]["stages"] == [[48, 2], [64, 1]] and facts["recipe"]["batch"] == 16
    assert [(h["epoch"], h["size"]) for h in facts["history"]] == [(0, 48), (1, 48), (2, 64)]
    assert all(0 < h["loss"] < 10 for h in facts["history"])
    assert sum(map(sum, facts["test"]["confusion"])) == 28
    assert facts["validation_accuracy"] == facts["history"][-1]["validation_accuracy"]

    report = json.loads((out.parent / "x.report.json").read_text())
    assert report == {"labels": list(LABELS), "test": facts["test"], "training": facts}
    with Image.open(out.parent / "x.confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


# `kill -9` cannot be caught, so nothing in the process may prepare for it. Saving after every step and slow steps
# make it land inside an epoch.
DRIVER = """
import sys, time
from tkfnet_engine.training import loop
loop.SAVE_EVERY_S = 0.0
delay, augment = float(sys.argv[1]), loop.augment
def slow(*args):
    time.sleep(delay)
    return augment(*args)
loop.augment = slow
from tkfnet_engine.console import run_command
from tkfnet_engine.train import main
run_command(main, sys.argv[2:])
"""


@POSIX
def test_kill_9_and_again_gives_the_uninterrupted_parameters(finished, tmp_path):
    driver, out = tmp_path / "driver.py", tmp_path / "k.safetensors"
    driver.write_text(DRIVER)
    state_path, environment = Path(f"{out}.training"), ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    moment = random.uniform(0, 1)
    process = subprocess.Popen(
        [sys.executable, str(driver), "0.2", *ARGUMENTS, "--out", str(out)], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not state_path.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moment)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    progress = torch.load(state_path, weights_only=True)["progress"]
    assert 0 < progress["step"] < 8, f"killed {moment:.3f} s after the first state: {progress['epoch']}"
    assert not out.exists()

    again = _run("-m", "tkfnet_engine.train", *ARGUMENTS, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert f"continuing {state_path} at epoch {progress['epoch'] + 1}, step {progress['step']}" in again.stderr
    assert _parameters(out) == _parameters(finished[0]), f"killed {moment:.3f} s after the first state"
    assert load_checkpoint(out).training["test"] == load_checkpoint(finished[0]).training["test"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "driver.py", "k.confusion.png", "k.report.json", "k.safetensors"
    ]  # fmt: skip


RANKS = """
import sys
import torch
from tkfnet_engine.training import loop
run = loop.Trainer.run
def recorded(self):
    state = run(self)
    rank = self.accelerator.process_index
    torch.save({"last": self.last, "chosen": self.raw.state_dict(), "world": self.accelerator.num_processes},
               f"{sys.argv[1]}.{rank}")
    return state
save = loop.Trainer._save
def remembered(self):
    self.last = {k: v.clone() for k, v in self.raw.state_dict().items()}
    save(self)
loop.Trainer.run, loop.Trainer._save = recorded, remembered
from tkfnet_engine.console import run_command
from tkfnet_engine.train import main
run_command(main, sys.argv[2:])
"""


@pytest.fixture(scope="module")
def distributed(tmp_path_factory):
    """(checkpoint, finished process, what each rank held) of a training in two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    driver, out = folder / "driver.py", folder / "d.safetensors"
    driver.write_text(RANKS)
    # 175 faces do not divide by the batch, nor 35 test images by two processes.
    arguments = ["--data", "synthetic:n=175,seed=1", *ARGUMENTS[2:4], "--stages", "48x2", *ARGUMENTS[6:]]
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(driver),
         str(folder / "rank"), *arguments, "--out", str(out)],
        cwd=ROOT, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return out, process, [torch.load(f"{folder / 'rank'}.{r}", weights_only=True) for r in range(2)]


def test_two_processes_finish_as_one(distributed):
    out, process, ranks = distributed
    assert [r["world"] for r in ranks] == [2, 2]
    # Only one of them speaks and writes.
    assert process.stderr.count("175 training, 35 validation, 35 test images") == 1
    assert process.stderr.count("wrote ") == process.stderr.count("epoch 2/2 at") == 1
    checkpoint = load_checkpoint(out)
    assert sum(map(sum, checkpoint.training["test"]["confusion"])) == 35
    assert np.array(checkpoint.training["test"]["confusion"]).sum(1).tolist() == [5] * 7
    assert [name for name in os.listdir(out.parent) if name.endswith((".training", ".tmp"))] == []


def test_two_processes_hold_equal_parameters(distributed):
    out, _, (first, second) = distributed
    names = [name for name, _ in TKFNet(TKFNetConfig(width=0.125)).named_parameters()]
    for which in ("last", "chosen"):
        for name in names:
            assert torch.equal(first[which][name], second[which][name]), name
    assert _parameters(out) == {k: v.numpy().tobytes() for k, v in first["chosen"].items()}


def test_two_processes_score_the_network_that_is_saved(distributed):
    _, _, (first, second) = distributed
    for which in ("last", "chosen"):
        assert all(torch.equal(first[which][name], second[which][name]) for name in first[which])


# --- the loop, in this process -----------------------------------------------------------------------------


class _Faces:
    """One colour per class with a little noise: learnt in a few steps."""

    def __init__(self, count: int, seed: int, name: str = ""):
        self.name = name or f"colours-{count}-{seed}"
        self.labels = np.arange(count) % 7
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, i])
        colour = np.random.default_rng(int(self.labels[i])).integers(0, 256, 3)
        return np.clip(colour + rng.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8)


RECIPE = Recipe(
    stages=((32, 2), (40, 1)), batch=14, lr=3e-3, final_lr=1e-4, augmentation=Augmentation(rotate=10.0, erase=0.5)
)


def _trainer(
    path, recipe: Recipe = RECIPE, seed: int = 0, images: int = 50, identity: dict | None = None
) -> loop.Trainer:
    torch.manual_seed(seed)
    return loop.Trainer(
        TKFNet(TINY), recipe, _Faces(images, 1), _Faces(14, 2), seed, str(path), identity or {"seed": seed},
        Accelerator(cpu=True),
    )  # fmt: skip


def _bytes(trainer: loop.Trainer) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in trainer.raw.state_dict().items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(parameters, final state) of the small training below, never stopped."""
    trainer = _trainer(tmp_path_factory.mktemp("loop") / "state")
    state = trainer.run()
    return _bytes(trainer), state


# Guessing costs log 7 = 1.95. The network is the smallest there is, so it takes some hundred steps.
@pytest.mark.parametrize(("preset", "lr", "size", "epochs"), [("quick", 5e-3, 32, 40), ("paper", 0.01, 48, 25)])
def test_loss_falls_on_a_tiny_set(tmp_path, preset, lr, size, epochs):
    recipe = replace(
        PRESETS[preset], stages=((size, epochs),), batch=14, lr=lr, final_lr=lr / 100, augmentation=Augmentation()
    )
    state = _trainer(tmp_path / "state", recipe).run()
    losses = [h["loss"] for h in state.history]
    assert losses[0] > 1.7 and losses[-1] < 0.65 * losses[0], losses
    assert state.best_accuracy > 0.5


def test_the_best_epoch_of_the_last_size_is_kept(tmp_path, monkeypatch):
    """Epochs score 0.9 (another size), 0.4, 0.8, 0.8, 0.3: the first 0.8 is kept."""
    scores, seen = iter([0.9, 0.4, 0.8, 0.8, 0.3]), []
    evaluate = loop.Trainer.evaluate

    def pretended(self, images, labels):
        seen.append(_bytes(self))
        return replace(evaluate(self, images, labels), accuracy=next(scores))

    monkeypatch.setattr(loop.Trainer, "evaluate", pretended)
    trainer = _trainer(tmp_path / "state", replace(RECIPE, stages=((32, 1), (40, 4))))
    state = trainer.run()
    assert state.best_accuracy == 0.8 and _bytes(trainer) == seen[2]
    assert len(set(map(str, seen))) == 5


def test_steps_cover_the_set_once_and_leave_out_a_partial_batch(tmp_path):
    trainer = _trainer(tmp_path / "state", images=50)
    assert trainer.steps_per_epoch == 3
    first, second = ([b for _, b in trainer._batches(epoch, 0)] for epoch in (0, 1))
    for batches in (first, second):
        assert [len(b) for b in batches] == [14] * 3 and len(set(np.concatenate(batches))) == 42
    assert not np.array_equal(first[0], second[0])
    rest = list(trainer._batches(0, 2))
    assert [step for step, _ in rest] == [2] and np.array_equal(rest[0][1], first[2])


class _Killed(BaseException):
    pass


# 3 steps in each of 3 epochs; 0 is before the first, and each epoch is evaluated and saved after its last.
@pytest.mark.parametrize("where", ["augment", "evaluate", "save"])
def test_stopped_at_every_point_it_continues_to_the_same_parameters(tmp_path, monkeypatch, uninterrupted, where):
    expected, finished = uninterrupted
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    owner, name = {
        "augment": (loop, "augment"),
        "evaluate": (loop.Trainer, "evaluate"),
        "save": (loop.Trainer, "_save"),
    }[where]
    original = getattr(owner, name)
    left = [0]

    def stopping(*args):
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return original(*args)

    monkeypatch.setattr(owner, name, stopping)
    stops = 0
    # Every run gets one call further than the one before it had begun, so each of them is cut once.
    for calls in (0, *[1] * 40):
        trainer = _trainer(tmp_path / "state")
        trainer.resume()
        left[0] = calls
        try:
            state = trainer.run()
            break
        except _Killed:
            stops += 1
    assert stops >= {"augment": 9, "evaluate": 3, "save": 9}[where]
    assert _bytes(trainer) == expected
    assert state.best_accuracy == finished.best_accuracy and state.epoch == 3
    validation = [[h["epoch"], h["validation_accuracy"]] for h in finished.history]
    assert [[h["epoch"], h["validation_accuracy"]] for h in state.history] == validation
    # A loss that is not a number could not be written to the checkpoint.
    json.dumps(state.history, allow_nan=False)


def test_resuming_a_finished_training_changes_nothing(tmp_path, uninterrupted):
    path = tmp_path / "state"
    _trainer(path).run()
    trainer = _trainer(path)
    assert trainer.resume() is True
    trainer.run()
    assert _bytes(trainer) == uninterrupted[0]


def test_time_between_saves(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(loop.Trainer, "_save", lambda self: saves.append((self.state.epoch, self.state.step)))
    _trainer(tmp_path / "state").run()
    assert saves == [(1, 0), (2, 0), (3, 0)]  # an epoch here is far shorter than SAVE_EVERY_S


def test_seeds_differ_and_repeat(tmp_path, uninterrupted):
    results = []
    for seed in (0, 1, 2):
        trainer = _trainer(tmp_path / f"state{seed}", seed=seed)
        trainer.run()
        results.append(_bytes(trainer))
    assert results[0] == uninterrupted[0]
    name = "head.6.weight"
    assert len({r[name] for r in results}) == 3


def test_the_seed_decides_the_order_and_not_only_the_start(tmp_path):
    orders = [
        np.concatenate([b for _, b in _trainer(tmp_path / "s", seed=s)._batches(0, 0)]).tolist() for s in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1]


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_state_of_another_run_is_refused_and_kept(tmp_path):
    path = tmp_path / "state"
    _trainer(path, identity={"seed": 0, "data": "a"}).run()
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"another data, seed; give the same arguments .*--restart"):
        _trainer(path, identity={"seed": 1, "data": "b"}).resume()
    assert path.read_bytes() == before
    assert _trainer(tmp_path / "none").resume() is False


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04" + b"\0" * 64], ids=["empty", "text", "zip"])
def test_a_damaged_state_says_so(tmp_path, content):
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read .*delete it to start afresh"):
        _trainer(path).resume()


class _Evil:
    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_state_file_cannot_run_code(tmp_path):
    path, target = tmp_path / "state", tmp_path / "executed"
    torch.save({"identity": {"seed": 0}, "model": _Evil(str(target))}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        _trainer(path).resume()
    assert not target.exists()


def test_too_few_images_for_a_batch(tmp_path):
    with pytest.raises(UsageError, match=r"got 13 training images, expected at least one batch of 14; lower --batch"):
        _trainer(tmp_path / "state", images=13)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`main` with the small arguments above and others appended; training itself stops before its first step."""

    def stop(self):
        raise _Killed

    monkeypatch.setattr(loop.Trainer, "run", stop)
    out = str(tmp_path / "x.safetensors")
    return lambda *more: main([*ARGUMENTS, "--out", out, *more])


def test_resume_with_other_arguments_is_refused_and_restart_discards(command, tmp_path, monkeypatch):
    state = tmp_path / "x.safetensors.training"
    run = loop.Trainer.run
    monkeypatch.setattr(loop.Trainer, "run", lambda self: (self._save(), run(self)))
    with pytest.raises(_Killed):
        command()
    monkeypatch.setattr(loop.Trainer, "run", run)
    before = state.read_bytes()
    for more, what in (
        (["--seed", "1"], "seed"), (["--lr", "0.5"], "recipe"), (["--stages", "48x2"], "recipe"),
        (["--batch", "8"], "recipe"), (["--data", "synthetic:n=140,seed=2"], "data, train_fingerprint"),
        (["--width", "0.25"], "model"),
        (["--no-tafe"], "model"), (["--pool", "nearest"], "model"), (["--preset", "paper"], "recipe"),
        (["--crop", "five-point"], "crop"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"interrupted training with another {what}; .*--restart"):
            command(*more)
        assert state.read_bytes() == before
    with pytest.raises(_Killed):  # the same arguments continue
        command()
    assert state.exists()
    with pytest.raises(_Killed):
        command("--seed", "1", "--restart")
    assert not state.exists()


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--data", "rafdb:/nonexistent"], DataError, "/nonexistent: nothing there"),
        (["--data", "faces"], UsageError, "unknown data set"),
        (["--out", "x.pth"], UsageError, "ends in .safetensors"),
        (["--stages", "48"], UsageError, "expected SIZExEPOCHS"),
        (["--stages", "48x0"], UsageError, "got 48x0"),
        (["--stages", "16x1"], UsageError, "got 16x1"),
        (["--batch", "1"], UsageError, "batch 1"),
        (["--batch", "0"], UsageError, "batch 0"),
        (["--lr", "0"], UsageError, r"lr 0\.0"),
        (["--lr", "-1"], UsageError, r"lr -1\.0"),
        (["--batch", "512"], UsageError, "expected at least one batch of 512"),
        (["--width", "9"], UsageError, "width: got 9"),
        (["--init", "none.safetensors"], CheckpointError, "none.safetensors: cannot be read"),
        (["--backbone-weights", "none.pth"], CheckpointError, "none.pth: no such file"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_arguments_are_refused_before_training(command, more, error, message):
    with pytest.raises(error, match=message):
        command(*more)


def test_a_negative_seed_is_refused(command):
    with pytest.raises(UsageError, match="seed"):
        command("--seed", "-1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced(command):
    with pytest.raises(UsageError, match="--device cuda: got no usable NVIDIA GPU"):
        command("--device", "cuda")


def test_a_data_error_reaches_the_person_as_one_line(tmp_path):
    process = _run(
        "-m", "tkfnet_engine.train", "--data", f"folder:{tmp_path}/none", "--out", str(tmp_path / "x.safetensors")
    )
    assert (process.returncode, process.stdout) == (DataError.exit_code, "")
    assert process.stderr.startswith("error: folder: ") and process.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_diverged_training_is_an_error_of_ours(tmp_path):
    from tkfnet_engine.errors import TkfnetError

    try:
        state = _trainer(tmp_path / "state", replace(RECIPE, lr=1e30, final_lr=1e29, optimizer="sgd")).run()
        json.dumps(state.history, allow_nan=False)
    except TkfnetError:
        return


# --- the recipe --------------------------------------------------------------------------------------------


def test_the_published_recipe():
    paper = PRESETS["paper"]
    assert (paper.stages, paper.batch, paper.optimizer, paper.power) == (((224, 60),), 128, "sgd", 0.5)
    steps = 60 * (12_271 // 128)
    assert paper.learning_rate(0, steps) == pytest.approx(0.1)
    assert paper.learning_rate(steps // 2, steps) == pytest.approx(0.09 * 0.5**0.5 + 0.01)
    assert paper.learning_rate(steps - 1, steps) == pytest.approx(0.01, abs=0.002)
    optimizer = paper.optimizer_of(torch.nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.9


def test_one_cycle_rises_then_falls():
    rates = [PRESETS["quick"].learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(2e-3) == rates[100]
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:])) and rates[-1] < 2e-5


def test_stages():
    recipe = PRESETS["quick"].with_stages("80x2,112x1,224x3")
    assert recipe.epochs == 6 and [recipe.size_of(e) for e in range(7)] == [80, 80, 112, 224, 224, 224, 224]
    json.dumps(recipe.to_dict(), allow_nan=False)
    for wrong in ("", "80", "80x", "x2", "80x1x1", "80x1;96x1", "80x1,", "481x1", "31x1", "80x-1"):
        with pytest.raises(UsageError, match="expected SIZExEPOCHS"):
            PRESETS["quick"].with_stages(wrong)
