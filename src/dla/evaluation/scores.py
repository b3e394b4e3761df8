"""Photos into scores: the logarithms of the probabilities that `dla predict` would give, a row a photo.

What is kept of a photo is its row; a few photos at a time are read ahead of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dla.data.dataset import Split, Unreadable
from dla.data.prefetch import run_ahead
from dla.errors import ImageError
from dla.images.decode import read_photo
from dla.images.preprocessing import Preprocessing
from dla.inference.classifier import Classifier
from dla.inference.pipeline import in_batches
from dla.options import Preset, ReadOptions, TestTime
from dla.training.distributed import Ranks
from dla.types import Array

__all__ = [
    "ProgressHook",
    "ReadConfig",
    "log_probabilities",
    "no_progress",
    "tta_views",
]


ProgressHook = Callable[[Iterator[Any], int], Iterator[Any]]

SMALLER, LARGER = 0.75, 1.25
STRIDE = 32  # sides that are no multiple of it are seen worse (docs/results.md)
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ReadConfig:
    """How photos are read, and how many at once. `preset` "imagenet" leaves them as stored, as timm does."""

    batch_size: int
    workers: int
    allow_truncated: bool
    max_pixels: int
    preset: Preset
    tta: TestTime


@dataclass(frozen=True)
class _Views:
    """A photo at each size that it is looked at, uint8 (H, W, 3), or why it cannot be."""

    row: int
    pixels: tuple[Array, ...] = ()
    error: Unreadable | None = None


def no_progress(photos: Iterator[Any], total: int) -> Iterator[Any]:
    """The same photos."""
    return photos


def tta_views(preprocessing: Preprocessing, tta: TestTime) -> tuple[Preprocessing, ...]:
    """The sizes at which each photo is looked at: with "scales" the network's, a smaller and a larger one.

    Both are the nearest multiples of the stride to 3/4 and 5/4 of the network's, and at least one stride away where
    there is room.
    """
    if tta not in ("scales", "both"):
        return (preprocessing,)

    def smaller(side: int) -> int:
        return max(STRIDE, min(round(SMALLER * side / STRIDE), math.ceil(side / STRIDE) - 1) * STRIDE)

    def larger(side: int) -> int:
        return max(round(LARGER * side / STRIDE), side // STRIDE + 1) * STRIDE

    height, width = preprocessing.size
    sizes = ((smaller(height), smaller(width)), (height, width), (larger(height), larger(width)))
    return tuple(replace(preprocessing, size=size) for size in dict.fromkeys(sizes))


def log_probabilities(
    split: Split, classifier: Classifier, reading: ReadConfig, ranks: Ranks, watch: ProgressHook
) -> tuple[Array, tuple[Unreadable, ...]]:
    """float32 (N, K) of all ranks together, and the photos that could not be read, whose rows are not a number.

    A probability that is 0 in single precision counts as the smallest number above that.
    """
    rows_n = ranks.share(np.arange(len(split)))
    logs_nK = np.full((len(rows_n), len(classifier.classes)), np.nan, np.float32)
    errors_n = np.full(len(rows_n), None, object)
    place = {row: i for i, row in enumerate(rows_n.tolist())}
    mirrored = reading.tta in ("flips", "both")
    ahead = reading.batch_size + 2 * reading.workers
    photos = run_ahead(_read_fn(split, classifier, reading), place, reading.workers, ahead)
    for batch in in_batches(watch(photos, len(rows_n)), reading.batch_size, lambda p: p.error is None):
        seen = [p for p in batch if p.error is None]
        if seen:
            probabilities_bK = _mean(classifier, [p.pixels for p in seen], mirrored)
            logs_nK[[place[p.row] for p in seen]] = np.log(np.maximum(probabilities_bK, TINY))
        for p in batch:
            errors_n[place[p.row]] = p.error
    logs_NK, errors_N = (ranks.gather_rows(a, rows_n, len(split)) for a in (logs_nK, errors_n))
    return logs_NK, tuple(error for error in errors_N if error is not None)


def _read_fn(split: Split, classifier: Classifier, reading: ReadConfig) -> Callable[[int], _Views]:
    """What reads the photo of a row."""
    sizes = tta_views(classifier.preprocessing, reading.tta)
    exif = classifier.preprocessing.exif if reading.preset == "model" else "ignore"
    options = ReadOptions(exif, reading.max_pixels, reading.allow_truncated)

    def see(row: int) -> _Views:
        name = split.names[row]
        try:
            photo = read_photo(split.photos[row], options, name)
        except ImageError as error:
            return _Views(row, error=Unreadable(name, error.code, str(error)))
        return _Views(row, tuple(size.pixels(photo.image) for size in sizes))

    return see


def _mean(classifier: Classifier, photos: list[tuple[Array, ...]], mirrored: bool) -> Array:
    """The mean over everything that is looked at of each photo, (n, K)."""
    views = [np.stack(pixels) for pixels in zip(*photos, strict=True)]
    if mirrored:
        views += [np.ascontiguousarray(view[:, :, ::-1]) for view in views]
    return np.mean([classifier.probabilities(view) for view in views], 0)  # type: ignore[no-any-return]
