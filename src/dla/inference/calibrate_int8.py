"""Make the int8 model of a network: calibrate it on photos, check its accuracy, and store it if it passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dla.data.dataset import find_sources, val_name
from dla.data.sources import DataOptions
from dla.engines.cpu import instructions
from dla.engines.graph import Network
from dla.engines.openvino import OpenvinoEngine
from dla.engines.quantized import MAX_DROP, Gate, QuantizedModel, quantize, quantize_with_accuracy_control
from dla.errors import CheckError, DamagedError, UsageError
from dla.images.find import PhotoFinder
from dla.inference.classifier import check_classifies, class_names
from dla.inference.int8_store import find_quantized, store_quantized
from dla.inference.pipeline import InputPipeline, PhotoReader
from dla.inference.traced_model import TracedModel, open_traced
from dla.metrics.intervals import paired_bootstrap_ci, proportion_ci
from dla.options import BatchOptions, ReadOptions
from dla.types import NO_PROGRESS, Array, Progress
from dla.weights.spec import ModelFiles

CALIBRATION, LEAST_CALIBRATION = 300, 50  # photos that the ranges of the feature maps are calibrated on
ACCURACY_CONTROL = 1000  # labelled photos for accuracy control, which finds the layers that int8 hurts
GATE_PHOTOS = 500  # at least
AGREEMENT = 0.98
BATCH = 8


@dataclass(frozen=True)
class CalibrationResult:
    """An int8 model that passed its gate, and where it is stored; None if it could not be written."""

    quantized: QuantizedModel
    gate: Gate
    stored_in: str | None


@dataclass(frozen=True)
class _Photos:
    """Photos as paths or encoded bytes, and their target classes, where these are known."""

    photos: Sequence[str | bytes]
    targets_N: Array | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def take(self, rows_n: Array) -> _Photos:
        return _Photos([self.photos[i] for i in rows_n], None if self.targets_N is None else self.targets_N[rows_n])


def make_quantized(
    source: str | ModelFiles,
    photos: str | os.PathLike[str],
    *,
    workers: int | None = BatchOptions.workers,
    columns: DataOptions = DataOptions(),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> CalibrationResult:
    """Quantize a network to int8, calibrated on some of `photos` and checked on others, and store it.

    The gate, on at least 500 photos that were not calibrated on: with labels, a loss of at most half a point of top-1;
    without, the first class of fp32 on at least 98 % of the photos. If it fails and there are labels, the network is
    quantized again with the layers that int8 hurts in fp32. A stored model that passed on another kind of CPU is
    checked here before a new one is made.

    Args:
        source: as in `dla.load`.
        photos: a folder of photos, or a labelled data set as in `dla train`, where train is for calibration and val
            for the gate.
        workers: threads that read and resize photos; None: one per core.
        columns: the columns of a table of photos.
        seed: selects the photos to calibrate on.
        progress: receives each stage and photo.

    Raises:
        CheckError: the gate did not pass; nothing is stored.
        UsageError: too few photos, or a network that does not classify.
        UnavailableError: the network or the photos are not available, or NNCF is not installed.
    """
    network, model = open_traced(source)
    check_classifies(model.config, model.origin)
    calibration, held_out = _split(os.fspath(photos), model, columns, seed)
    loop = _PhotoLoop(model, workers, progress)
    stored = None
    with suppress(DamagedError):  # the new model replaces it
        stored = find_quantized(network, model)
    if stored is not None and stored.gates and stored.passed_here is None:
        progress.log(f"int8: comparing the stored model with fp32 on {len(held_out):,} photos, on this kind of CPU")
        gate = _gate(network, stored, loop, held_out, seed)
        if gate.passed:
            quantized = stored.with_gate(gate)
            return CalibrationResult(quantized, gate, store_quantized(quantized, model))
        progress.log(f"int8: {gate.sentence()}; making another")
    sample = calibration.take(np.arange(min(CALIBRATION, len(calibration))))
    progress.log(f"int8: calibrating with {len(sample):,} photos")
    pixels, _ = _pixels(loop, sample)
    if len(pixels) < LEAST_CALIBRATION:
        raise UsageError(f"only {len(pixels)} of the photos in {photos} can be read: at least {LEAST_CALIBRATION}")
    progress.log(f"int8: comparing with fp32 on {len(held_out):,} other photos")
    quantized = quantize(network, pixels, progress)
    gate = _gate(network, quantized, loop, held_out, seed)
    if not gate.passed and calibration.targets_N is not None:
        progress.log(f"int8: {gate.sentence()}; making it again with the layers in fp32 that int8 hurts")
        pixels, readable = _pixels(loop, calibration.take(np.arange(min(ACCURACY_CONTROL, len(calibration)))))
        quantized = quantize_with_accuracy_control(network, pixels, calibration.targets_N[readable], progress)
        gate = _gate(network, quantized, loop, held_out, seed)
    if not gate.passed:
        allowed = (f"at most {100 * MAX_DROP:.1f} points" if gate.kind == "top1" else
                   f"at least {100 * AGREEMENT:.0f} %")  # fmt: skip
        raise CheckError(f"the int8 model of {model.origin} did not pass: {gate.sentence()}. Allowed: {allowed}. "
                         "Nothing is stored. Try more photos, similar to those that it will classify")  # fmt: skip
    quantized = quantized.with_gate(gate)
    return CalibrationResult(quantized, gate, store_quantized(quantized, model))


def try_quantized(
    quantized: QuantizedModel,
    source: str | ModelFiles,
    photos: str | os.PathLike[str],
    *,
    workers: int | None = BatchOptions.workers,
    columns: DataOptions = DataOptions(),
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> Gate:
    """Check an int8 model on this CPU, on the same photos as `make_quantized` with the same arguments.

    Raises:
        UsageError: too few photos.
        UnavailableError: the network or the photos are not available.
    """
    network, model = open_traced(source)
    _, held_out = _split(os.fspath(photos), model, columns, seed)
    return _gate(network, quantized, _PhotoLoop(model, workers, progress), held_out, seed)


def _split(photos: str, model: TracedModel, columns: DataOptions, seed: int) -> tuple[_Photos, _Photos]:
    """Return the photos to calibrate on, in random order, and those for the gate."""
    sets = _sets(photos, model, columns)
    random = np.random.default_rng(seed)
    if len(sets) > 1:
        calibration, held_out = sets
        if len(held_out) < GATE_PHOTOS:
            raise UsageError(f"{photos}: val has {len(held_out):,} photos, and the gate needs at least {GATE_PHOTOS}. "
                             "Give a folder with more; labels are not needed")  # fmt: skip
        return calibration.take(random.permutation(len(calibration))), held_out
    (everything,) = sets
    count = len(everything)
    if count < GATE_PHOTOS + LEAST_CALIBRATION:
        raise UsageError(f"{photos} has {count:,} photos. At least {LEAST_CALIBRATION} to calibrate with and "
                         f"{GATE_PHOTOS} others for the gate are needed")  # fmt: skip
    order_N = random.permutation(count)
    first = min(ACCURACY_CONTROL if everything.targets_N is not None else CALIBRATION, count - GATE_PHOTOS)
    return everything.take(order_N[:first]), everything.take(order_N[first:])


def _sets(photos: str, model: TracedModel, columns: DataOptions) -> list[_Photos]:
    """Return train and val, or all photos; with targets if their classes match the network's, by id or by label."""
    everything = list(PhotoFinder([photos])) if os.path.isdir(photos) else []
    try:
        sources = find_sources(Path(photos), columns)
    except UsageError:
        if not everything:
            raise
        return [_Photos(everything)]  # no folders of classes: photos without labels
    if "" in sources and len(everything) > len(sources[""].photos):  # the folders are not classes either
        return [_Photos(everything)]
    val = val_name(sources)
    chosen = [sources["train"], sources[val]] if "train" in sources and val else [*sources.values()][:1]
    names = class_names(model.config)
    for ids in ([c.class_id for c in names], [c.label for c in names]):
        place = {name: k for k, name in enumerate(ids)}
        if len(place) == len(ids) and all(source.class_ids <= place.keys() for source in chosen):
            return [_Photos(s.photos, np.array([place[label] for label in s.labels], np.int64)) for s in chosen]
    return [_Photos(source.photos) for source in chosen]


