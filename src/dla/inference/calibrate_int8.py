"""The int8 model of a network: made from photos, and put through its gate before it is kept."""

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

__all__ = ["AGREEMENT", "GATE_PHOTOS", "CalibrationResult", "make_quantized", "try_quantized"]


CALIBRATION, LEAST_CALIBRATION = 300, 50  # photos that the ranges of the maps are taken from
CARE = 1000  # labelled photos that are looked at to find out which layers int8 hurts
GATE_PHOTOS = 500  # at least
AGREEMENT = 0.98
BATCH = 8


@dataclass(frozen=True)
class CalibrationResult:
    """An int8 model that passed its gate, and where it is kept; None where the disk does not let us."""

    quantized: QuantizedModel
    gate: Gate
    kept: str | None


@dataclass(frozen=True)
class _Photos:
    """Photos as paths or encoded bytes, and the outputs that are right for them, where these are known."""

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
    """The network in int8, calibrated on some of `photos` and checked on others; kept for `dla predict`.

    The gate: with labels a loss of at most half a point of top-1, without at least 98 % of the first classes as in
    fp32, on at least 500 photos that calibration did not see. Where it fails and there are labels, it is made
    again with the layers left in fp32 that int8 hurts. A model that passed on another kind of CPU is tried here before
    another is made.

    Args:
        source: as `dla.load` takes it.
        photos: a folder of photos, or labelled ones as `dla train` takes them: of train and val, the one calibrates
            and the other is the gate's.
        columns: of a table of photos.
        seed: which photos calibrate.
        progress: told what is being done, photo by photo.

    Raises:
        CheckError: the gate did not pass; nothing is kept.
        UsageError: too few photos, or a network that does not classify.
        UnavailableError: the network or the photos cannot be had, or NNCF is not installed.
    """
    network, model = open_traced(source)
    check_classifies(model.config, model.origin)
    learned, held_out = _divided(os.fspath(photos), model, columns, seed)
    loop = _PhotoLoop.of(model, workers, progress)
    there = None
    with suppress(DamagedError):  # what is made takes its place
        there = find_quantized(network, model)
    if there is not None and there.gates and there.passed_here is None:
        progress.log(f"int8: comparing the stored model with fp32 on {len(held_out):,} photos, on this kind of CPU")
        gate = _gate(network, there, loop, held_out, seed)
        if gate.passed:
            quantized = there.with_gate(gate)
            return CalibrationResult(quantized, gate, store_quantized(quantized, model))
        progress.log(f"int8: {gate.sentence()}; making another")
    some = learned.take(np.arange(min(CALIBRATION, len(learned))))
    progress.log(f"int8: calibrating with {len(some):,} photos")
    pixels, _ = _pixels(loop, some)
    if len(pixels) < LEAST_CALIBRATION:
        raise UsageError(f"only {len(pixels)} of the photos in {photos} can be read: at least {LEAST_CALIBRATION}")
    progress.log(f"int8: comparing with fp32 on {len(held_out):,} other photos")
    quantized = quantize(network, pixels, progress)
    gate = _gate(network, quantized, loop, held_out, seed)
    if not gate.passed and learned.targets_N is not None:
        progress.log(f"int8: {gate.sentence()}; making it again with the layers in fp32 that this hurts")
        pixels, seen = _pixels(loop, learned.take(np.arange(min(CARE, len(learned)))))
        quantized = quantize_with_accuracy_control(network, pixels, learned.targets_N[seen], progress)
        gate = _gate(network, quantized, loop, held_out, seed)
    if not gate.passed:
        allowed = (f"at most {100 * MAX_DROP:.1f} points" if gate.kind == "top1" else
                   f"at least {100 * AGREEMENT:.0f} %")  # fmt: skip
        raise CheckError(f"the int8 model of {model.origin} did not pass: {gate.sentence()}. Allowed: {allowed}. "
                         "Nothing is kept. Try more photos, like those it will see")  # fmt: skip
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
    """How good an int8 model is on this CPU, on the photos that `calibrate` with the same arguments tries it on.

    Raises:
        UsageError: too few photos.
        UnavailableError: the network or the photos cannot be had.
    """
    network, model = open_traced(source)
    _, held_out = _divided(os.fspath(photos), model, columns, seed)
    return _gate(network, quantized, _PhotoLoop.of(model, workers, progress), held_out, seed)


