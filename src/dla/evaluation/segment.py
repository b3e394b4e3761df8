"""Validate segmentation networks on photos with masks: `dla validate` with `--task segment`.

K is the number of the model's classes, N of photos; masks are uint8 (H, W), 255 where ignored.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dla.data.dataset import Unreadable
from dla.data.mask_classes import MaskClasses
from dla.data.pair_check import mask_classes
from dla.data.pair_split import IGNORED, PairSplit
from dla.data.pairs import open_pair_split
from dla.data.sources import DataOptions
from dla.errors import DlaError, ImageError, UsageError
from dla.inference.segmenter import Segmentation, Segmenter
from dla.metrics.segmentation import (
    PixelCounts,
    SegmentationComparison,
    SegmentationEvaluation,
    compare_segmentations,
    count_pixels,
    evaluate_pixels,
)
from dla.options import BatchOptions, ReadOptions
from dla.training.distributed import Ranks, process_group
from dla.types import NO_PROGRESS, Array, Progress

SEGMENT_VALIDATION_SCHEMA = "dla.validate-segment/1"


@dataclass(frozen=True, slots=True)
class Views:
    """Test-time views, whose probabilities are averaged: magnifications of the photo, and their mirror images."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"scales is {list(self.scales)}. Allowed: numbers from 0.1 to 10, such as 0.75,1,1.25")

    @property
    def is_plain(self) -> bool:
        """Whether the only view is the photo itself."""
        return self.scales == (1.0,) and not self.flip


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationResult:
    """One network's results on the photos of `split`, which leaves out the unreadable ones.

    `evaluation` is of single photos as `dla segment` answers, `with_views` of the averaged `views`. `lookup` has the
    model's index of each class of the masks.
    """

    model: Segmenter
    evaluation: SegmentationEvaluation
    with_views: SegmentationEvaluation | None
    views: Views
    split: PairSplit
    lookup: Array

    def mask(self, row: int) -> Array:
        """Return the mask of a photo in the model's indices."""
        mask_HW: Array = self.lookup[self.split.mask(row)]
        return mask_HW

    def figures(self) -> dict[str, Any]:
        """Return the part of the JSON record that is about this model."""
        record = {"model": self.model.origin, "sha256": self.model.sha256, **self.evaluation.to_dict()}
        record["classes"] = [c | {"label": name.label}
                             for c, name in zip(record["classes"], self.model.classes, strict=True)]  # fmt: skip
        if self.with_views is not None:
            keys = ("miou", "miou_interval", "pixel_accuracy", "pixel_accuracy_interval", "mean_accuracy",
                    "frequency_iou", "miou_per_photo", "classes")  # fmt: skip
            figures = {k: v for k, v in self.with_views.to_dict().items() if k in keys}
            record["views"] = {"scales": list(self.views.scales), "flip": self.views.flip, **figures}
        return record


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationResults:
    """The results of one or several networks on the same photos, and the comparison of each pair."""

    data: str
    models: tuple[SegmentationResult, ...]
    comparisons: tuple[tuple[str, str, SegmentationComparison], ...]
    unreadable: tuple[Unreadable, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record (docs/formats.md)."""
        record: dict[str, Any] = {"schema": SEGMENT_VALIDATION_SCHEMA, "data": self.data}
        if len(self.models) == 1:
            record |= self.models[0].figures()
        else:
            record["models"] = [one.figures() for one in self.models]
            record["comparisons"] = [{"model_a": a, "model_b": b, **c.to_dict()} for a, b, c in self.comparisons]
        return record | {"unreadable": unreadable_records(self.unreadable)}


def unreadable_records(unreadable: Sequence[Unreadable]) -> list[dict[str, str]]:
    """Return what was left out, as in JSON."""
    return [{"path": one.name, "code": one.code, "message": one.message} for one in unreadable]


def validate_segmentation(
    data: str | os.PathLike[str],
    models: Sequence[Segmenter],
    *,
    views: Views = Views(),
    columns: DataOptions = DataOptions(),
    workers: int | None = BatchOptions.workers,
    allow_truncated: bool = ReadOptions.allow_truncated,
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> SegmentationResults:
    """Validate segmentation networks on photos with masks, each at the size of its mask.

    The answers are those of `dla segment`. Under torchrun each process takes a shard of the photos, and all return the
    same.

    Args:
        data: photos and masks in one of the layouts of docs/data.md; of several splits, val is taken. Classes are
            matched with the model's by name.
        models: the networks; several are compared on the same photos.
        views: test-time views, for further figures.
        columns: the names of a table's columns.
        workers: threads that read photos; None: one per core.
        allow_truncated: decode the part that is present of truncated files.
        max_pixels: refuse larger photos.
        max_bytes: refuse larger files.
        seed: seed of the bootstrap intervals.
        progress: receives each photo, model by model.

    Raises:
        UsageError: a model lacks a class of the data, or `data` is of no known layout.
        UnavailableError: the data is missing, or has no masks to validate with.
        DlaError: no photo can be read.
    """
    if not models:
        raise UsageError("no model is given. Name a segmentation network")
    source = open_pair_split(Path(data), "segment", columns)
    classes = mask_classes(Path(data), {"": source}, BatchOptions(workers=workers).threads, progress)
    split = PairSplit(source.pairs, classes)
    left_out = [Unreadable(one.names[0], one.kind, one.message) for one in source.unpaired]
    options = {"workers": workers, "allow_truncated": allow_truncated, "max_pixels": max_pixels,
               "max_bytes": max_bytes}  # fmt: skip
    results, notes = [], list(source.notes)
    with process_group("cpu") as ranks:
        for model in models:
            lookup, assumed = match_classes(classes, model, str(data))
            notes += [assumed] if assumed else []
            plain, further, failed = _count(model, split, lookup, views, options, ranks, progress)
            read = split.take([row for row, one in enumerate(failed) if one is None])
            if not len(read):
                first = next(one.message for one in failed if one is not None)
                raise DlaError(f"none of the {len(split):,} photos of {data} can be read. The first: {first}")
            ids = [c.class_id for c in model.classes]
            found = evaluate_pixels(plain, ids, seed=seed)
            seen = None if further is None else evaluate_pixels(further, ids, seed=seed)
            results.append(SegmentationResult(model, found, seen, views, read, lookup))
        left_out += [one for one in failed if one is not None]
    compared = tuple((a.model.origin, b.model.origin, compare_segmentations(a.evaluation, b.evaluation, seed=seed))
                     for a, b in itertools.combinations(results, 2))  # fmt: skip
    return SegmentationResults(os.fspath(data), tuple(results), compared, tuple(left_out), tuple(dict.fromkeys(notes)))


def match_classes(classes: MaskClasses, model: Segmenter, data: str) -> tuple[Array, str]:
    """Return the model's index of each class of the masks, (256,) of uint8, and what had to be assumed, if anything.

    Raises:
        UsageError: the model lacks a class of the masks.
    """
    known = [c.class_id for c in model.classes], [c.label for c in model.classes]
    assumed = classes.note or ""
    names = next((own for own in known if set(classes.class_ids) <= set(own)), None)
    if names is not None:
        indices = [names.index(class_id) for class_id in classes.class_ids]
    elif classes.note and max(classes.stored_ids) < len(model.classes):
        indices = list(classes.stored_ids)
        assumed = f"no classes.json names the classes of {data}: the ids in its masks are taken as {model.origin}'s"
    else:
        unknown = next(class_id for class_id in classes.class_ids if class_id not in known[0])
        raise UsageError(
            f"{data} has masks of the class {unknown}, which {model.origin} does not have. It has: "
            f"{', '.join(known[0][:12])}{', ...' if len(known[0]) > 12 else ''}"
        )
    lookup = np.full(256, IGNORED, np.uint8)
    lookup[: len(indices)] = indices
    return lookup, assumed


def _count(
    model: Segmenter, split: PairSplit, lookup: Array, views: Views, options: dict[str, Any], ranks: Ranks,
    progress: Progress,
) -> tuple[PixelCounts, PixelCounts | None, list[Unreadable | None]]:  # fmt: skip
    """Return the counts of the photos that can be read, those with views, and the error of each photo."""
    count = len(model.classes)
    rows = ranks.shard(np.arange(len(split)))
    shape = (len(rows), 1 if views.is_plain else 2, count**2 + 1)
    counts, failed = np.zeros(shape, np.int64), np.full(len(rows), None, object)
    progress.start("validating", len(rows))
    answers = model((split.photos[row] for row in rows), **options)
    for i, (row, answer) in enumerate(zip(rows.tolist(), answers, strict=True)):
        try:
            if answer.error is not None:
                raise ImageError(answer.error.code, answer.error.message)
            assert answer.mask is not None
            truth_HW = lookup[split.mask(row)]
            masks = [answer.mask, *([] if views.is_plain else [mask_of_views(model, answer, views)])]
            for place, mask_HW in zip(counts[i], masks, strict=True):
                found = count_pixels(truth_HW, mask_HW, count, IGNORED)
                place[:] = np.append(found.confusion_KK, found.ignored)
        except ImageError as error:
            failed[i] = Unreadable(split.names[row], error.code, str(error))
        progress.advance()
    counts, failed = (ranks.gather_rows(one, rows, len(split)) for one in (counts, failed))
    read = [row for row, one in enumerate(failed) if one is None]

    def merged(column: int) -> PixelCounts:
        parts = (PixelCounts.of_photo(one[:-1].reshape(count, count), int(one[-1])) for one in counts[read, column])
        return PixelCounts.merge(parts) if read else PixelCounts(np.zeros((count, count)), np.zeros((0, 3, count)))

    return merged(0), None if views.is_plain else merged(1), failed.tolist()


def mask_of_views(model: Segmenter, answer: Segmentation, views: Views) -> Array:
    """Return the class of each pixel by the mean probability over all views of a photo."""
    assert answer.photo is not None
    photo_HW3 = np.asarray(answer.photo)
    short = model.trained_side or min(photo_HW3.shape[:2])
    total_KHW: Array | None = None
    for scale, mirrored in itertools.product(views.scales, (False, True) if views.flip else (False,)):
        seen_HW3 = np.ascontiguousarray(photo_HW3[:, ::-1]) if mirrored else photo_HW3
        (found,) = model([seen_HW3], size=max(1, round(scale * short)), probabilities=True, workers=0)
        assert found.probabilities is not None
        own_KHW = found.probabilities[..., ::-1] if mirrored else found.probabilities
        total_KHW = own_KHW.astype(np.float32) if total_KHW is None else total_KHW + own_KHW
    assert total_KHW is not None
    mask_HW: Array = total_KHW.argmax(0).astype(np.uint8)
    return mask_HW