class _PhotoLoop:
    """Run a function over photos, prepared for a network."""

    def __init__(self, model: TracedModel, workers: int | None, progress: Progress) -> None:
        self.pipeline, self.progress = InputPipeline(BATCH, BatchOptions(BATCH, workers).threads), progress
        self.reader = PhotoReader((model.preprocessing,), ReadOptions(model.preprocessing.exif))

    def rows(self, photos: _Photos, what: str, compute: Callable[[Array], Iterable[Any]]) -> Iterator[Any]:
        """Yield the row that `compute` returns for each photo; None for a photo that cannot be read."""
        self.progress.start(what, len(photos))
        rows: Any = self.pipeline.of_photos(photos.photos, self.reader, compute, lambda p, row: row)
        for row in rows:
            self.progress.advance()
            yield row


def _pixels(loop: _PhotoLoop, photos: _Photos) -> tuple[list[Array], Array]:
    """Return the pixels of the readable photos, prepared for the network, and the positions of these photos."""
    rows = loop.rows(photos, "reading", lambda pixels_NHW3: pixels_NHW3)
    readable = [(n, pixels_HW3) for n, pixels_HW3 in enumerate(rows) if pixels_HW3 is not None]
    return [pixels for _, pixels in readable], np.array([n for n, _ in readable], np.int64)


def _gate(network: Network, quantized: QuantizedModel, loop: _PhotoLoop, photos: _Photos, seed: int) -> Gate:
    """Compare the first classes of int8 and fp32 on the same pixels."""
    engines = OpenvinoEngine(network), OpenvinoEngine(network, "int8", quantized=quantized.model())

    def first(pixels_NHW3: Array) -> Iterable[tuple[int, int]]:
        return zip(*(engine.probabilities(pixels_NHW3).argmax(1) for engine in engines), strict=True)

    classes = [(-1, -1) if row is None else row for row in loop.rows(photos, "comparing with fp32", first)]
    fp32_N, int8_N = np.array(classes, np.int64).T
    read_N = fp32_N >= 0
    count = int(read_N.sum())
    if count < GATE_PHOTOS:
        raise UsageError(f"only {count} of the photos for the gate can be read: at least {GATE_PHOTOS}")
    fp32 = int8 = None
    if photos.targets_N is None:
        same_N = (fp32_N == int8_N)[read_N]
        kind, value, interval = "agreement", float(same_N.mean()), proportion_ci(same_N, seed)
        passed = value >= AGREEMENT
    else:
        fp32_correct, int8_correct = (class_N[read_N] == photos.targets_N[read_N] for class_N in (fp32_N, int8_N))
        fp32, int8 = float(fp32_correct.mean()), float(int8_correct.mean())
        kind, value, interval = "top1", fp32 - int8, paired_bootstrap_ci(fp32_correct, int8_correct, seed)
        passed = value <= MAX_DROP
    return Gate(passed, kind, value, interval.low, interval.high, count, fp32, int8, instructions())
