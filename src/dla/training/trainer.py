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
from dla.inference.pipeline import InputPipeline, PreparedInput
from dla.metrics.classification import sample_results
from dla.models.dla import DLA
from dla.models.fuse import fuse_conv_bn
from dla.models.normalize import Normalize
from dla.training.augment import BatchAugment
from dla.training.batches import Batch, ImageReader, TrainBatches
from dla.training.distributed import Ranks
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.loss import Criterion, Labels, Teacher, balanced_weights
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
from dla.types import Array
from dla.weights.load import load_state
from dla.weights.model_folder import half_precision


@dataclass(frozen=True)
class ValidationSet:
    """The validation photos."""

    images: ImageReader
    targets_N: Array
    batch_size: int
    workers: int

    @torch.inference_mode()
    def logits(
        self,
        network: nn.Module,
        trainer: Trainer,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Array:
        """Return the logits (N, K) of all photos, gathered from all ranks and prepared as by `dla predict`.

        `pause` is called before each batch, `while_waiting` several times a second while the next one is not ready.
        """
        device, ranks = trainer.device, trainer.ranks
        fused: nn.Module = fuse_conv_bn(network)
        fused = fused.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = ranks.shard(np.arange(len(self.targets_N)))

        def prepare(row: int) -> PreparedInput:
            return PreparedInput(str(row), (trainer.preprocessing.pixels(self.images[row]),))

        def compute(pixels_NHW3: Array) -> Array:
            pause()
            x_N3HW = trainer.normalize(torch.from_numpy(pixels_NHW3).to(device))
            return fused(x_N3HW).cpu().numpy()  # type: ignore[no-any-return]

        pipeline = InputPipeline(self.batch_size, self.workers, while_waiting=while_waiting)
        logits = list(pipeline.results(rows.tolist(), prepare, compute, lambda _, logits_K: logits_K))
        most = math.ceil(len(self.targets_N) / ranks.world)
        if math.ceil(most / self.batch_size) > math.ceil(len(rows) / self.batch_size):
            pause()  # `pause` is collective: call it as often as the ranks with one more batch
        logits_nK = np.stack(logits) if logits else np.empty((0, 0), np.float32)
        return ranks.gather_rows(logits_nK, rows, len(self.targets_N))


@dataclass
class Position:
    """The position of a run: `step` steps into epoch `epoch` (both from 0), with `loss_sum` the sum of their losses.

    `best` is (top-1, negative loss) on the validation photos in the best epoch so far; `since_best` counts the epochs
    after it.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: tuple[float, float] | None = None
    since_best: int = 0


class Trainer:
    """A run in progress: network, weight average, optimizer and position. It reads and writes no files.

    `state` and `load_state` save and restore everything that the next step depends on.
    """

    def __init__(
        self,
        initial: InitialModel,
        recipe: Recipe,
        targets_N: Array,
        device: torch.device,
        teacher: Teacher | None,
        ranks: Ranks,
    ) -> None:
        self.recipe, self.device, self.teacher, self.ranks = recipe, device, teacher, ranks
        self.preprocessing = initial.preprocessing
        layout = torch.channels_last if recipe.compute.channels_last else torch.contiguous_format
        network = _with_sync_batch_norm(initial.network, device) if recipe.compute.sync_batch_norm else initial.network
        self.network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.layout = layout
        self.average = make_ema(self.network, recipe.average)
        self.optimizer = build_optimizer(self.network, recipe)
        self.precision = Autocast(recipe.compute.autocast, device)
        self.augment = BatchAugment(recipe.augment)
        weights_K = balanced_weights(torch.from_numpy(targets_N), initial.config.num_classes).to(device)
        balanced = recipe.loss.class_weights == "balanced"
        self.criterion = Criterion(recipe.loss, recipe.distill, weights_K if balanced else None)
        self.normalize = Normalize(*self.preprocessing.scale_shift()).to(device)
        train_mode(self.network, recipe.freeze)
        self.parallel = DistributedDataParallel(self.network) if ranks.world > 1 else None
        self.forward: Callable[[Tensor], Tensor] = self.parallel or self.network
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

    def run(self, batches: TrainBatches, val: ValidationSet, callback: TrainerCallback) -> None:
        """Train until the last epoch or early stopping, and validate after each epoch.

        Raises:
            DlaError: the loss or the gradient is not finite.
        """
        while not self.done:
            began, first, clock = time.monotonic(), self.position.step, _Clock()
            for batch in clock.timing(batches.epoch(self.position.epoch, first, callback.on_wait)):
                rate = learning_rate(self.recipe, self.position.epoch + self.position.step / batches.steps)
                loss, top1 = self.step(batch, rate)
                self.position.step += 1
                self.position.loss_sum += loss
                place = self.position.epoch + 1, self.recipe.epochs, self.position.step, batches.steps
                callback.on_step(StepEvent(*place, loss, top1, rate, self.recipe.batch_size))
            seconds = max(time.monotonic() - began, 1e-9)
            photos = (self.position.step - first) * self.recipe.batch_size
            self.ranks.broadcast(list(self.eval_network.buffers()))  # batch-norm statistics differ between ranks
            logits_NK = val.logits(self.stored(), self, callback.on_validation_batch, callback.on_wait)
            outcome = sample_results(logits_NK, val.targets_N)
            epoch = EpochEvent(
                epoch=self.position.epoch + 1,
                step=(self.position.epoch + 1) * batches.steps,
                loss=self.position.loss_sum / batches.steps,
                lr=learning_rate(self.recipe, self.position.epoch + 1 - 1 / batches.steps),
                top1=float(outcome.right(1).mean()),
                top5=float(outcome.right(5).mean()),
                val_loss=float(outcome.loss_N.mean()),
                seconds=seconds,
                photos_per_second=photos / seconds,
                data_wait=clock.waited / seconds,
            )
            is_best = self._count(epoch)
            callback.on_epoch(epoch, is_best)

    def _count(self, epoch: EpochEvent) -> bool:
        """Move the position to the next epoch; return whether this one was the best."""
        figures = epoch.top1, -epoch.val_loss
        is_best = self.position.best is None or figures > self.position.best
        best = figures if is_best else self.position.best
        self.position = Position(epoch.epoch, best=best, since_best=0 if is_best else self.position.since_best + 1)
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
        try:
            load_state(network, half_precision(self.eval_network.state_dict()))
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
        loss, correct, weight = 0.0, 0, self._mean_weight(labels)
        for start in range(0, len(x_N3HW), size):
            part = labels.part(start, start + size)
            with self._gradient_sync(start + size == len(x_N3HW)):
                with self.precision.autocast():
                    logits_NK = self.forward(x_N3HW[start : start + size])
                part_loss = self.criterion(logits_NK.float(), part, weight) / parts
                self.precision.backward(part_loss)
            loss += part_loss.item()
            correct += int((logits_NK.argmax(1) == part.targets_N).sum())
        if not math.isfinite(loss):
            raise self._diverged("loss", loss)
        norm = self.precision.step(self.optimizer, self.recipe.optimizer.clip_norm)
        if not math.isfinite(norm):
            raise self._diverged("gradient norm", norm)
        if self.average is not None:
            self.average.update_parameters(self.network)
        loss, accuracy = self.ranks.mean(loss, correct / len(x_N3HW))
        return loss, accuracy if labels.others_N is None else math.nan

    def _mean_weight(self, labels: Labels) -> float | None:
        """The mean weight of a photo over the batch of all ranks, if classes are weighted."""
        weights_N = self.criterion.photo_weights(labels)
        return None if weights_N is None else self.ranks.mean(weights_N.mean().item())[0]

    def _gradient_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """Return the context in which the ranks sum their gradients in the backward pass, if `enabled`."""
        return nullcontext() if enabled or self.parallel is None else self.parallel.no_sync()

    def prepare(self, batch: Batch) -> tuple[Tensor, Labels]:
        """Return the network's input (N, 3, H, W) and the labels of a batch. Seeds PyTorch for the step."""
        key = (self.recipe.seed, self.position.epoch, self.position.step, self.ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        pixels = torch.from_numpy(batch.pixels_NHW3).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        targets_N = torch.from_numpy(batch.targets_N).to(self.device)
        mix = None
        if self.augment.enabled:
            pixels, mix = self.augment(pixels.div_(255))
            pixels = pixels.mul(255)
        teacher_NK = None
        if self.teacher is not None:
            teacher_NK = (self.teacher(pixels, batch.rows_N) / self.recipe.distill.temperature).softmax(1)
        x_N3HW = self.normalize.normalize_(pixels).contiguous(memory_format=self.layout)
        if mix is None:
            return x_N3HW, Labels(targets_N, teacher_NK=teacher_NK)
        if teacher_NK is not None and not self.teacher.sees_mixed:  # type: ignore[union-attr]
            teacher_NK = teacher_NK.lerp(teacher_NK[mix.partners_N], mix.shares_N[:, None])
        return x_N3HW, Labels(targets_N, targets_N[mix.partners_N], mix.shares_N, teacher_NK)

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


def _with_sync_batch_norm(network: DLA, device: torch.device) -> DLA:
    """Return the network with batch norms that compute their statistics over all ranks."""
    if device.type != "cuda":
        raise UsageError(f"compute.sync_batch_norm works only on GPUs, and this run is on {device.type}. Leave it out")
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
