"""The loop: one step after another, from wherever it stands."""

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

__all__ = ["Trainer", "ValidationSet"]


@dataclass(frozen=True)
class ValidationSet:
    """The photos that a network is measured on."""

    images: ImageReader
    targets_N: Array
    batch_size: int
    workers: int

    @torch.inference_mode()
    def logits(self, network: nn.Module, trainer: Trainer, pause: Callable[[], None] = lambda: None) -> Array:
        """(N, K) on photos as `dla predict` would see them, from all ranks together; `pause` is called in between."""
        device, ranks = trainer.device, trainer.ranks
        folded: nn.Module = fuse_conv_bn(network)
        folded = folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = ranks.shard(np.arange(len(self.targets_N)))

        def prepare(row: int) -> PreparedInput:
            return PreparedInput(str(row), (trainer.preprocessing.pixels(self.images[row]),))

        def compute(pixels_NHW3: Array) -> Array:
            pause()
            x_N3HW = trainer.normalize(torch.from_numpy(pixels_NHW3).to(device))
            return folded(x_N3HW).cpu().numpy()  # type: ignore[no-any-return]

        pipeline = InputPipeline(self.batch_size, self.workers)
        logits = list(pipeline.results(rows.tolist(), prepare, compute, lambda _, logits_K: logits_K))
        most = math.ceil(len(self.targets_N) / ranks.world)
        if math.ceil(most / self.batch_size) > math.ceil(len(rows) / self.batch_size):
            pause()  # as the ranks that have a batch more
        logits_nK = np.stack(logits) if logits else np.empty((0, 0), np.float32)
        return ranks.gather_rows(logits_nK, rows, len(self.targets_N))


