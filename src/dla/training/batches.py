"""Training batches, cropped and resized in threads ahead of the network.

Batches are uint8 (N, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from dla.data.prefetch import run_ahead
from dla.errors import UsageError
from dla.images.preprocessing import Preprocessing
from dla.images.random_crop import crop_generator, order_generator, random_resized_crop, reflect_pad
from dla.training.distributed import Ranks
from dla.training.recipe import Recipe
from dla.types import Array


class ImageReader(Protocol):
    """RGB images by their row in a split; reading is thread-safe."""

    def __getitem__(self, row: int, /) -> Image.Image: ...


@dataclass(frozen=True)
class Batch:
    """Pixels (N, H, W, 3) uint8, targets, and the photos' rows in the split."""

    pixels_NHW3: Array
    targets_N: Array
    rows_N: Array


def fit_batch(recipe: Recipe, photos: int, lower: bool) -> Recipe:
    """Return the recipe with a batch size that this number of training photos allows.

    A batch of more than all photos is lowered to half of them, so that an epoch has two steps. The result depends on
    nothing else, not on the number of ranks either, so that a run continues as it began.

    Raises:
        UsageError: the batch is too large, and `lower` is False or half of the photos is less than one per micro-batch.
    """
    if recipe.batch_size <= photos:
        return recipe
    parts = recipe.optimizer.accumulate
    lowered = max(photos // 2, 2) // parts * parts
    if not lower or lowered == 0:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, but there are only {photos:,} photos to train with. "
            f"Try: --batch-size {max(1, photos // 2)}"
        )
    return replace(recipe, batch_size=lowered)


class TrainBatches:
    """The training batches of this rank. They depend only on the seed, the epoch and the step.

    Raises:
        UsageError: there are fewer photos than `batch_size`, or the ranks cannot divide it.
    """

    def __init__(
        self,
        images: ImageReader,
        targets_N: Array,
        recipe: Recipe,
        preprocessing: Preprocessing,
        workers: int,
        ranks: Ranks,
    ) -> None:
        self.images, self.targets_N, self.recipe, self.preprocessing = images, targets_N, recipe, preprocessing
        self.workers, self.ranks = workers, ranks
        fit_batch(recipe, len(targets_N), lower=False)
        self.steps = len(targets_N) // recipe.batch_size
        if recipe.batch_size % (ranks.world * recipe.optimizer.accumulate):
            raise UsageError(
                f"batch_size is {recipe.batch_size}; {ranks.world} processes with optimizer.accumulate "
                f"{recipe.optimizer.accumulate} need a multiple of {ranks.world * recipe.optimizer.accumulate}"
            )

    def epoch(self, epoch: int, first_step: int, while_waiting: Callable[[], None] | None = None) -> Iterator[Batch]:
        """Yield the epoch's batches from `first_step` on. An incomplete last batch is dropped.

        `while_waiting` is called several times a second while the next batch is not ready; it may raise.
        """
        order = self._order(epoch)
        return run_ahead(
            lambda step: self._make(order, epoch, step),
            range(first_step, self.steps),
            self.workers,
            2 * max(self.workers, 1),
            while_waiting=while_waiting,
        )

    def _order(self, epoch: int) -> Array:
        generator, count = order_generator(self.recipe.seed, epoch), len(self.targets_N)
        if self.recipe.loss.sampling == "natural":
            return generator.permutation(count)
        share_N = 1.0 / np.bincount(self.targets_N)[self.targets_N]
        return generator.choice(count, count, p=share_N / share_N.sum())

    def _make(self, order: Array, epoch: int, step: int) -> Batch:
        size, augment = self.recipe.batch_size, self.recipe.augment
        places = self.ranks.shard(np.arange(size))
        rows = order[step * size + places]
        side = self.recipe.input.size_at(epoch, step, min(self.preprocessing.size))
        of_canvas = (1 + 2 * augment.margin) ** -2
        scale = augment.scale[0] * of_canvas, augment.scale[1] * of_canvas
        pixels = np.empty((len(rows), side, side, 3), np.uint8)
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            generator = crop_generator(self.recipe.seed, epoch, step, int(place))
            canvas = reflect_pad(self.images[int(row)], augment.margin)
            pixels[i] = random_resized_crop(canvas, (side, side), (self.preprocessing.interpolation,), scale,
                                            augment.ratio, augment.flip, generator, augment.ratio_rule)  # fmt: skip
        return Batch(pixels, self.targets_N[rows], rows)
