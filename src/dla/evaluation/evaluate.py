"""`dla validate` from Python: `validate(data, model)`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from dla.data.dataset import Split, open_split
from dla.data.pairs import check_not_pairs
from dla.data.sources import DataOptions
from dla.engines.torch import pick_device
from dla.errors import DlaError, UsageError
from dla.evaluation.result import Calibrated, Validation, Validations
from dla.evaluation.scores import log_probabilities
from dla.inference.classifier import Classifier, check_classifies, load
from dla.inference.pipeline import InputPipeline
from dla.metrics.calibration import fit_temperature
from dla.metrics.classification import compare, evaluate
from dla.options import BatchOptions, EngineOptions, EvalOptions, Preset, ReadOptions, TestTime
from dla.training.distributed import Ranks, process_group
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Array, Progress
from dla.weights.model_folder import CONFIG, set_fields

ModelOrName = str | Classifier
DIGITS = 4  # of a temperature


@overload
def validate(data: str | os.PathLike[str], model: ModelOrName = DEFAULT_MODEL, **options: Any) -> Validation: ...
@overload
def validate(data: str | os.PathLike[str], model: Sequence[ModelOrName], **options: Any) -> Validations: ...
def validate(  # type: ignore[misc]  # the overloads leave the options to this signature
    data: str | os.PathLike[str],
    model: ModelOrName | Sequence[ModelOrName] = DEFAULT_MODEL,
    *,
    batch_size: int = BatchOptions.batch_size,
    workers: int | None = BatchOptions.workers,
    device: str = EngineOptions.device,
    preset: Preset = EvalOptions.preset,
    tta: TestTime = EvalOptions.tta,
    calibrate: bool = False,
    allow_truncated: bool = ReadOptions.allow_truncated,
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
    columns: DataOptions = DataOptions(),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Validation | Validations:
    """Validate one model on labelled photos, or several on the same photos, with a comparison of each pair.

    The results are those of what `dla predict` predicts for the same files. Unreadable photos are listed in
    `Validation.unreadable` and left out. Under torchrun each process takes a shard of the photos, and all return the
    same.

    Args:
        data: a folder with one subfolder per class, a table or an archive (docs/data.md); of several splits, val is
            taken. Classes are matched with the model's by name: all by `class_id`, or all by `label`.
        model: as `dla.load` takes it, or a `Classifier`; for a sequence, the result is a `Validations`.
        batch_size: photos per forward pass.
        workers: threads that read and resize photos; None: one per core; 0: the calling thread does it.
        device: "auto", "cpu", "cuda", ...; for models given by name.
        preset: "imagenet" ignores EXIF orientation, as timm does.
        tta: test-time augmentation: "flips" adds the mirror image, "scales" a smaller and a larger size, "both" both;
            the probabilities of all views are averaged.
        calibrate: fit a temperature and save it in the model folder.
        allow_truncated: decode the part that is present of truncated files.
        max_pixels: refuse larger photos.
        max_bytes: refuse larger files.
        columns: the names of a table's columns.
        seed: seed of the bootstrap intervals.
        progress: receives each photo, model by model.

    Raises:
        UsageError: the model lacks a class of the data, its temperature cannot be fitted or saved, or the data has
            pairs of photos and masks.
        UnavailableError, DamagedError: the data or the model are missing or damaged.
        DlaError: no photo can be read.
    """
    several = not isinstance(model, str | Classifier)
    named: Sequence[ModelOrName] = model if not isinstance(model, str | Classifier) else [model]
    batch, options = BatchOptions(batch_size, workers), EvalOptions(preset, tta)
    reading = ReadOptions(max_pixels=max_pixels, allow_truncated=allow_truncated, max_bytes=max_bytes)
    pipeline = InputPipeline(batch.batch_size, batch.threads)
    _check(named, options, calibrate)
    check_not_pairs(Path(data))
    chosen_device = pick_device(device)
    with process_group(device) as ranks:
        shown = progress if ranks.is_main else NO_PROGRESS
        classifiers = [_load(m, str(ranks.device(chosen_device))) for m in named]
        folder = _folder_of(classifiers[0]) if calibrate else None
        results = [_one(_name(m), c, os.fspath(data), columns, options, reading, seed, pipeline, ranks, shown)
                for m, c in zip(named, classifiers, strict=True)]  # fmt: skip
        validations = [v for v, _ in results]
        if folder is not None:
            validations = [_calibrated(validations[0], results[0][1], folder, seed, ranks)]
        pairs = itertools.combinations(validations, 2)
        compared = tuple((a.model, b.model, compare(a.evaluation, b.evaluation, seed=seed)) for a, b in pairs)
        return Validations(tuple(validations), compared) if several else validations[0]


def _check(named: Sequence[ModelOrName], options: EvalOptions, calibrate: bool) -> None:
    if not named:
        raise UsageError("no model is given. Leave out `model` for the built-in network")
    if calibrate and len(named) > 1:
        raise UsageError(f"calibrate fits one model at a time, but {len(named)} are given")
    if calibrate and (options.tta, options.preset) != ("none", "model"):
        raise UsageError("calibrate fits the scores of dla predict. Leave out tta and preset")


def _name(model: ModelOrName) -> str:
    return model.origin if isinstance(model, Classifier) else model


def _load(model: ModelOrName, device: str) -> Classifier:
    classifier = model if isinstance(model, Classifier) else load(model, device=device, task="classify")
    check_classifies(classifier.config, classifier.origin)
    return classifier


def _folder_of(classifier: Classifier) -> Path:
    """Return the model folder, in which the temperature will be saved.

    Raises:
        UsageError: the model is not a folder of the user's.
    """
    folder = Path(classifier.origin)
    if (folder / CONFIG).is_file():
        return folder
    reason = "is a file without a config" if folder.is_file() else "is not a model folder of yours"
    raise UsageError(
        f"{classifier.origin} {reason}, so a temperature cannot be saved in it. Make a model folder of it: "
        f"dla convert {classifier.origin.partition('@')[0]} mine --to folder"
    )


def _one(
    name: str, classifier: Classifier, data: str, columns: DataOptions, options: EvalOptions, reading: ReadOptions,
    seed: int, pipeline: InputPipeline, ranks: Ranks, progress: Progress,
) -> tuple[Validation, Array]:  # fmt: skip
    """Return one model's results, and its log probabilities (N, K)."""
    split = _with_classes_of(classifier, data, columns)
    logs_NK, unreadable = log_probabilities(split, classifier, options, reading, pipeline, ranks, progress)
    read = np.flatnonzero(~np.isnan(logs_NK[:, 0]))
    if not len(read):
        raise DlaError(f"none of the {len(split):,} photos of {data} can be read. The first: {unreadable[0].message}")
    if len(read) < len(split):
        logs_NK = logs_NK[read]
    split_read = replace(split.take(read), notes=split.notes)
    labels = tuple(c.label for c in classifier.classes)
    evaluation = evaluate(logs_NK, split_read.targets_N, split_read.class_ids, seed=seed)
    return Validation(
        name, classifier.origin, classifier.sha256, data, options.preset, options.tta, classifier.config.temperature,
        labels, evaluation, split_read, unreadable, notes=(*classifier.notes, *split.notes),
        license=str(classifier.config.dla.get("license") or ""),
    ), logs_NK  # fmt: skip


def _with_classes_of(classifier: Classifier, data: str, columns: DataOptions) -> Split:
    """Open the photos with the model's classes, matched by its class ids, else by its readable names."""
    class_ids = tuple(c.class_id for c in classifier.classes)
    labels = tuple(c.label for c in classifier.classes)
    try:
        return open_split(data, columns, class_ids)
    except UsageError:
        if len(set(labels)) == len(labels) and labels != class_ids:
            with suppress(UsageError):  # the error about the ids is reported
                return replace(open_split(data, columns, labels), class_ids=class_ids)
        raise


def _calibrated(result: Validation, logs_NK: Array, folder: Path, seed: int, ranks: Ranks) -> Validation:
    """Fit a temperature and save it. The scores already include the current one, so the new one is the product."""
    targets_N, class_ids = result.split.targets_N, result.split.class_ids
    temperature = round(result.temperature * fit_temperature(logs_NK, targets_N), DIGITS)
    after = evaluate(logs_NK * (result.temperature / temperature), targets_N, class_ids, seed=seed)
    if ranks.is_main:
        set_fields(folder, temperature=temperature)
    ranks.barrier()
    return replace(result, calibrated=Calibrated(temperature, after.log_loss, after.calibration.error))
