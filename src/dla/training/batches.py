"""Training batches, cropped and resized in threads ahead of the network.

Batches are uint8 (N, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from dla.data.prefetch import run_ahead
from dla.errors import UsageError
from dla.images.random_crop import crop_generator
from dla.training.distributed import Ranks
from dla.training.recipe import Recipe
from dla.training.task import Batch, Samples
from dla.types import Array


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
        samples: Samples,
        recipe: Recipe,
        workers: int,
        ranks: Ranks,
    ) -> None:
        self.samples, self.recipe, self.workers, self.ranks = samples, recipe, workers, ranks
        fit_batch(recipe, len(samples), lower=False)
        self.steps = len(samples) // recipe.batch_size
        if recipe.batch_size % (ranks.world * recipe.optimizer.accumulate):
            raise UsageError(
                f"batch_size is {recipe.batch_size}; {ranks.world} processes with optimizer.accumulate "
                f"{recipe.optimizer.accumulate} need a multiple of {ranks.world * recipe.optimizer.accumulate}"
            )

    def epoch(self, epoch: int, first_step: int, while_waiting: Callable[[], None] | None = None) -> Iterator[Batch]:
        """Yield the epoch's batches from `first_step` on. An incomplete last batch is dropped.

        `while_waiting` is called several times a second while the next batch is not ready; it may raise.
        """
        order = self.samples.order(epoch)
        return run_ahead(
            lambda step: self._make(order, epoch, step),
            range(first_step, self.steps),
            self.workers,
            2 * max(self.workers, 1),
            while_waiting=while_waiting,
        )

    def _make(self, order: Array, epoch: int, step: int) -> Batch:
        places = self.ranks.shard(np.arange(self.recipe.batch_size))
        rows = order[step * self.recipe.batch_size + places]
        size = self.samples.size_at(epoch, step)
        made = [
            self.samples.make(int(row), size, crop_generator(self.recipe.seed, epoch, step, int(place)))
            for row, place in zip(rows, places, strict=True)
        ]
        pixels, targets = zip(*made, strict=True)
        return Batch(np.stack(pixels), np.stack(targets), rows)
