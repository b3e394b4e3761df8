"""Photos and their masks for training: random crops, and whole photos to validate on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from dla.data.pair_split import PairSplit, RunPairs
from dla.data.pairs import PairTask
from dla.data.photo_cache import Budget, PhotoStore, open_store
from dla.images.random_crop import order_generator, repeated_order
from dla.inference.pipeline import InputPipeline, PreparedInput
from dla.models.normalize import Normalize
from dla.training.distributed import Ranks
from dla.training.model import InitialModel, build_dense
from dla.training.pair_augment import random_pair
from dla.training.pixel_loss import PixelLabels, PixelObjective
from dla.training.recipe import Recipe
from dla.training.task import Parts, Runtime
from dla.types import Array

GREY = 128  # of ignored pixels


@dataclass(frozen=True)
class PairSamples:
    """Random crops of photos and of their targets, uint8 (H, W). `rare` are the classes that crops favour."""

    images: PhotoStore
    target: Callable[[int], Array]
    recipe: Recipe
    rare: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return self.recipe.repeat * len(self.images)

    def order(self, epoch: int) -> Array:
        """Return the rows of an epoch: all photos, `repeat` times."""
        return repeated_order(order_generator(self.recipe.seed, epoch), len(self.images), self.recipe.repeat)

    def size_at(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the (height, width) of the crops in pixels."""
        return self.recipe.augment.crop_at(epoch)

    def make(self, row: int, size: tuple[int, int], generator: np.random.Generator) -> tuple[Array, Any]:
        """Return a random crop, uint8 (H, W, 3), and its target (H, W)."""
        return random_pair(self.images[row], self.target(row), size, self.recipe.augment, generator, self.rare)


@dataclass(frozen=True)
class WholePhotos:
    """Photos to validate on, each as a whole at its own size."""

    split: PairSplit
    images: PhotoStore
    normalize: Normalize
    workers: int
    device: torch.device
    ranks: Ranks
    batch_size: int = 1

    def __len__(self) -> int:
        return len(self.split)

    def first(self, count: int) -> Self:
        """Return the first `count` photos."""
        return replace(self, split=self.split.take(range(count)))

    @torch.inference_mode()
    def counted(
        self,
        network: nn.Module,
        count: Callable[[Tensor, int], Array],
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Array:
        """Return what `count` makes of the logits (K, H, W) and the row of each photo, gathered from all ranks."""
        network = network.eval().to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rows = self.ranks.shard(np.arange(len(self)))

        def prepare(row: int) -> PreparedInput:
            return PreparedInput(str(row), (np.array(self.images[row]), np.array(row)))

        def compute(pixels_NHW3: Array, rows_N: Array) -> list[Array]:
            pause()
            logits_NKHW = network(self.normalize(torch.from_numpy(pixels_NHW3).to(self.device)))
            return [count(logits_KHW, int(row)) for logits_KHW, row in zip(logits_NKHW, rows_N, strict=True)]

        pipeline = InputPipeline(self.batch_size, self.workers, while_waiting=while_waiting)
        counts = list(pipeline.results(rows.tolist(), prepare, compute, lambda _, counted: counted))
        for _ in range(-(-len(self) // self.ranks.world) - len(rows)):
            pause()  # `pause` is collective: call it as often as the ranks with one more photo
        return self.ranks.gather_rows(np.stack(counts) if counts else np.empty(0), rows, len(self))


class PairTraining(ABC):
    """What the tasks with pairs share: their splits, the network, and whole photos to validate on.

    task: its name. validation: how its networks are measured.
    """

    task: PairTask
    validation: type[WholePhotos]

    def open_photos(self, recipe: Recipe, runtime: Runtime) -> RunPairs:
        """Open the recipe's pairs, without those that have a fault."""
        return RunPairs.open(recipe.photos, self.task, recipe.data, recipe.seed, runtime.workers, runtime.progress)

    def saved(self, splits: RunPairs, recipe: Recipe) -> dict[str, Any]:
        """Return the content of data.json."""
        return splits.to_dict(recipe.photos)

    def restore(self, saved: Mapping[str, Any], recipe: Recipe) -> RunPairs:
        """Return the pairs that `saved` describes."""
        return RunPairs.restore(saved, recipe.photos)

    def initial(self, recipe: Recipe, splits: RunPairs) -> InitialModel:
        """Return the network with a decoder and an output for each class."""
        return build_dense(recipe, splits.train)

    def parts(self, recipe: Recipe, splits: RunPairs, initial: InitialModel, runtime: Runtime) -> Parts:
        """Return the samples, the objective and the validation of a run."""
        budget = Budget.of_processes(runtime.ranks.local_world)
        train, val = (open_store(s, runtime.cache, budget, runtime.progress) for s in (splits.train, splits.val))
        normalize = Normalize(*initial.preprocessing.scale_shift()).to(runtime.device)
        samples, objective = self.learned(recipe, splits.train, train, runtime.device)
        whole = self.validation(splits.val, val, normalize, runtime.workers, runtime.device, runtime.ranks)
        return Parts(samples, objective, whole)

    @abstractmethod
    def learned(
        self, recipe: Recipe, split: PairSplit, images: PhotoStore, device: torch.device
    ) -> tuple[PairSamples, PixelObjective]:
        """Return the training samples of a split and their loss."""


def pair_tiles(pixels_NHW3: Array, labels: PixelLabels, palette: Array) -> Array:
    """Return each photo beside its mask in the colours of the classes, grey where it is ignored: (N, H, 2 W, 3)."""
    ids_NHW = labels.targets_NHW.cpu().numpy()
    masks_NHW3 = np.where(labels.weights_NHW.cpu().numpy()[..., None] > 0, palette[ids_NHW], np.uint8(GREY))
    return np.concatenate((pixels_NHW3, masks_NHW3), 2)