def _divided(photos: str, model: TracedModel, columns: DataOptions, seed: int) -> tuple[_Photos, _Photos]:
    """Photos to calibrate with, in random order, and those for the gate."""
    sets = _sets(photos, model, columns)
    random = np.random.default_rng(seed)
    if len(sets) > 1:
        learned, held_out = sets
        if len(held_out) < GATE_PHOTOS:
            raise UsageError(f"{photos}: val has {len(held_out):,} photos, and the gate needs at least {GATE_PHOTOS}. "
                             "Give a folder with more; labels are not needed")  # fmt: skip
        return learned.take(random.permutation(len(learned))), held_out
    (everything,) = sets
    count = len(everything)
    if count < GATE_PHOTOS + LEAST_CALIBRATION:
        raise UsageError(f"{photos} has {count:,} photos. At least {LEAST_CALIBRATION} to calibrate with and "
                         f"{GATE_PHOTOS} others for the gate are needed")  # fmt: skip
    order_N = random.permutation(count)
    first = min(CARE if everything.targets_N is not None else CALIBRATION, count - GATE_PHOTOS)
    return everything.take(order_N[:first]), everything.take(order_N[first:])


def _sets(photos: str, model: TracedModel, columns: DataOptions) -> list[_Photos]:
    """Train and val, or all of them; with the right outputs where their classes are the network's, by id or by name."""
    everything = list(PhotoFinder([photos])) if os.path.isdir(photos) else []
    try:
        sources = find_sources(Path(photos), columns)
    except UsageError:
        if not everything:
            raise
        return [_Photos(everything)]  # no folder a class: photos without labels
    if "" in sources and len(everything) > len(sources[""].photos):  # nor are these folders classes
        return [_Photos(everything)]
    val = val_name(sources)
    chosen = [sources["train"], sources[val]] if "train" in sources and val else [*sources.values()][:1]
    names = class_names(model.config)
    for ids in ([c.class_id for c in names], [c.label for c in names]):
        place = {name: k for k, name in enumerate(ids)}
        if len(place) == len(ids) and all(source.class_ids <= place.keys() for source in chosen):
            return [_Photos(s.photos, np.array([place[label] for label in s.labels], np.int64)) for s in chosen]
    return [_Photos(source.photos) for source in chosen]


@dataclass(frozen=True)
class _PhotoLoop:
    """Goes through photos as a network takes them."""

    reader: PhotoReader
    workers: int
    progress: Progress

    @classmethod
    def of(cls, model: TracedModel, workers: int | None, progress: Progress) -> _PhotoLoop:
        threads = BatchOptions(BATCH, workers).threads
        return cls(PhotoReader((model.preprocessing,), ReadOptions(model.preprocessing.exif)), threads, progress)

    def rows(self, photos: _Photos, what: str, compute: Callable[[Array], Iterable[Any]]) -> Iterator[Any]:
        """The row that `compute` gives for each photo; None for one that cannot be read."""
        self.progress.start(what, len(photos))
        pipeline = InputPipeline(BATCH, self.workers)
        rows: Any = pipeline.of_photos(photos.photos, self.reader, compute, lambda p, row: row)
        for row in rows:
            self.progress.advance()
            yield row


def _pixels(loop: _PhotoLoop, photos: _Photos) -> tuple[list[Array], Array]:
    """The photos that can be read as the network takes them, and which these are."""
    rows = loop.rows(photos, "reading", lambda pixels_NHW3: pixels_NHW3)
    found = [(n, pixels_HW3) for n, pixels_HW3 in enumerate(rows) if pixels_HW3 is not None]
    return [pixels for _, pixels in found], np.array([n for n, _ in found], np.int64)


def _gate(network: Network, quantized: QuantizedModel, loop: _PhotoLoop, photos: _Photos, seed: int) -> Gate:
    """Both precisions' first classes of the same pixels."""
    engines = OpenvinoEngine(network), OpenvinoEngine(network, "int8", quantized=quantized.model())

    def first(pixels_NHW3: Array) -> Iterable[tuple[int, int]]:
        return zip(*(engine.probabilities(pixels_NHW3).argmax(1) for engine in engines), strict=True)

    found = [(-1, -1) if row is None else row for row in loop.rows(photos, "comparing with fp32", first)]
    fp32_N, int8_N = np.array(found, np.int64).T
    read_N = fp32_N >= 0
    count = int(read_N.sum())
    if count < GATE_PHOTOS:
        raise UsageError(f"only {count} of the photos for the gate can be read: at least {GATE_PHOTOS}")
    if photos.targets_N is None:
        same_N = (fp32_N == int8_N)[read_N]
        share, interval = float(same_N.mean()), proportion_ci(same_N, seed)
        return Gate(
            share >= AGREEMENT, "agreement", share, interval.low, interval.high, count, None, None, instructions()
        )
    right, other = (found_N[read_N] == photos.targets_N[read_N] for found_N in (fp32_N, int8_N))
    loss, interval = float(right.mean() - other.mean()), paired_bootstrap_ci(right, other, seed)
    return Gate(loss <= MAX_DROP, "top1", loss, interval.low, interval.high, count, float(right.mean()),
                float(other.mean()), instructions())  # fmt: skip
