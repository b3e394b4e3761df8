"""The loop: one step after another, from wherever the last checkpoint stands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dla.errors import DlaError
from dla.images.prepare import Preprocessing
from dla.metrics.classify import topk_accuracy
from dla.recipes.schema import Recipe
from dla.verbs.ranks import Ranks
from dla.verbs.train.batches import Batch, to_input, train_batches, val_batches
from dla.verbs.train.state import Checkpoints
from dla.verbs.train.stop import Stop

__all__ = ["Epoch", "Fit"]

CHECKPOINT_SECONDS = 120.0

Photos = tuple[list[Image.Image], np.ndarray[Any, Any]]  # decoded, and their classes


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training photos came to; accuracies are of the averaged weights, 0 to 1."""

    epoch: int
    loss: float
    top1: float
    top5: float
    seconds: float
    photos_per_second: float


class Fit:
    """A run in progress: network, averaged network, optimizer and position."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        preprocessing: Preprocessing,
        folder: Path,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.recipe, self.preprocessing, self.device, self.say = recipe, preprocessing, device, say
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=True,
        )
        self.epoch, self.step, self.loss_sum = 0, 0, 0.0
        self.teacher_NK = np.load(recipe.distill.scores, mmap_mode="r") if recipe.distill.scores else None

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False when there is none."""
        found = self.checkpoints.load_newest(self.say)
        if found is None:
            return False
        tensors, facts = found
        self.model.load_state_dict(_part(tensors, "model."))
        self.average.load_state_dict(_part(tensors, "average."))
        momenta = _part(tensors, "momentum.")
        for name, parameter in self.model.named_parameters():
            if name in momenta:
                self.optimizer.state[parameter]["momentum_buffer"] = momenta[name].to(self.device)
        self.epoch, self.step, self.loss_sum = facts["epoch"], facts["step"], facts["loss_sum"]
        return True

    def checkpoint(self, steps_per_epoch: int) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            if "momentum_buffer" in self.optimizer.state[parameter]:
                tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        facts = {"epoch": self.epoch, "step": self.step, "loss_sum": self.loss_sum}
        self.checkpoints.save(self.epoch * steps_per_epoch + self.step, tensors, facts)

    def run(
        self,
        train: Photos,
        val: Photos,
        workers: int,
        report: Callable[[Epoch], None],
        progress: Callable[[int, int, int, float], None],
    ) -> None:
        """Train to the last epoch. `report` hears of each epoch, `progress` of each step (epoch, step, of, loss).

        A SIGINT or SIGTERM ends it with a checkpoint, within a step.
        """
        with Stop(Ranks()) as stop:
            self._run(train, val, workers, report, progress, stop)

    def _run(
        self,
        train: Photos,
        val: Photos,
        workers: int,
        report: Callable[[Epoch], None],
        progress: Callable[[int, int, int, float], None],
        stop: Stop,
    ) -> None:
        steps = len(train[0]) // self.recipe.batch_size
        saved = time.monotonic()
        while self.epoch < self.recipe.epochs:
            began, first = time.monotonic(), self.step
            for batch in train_batches(*train, self.recipe, self.epoch, self.step, workers):
                loss = self._step(batch, (self.epoch * steps + self.step) / steps)
                self.loss_sum += loss
                self.step += 1
                progress(self.epoch, self.step, steps, loss)
                if stop.wanted():
                    self._stop(stop, steps)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.checkpoint(steps)
                    saved = time.monotonic()
            seconds = time.monotonic() - began
            accuracy = self.validate(val, workers, lambda: self._stop(stop, steps) if stop.wanted() else None)
            rate = (self.step - first) * self.recipe.batch_size / seconds
            done = Epoch(self.epoch, self.loss_sum / steps, **accuracy, seconds=seconds, photos_per_second=rate)
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self.checkpoint(steps)
            saved = time.monotonic()
            report(done)

    def _stop(self, stop: Stop, steps: int) -> NoReturn:
        self.checkpoint(steps)
        self.say(f"Saved at step {self.epoch * steps + self.step}. The same command goes on from here.")
        stop.leave()

    @torch.inference_mode()
    def validate(self, val: Photos, workers: int, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Accuracy of the averaged weights, 0 to 1, on photos as `dla predict` would see them.

        `between` is called before each batch.
        """
        self.average.eval()
        scores = []
        for batch in val_batches(*val, self.preprocessing, 100, workers):
            between()
            scores.append(self.average(to_input(batch.pixels_NHW3, self.preprocessing, self.device)).cpu().numpy())
        return {f"top{k}": topk_accuracy(np.concatenate(scores), val[1], k) for k in (1, 5)}

    def _step(self, batch: Batch, progress_epochs: float) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, progress_epochs)
        logits_NK = self.model(to_input(batch.pixels_NHW3, self.preprocessing, self.device))
        loss = self._loss(logits_NK, batch)
        if not math.isfinite(value := loss.item()):
            raise DlaError(f"the loss is {value} at epoch {self.epoch + 1}, step {self.step}. Try a lower lr")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return value

    def _loss(self, logits_NK: Tensor, batch: Batch) -> Tensor:
        targets = torch.from_numpy(batch.targets_N).to(self.device)
        loss = F.cross_entropy(logits_NK, targets, label_smoothing=self.recipe.label_smoothing)
        if self.teacher_NK is None:
            return loss
        share, t = self.recipe.distill.weight, self.recipe.distill.temperature
        teacher_NK = torch.from_numpy(self.teacher_NK[batch.rows_N].astype(np.float32)).to(self.device)
        divergence = F.kl_div(
            (logits_NK / t).log_softmax(1), (teacher_NK / t).log_softmax(1), log_target=True, reduction="batchmean"
        )
        return (1 - share) * loss + share * t * t * divergence


def learning_rate(recipe: Recipe, progress_epochs: float) -> float:
    """Linear from 0 over the warm-up, then half a cosine down to 0 at the last epoch."""
    if progress_epochs < recipe.warmup_epochs:
        return recipe.lr * progress_epochs / recipe.warmup_epochs
    share = (progress_epochs - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * share))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
