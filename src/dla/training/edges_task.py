"""Training of boundary networks, with any number of annotators of each photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dla.data.pair_split import IGNORED, RunPairs
from dla.data.photo_cache import Budget, open_store
from dla.metrics.boundaries import BoundaryCounts, count_boundaries, evaluate_boundaries
from dla.models.normalize import Normalize
from dla.options import BoundaryOptions
from dla.training.augment import BatchAugment
from dla.training.distributed import Ranks
from dla.training.model import InitialModel, build_dense
from dla.training.pair_html import write_edges_report
from dla.training.pair_samples import PairSamples, WholePhotos, pair_tiles
from dla.training.pixel_loss import PixelLabels, PixelObjective, balanced_sides
from dla.training.recipe import LossConfig, Recipe
from dla.training.task import Measured, Parts, Runtime
from dla.types import Array
from dla.weights.load import load_dense
from dla.weights.model_folder import set_fields

AGREED = 0.3  # share of the annotators from which a pixel is a boundary; those that fewer mark are ignored
SCORED, THRESHOLDS = 20, 15  # photos and thresholds of the validation after each epoch
REPORTED = 33  # thresholds of the report on all photos


class EdgesValidation(WholePhotos):
    """The validation photos of a boundary network."""

    def measure(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Measured:
        """Measure ODS on some photos at few thresholds; epochs are compared by it."""
        some = self.first(min(SCORED, len(self)))
        options = BoundaryOptions(thresholds=THRESHOLDS)
        counts = some.boundary_counts(network, options, pause, while_waiting)
        found = evaluate_boundaries(some.split.names, counts, options)
        return Measured({"ods": found.ods.f1, "ois": found.ois.f1, "ap": found.ap}, (found.ods.f1,))

    def boundary_counts(
        self,
        network: nn.Module,
        options: BoundaryOptions,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> list[BoundaryCounts]:
        """Match the maps of all photos with their annotators."""

        def count(logits_1HW: Tensor, row: int) -> Array:
            map_HW = (255 * logits_1HW[0].sigmoid()).round().byte().cpu().numpy()
            found = count_boundaries(map_HW, self.split.annotations(row), options)
            return np.append(found.pixels_T4, (found.annotators, found.empty_annotators))

        rows = self.counted(network, count, pause, while_waiting)
        return [BoundaryCounts(row[:-2].reshape(-1, 4), int(row[-2]), int(row[-1])) for row in rows]


class EdgesTask:
    """Boundaries."""

    figure = "ods"

    def open_photos(self, recipe: Recipe, runtime: Runtime) -> RunPairs:
        """Open the recipe's pairs, without those that have a fault."""
        return RunPairs.open(recipe.photos, "edges", recipe.data, recipe.seed, runtime.workers, runtime.progress)

    def saved(self, splits: RunPairs, recipe: Recipe) -> dict[str, Any]:
        """Return the content of data.json."""
        return splits.to_dict(recipe.photos)

    def restore(self, saved: Mapping[str, Any], recipe: Recipe) -> RunPairs:
        """Return the pairs that `saved` describes."""
        return RunPairs.restore(saved, recipe.photos)

    def initial(self, recipe: Recipe, splits: RunPairs) -> InitialModel:
        """Return the network with a decoder and one output."""
        return build_dense(recipe, splits.train)

    def parts(self, recipe: Recipe, splits: RunPairs, initial: InitialModel, runtime: Runtime) -> Parts:
        """Return the samples, the objective and the validation of a run."""
        train, val = splits.train, splits.val
        budget = Budget.of_processes(runtime.ranks.local_world)
        normalize = Normalize(*initial.preprocessing.scale_shift()).to(runtime.device)
        train_store, val_store = (open_store(s, runtime.cache, budget, runtime.progress) for s in (train, val))
        return Parts(
            PairSamples(train_store, lambda row: consensus(train.annotations(row)), recipe),
            PixelObjective(recipe.loss, BatchAugment(recipe.augment), weigh_sides(recipe.loss)),
            EdgesValidation(val, val_store, normalize, runtime.workers, runtime.device, runtime.ranks),
        )

    def tiles(self, pixels_NHW3: Array, labels: PixelLabels, initial: InitialModel) -> tuple[Array, list[str]]:
        """Return each photo beside its target."""
        palette = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
        return pair_tiles(pixels_NHW3, labels, palette), [""] * len(pixels_NHW3)

    def report(self, run: Path, splits: RunPairs, validation: EdgesValidation, ranks: Ranks) -> dict[str, Any]:
        """Measure the run's `best` on all photos, save its threshold, and write report.html; return the figures.

        They take the place of those of the epoch, which are of some photos at few thresholds.
        """
        best = ranks.broadcast_object(lambda: load_dense(str(run / "best")))
        options = BoundaryOptions(thresholds=REPORTED)
        found = evaluate_boundaries(splits.val.names, validation.boundary_counts(best.model, options), options)
        figures = {"ods": found.ods.f1, "ois": found.ois.f1, "ap": found.ap}
        if ranks.is_main:
            set_fields(run / "best", threshold=found.ods.threshold, results=figures)
            write_edges_report(run, splits.val, found)
        return {**figures, "ods_interval": found.ods_interval.to_list(), "threshold": found.ods.threshold}


def consensus(annotators: list[Array]) -> Array:
    """Return the target (H, W) of a photo: 1 where enough annotators mark a boundary, 0 where none does, else 255."""
    share_HW = np.mean(annotators, axis=0)
    return np.where(share_HW >= AGREED, 1, np.where(share_HW > 0, IGNORED, 0)).astype(np.uint8)


def weigh_sides(loss: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that weights the pixels of targets (N, H, W): those of boundaries, and the others.

    Raises:
        UsageError: other weights than two, or balanced.
    """
    if isinstance(loss.class_weights, tuple):
        off, on = loss.class_weights
        return lambda targets_NHW, known_NHW: torch.where(targets_NHW == 1, on, off)
    return balanced_sides
