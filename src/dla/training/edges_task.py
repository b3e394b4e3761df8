"""Training of boundary networks, with any number of annotators of each photo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dla.data.pair_split import IGNORED, PairSplit, RunPairs
from dla.data.pairs import PairTask
from dla.data.photo_cache import PhotoStore
from dla.metrics.boundaries import BoundaryCounts, count_boundaries, evaluate_boundaries
from dla.options import BoundaryOptions
from dla.training.augment import BatchAugment
from dla.training.distributed import Ranks
from dla.training.model import InitialModel
from dla.training.pair_html import write_edges_report
from dla.training.pair_samples import PairSamples, PairTraining, WholePhotos, pair_tiles
from dla.training.pixel_loss import PixelLabels, PixelObjective, balanced_sides
from dla.training.recipe import LossConfig, Recipe
from dla.training.task import Measured
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


class EdgesTask(PairTraining):
    """Boundaries."""

    figure = "ods"
    task: PairTask = "edges"
    validation = EdgesValidation

    def learned(
        self, recipe: Recipe, split: PairSplit, images: PhotoStore, device: torch.device
    ) -> tuple[PairSamples, PixelObjective]:
        """Return crops with what the annotators agree on, and the loss weighted by side."""
        objective = PixelObjective(recipe.loss, BatchAugment(recipe.augment), weigh_sides(recipe.loss))
        return PairSamples(images, lambda row: consensus(split.annotations(row)), recipe), objective

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
