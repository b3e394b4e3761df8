"""Training of segmentation networks: one class per pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dla.data.pair_split import IGNORED, PairSplit, RunPairs
from dla.data.photo_cache import Budget, open_store
from dla.drawing.palette import class_palette
from dla.errors import UsageError
from dla.metrics.segmentation import PixelCounts, count_pixels, evaluate_pixels
from dla.models.normalize import Normalize
from dla.training.augment import BatchAugment
from dla.training.distributed import Ranks
from dla.training.model import InitialModel, build_dense
from dla.training.pair_html import write_segment_report
from dla.training.pair_samples import PairSamples, WholePhotos, pair_tiles
from dla.training.pixel_loss import PixelLabels, PixelObjective, class_weights
from dla.training.recipe import Recipe
from dla.training.task import Measured, Parts, Runtime
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


class SegmentTask:
    """One class per pixel."""

    figure = "miou"

    def open_photos(self, recipe: Recipe, runtime: Runtime) -> RunPairs:
        """Open the recipe's pairs, without those that have a fault."""
        return RunPairs.open(recipe.photos, "segment", recipe.data, recipe.seed, runtime.workers, runtime.progress)

    def saved(self, splits: RunPairs, recipe: Recipe) -> dict[str, Any]:
        """Return the content of data.json."""
        return splits.to_dict(recipe.photos)

    def restore(self, saved: Mapping[str, Any], recipe: Recipe) -> RunPairs:
        """Return the pairs that `saved` describes."""
        return RunPairs.restore(saved, recipe.photos)

    def initial(self, recipe: Recipe, splits: RunPairs) -> InitialModel:
        """Return the network with a decoder and a classifier for these classes."""
        return build_dense(recipe, splits.train)

    def parts(self, recipe: Recipe, splits: RunPairs, initial: InitialModel, runtime: Runtime) -> Parts:
        """Return the samples, the objective and the validation of a run."""
        train, val = splits.train, splits.val
        budget = Budget.of_processes(runtime.ranks.local_world)
        shares_K = pixel_shares(train)
        weights_K = class_weights(recipe.loss, shares_K).to(runtime.device)
        rare = frozenset(np.flatnonzero((shares_K > 0) & (shares_K < RARE / len(shares_K))).tolist())
        normalize = Normalize(*initial.preprocessing.scale_shift()).to(runtime.device)
        train_store, val_store = (open_store(s, runtime.cache, budget, runtime.progress) for s in (train, val))
        return Parts(
            PairSamples(train_store, train.mask, recipe, rare),
            PixelObjective(recipe.loss, BatchAugment(recipe.augment), lambda targets, known: weights_K[targets]),
            SegmentValidation(val, val_store, normalize, runtime.workers, runtime.device, runtime.ranks),
        )

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