@dataclass
class Position:
    """Where a run stands: `step` steps into epoch `epoch` (both from 0), whose losses so far sum to `loss_sum`.

    `best` are top-1 and the negative loss on the validation photos of the best epoch so far, `since_best` counts the
    epochs after it.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best: tuple[float, float] | None = None
    since_best: int = 0


class Trainer:
    """A run in progress: network, average, optimizer and position. It knows no files.

    `state` and `load_state` carry everything that the next step depends on.
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
        network = _synchronised(initial.network, device) if recipe.compute.sync_batch_norm else initial.network
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
        """Whether the last epoch is over, or too many went by without a better one."""
        patience = self.recipe.stop.patience
        return self.position.epoch >= self.recipe.epochs or 0 < patience <= self.position.since_best

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors by name, and plain facts."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer, self.network).items()}
        return tensors, {**asdict(self.position), "scaler": self.precision.state()}

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on where `state` was asked."""
        self.network.load_state_dict(_part(tensors, "network."))
        if self.average is not None:
            self.average.load_state_dict(_part(tensors, "average."))
        load_optimizer_state(self.optimizer, self.network, _part(tensors, "optimizer."))
        at = {key: value for key, value in facts.items() if key in vars(self.position)}
        self.position = Position(**at | {"best": at["best"] and tuple(at["best"])})
        self.precision.load_state(facts["scaler"])

    def run(self, batches: TrainBatches, val: ValidationSet, callback: TrainerCallback) -> None:
        """Train to the last epoch, or until the recipe says stop.

        Raises:
            DlaError: the loss is not finite.
        """
        while not self.done:
            began, first, clock = time.monotonic(), self.position.step, _Clock()
            for batch in clock.timing(batches.epoch(self.position.epoch, first)):
                rate = learning_rate(self.recipe, self.position.epoch + self.position.step / batches.steps)
                loss, top1 = self.step(batch, rate)
                self.position.step += 1
                self.position.loss_sum += loss
                place = self.position.epoch + 1, self.recipe.epochs, self.position.step, batches.steps
                callback.on_step(StepEvent(*place, loss, top1, rate, self.recipe.batch_size))
            seconds = max(time.monotonic() - began, 1e-9)
            photos = (self.position.step - first) * self.recipe.batch_size
            self.ranks.broadcast(list(self.eval_network.buffers()))  # each rank has normalised photos of its own
            logits_NK = val.logits(self.stored(), self, callback.on_validation_batch)
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
        """Go on to the next epoch; whether this one was the best."""
        figures = epoch.top1, -epoch.val_loss
        is_best = self.position.best is None or figures > self.position.best
        best = figures if is_best else self.position.best
        self.position = Position(epoch.epoch, best=best, since_best=0 if is_best else self.position.since_best + 1)
        return is_best

    @property
    def eval_network(self) -> nn.Module:
        """The network that is measured and kept: the average, where there is one."""
        return self.network if self.average is None else self.average.module

    def stored(self) -> nn.Module:
        """The network as its folder would hold it: averaged, in half precision.

        Raises:
            DlaError: a weight is too large for that.
        """
        network = copy.deepcopy(self.eval_network)
        try:
            load_state(network, half_precision(self.eval_network.state_dict()))
        except UsageError as error:
            raise DlaError(f"{error} The run diverged by epoch {self.position.epoch + 1}. {self._way_out}") from error
        return network

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """One step at this learning rate; the loss, and the accuracy on the batch (nan where photos were mixed).

        Raises:
            DlaError: the loss or the gradient is not finite; the weights are as they were.
        """
        set_rate(self.optimizer, rate)
        x_N3HW, labels = self.prepare(batch)
        self.optimizer.zero_grad()
        parts = self.recipe.optimizer.accumulate
        size = len(x_N3HW) // parts
        loss, right = 0.0, 0
        for start in range(0, len(x_N3HW), size):
            part = labels.part(start, start + size)
            with self._exchange(start + size == len(x_N3HW)):
                with self.precision.autocast():
                    logits_NK = self.forward(x_N3HW[start : start + size])
                of_part = self.criterion(logits_NK.float(), part) / parts
                self.precision.backward(of_part)
            loss += of_part.item()
            right += int((logits_NK.argmax(1) == part.targets_N).sum())
        if not math.isfinite(loss):
            raise self._broken("loss", loss)
        norm = self.precision.step(self.optimizer, self.recipe.optimizer.clip_norm)
        if not math.isfinite(norm):
            raise self._broken("length of the gradient", norm)
        if self.average is not None:
            self.average.update_parameters(self.network)
        loss, share = self.ranks.mean(loss, right / len(x_N3HW))
        return loss, share if labels.others_N is None else math.nan

    def _exchange(self, now: bool) -> AbstractContextManager[None]:
        """Where the ranks add up their gradients in the backward pass, or not yet."""
        return nullcontext() if now or self.parallel is None else self.parallel.no_sync()

    def prepare(self, batch: Batch) -> tuple[Tensor, Labels]:
        """What the network sees of a batch, and what it should say. Sets the randomness of the step."""
        key = (self.recipe.seed, self.position.epoch, self.position.step, self.ranks.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
        pixels = torch.from_numpy(batch.pixels_NHW3).to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        targets_N = torch.from_numpy(batch.targets_N).to(self.device)
        mix = None
        if self.augment.acts:
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
        """What `prepare` made, as uint8 pictures (N, H, W, 3)."""
        return self.normalize.pixels(x_N3HW).cpu().numpy()

    def _broken(self, what: str, value: float) -> DlaError:
        return DlaError(
            f"the {what} is {value} at epoch {self.position.epoch + 1}, step {self.position.step + 1}. {self._way_out}"
        )

    @property
    def _way_out(self) -> str:
        return f"Try a lower --lr (it is {self.recipe.lr:g})"


class _Clock:
    """How long the loop waited for its batches."""

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


def _synchronised(network: DLA, device: torch.device) -> DLA:
    """Batch norms that take the photos of all ranks together."""
    if device.type != "cuda":
        raise UsageError(
            f"compute.sync_batch_norm is for GPUs alone, as PyTorch has it; this run is on {device.type}. Leave it out"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
