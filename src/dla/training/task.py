"""What a task is to the trainer: how samples are read, the loss, how the network is measured, and the report.

The trainer, checkpoints and ranks know no task. Each file `*_task.py` has one; `setup.py` has the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from dla.engines.torch import pick_device
from dla.options import PhotoCache, RuntimeOptions
from dla.training.distributed import Ranks
from dla.training.model import InitialModel
from dla.training.recipe import Recipe
from dla.types import NO_PROGRESS, Array, Progress


@dataclass(frozen=True)
class Runtime:
    """How a run is computed. It does not change the results, except for the device, in the last digits."""

    workers: int
    device: torch.device
    cache: PhotoCache
    progress: Progress
    ranks: Ranks

    @classmethod
    def from_options(
        cls, workers: int, device: str, cache: PhotoCache, progress: Progress = NO_PROGRESS, ranks: Ranks = Ranks()
    ) -> Runtime:
        """Check the options and choose the device.

        Raises:
            UsageError: no such device, or a number of workers out of range.
        """
        RuntimeOptions(workers)  # checks the range
        return cls(workers, ranks.device(pick_device(device)), cache, progress, ranks)


@dataclass(frozen=True)
class Batch:
    """Pixels (N, H, W, 3) uint8, the targets of each photo (N, ...), and the photos' rows in the split."""

    pixels_NHW3: Array
    targets_N: Array
    rows_N: Array


class Samples(Protocol):
    """The training samples, by the row of their photo. `make` is thread-safe."""

    def __len__(self) -> int: ...

    def order(self, epoch: int) -> Array:
        """Return the rows of an epoch in the order they are seen."""
        ...

    def size_at(self, epoch: int, step: int) -> tuple[int, int]:
        """Return the (height, width) of the samples of a step in pixels."""
        ...

    def make(self, row: int, size: tuple[int, int], generator: np.random.Generator) -> tuple[Array, Any]:
        """Return one augmented photo, uint8 (H, W, 3) of this size, and its target."""
        ...


class BatchLabels(Protocol):
    """The labels of a batch."""

    def part(self, start: int, stop: int) -> Self:
        """Return the labels of photos `start` to `stop` (exclusive)."""
        ...


class Objective(Protocol):
    """The loss of a task, and what is done to whole batches before the network sees them."""

    def prepare(self, pixels_N3HW: Tensor, batch: Batch) -> tuple[Tensor, Any]:
        """Return the augmented pixels (0 to 255) and the labels of a batch. Random numbers are PyTorch's."""
        ...

    def loss(self, output: Any, labels: Any, mean_weight: float | None) -> Tensor:
        """Return the mean loss over the photos, each by its weight over `mean_weight`."""
        ...

    def weights(self, labels: Any) -> Tensor | None:
        """Return each photo's weight (N,); None if all count the same."""
        ...

    def accuracy(self, output: Any, labels: Any) -> float:
        """Return the share of the labels that the network answers, 0 to 1; nan if labels are mixed."""
        ...


@dataclass(frozen=True)
class Measured:
    """What a validation found: figures by name for metrics.jsonl, and the score by which epochs are compared."""

    figures: Mapping[str, float]
    score: tuple[float, ...]


class Validator(Protocol):
    """The validation photos of all ranks."""

    batch_size: int

    def __len__(self) -> int: ...

    def first(self, count: int) -> Self:
        """Return the validation of the first `count` photos, to time it."""
        ...

    def measure(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Measured:
        """Measure a network, on all ranks together.

        `pause` is called before each batch, `while_waiting` several times a second while the next one is not ready.
        """
        ...


@dataclass(frozen=True)
class Parts:
    """What a task gives to a run."""

    samples: Samples
    objective: Objective
    validation: Any


class Task(Protocol):
    """A kind of prediction that can be trained.

    figure: the name of the figure by which the best epoch is told, such as "top1".
    """

    figure: str

    def open_photos(self, recipe: Recipe, runtime: Runtime) -> Any:
        """Open the recipe's photos, without those that cannot be read.

        Raises:
            CheckError: too many cannot be read.
        """
        ...

    def saved(self, splits: Any, recipe: Recipe) -> dict[str, Any]:
        """Return the content of data.json."""
        ...

    def restore(self, saved: Mapping[str, Any], recipe: Recipe) -> Any:
        """Return the splits that `saved` describes.

        Raises:
            UnavailableError: photos of the run are missing.
            UsageError: labels have changed, or `saved` was altered.
        """
        ...

    def initial(self, recipe: Recipe, splits: Any) -> InitialModel:
        """Return the network before its first step."""
        ...

    def parts(self, recipe: Recipe, splits: Any, initial: InitialModel, runtime: Runtime) -> Parts:
        """Return the samples, the objective and the validation of a run."""
        ...

    def tiles(self, pixels_NHW3: Array, labels: Any, initial: InitialModel) -> tuple[Array, list[str]]:
        """Return what the mosaic shows of the first batch: pictures (N, H, W, 3), and a text for each."""
        ...

    def report(self, run: Path, splits: Any, validation: Any, ranks: Ranks) -> dict[str, Any]:
        """Measure the run's `best`, write report.html, and return figures for run.json. All ranks call it."""
        ...
