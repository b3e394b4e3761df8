"""Training of classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dla.data.dataset import Split, Splits, open_splits
from dla.data.header_check import without_unreadable
from dla.data.pairs import check_not_pairs
from dla.data.photo_cache import Budget, open_store
from dla.data.split_file import restore_splits, splits_to_dict
from dla.images.preprocessing import Preprocessing
from dla.images.random_crop import order_generator, random_resized_crop, reflect_pad, repeated_order
from dla.inference.pipeline import InputPipeline, PreparedInput
from dla.metrics.classification import evaluate, sample_results
from dla.models.fuse import fuse_conv_bn
from dla.models.normalize import Normalize
from dla.training.augment import BatchAugment
from dla.training.distributed import Ranks
from dla.training.html import write_report
from dla.training.loss import Criterion, Labels, Teacher, balanced_weights, label_texts, open_teacher
from dla.training.model import InitialModel, build_initial
from dla.training.recipe import Recipe
from dla.training.task import Batch, Measured, Parts, Runtime
from dla.types import Array
from dla.weights.load import load_model


class ImageReader(Protocol):
    """RGB images by their row in a split; reading is thread-safe."""

    def __getitem__(self, row: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class ClassifySamples:
    """Random crops of photos, and their classes."""

    images: ImageReader
    targets_N: Array
    recipe: Recipe
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return self.recipe.repeat * len(self.targets_N)

    def order(self, epoch: int) -> Array:
        """Return the rows of an epoch, all once, or by the recipe's sampling."""
        generator, count = order_generator(self.recipe.seed, epoch), len(self)
        if self.recipe.loss.sampling == "natural":
            return repeated_order(generator, len(self.targets_N), self.recipe.repeat)
        share_N = 1.0 / np.bincount(self.targets_N)[self.targets_N]
        return generator.choice(len(self.targets_N), count, p=share_N / share_N.sum())

    def size_at(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the size of the crops, which are square."""
        side = self.recipe.input.size_at(epoch, step, min(self.preprocessing.size))
        return side, side

    def make(self, row: int, size: tuple[int, int], generator: np.random.Generator) -> tuple[Array, Any]:
        """Return a random crop, uint8 (H, W, 3), and the photo's class."""
        augment = self.recipe.augment
        of_canvas = (1 + 2 * augment.margin) ** -2
        scale = augment.scale[0] * of_canvas, augment.scale[1] * of_canvas
        canvas = reflect_pad(self.images[row], augment.margin)
        pixels_HW3 = random_resized_crop(canvas, size, (self.preprocessing.interpolation,), scale, augment.ratio,
                                         augment.flip, generator, augment.ratio_rule)  # fmt: skip
        return pixels_HW3, self.targets_N[row]


@dataclass(frozen=True)
class ClassifyObjective:
    """Cross-entropy and distillation, on batches that are augmented and mixed as a whole."""

    criterion: Criterion
    augment: BatchAugment
    teacher: Teacher | None

    def prepare(self, pixels_N3HW: Tensor, batch: Batch) -> tuple[Tensor, Labels]:
        """Return the augmented pixels (0 to 255) and the labels of a batch."""
        targets_N = torch.from_numpy(batch.targets_N).to(pixels_N3HW.device)
        mix = None
        if self.augment.enabled:
            pixels_N3HW, mix = self.augment(pixels_N3HW.div_(255))
            pixels_N3HW = pixels_N3HW.mul(255)
        teacher_NK = None
        if self.teacher is not None:
            temperature = self.criterion.distill.temperature
            teacher_NK = (self.teacher(pixels_N3HW, batch.rows_N) / temperature).softmax(1)
        if mix is None:
            return pixels_N3HW, Labels(targets_N, teacher_NK=teacher_NK)
        if teacher_NK is not None and not self.teacher.sees_mixed:  # type: ignore[union-attr]
            teacher_NK = teacher_NK.lerp(teacher_NK[mix.partners_N], mix.shares_N[:, None])
        return pixels_N3HW, Labels(targets_N, targets_N[mix.partners_N], mix.shares_N, teacher_NK)

    def loss(self, output: Tensor, labels: Labels, mean_weight: float | None) -> Tensor:
        """Return the mean loss of logits (N, K)."""
        return self.criterion(output.float(), labels, mean_weight)

    def weights(self, labels: Labels) -> Tensor | None:
        """Return each photo's weight (N,), if classes are weighted."""
        return self.criterion.photo_weights(labels)

    def accuracy(self, output: Tensor, labels: Labels) -> float:
        """Return the share of photos whose class is answered; nan if photos are mixed."""
        if labels.others_N is not None:
            return math.nan
        return (output.argmax(1) == labels.targets_N).float().mean().item()


@dataclass(frozen=True)
class ClassifyValidation:
    """The validation photos, prepared as by `dla predict`."""

    images: ImageReader
    targets_N: Array
    preprocessing: Preprocessing
    batch_size: int
    workers: int
    device: torch.device
    ranks: Ranks

    def __len__(self) -> int:
        return len(self.targets_N)

    def first(self, count: int) -> ClassifyValidation:
        """Return the first `count` photos."""
        return replace(self, targets_N=self.targets_N[:count])

    def measure(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Measured:
        """Measure accuracy and loss; epochs are compared by top-1, equal ones by the loss."""
        outcome = sample_results(self.logits(network, pause, while_waiting), self.targets_N)
        top1, loss = float(outcome.right(1).mean()), float(outcome.loss_N.mean())
        return Measured({"top1": top1, "top5": float(outcome.right(5).mean()), "val_loss": loss}, (top1, -loss))

    @torch.inference_mode()
    def logits(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Array:
        """Return the logits (N, K) of all photos, gathered from all ranks."""
        fused: nn.Module = fuse_conv_bn(network)
        fused = fused.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        normalize = Normalize(*self.preprocessing.scale_shift()).to(self.device)
        rows = self.ranks.shard(np.arange(len(self)))

        def prepare(row: int) -> PreparedInput:
            return PreparedInput(str(row), (self.preprocessing.pixels(self.images[row]),))

        def compute(pixels_NHW3: Array) -> Array:
            pause()
            x_N3HW = normalize(torch.from_numpy(pixels_NHW3).to(self.device))
            return fused(x_N3HW).cpu().numpy()  # type: ignore[no-any-return]

        pipeline = InputPipeline(self.batch_size, self.workers, while_waiting=while_waiting)
        logits = list(pipeline.results(rows.tolist(), prepare, compute, lambda _, logits_K: logits_K))
        most = math.ceil(len(self) / self.ranks.world)
        if math.ceil(most / self.batch_size) > math.ceil(len(rows) / self.batch_size):
            pause()  # `pause` is collective: call it as often as the ranks with one more batch
        logits_nK = np.stack(logits) if logits else np.empty((0, 0), np.float32)
        return self.ranks.gather_rows(logits_nK, rows, len(self))


class ClassifyTask:
    """One class per photo."""

    figure = "top1"

    def open_photos(self, recipe: Recipe, runtime: Runtime) -> Splits:
        """Open the recipe's photos, without those that cannot be read."""
        check_not_pairs(recipe.photos)
        splits = open_splits(recipe.photos, recipe.data, recipe.seed)
        return without_unreadable(splits, recipe.data.max_unreadable, runtime.workers, runtime.progress)

    def saved(self, splits: Splits, recipe: Recipe) -> dict[str, Any]:
        """Return the content of data.json."""
        return splits_to_dict(splits, recipe.photos)

    def restore(self, saved: Mapping[str, Any], recipe: Recipe) -> Splits:
        """Return the splits that `saved` describes."""
        return restore_splits(saved, recipe.photos, recipe.data)

    def initial(self, recipe: Recipe, splits: Splits) -> InitialModel:
        """Return the network with a classifier for these classes."""
        return build_initial(recipe, splits.train.class_ids)

    def parts(self, recipe: Recipe, splits: Splits, initial: InitialModel, runtime: Runtime) -> Parts:
        """Return the samples, the objective and the validation of a run."""
        train, val = splits.train, splits.val
        budget = Budget.of_processes(runtime.ranks.local_world)

        def store(split: Split) -> ImageReader:
            return open_store(split, runtime.cache, budget, runtime.progress)

        weights_K = None
        if recipe.loss.class_weights == "balanced":
            targets_N = torch.from_numpy(train.targets_N)
            weights_K = balanced_weights(targets_N, len(train.class_ids)).to(runtime.device)
        teacher = open_teacher(recipe.distill, train.class_ids, len(train), runtime.device)
        criterion = Criterion(recipe.loss, recipe.distill, weights_K)
        return Parts(
            ClassifySamples(store(train), train.targets_N, recipe, initial.preprocessing),
            ClassifyObjective(criterion, BatchAugment(recipe.augment), teacher),
            ClassifyValidation(store(val), val.targets_N, initial.preprocessing, recipe.batch_size, runtime.workers,
                               runtime.device, runtime.ranks),
        )  # fmt: skip

    def tiles(self, pixels_NHW3: Array, labels: Labels, initial: InitialModel) -> tuple[Array, list[str]]:
        """Return the photos and their classes."""
        return pixels_NHW3, label_texts(labels, list((initial.config.label_descriptions or {}).values()))

    def report(self, run: Path, splits: Splits, validation: ClassifyValidation, ranks: Ranks) -> dict[str, Any]:
        """Measure the network in the run's `best` and write report.html; return the interval of its accuracy."""
        best = ranks.broadcast_object(lambda: load_model(str(run / "best")))
        logits_NK = validation.logits(best.model)
        if not ranks.is_main:
            return {}
        names, val = best.config.label_descriptions or {}, splits.val
        write_report(run, val, logits_NK, [names[c] for c in val.class_ids])
        interval = evaluate(logits_NK, val.targets_N, val.class_ids).top1_interval
        return {"top1_interval": interval.to_list()}
