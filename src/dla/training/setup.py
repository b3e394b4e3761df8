"""Set up a run: device, network, trainer and batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dla.data.dataset import Split, Splits, scanned_folders
from dla.data.photo_cache import Budget, PhotoStore, half_of_memory
from dla.engines.torch import pick_device
from dla.errors import UnavailableError, UsageError
from dla.options import PhotoCache, RuntimeOptions
from dla.storage import cache
from dla.training.batches import TrainBatches
from dla.training.distributed import Ranks
from dla.training.loss import open_teacher
from dla.training.memory import give_memory_back
from dla.training.model import InitialModel, build_initial
from dla.training.recipe import Recipe
from dla.training.trainer import Trainer, ValidationSet
from dla.types import NO_PROGRESS, Progress

STRIDE = 32  # of the coarsest map


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
class Setup:
    """A run before its first step."""

    initial: InitialModel
    trainer: Trainer
    batches: TrainBatches
    validation: ValidationSet

    @property
    def photos_left(self) -> int:
        """The number of photos in the remaining steps."""
        recipe, position = self.trainer.recipe, self.trainer.position
        return (self.batches.steps * (recipe.epochs - position.epoch) - position.step) * recipe.batch_size


def with_data(recipe: Recipe, data: str | Path | None) -> Recipe:
    """Return the recipe with the absolute path of its photos; `data` overrides the recipe's own.

    Raises:
        UsageError: neither gives a path.
        UnavailableError: the path does not exist.
    """
    photos = str(data) if data is not None else recipe.photos
    if not photos:
        raise UsageError("no photos are given. Name their folder, as in: dla train photos/")
    if not Path(photos).exists():
        raise UnavailableError(f"{photos} does not exist. Give a folder with one subfolder per class, or a table")
    place = Path(photos)
    # the paths in a table are relative to the table's own folder, so a link to a table is not resolved
    whole = place.parent.resolve() / place.name if place.is_file() else place.resolve()
    return replace(recipe, photos=str(whole))


def check_apart(folder: Path, recipe: Recipe) -> None:
    """Check that the run's folder is not among the photos, where the next run would take it for a class.

    Raises:
        UsageError: it is.
    """
    for photos in scanned_folders(Path(recipe.photos)):
        if folder.resolve().is_relative_to(photos.resolve()):
            raise UsageError(
                f"{folder} is inside the photos in {photos}, where it would be taken for a class. Give another "
                "--output, or run from another folder"
            )


def set_up(recipe: Recipe, splits: Splits, runtime: Runtime) -> Setup:
    """Build the network of the recipe and what trains it on these photos. Seeds PyTorch.

    Raises:
        UsageError: settings that do not fit the photos, the device or each other.
        UnknownNameError, UnavailableError, DamagedError: as by `dla.load`, for the network and the teacher.
    """
    train, val, ranks = splits.train, splits.val, runtime.ranks
    torch.manual_seed(recipe.seed)
    if recipe.compute.checkpointing and runtime.device.type == "cpu":
        give_memory_back()
    initial = build_initial(recipe, train.class_ids)
    _check_batch(recipe, min(initial.preprocessing.size), ranks)
    for note in initial.notes:
        runtime.progress.log(f"model   {note}")
    teacher = open_teacher(recipe.distill, train.class_ids, len(train), runtime.device)
    trainer = Trainer(initial, recipe, train.targets_N, runtime.device, teacher, ranks)
    budget = Budget(half_of_memory() // ranks.local_world)
    batches = TrainBatches(
        _store(train, runtime, budget), train.targets_N, recipe, initial.preprocessing, runtime.workers, ranks
    )
    validation = ValidationSet(_store(val, runtime, budget), val.targets_N, recipe.batch_size, runtime.workers)
    return Setup(initial, trainer, batches, validation)


def _check_batch(recipe: Recipe, own: int, ranks: Ranks) -> None:
    """Raise a UsageError for a batch whose batch norms would see a single value per channel."""
    sides = recipe.input.all_sizes() or [own]
    photos = recipe.batch_size // recipe.optimizer.accumulate // ranks.world
    if recipe.freeze != "level5" and photos == 1 and min(sides) <= STRIDE:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, so the network sees one photo at a time, which at {min(sides)} pixels "
            "is too little for its batch norms. Give at least two photos per process and micro-batch, or larger crops"
        )


def _store(split: Split, runtime: Runtime, budget: Budget) -> PhotoStore:
    place = cache.cache_folder() / cache.PHOTOS if runtime.cache == "disk" else None
    return PhotoStore(split, runtime.cache, place, budget=budget, progress=runtime.progress)
