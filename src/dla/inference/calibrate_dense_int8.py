"""Make the int8 model of a segmentation or boundary network: calibrate it, compare it with fp32 on masks, store it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from dla.data.pair_split import IGNORED, PairSplit, RunPairs
from dla.data.sources import DataOptions
from dla.engines.cpu import instructions
from dla.engines.graph import Network
from dla.engines.openvino import OpenvinoEngine
from dla.engines.quantized import MAX_DROP, Gate, QuantizedModel, quantize
from dla.errors import CheckError, UsageError
from dla.images.decode import read_photo
from dla.inference.calibrate_int8 import CalibrationResult
from dla.inference.classifier import class_names
from dla.inference.dense_maps import input_pixels, logits_of, resized_bands
from dla.inference.int8_store import store_quantized
from dla.inference.traced_model import TracedModel, open_traced
from dla.metrics.boundaries import BoundaryCounts, count_boundaries, evaluate_boundaries
from dla.metrics.segmentation import PixelCounts, compare_segmentations, count_pixels, evaluate_pixels
from dla.models.registry import LOGITS
from dla.options import BatchOptions, BoundaryOptions, DenseOptions, ReadOptions
from dla.types import NO_PROGRESS, Array, Progress
from dla.weights.model_folder import check_task
from dla.weights.spec import ModelFiles

CALIBRATION, LEAST_CALIBRATION = 100, 20  # photos
GATE_PHOTOS = {"segment": 100, "edges": 20}  # at least
THRESHOLDS = BoundaryOptions(thresholds=15)


def make_dense_quantized(
    source: str | ModelFiles,
    data: str | os.PathLike[str],
    *,
    workers: int | None = BatchOptions.workers,
    columns: DataOptions = DataOptions(),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> CalibrationResult:
    """Quantize a dense network to int8, calibrated on train of `data` and checked on val, and store it.

    The gate: a loss of at most half a point of mIoU on at least 100 masks, or of 0.005 ODS, at 15 thresholds, on at
    least 20 photos with boundaries. Arguments are those of `make_quantized`; `data` holds pairs as for `dla train`.

    Raises:
        CheckError: the gate did not pass; nothing is stored.
        UsageError: too few photos, other classes than the network's, or a network that classifies.
        UnavailableError: the network or the photos are not available, or NNCF is not installed.
    """
    network, model = open_traced(source)
    check_task(model.config, model.origin, "segment", "edges")
    task = model.config.task
    threads = BatchOptions(workers=workers).threads
    pairs = RunPairs.open(
        os.fspath(data), "segment" if task == "segment" else "edges", columns, seed, threads, progress
    )
    _check(pairs, model, os.fspath(data))
    rows = np.random.default_rng(seed).permutation(len(pairs.train))[:CALIBRATION]
    progress.log(f"int8: calibrating with {len(rows)} photos")
    quantized = quantize(network, [_pixels(pairs.train, row, model)[0] for row in rows.tolist()], progress)
    progress.log(f"int8: comparing with fp32 on {len(pairs.val)} photos of val")
    gate = dense_gate(network, quantized, model, pairs.val, progress)
    if not gate.passed:
        raise CheckError(
            f"the int8 model of {model.origin} did not pass: {gate.sentence()}. Allowed: a loss of at most "
            f"{MAX_DROP:g}. Nothing is stored"
        )
    quantized = quantized.with_gate(gate)
    return CalibrationResult(quantized, gate, store_quantized(quantized, model))


def _check(pairs: RunPairs, model: TracedModel, data: str) -> None:
    known = tuple(c.class_id for c in class_names(model.config))
    if model.config.task == "segment" and pairs.val.class_ids != known:
        raise UsageError(
            f"the classes of {data} are {', '.join(pairs.val.class_ids)}, those of {model.origin} {', '.join(known)}. "
            "Give masks with the network's classes, in its order"
        )
    least = GATE_PHOTOS[model.config.task]
    if len(pairs.train) < LEAST_CALIBRATION or len(pairs.val) < least:
        raise UsageError(
            f"{data} has {len(pairs.train)} photos in train and {len(pairs.val)} in val. At least "
            f"{LEAST_CALIBRATION} to calibrate with, and {least} for the gate, are needed"
        )


def _pixels(split: PairSplit, row: int, model: TracedModel) -> tuple[Array, tuple[int, int]]:
    """Return what the network sees of a photo, uint8 (H, W, 3), and the photo's (height, width)."""
    photo = read_photo(split.photos[row], ReadOptions(model.preprocessing.exif)).image
    size = DenseOptions().input_size(photo.size, model.config.dla.get("short_side"))
    return input_pixels(photo, size, model.preprocessing.interpolation), (photo.height, photo.width)


def dense_gate(
    network: Network, quantized: QuantizedModel, model: TracedModel, split: PairSplit, progress: Progress = NO_PROGRESS
) -> Gate:
    """Compare int8 with fp32 on the pairs of a split."""
    engines = OpenvinoEngine(network), OpenvinoEngine(network, "int8", quantized=quantized.model())
    runs = [engine.features_at(LOGITS) for engine in engines]
    progress.start("comparing with fp32", len(split), "photos")
    found: tuple[list[PixelCounts | BoundaryCounts], ...] = [], []
    for row in range(len(split)):
        pixels_HW3, size = _pixels(split, row, model)
        for run, counts in zip(runs, found, strict=True):
            seen: Any = pixels_HW3.shape[:2]
            bands = resized_bands(logits_of(pixels_HW3, run, DenseOptions.tile), seen, size)
            logits_KHW = np.concatenate(list(bands), 1)
            counts.append(_counts(logits_KHW, split, row))
        progress.advance()
    return _ods_gate(split, *found) if split.classes is None else _miou_gate(split, *found)  # type: ignore[arg-type]


def _counts(logits_KHW: Array, split: PairSplit, row: int) -> PixelCounts | BoundaryCounts:
    if split.classes is None:
        probability_HW = 1 / (1 + np.exp(-logits_KHW[0].astype(np.float64)))
        return count_boundaries(probability_HW, split.annotations(row), THRESHOLDS)
    found = count_pixels(split.mask(row), logits_KHW.argmax(0), len(logits_KHW), IGNORED)
    return PixelCounts.of_photo(found.confusion_KK, found.ignored)


def _miou_gate(split: PairSplit, fp32: list[PixelCounts], int8: list[PixelCounts]) -> Gate:
    one, other = (evaluate_pixels(PixelCounts.merge(counts), split.class_ids) for counts in (fp32, int8))
    loss = compare_segmentations(one, other)
    low, high = loss.miou_interval.low, loss.miou_interval.high
    passed = loss.miou <= MAX_DROP
    return Gate(passed, "miou", loss.miou, low, high, len(split), one.miou, other.miou, instructions())


def _ods_gate(split: PairSplit, fp32: list[BoundaryCounts], int8: list[BoundaryCounts]) -> Gate:
    one, other = (evaluate_boundaries(split.names, counts, THRESHOLDS).ods.f1 for counts in (fp32, int8))
    return Gate(one - other <= MAX_DROP, "ods", one - other, None, None, len(split), one, other, instructions())
