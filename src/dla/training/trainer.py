"""The training loop, which can continue from any step."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dla.errors import DlaError, UsageError
from dla.models.dense import Dense
from dla.models.normalize import Normalize
from dla.training.batches import TrainBatches
from dla.training.distributed import Ranks
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.model import InitialModel, train_mode
from dla.training.optim import (
    Autocast,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    make_ema,
    optimizer_state,
    set_rate,
)
from dla.training.recipe import Recipe
from dla.training.task import Batch, BatchLabels, Objective, Validator
from dla.types import Array
from dla.weights.load import load_state
from dla.weights.model_folder import half_precision


@dataclass
class Position:
    """The position of a run: `step` steps into epoch `epoch` (both from 0), with `loss_sum` the sum of their losses.

    `best` is the task's score on the validation photos in the best epoch so far, such as (top-1, negative loss);
    `since_best` counts the epochs after it.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: tuple[float, ...] | None = None
    since_best: int = 0


class Trainer:
    """A run in progress: network, weight average, optimizer and position. It reads and writes no files.

    `state` and `load_state` save and restore everything that the next step depends on.
    """

    def __init__(
        self,
        initial: InitialModel,
        recipe: Recipe,
        objective: Objective,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.recipe, self.objective, self.device, self.ranks = recipe, objective, device, ranks
        self.preprocessing = initial.preprocessing
        layout = torch.channels_last if recipe.compute.channels_last else torch.contiguous_format
        network = _with_sync_batch_norm(initial.network, device) if recipe.compute.sync_batch_norm else initial.network
        self.network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.layout = layout
        self.average = make_ema(self.network, recipe.average)
        self.optimizer = build_optimizer(self.network, recipe)
        self.precision = Autocast(recipe.compute.autocast, device)
        self.normalize = Normalize(*self.preprocessing.scale_shift()).to(device)
        train_mode(self.network, recipe.freeze)
        self.parallel = DistributedDataParallel(self.network) if ranks.world > 1 else None
        self.forward: Callable[[Tensor], Any] = self.parallel or self.network
        if recipe.compute.compile:
            self.forward = torch.compile(self.forward)
        self.position = Position()

    @property
    def done(self) -> bool:
        """Return whether the last epoch is over, or the recipe's patience is exhausted."""
        patience = self.recipe.stop.patience
        return self.position.epoch >= self.recipe.epochs or 0 < patience <= self.position.since_best

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the next step depends on: tensors by name, and plain values."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer, self.network).items()}
        return tensors, {**asdict(self.position), "scaler": self.precision.state()}

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.network.load_state_dict(_part(tensors, "network."))
        if self.average is not None:
            self.average.load_state_dict(_part(tensors, "average."))
        load_optimizer_state(self.optimizer, self.network, _part(tensors, "optimizer."))
        at = {key: value for key, value in facts.items() if key in vars(self.position)}
        self.position = Position(**at | {"best": at["best"] and tuple(at["best"])})
        self.precision.load_state(facts["scaler"])

    def run(self, batches: TrainBatches, validation: Validator, callback: TrainerCallback) -> None:
        """Train until the last epoch or early stopping, and validate after each epoch.

        Raises:
            DlaError: the loss or the gradient is not finite.
        """
        while not self.done:
            began, first, clock = time.monotonic(), self.position.step, _Clock()
            for batch in clock.timing(batches.epoch(self.position.epoch, first, callback.on_wait)):
                rate = learning_rate(self.recipe, self.position.epoch + self.position.step / batches.steps)
                loss, accuracy = self.step(batch, rate)
                self.position.step += 1
                self.position.loss_sum += loss
                place = self.position.epoch + 1, self.recipe.epochs, self.position.step, batches.steps
                callback.on_step(StepEvent(*place, loss, accuracy, rate, self.recipe.batch_size))
            seconds = max(time.monotonic() - began, 1e-9)
            photos = (self.position.step - first) * self.recipe.batch_size
            self.ranks.broadcast(list(self.eval_network.buffers()))  # batch-norm statistics differ between ranks
            measured = validation.measure(self.stored(), callback.on_validation_batch, callback.on_wait)
            epoch = EpochEvent(
                epoch=self.position.epoch + 1,
                step=(self.position.epoch + 1) * batches.steps,
                loss=self.position.loss_sum / batches.steps,
                lr=learning_rate(self.recipe, self.position.epoch + 1 - 1 / batches.steps),
                figures=dict(measured.figures),
                seconds=seconds,
                photos_per_second=photos / seconds,
                data_wait=clock.waited / seconds,
            )
            is_best = self._count(measured.score)
            callback.on_epoch(epoch, is_best)

    def _count(self, score: tuple[float, ...]) -> bool:
        """Move the position to the next epoch; return whether this one was the best."""
        at = self.position
        is_best = at.best is None or score > at.best
        since_best = 0 if is_best else at.since_best + 1
        self.position = Position(at.epoch + 1, best=score if is_best else at.best, since_best=since_best)
        return is_best

    @property
    def eval_network(self) -> nn.Module:
        """The network to validate and save: the weight average if there is one."""
        return self.network if self.average is None else self.average.module

    def stored(self) -> nn.Module:
        """Return a copy of `eval_network` with its weights rounded to half precision, as the model folder stores them.

        Raises:
            DlaError: a weight is too large for half precision.
        """
        network = copy.deepcopy(self.eval_network)
        if isinstance(network, Dense):
            network.auxiliary = None
        try:
            load_state(network, half_precision(network.state_dict()))
        except UsageError as error:
            raise DlaError(f"{error} The run diverged by epoch {self.position.epoch + 1}. {self._advice}") from error
        return network

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """Take one step; return the loss and the accuracy on the batch (nan if its photos were mixed).

        Raises:
            DlaError: the loss or the gradient is not finite; the weights are unchanged.
        """
        set_rate(self.optimizer, rate)
        x_N3HW, labels = self.prepare(batch)
        self.optimizer.zero_grad()
        parts = self.recipe.optimizer.accumulate
        size = len(x_N3HW) // parts
        loss, accuracy, weight = 0.0, 0.0, self._mean_weight(labels)
        for start in range(0, len(x_N3HW), size):
            part = labels.part(start, start + size)
            with self._gradient_sync(start + size == len(x_N3HW)):
                with self.precision.autocast():
                    output = self.forward(x_N3HW[start : start + size])
                part_loss = self.objective.loss(output, part, weight) / parts
                self.precision.backward(part_loss)
            loss += part_loss.item()
            accuracy += self.objective.accuracy(output, part) / parts
        if not math.isfinite(loss):
            raise self._diverged("loss", loss)
        norm = self.precision.step(self.optimizer, self.recipe.optimizer.clip_norm)
        if not math.isfinite(norm):
            raise self._diverged("gradient norm", norm)
        if self.average is not None:
            self.average.update_parameters(self.network)
        loss, accuracy = self.ranks.mean(loss, accuracy)
        return loss, accuracy

    def _mean_weight(self, labels: BatchLabels) -> float | None:
        """The mean weight of a photo over the batch of all ranks, if photos are weighted."""
        weights_N = self.objective.weights(labels)
        return None if weights_N is None else self.ranks.mean(weights_N.mean().item())[0]

    def _gradient_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return the context in which the ranks sum their gradients in the backward pass, if `enabled`."""
        return nullcontext() if enabled or self.parallel is None else self.parallel.no_sync()

    def prepare(self, batch: Batch) -> tuple[Tensor, BatchLabels]:
        """Return the network's input (N, 3, H, W) and the labels of a batch. Seeds PyTorch for the step."""
        key = (self.recipe.seed, self.position.epoch, self.position.step, self.ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        pixels = torch.from_numpy(batch.pixels_NHW3).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        pixels, labels = self.objective.prepare(pixels, batch)
        return self.normalize.normalize_(pixels).contiguous(memory_format=self.layout), labels

    def pixels(self, x_N3HW: Tensor) -> Array:
        """Convert inputs from `prepare` (N, 3, H, W) back to uint8 images (N, H, W, 3)."""
        return self.normalize.pixels(x_N3HW).cpu().numpy()

    def _diverged(self, what: str, value: float) -> DlaError:
        return DlaError(
            f"the {what} is {value} at epoch {self.position.epoch + 1}, step {self.position.step + 1}. {self._advice}"
        )

    @property
    def _advice(self) -> str:
        return f"Try a lower --lr (it is {self.recipe.lr:g})"


class _Clock:
    """Measures how long the loop waits for its batches, in seconds."""

    def __init__(self) -> None:
        self.waited = 0.0

    def timing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - began
            if batch is None:
                return
            yield batch


def _with_sync_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with batch norms that compute their statistics over all ranks."""
    if device.type != "cuda":
        raise UsageError(f"compute.sync_batch_norm works only on GPUs, and this run is on {device.type}. Leave it out")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
