"""Set up a run: device, network, trainer and batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dla.data.archived import address_of
from dla.data.dataset import scanned_folders
from dla.errors import UnavailableError, UsageError
from dla.training.batches import TrainBatches
from dla.training.classify_task import ClassifyTask
from dla.training.distributed import Ranks
from dla.training.edges_task import EdgesTask
from dla.training.memory import give_memory_back
from dla.training.model import InitialModel
from dla.training.recipe import Recipe
from dla.training.segment_task import SegmentTask
from dla.training.task import Runtime, Task, Validator
from dla.training.trainer import Trainer

STRIDE = 32  # of the coarsest map
TASKS: Mapping[str, Task] = {"classify": ClassifyTask(), "segment": SegmentTask(), "edges": EdgesTask()}


@dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    initial: InitialModel
    trainer: Trainer
    batches: TrainBatches
    validation: Validator

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
    if (address := address_of(photos)) is not None:
        return replace(recipe, photos=address)
    if not Path(photos).exists():
        raise UnavailableError(
            f"{photos} does not exist. Give a folder with one subfolder per class, a table or an archive"
        )
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


def set_up(recipe: Recipe, splits: Any, runtime: Runtime) -> Setup:
    """Build the network of the recipe and what trains it on these photos. Seeds PyTorch.

    Raises:
        UsageError: settings that do not fit the photos, the device or each other.
        UnknownNameError, UnavailableError, DamagedError: as by `dla.load`, for the network and the teacher.
    """
    task = TASKS[recipe.task]
    torch.manual_seed(recipe.seed)
    if recipe.compute.checkpointing and runtime.device.type == "cpu":
        give_memory_back()
    initial = task.initial(recipe, splits)
    _check_batch(recipe, min(initial.preprocessing.size), runtime.ranks)
    for note in initial.notes:
        runtime.progress.log(f"model   {note}")
    parts = task.parts(recipe, splits, initial, runtime)
    trainer = Trainer(initial, recipe, parts.objective, runtime.device, runtime.ranks)
    batches = TrainBatches(parts.samples, recipe, runtime.workers, runtime.ranks)
    return Setup(initial, trainer, batches, parts.validation)


def _check_batch(recipe: Recipe, own: int, ranks: Ranks) -> None:
    """Raise a UsageError for a batch whose batch norms would see a single value per channel."""
    sides = recipe.input.all_sizes() or [own]
    photos = recipe.batch_size // recipe.optimizer.accumulate // ranks.world
    if recipe.freeze != "level5" and photos == 1 and min(sides) <= STRIDE:
        raise UsageError(
            f"batch_size is {recipe.batch_size}, so the network sees one photo at a time, which at {min(sides)} pixels "
            "is too little for its batch norms. Give at least two photos per process and micro-batch, or larger crops"
        )
