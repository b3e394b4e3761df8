"""Training batches, cropped and resized in threads ahead of the network.

Batches are uint8 (N, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dla.data.prefetch import run_ahead
from dla.errors import UsageError
from dla.images.random_crop import crop_generator
from dla.training.distributed import Ranks
from dla.training.recipe import Recipe
from dla.training.task import Batch, Samples
from dla.types import Array


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
        self.steps = len(samples) // recipe.batch_size
        if self.steps == 0:
            raise UsageError(
                f"batch_size is {recipe.batch_size}, but there are only {len(samples):,} photos to train with. "
                f"Try: --batch-size {max(1, len(samples) // 2)}"
            )
        if recipe.batch_size % (ranks.world * recipe.optimizer.accumulate):
            raise UsageError(
                f"batch_size is {recipe.batch_size}; {ranks.world} processes with optimizer.accumulate "
                f"{recipe.optimizer.accumulate} need a multiple of {ranks.world * recipe.optimizer.accumulate}"
            )

    def epoch(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield the epoch's batches from `first_step` on. An incomplete last batch is dropped."""
        order = self.samples.order(epoch)
        return run_ahead(
            lambda step: self._make(order, epoch, step),
            range(first_step, self.steps),
            self.workers,
            2 * max(self.workers, 1),
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
