"""`dla validate` from Python: `validate(data, model)`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from dla.data.dataset import Split, open_split
from dla.data.sources import DataOptions
from dla.engines.torch import pick_device
from dla.errors import DlaError, UsageError
from dla.evaluation.result import Calibrated, Validation, Validations
from dla.evaluation.scores import ReadConfig, log_probabilities
from dla.inference.classifier import Classifier, check_classifies, load
from dla.inference.pipeline import InputPipeline
from dla.metrics.calibration import fit_temperature
from dla.metrics.classification import compare, evaluate
from dla.options import BatchOptions, EngineOptions, EvalOptions, Preset, ReadOptions, TestTime
from dla.training.distributed import Ranks, process_group
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Array, Progress
from dla.weights.model_folder import CONFIG, write_temperature

__all__ = ["validate"]


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
    columns: DataOptions = DataOptions(),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Validation | Validations:
    """How good one model is on photos whose classes are known; or several on the same photos, and how sure it is that
    one is better.

    The figures are those of what `dla predict` says of the same files. Photos that cannot be read are in
    `Validation.unreadable` and in no figure. Under torchrun each process takes its part of the photos, and all return
    the same.

    Args:
        data: photos in a folder a class, or a table of them (docs/data.md); of several splits, val. Its classes are
            matched with the model's by name: `class_id`, or `label` where all are such.
        model: as `dla.load` takes it, or a `Classifier`; several make a `Validations`.
        batch_size: photos that a network takes at once.
        workers: threads that read and resize; None: one per core; 0 does it in this thread.
        device: "auto", "cpu", "cuda", ...; of models that are named.
        preset: "imagenet" is timm's protocol: photos as stored, whatever their EXIF orientation.
        tta: "flips" adds each photo's mirror image, "scales" looks at it at three sizes, "both" does both; the
            probabilities are the means.
        calibrate: fit the temperature and save it into the model's folder.
        allow_truncated: take what is there of files that end early.
        max_pixels: refuse larger photos by their header.
        columns: the columns of a table.
        seed: of the intervals' resampling.
        progress: told of each photo, model by model.

    Raises:
        UsageError: classes that the model does not know, or a model whose temperature cannot be fitted or saved.
        UnavailableError, DamagedError: the data or the model cannot be had.
        DlaError: not one photo can be read.
    """
    several = not isinstance(model, str | Classifier)
    named: Sequence[ModelOrName] = model if not isinstance(model, str | Classifier) else [model]
    batch, views = BatchOptions(batch_size, workers), EvalOptions(preset, tta)
    reading = ReadConfig(allow_truncated, max_pixels, views.preset, views.tta)
    pipeline = InputPipeline(batch.batch_size, batch.threads)
    _check(named, reading, calibrate)
    on = pick_device(device)
    with process_group(device) as ranks:
        shown = progress if ranks.is_main else NO_PROGRESS
        opened = [_opened(m, str(ranks.device(on))) for m in named]
        where = _folder_of(opened[0]) if calibrate else None
        done = [_one(_name(m), c, os.fspath(data), columns, reading, seed, pipeline, ranks, shown)
                for m, c in zip(named, opened, strict=True)]  # fmt: skip
        found = [v for v, _ in done]
        if where is not None:
            found = [_calibrated(found[0], done[0][1], where, seed, ranks)]
        pairs = itertools.combinations(found, 2)
        compared = tuple((a.model, b.model, compare(a.evaluation, b.evaluation, seed=seed)) for a, b in pairs)
        return Validations(tuple(found), compared) if several else found[0]


def _check(named: Sequence[ModelOrName], reading: ReadConfig, calibrate: bool) -> None:
    if not named:
        raise UsageError("no model is named. Leave model out for the network that comes along")
    if calibrate and len(named) > 1:
        raise UsageError(f"calibrate fits one model at a time, and {len(named)} are named")
    if calibrate and (reading.tta, reading.preset) != ("none", "model"):
        raise UsageError("calibrate fits what dla predict says of photos, so it goes without tta and preset")


def _name(model: ModelOrName) -> str:
    return model.origin if isinstance(model, Classifier) else model


def _opened(model: ModelOrName, device: str) -> Classifier:
    classifier = model if isinstance(model, Classifier) else load(model, device=device)
    check_classifies(classifier.config, classifier.origin)
    return classifier


def _folder_of(classifier: Classifier) -> Path:
    """Where the model's temperature is to be saved."""
    folder = Path(classifier.origin)
    if (folder / CONFIG).is_file():
        return folder
    what = "is a file without a config" if folder.is_file() else "is not yours to change"
    raise UsageError(
        f"{classifier.origin} {what}, so a temperature cannot be saved in it. Make a folder of your own of it: "
        f"dla convert {classifier.origin.partition('@')[0]} mine --to folder"
    )


def _one(
    name: str, classifier: Classifier, data: str, columns: DataOptions, reading: ReadConfig, seed: int,
    pipeline: InputPipeline, ranks: Ranks, progress: Progress,
) -> tuple[Validation, Array]:  # fmt: skip
    """One model's figures, and the logarithms of its probabilities (N, K)."""
    split = _with_classes_of(classifier, data, columns)
    logs_NK, unreadable = log_probabilities(split, classifier, reading, pipeline, ranks, progress)
    read = np.flatnonzero(~np.isnan(logs_NK[:, 0]))
    if not len(read):
        raise DlaError(f"none of the {len(split):,} photos of {data} can be read. The first: {unreadable[0].message}")
    if len(read) < len(split):
        logs_NK = logs_NK[read]
    kept = replace(split.take(read), notes=split.notes)
    labels = tuple(c.label for c in classifier.classes)
    evaluation = evaluate(logs_NK, kept.targets_N, kept.class_ids, seed=seed)
    return Validation(
        name, classifier.origin, classifier.sha256, data, reading.preset, reading.tta, classifier.config.temperature,
        labels, evaluation, kept, unreadable, notes=(*classifier.notes, *split.notes),
    ), logs_NK  # fmt: skip


def _with_classes_of(classifier: Classifier, data: str, columns: DataOptions) -> Split:
    """The photos, with their classes as the model's outputs: by its ids, else by its readable names."""
    class_ids = tuple(c.class_id for c in classifier.classes)
    labels = tuple(c.label for c in classifier.classes)
    try:
        return open_split(data, columns, class_ids)
    except UsageError:
        if len(set(labels)) < len(labels) or labels == class_ids:
            raise
        try:
            return replace(open_split(data, columns, labels), class_ids=class_ids)
        except UsageError:
            pass  # what is wrong with the ids is told
        raise


def _calibrated(found: Validation, logs_NK: Array, folder: Path, seed: int, ranks: Ranks) -> Validation:
    """Fit the temperature and save it. What is there already is in the scores, so that the two multiply."""
    targets_N, class_ids = found.split.targets_N, found.split.class_ids
    temperature = round(found.temperature * fit_temperature(logs_NK, targets_N), DIGITS)
    after = evaluate(logs_NK * (found.temperature / temperature), targets_N, class_ids, seed=seed)
    if ranks.is_main:
        write_temperature(folder, temperature)
    ranks.barrier()
    return replace(found, calibrated=Calibrated(temperature, after.log_loss, after.calibration.error))
