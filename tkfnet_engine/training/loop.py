"""The training loop: one process or many (`torchrun`), resumable after a kill at any moment.

Every random draw comes from (seed, epoch, step, process), never from what ran before, so a resumed run takes
the same steps as one that was never interrupted.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..atomic import write_atomically
from ..console import progress, say
from ..data.cache import load_all, resize_all
from ..data.transforms import augment
from ..errors import CheckpointError, UsageError
from ..metrics import Scores, confusion_matrix
from ..model.net import TKFNet, normalise
from .quantisation_aware import QuantisationAware
from .recipe import Recipe

SAVE_EVERY_S = 120.0
EVALUATION_BATCH = 64


@dataclass
class State:
    """Where training stands; all of it is in the state file. start_accuracy: in quantisation-aware training, of the
    start in eight bits."""

    epoch: int
    step: int
    history: list[dict[str, Any]]
    best_accuracy: float
    best: dict[str, Tensor] | None
    seconds: float
    start_accuracy: float | None = None


class Trainer:
    """Trains `model` on `train` by `recipe`; `validation` chooses the epoch, among those of the last size.

    train, validation: face sets (`data.open_data`). state_path: where progress is kept. identity: facts that
    a state file must share with this run to be continued (data, recipe, seed ..). quantised: of `model`; it is trained,
    and scored, as it computes in eight bits.
    """

    def __init__(
        self,
        model: TKFNet,
        recipe: Recipe,
        train: Any,
        validation: Any,
        seed: int,
        state_path: str,
        identity: dict[str, Any],
        accelerator: Accelerator,
        quantised: QuantisationAware | None = None,
    ):
        self.accelerator, self.recipe, self.seed = accelerator, recipe, seed
        self.train_faces, self.validation_faces = train, validation
        self.state_path, self.identity = state_path, identity
        self.per_process, rest = divmod(recipe.batch, accelerator.num_processes)
        if rest or self.per_process < 2:
            raise UsageError(
                f"batch {recipe.batch} over {accelerator.num_processes} processes: expected the same number, at least "
                "2, for each; change --batch"
            )
        # A last batch that is not full would give batch norm other statistics: it is left out.
        self.steps_per_epoch = len(train) // (self.per_process * accelerator.num_processes)
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"{train.name}: got {len(train)} training images, expected at least one batch of {recipe.batch}; "
                "lower --batch"
            )
        optimizer = recipe.optimizer_of(model)
        self.raw, self.quantised = model, quantised
        trained = model if quantised is None else quantised
        self.model, self.optimizer = accelerator.prepare(trained.to(memory_format=torch.channels_last), optimizer)
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
        self.state = State(0, 0, [], -1.0, None, 0.0)
        self._clock = time.monotonic()
        self._decoded: dict[str, np.ndarray] = {}
        self._resized: dict[str, Any] = {}

    def run(self) -> State:
        """Trains to the end and leaves the chosen epoch's parameters in the model."""
        last_size = self.recipe.stages[-1][0]
        if self.quantised is not None and self.state.start_accuracy is None:
            start = self.evaluate(self._cached(self.validation_faces, last_size), self.validation_faces.labels)
            self.state.start_accuracy = start.accuracy
            self._say(f"the start in eight bits: validation {start}")
        while self.state.epoch < self.recipe.epochs:
            size = self.recipe.size_of(self.state.epoch)
            started = time.monotonic()
            loss = self._epoch(size)
            if not math.isfinite(loss):
                raise CheckpointError(
                    f"training diverged in epoch {self.state.epoch + 1}: the loss is {loss}; lower --lr, and start "
                    "afresh with --restart"
                )
            scores = self.evaluate(self._cached(self.validation_faces, size), self.validation_faces.labels)
            self.state.history.append(
                {
                    "epoch": self.state.epoch,
                    "size": size,
                    "loss": round(loss, 4),
                    "validation_accuracy": scores.accuracy,
                }
            )
            if size == last_size and scores.accuracy > self.state.best_accuracy:
                self.state.best_accuracy = scores.accuracy
                self.state.best = {k: v.detach().cpu().clone() for k, v in self.raw.state_dict().items()}
            self.state.epoch, self.state.step = self.state.epoch + 1, 0
            self._save()
            self._say(
                f"epoch {self.state.epoch}/{self.recipe.epochs} at {size}x{size}: loss {loss:.3f}, "
                f"validation {scores}, {time.monotonic() - started:.0f} s"
            )
        assert self.state.best is not None
        self.raw.load_state_dict(self.state.best)
        return self.state

    def _epoch(self, size: int) -> float:
        """The rest of the current epoch; returns the mean loss of the steps taken here."""
        images, labels = self._cached(self.train_faces, size), torch.from_numpy(self.train_faces.labels)
        recipe, total = self.recipe, self.recipe.epochs * self.steps_per_epoch
        self.model.train()
        losses, saved = [], time.monotonic()
        batches = self._batches(self.state.epoch, self.state.step)
        if self.accelerator.is_main_process:
            what = f"epoch {self.state.epoch + 1}/{recipe.epochs} at {size}x{size}, steps of {recipe.batch} images"
            batches = progress(batches, what, self.steps_per_epoch - self.state.step)
        for step, batch in batches:
            position = self.state.epoch * self.steps_per_epoch + step
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate(position, total)
            draw = [self.seed, self.state.epoch, step, self.accelerator.process_index]
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(draw).generate_state(1)[0]))
            pixels = torch.from_numpy(images[batch]).permute(0, 3, 1, 2).float().to(self.accelerator.device)
            pixels = augment(pixels, recipe.augmentation, generator)
            with self.accelerator.autocast():
                loss = self._loss(pixels, labels[batch].to(self.accelerator.device))
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.optimizer.step()
            losses.append(loss.detach())
            self.state.step = step + 1
            now = time.monotonic()
            if now - saved > SAVE_EVERY_S and self.state.step < self.steps_per_epoch:
                self._save()
                saved = now
        return float(torch.stack(losses).mean()) if losses else float("nan")

    def _loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Of one batch, pixels float32 [N, 3, S, S] in 0..255."""
        pixels = pixels.permute(0, 2, 3, 1)
        if self.quantised is None:
            x = normalise(pixels).contiguous(memory_format=torch.channels_last)
            return self.loss(self.model(x).float(), labels)
        logits, share = self.model(pixels), self.recipe.distillation
        return (1 - share) * self.loss(logits, labels) + share * self.quantised.divergence(pixels, logits)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """(step, indices of this process's share) from `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train_faces))
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for step in range(start, self.steps_per_epoch):
            whole = order[step * self.per_process * world : (step + 1) * self.per_process * world]
            yield step, np.sort(whole[rank::world])

    @torch.no_grad()
    def evaluate(self, images: np.ndarray, labels: np.ndarray, in_float: bool = False) -> Scores:
        """Scores of the current parameters; images: uint8 [N, S, S, 3]. The processes share the work.

        in_float: of the float network, where a quantised one is trained.
        """
        self.raw.eval()
        if self.accelerator.num_processes > 1:
            # Batch norm's running statistics are each process's own; the first one's are saved, so they are scored.
            for buffer in self.raw.buffers():
                torch.distributed.broadcast(buffer, 0)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = np.arange(len(images))[rank::world]
        matrix = np.zeros((self.raw.config.classes,) * 2, np.int64)
        with self._judged(in_float) as network:
            for start in range(0, len(mine), EVALUATION_BATCH):
                batch = mine[start : start + EVALUATION_BATCH]
                pixels = torch.from_numpy(images[batch]).to(self.accelerator.device)
                predicted = network(pixels).argmax(1).cpu().numpy()
                matrix += confusion_matrix(labels[batch], predicted, len(matrix))
        whole = self.accelerator.reduce(torch.from_numpy(matrix).to(self.accelerator.device), "sum")
        return Scores.from_confusion(whole.cpu().numpy())

    @contextmanager
    def _judged(self, in_float: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """uint8 pixels [N, S, S, 3] -> logits."""
        if self.quantised is None:
            yield lambda pixels: self.raw(normalise(pixels))
        elif in_float:
            yield lambda pixels: self.raw(normalise(pixels, self.quantised.preprocessing))
        else:
            with self.quantised.as_built() as network:
                yield network

    def _cached(self, faces: Any, size: int) -> np.ndarray:
        """The images of `faces` at `size`; decoded once at the largest size of the recipe, then shrunk."""
        if faces.name not in self._decoded:
            self._decoded[faces.name] = load_all(faces, max(s for s, _ in self.recipe.stages))
        if self._resized.get("size") != size:
            self._resized = {"size": size}
        if faces.name not in self._resized:
            self._resized[faces.name] = resize_all(self._decoded[faces.name], size)
        return self._resized[faces.name]

    def _say(self, message: str) -> None:
        if self.accelerator.is_main_process:
            say(message)

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        now = time.monotonic()
        self.state.seconds, self._clock = self.state.seconds + now - self._clock, now
        buffer = io.BytesIO()
        state = {
            "identity": self.identity,
            "model": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.state),
        }
        torch.save(state, buffer)
        write_atomically(self.state_path, buffer.getbuffer())

    def resume(self) -> bool:
        """Continues from the state file if there is one; `UsageError` if it belongs to another run."""
        if not os.path.exists(self.state_path):
            return False
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            identity = state["identity"]
        except Exception as error:  # torch.load raises a dozen kinds for a damaged file
            raise CheckpointError(
                f"{self.state_path}: the kept training state cannot be read ({type(error).__name__}); "
                "delete it to start afresh"
            ) from error
        if identity != self.identity:
            changed = sorted(k for k in self.identity if identity.get(k) != self.identity[k])
            raise UsageError(
                f"{self.state_path}: holds an interrupted training with another {', '.join(changed)}; give the same "
                "arguments to continue it, or --restart (or another --out) to start afresh"
            )
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.state = State(**state["progress"])
        self._say(f"continuing {self.state_path} at epoch {self.state.epoch + 1}, step {self.state.step}")
        return True
