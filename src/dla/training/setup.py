"""Everything that a run works with, from its recipe and its photos."""

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

__all__ = ["Runtime", "Setup", "check_apart", "set_up", "with_data"]


STRIDE = 32  # of the coarsest map


@dataclass(frozen=True)
class Runtime:
    """What a run is computed with; none of it changes what comes out, but for the device in the last digits."""

    workers: int
    device: torch.device
    cache: PhotoCache
    progress: Progress
    ranks: Ranks

    @classmethod
    def from_options(
        cls, workers: int, device: str, cache: PhotoCache, progress: Progress = NO_PROGRESS, ranks: Ranks = Ranks()
    ) -> Runtime:
        """Checked, from what a user says.

        Raises:
            UsageError: no such device, or fewer than no workers.
        """
        RuntimeOptions(workers)  # in its range
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
        """How many photos the steps that are to come take."""
        recipe, at = self.trainer.recipe, self.trainer.position
        return (self.batches.steps * (recipe.epochs - at.epoch) - at.step) * recipe.batch_size


def with_data(recipe: Recipe, data: str | Path | None) -> Recipe:
    """The recipe with the place of its photos, in full; `data` goes before its own.

    Raises:
        UsageError: neither names any.
        UnavailableError: nothing is there.
    """
    photos = str(data) if data is not None else recipe.photos
    if not photos:
        raise UsageError("no photos are named. Give their folder, as in dla train photos/")
    if not Path(photos).exists():
        raise UnavailableError(f"{photos} is not there. DATA is a folder with a folder a class, or a table")
    place = Path(photos)
    # a table is read under its own name and beside its own place, a link too, as by every other verb
    whole = place.parent.resolve() / place.name if place.is_file() else place.resolve()
    return replace(recipe, photos=str(whole))


def check_apart(folder: Path, recipe: Recipe) -> None:
    """See that what a run writes does not become photos of the next one.

    Raises:
        UsageError: it would.
    """
    for photos in scanned_folders(Path(recipe.photos)):
        if folder.resolve().is_relative_to(photos.resolve()):
            raise UsageError(
                f"{folder} lies within the photos in {photos}, where it would be taken for a class. Give --output "
                "another place, or start from another folder"
            )


def set_up(recipe: Recipe, splits: Splits, runtime: Runtime) -> Setup:
    """The network of the recipe and what trains it on these photos. Sets PyTorch's randomness."""
    train, val, ranks = splits.train, splits.val, runtime.ranks
    torch.manual_seed(recipe.seed)
    if recipe.compute.checkpointing and runtime.device.type == "cpu":
        give_memory_back()
    initial = build_initial(recipe, train.class_ids)
    _check_batch(recipe, min(initial.preprocessing.size), ranks)
    for note in initial.notes:
        runtime.progress.log(f"start   {note}")
    teacher = open_teacher(recipe.distill, train.class_ids, len(train), runtime.device)
    trainer = Trainer(initial, recipe, train.targets_N, runtime.device, teacher, ranks)
    budget = Budget(half_of_memory() // ranks.local_world)
    batches = TrainBatches(
        _store(train, runtime, budget), train.targets_N, recipe, initial.preprocessing, runtime.workers, ranks
    )
    validation = ValidationSet(_store(val, runtime, budget), val.targets_N, recipe.batch_size, runtime.workers)
    return Setup(initial, trainer, batches, validation)


def _check_batch(recipe: Recipe, own: int, ranks: Ranks) -> None:
    """A batch norm in training needs two numbers at least of each channel."""
    sides = recipe.input.all_sizes() or [own]
    photos = recipe.batch_size // recipe.optimizer.accumulate // ranks.world
    if recipe.freeze != "level5" and photos == 1 and min(sides) <= STRIDE:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, so that one photo at a time goes through the network, which at "
            f"{min(sides)} pixels is too little for its batch norms. Give two photos at least, or larger crops"
        )


def _store(split: Split, runtime: Runtime, budget: Budget) -> PhotoStore:
    place = cache.cache_folder() / cache.PHOTOS if runtime.cache == "disk" else None
    return PhotoStore(split, runtime.cache, place, budget=budget, progress=runtime.progress)
