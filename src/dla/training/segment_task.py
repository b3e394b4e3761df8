"""Training of segmentation networks: one class per pixel."""

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
from dla.drawing.palette import class_palette
from dla.errors import UsageError
from dla.metrics.segmentation import PixelCounts, count_pixels, evaluate_pixels
from dla.training.augment import BatchAugment
from dla.training.distributed import Ranks
from dla.training.model import InitialModel
from dla.training.pair_html import write_segment_report
from dla.training.pair_samples import PairSamples, PairTraining, WholePhotos, pair_tiles
from dla.training.pixel_loss import PixelLabels, PixelObjective, class_weights
from dla.training.recipe import Recipe
from dla.training.task import Measured
from dla.types import Array
from dla.weights.load import load_dense

RARE = 0.25  # of an equal share of the pixels


class SegmentValidation(WholePhotos):
    """The validation photos of a segmentation network."""

    def measure(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Measured:
        """Measure the mean IoU, by which epochs are compared."""
        found = evaluate_pixels(self.counts(network, pause, while_waiting), self.split.class_ids)
        return Measured({"miou": found.miou, "pixel_accuracy": found.pixel_accuracy}, (found.miou,))

    def counts(
        self,
        network: nn.Module,
        pause: Callable[[], None] = lambda: None,
        while_waiting: Callable[[], None] | None = None,
    ) -> PixelCounts:
        """Count the right and wrong pixels of all photos."""
        classes = len(self.split.class_ids)

        def count(logits_KHW: Tensor, row: int) -> Array:
            answer_HW = logits_KHW.argmax(0).cpu().numpy()
            found = count_pixels(self.split.mask(row), answer_HW, classes, IGNORED)
            return np.append(found.confusion_KK, found.ignored)

        return PixelCounts.merge(
            PixelCounts.of_photo(row[:-1].reshape(classes, classes), int(row[-1]))
            for row in self.counted(network, count, pause, while_waiting)
        )


class SegmentTask(PairTraining):
    """One class per pixel."""

    figure = "miou"
    task: PairTask = "segment"
    validation = SegmentValidation

    def learned(
        self, recipe: Recipe, split: PairSplit, images: PhotoStore, device: torch.device
    ) -> tuple[PairSamples, PixelObjective]:
        """Return crops that favour rare classes, and the loss weighted by class."""
        shares_K = pixel_shares(split)
        weights_K = class_weights(recipe.loss, shares_K).to(device)
        rare = frozenset(np.flatnonzero((shares_K > 0) & (shares_K < RARE / len(shares_K))).tolist())
        objective = PixelObjective(recipe.loss, BatchAugment(recipe.augment), lambda targets, known: weights_K[targets])
        return PairSamples(images, split.mask, recipe, rare), objective

    def tiles(self, pixels_NHW3: Array, labels: PixelLabels, initial: InitialModel) -> tuple[Array, list[str]]:
        """Return each photo beside its target."""
        config = initial.config
        palette = class_palette(len(config.label_names or ()), config.dla.get("palette"))
        return pair_tiles(pixels_NHW3, labels, palette), [""] * len(pixels_NHW3)

    def report(self, run: Path, splits: RunPairs, validation: SegmentValidation, ranks: Ranks) -> dict[str, Any]:
        """Measure the run's `best` and write report.html; return the interval of the mean IoU."""
        best = ranks.broadcast_object(lambda: load_dense(str(run / "best")))
        found = evaluate_pixels(validation.counts(best.model), splits.val.class_ids)
        if ranks.is_main:
            write_segment_report(run, splits.val, found)
        return {"miou_interval": found.miou_interval.to_list()}


def pixel_shares(split: PairSplit) -> Array:
    """Return the share of the pixels that each class has, (K,), of those that are not ignored.

    Raises:
        UsageError: all pixels are ignored.
    """
    counts_K = np.zeros(len(split.class_ids), np.int64)
    for row in range(len(split)):
        counts_K += np.bincount(split.mask(row).ravel(), minlength=256)[: len(counts_K)]
    if not counts_K.sum():
        raise UsageError("all pixels of the training masks are ignored. Give masks with labelled pixels")
    shares_K: Array = counts_K / counts_K.sum()
    return shares_K
