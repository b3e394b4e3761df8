"""Compute log probabilities of photos, as `dla predict` would give them.

Only the scores are held in memory; a few photos at a time are read ahead of the network.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dla.data.dataset import Split, Unreadable
from dla.images.preprocessing import Preprocessing
from dla.inference.classifier import Classifier
from dla.inference.pipeline import InputPipeline, PhotoReader
from dla.options import EvalOptions, ReadOptions, TestTime
from dla.training.distributed import Ranks
from dla.types import Array, Progress

SMALLER, LARGER = 0.75, 1.25
STRIDE = 32  # sides that are not a multiple of it lose accuracy (docs/results.md)
TINY = np.finfo(np.float32).tiny


def _reader(preprocessing: Preprocessing, options: EvalOptions, reading: ReadOptions) -> PhotoReader:
    """Return the reader of photos for a network with this preprocessing.

    The preset "imagenet" ignores the EXIF orientation, as timm does.
    """
    exif = preprocessing.exif if options.preset == "model" else "ignore"
    return PhotoReader(tta_views(preprocessing, options.tta), replace(reading, exif=exif))


def tta_views(preprocessing: Preprocessing, tta: TestTime) -> tuple[Preprocessing, ...]:
    """Return the preprocessing of each test-time view: with "scales" at a smaller, the network's and a larger size.

    The smaller and larger sides are the multiples of the stride nearest to 3/4 and 5/4 of the network's side, and at
    least one stride away from it where possible.
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
    split: Split, classifier: Classifier, options: EvalOptions, reading: ReadOptions, pipeline: InputPipeline,
    ranks: Ranks, progress: Progress,
) -> tuple[Array, tuple[Unreadable, ...]]:  # fmt: skip
    """Return log probabilities, float32 (N, K), gathered from all ranks, and the unreadable photos, whose rows are nan.

    A probability that is 0 in single precision counts as the smallest positive number.
    """
    rows_n = ranks.shard(np.arange(len(split)))
    logs_nK = np.full((len(rows_n), len(classifier.classes)), np.nan, np.float32)
    errors_n = np.full(len(rows_n), None, object)
    flip = options.tta in ("flips", "both")

    def compute(*views: Array) -> Array:
        """Return the log of the mean probabilities over all views of each photo."""
        if flip:
            views += tuple(np.ascontiguousarray(view[:, :, ::-1]) for view in views)
        probabilities_bK = np.mean([classifier.probabilities(view) for view in views], 0)
        return np.log(np.maximum(probabilities_bK, TINY))  # type: ignore[no-any-return]

    photos = ((split.names[row], split.photos[row]) for row in rows_n.tolist())
    progress.start("validating", len(rows_n))
    pipeline = replace(pipeline, max_concurrent=classifier.engine.max_concurrent)
    reader = _reader(classifier.preprocessing, options, reading)
    results = pipeline.results(photos, reader, compute, lambda p, row: (p, row))
    for i, (p, logs_K) in enumerate(results):
        if p.error is None:
            logs_nK[i] = logs_K
        else:
            errors_n[i] = Unreadable(p.name, p.error.code, p.error.message)
        progress.advance()
    logs_NK, errors_N = (ranks.gather_rows(a, rows_n, len(split)) for a in (logs_nK, errors_n))
    return logs_NK, tuple(error for error in errors_N if error is not None)
