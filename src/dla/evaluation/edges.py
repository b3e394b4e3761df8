"""Validate boundary networks, maps of other programs, or annotators, as the Berkeley benchmark does.

T is the number of thresholds. Photos are matched in processes, from maps in files.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dla.data.dataset import Unreadable
from dla.data.masks import read_boundaries, read_boundary_map
from dla.data.pairs import Pair, annotators_by_stem, open_pair_split, split_folder
from dla.data.prefetch import run_in_processes
from dla.errors import DlaError, ImageError, UnavailableError, UsageError
from dla.evaluation.segment import unreadable_records
from dla.images.decode import read_header
from dla.inference.edge_detector import EdgeDetector
from dla.metrics.boundaries import (
    BoundaryComparison,
    BoundaryCounts,
    BoundaryEvaluation,
    compare_boundaries,
    count_boundaries,
    count_lines,
    evaluate_boundaries,
)
from dla.options import BatchOptions, BoundaryOptions, ReadOptions
from dla.types import NO_PROGRESS, Array, Progress

EDGES_VALIDATION_SCHEMA = "dla.validate-edges/1"


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryResult:
    """The figures of one network, of the maps in a folder, or of the annotators, each against the others.

    `source` names the model or the folder; `model` is None for maps and annotators. `pairs` are the photos, without
    the unreadable ones, and `counts` has their pixels.
    """

    source: str
    model: EdgeDetector | None
    evaluation: BoundaryEvaluation
    pairs: tuple[Pair, ...]
    counts: tuple[BoundaryCounts, ...]

    def figures(self) -> dict[str, Any]:
        """Return the part of the JSON record that is about this source."""
        named = {"model": self.source, "sha256": self.model.sha256} if self.model else {"maps": self.source}
        return named | self.evaluation.to_dict()


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryResults:
    """The figures of one or several sources on the same photos, and the comparison of each pair.

    `annotators` is set if annotators were scored: their maps have no thresholds, so only `ods` has a meaning.
    """

    data: str
    options: BoundaryOptions
    sources: tuple[BoundaryResult, ...]
    comparisons: tuple[tuple[str, str, BoundaryComparison], ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()
    annotators: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record (docs/formats.md)."""
        record: dict[str, Any] = {"schema": EDGES_VALIDATION_SCHEMA, "data": self.data}
        record["tolerance"] = self.options.tolerance
        if self.annotators:
            found = self.sources[0].evaluation
            rates = {key: getattr(found.ods, key) for key in ("precision", "recall", "f1")}
            photos, maps = len({pair.name for pair in self.sources[0].pairs}), len(self.sources[0].pairs)
            record |= {"annotators": maps, "photos": photos, **rates, "f1_interval": found.ods_interval.to_list()}
            return record | {"unreadable": unreadable_records(self.unreadable)}
        record |= {"thresholds": self.options.thresholds, "nms_m": self.options.nms_m if self.options.nms else None}
        if len(self.sources) == 1:
            record |= self.sources[0].figures()
        else:
            record["models"] = [one.figures() for one in self.sources]
            record["comparisons"] = [{"model_a": a, "model_b": b, **c.to_dict()} for a, b, c in self.comparisons]
        return record | {"unreadable": unreadable_records(self.unreadable)}


def validate_boundaries(
    data: str | os.PathLike[str],
    models: Sequence[EdgeDetector],
    *,
    options: BoundaryOptions = BoundaryOptions(),
    workers: int | None = BatchOptions.workers,
    allow_truncated: bool = ReadOptions.allow_truncated,
    max_pixels: int = ReadOptions.max_pixels,
    max_bytes: int = ReadOptions.max_bytes,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> BoundaryResults:
    """Validate boundary networks on photos with annotators' boundary maps. The answers are those of `dla edges`.

    Args:
        data: photos in images/ and maps in boundaries/<photo>_<annotator>.png; of several splits, val is taken.
        models: the networks; several are compared on the same photos.
        options: thresholds, tolerance and suppression.
        workers: threads that read photos, and processes that match boundaries; None: one per core.
        allow_truncated: decode the part that is present of truncated files.
        max_pixels: refuse larger photos.
        max_bytes: refuse larger files.
        seed: seed of the bootstrap intervals.
        progress: receives each photo, twice a model.

    Raises:
        UsageError: `data` is of no known layout.
        UnavailableError: the data is missing, or has no boundary maps to validate with.
        DlaError: no photo can be read.
    """
    if not models:
        raise UsageError("no model is given. Name a boundary network")
    source = open_pair_split(Path(data), "edges")
    left_out = [Unreadable(one.names[0], one.kind, one.message) for one in source.unpaired]
    reading = {"workers": workers, "allow_truncated": allow_truncated, "max_pixels": max_pixels,
               "max_bytes": max_bytes}  # fmt: skip
    results = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="dla-maps-") as folder:
            maps = _write_maps(model, source.pairs, Path(folder), reading, progress)
            jobs = [_Job(pair, found, True) for pair, found in zip(source.pairs, maps, strict=True)]
            one, failed = _scored(model.origin, model, jobs, options, workers, seed, str(data), progress)
        results.append(one)
    names = [pair.name for pair in results[0].pairs]
    compared = tuple(
        (a.source, b.source, compare_boundaries(names, a.counts, b.counts, options, seed))
        for a, b in itertools.combinations(results, 2)
    )
    notes = (*source.notes, *_empty_note(results[0]))
    return BoundaryResults(os.fspath(data), options, tuple(results), compared, (*left_out, *failed), notes)


def validate_maps(
    data: str | os.PathLike[str],
    maps: str | os.PathLike[str],
    *,
    options: BoundaryOptions = BoundaryOptions(),
    workers: int | None = BatchOptions.workers,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> BoundaryResults:
    """Score the boundary maps of another program: 8-bit images `<photo>.png` in `maps`.

    Args:
        data: a folder with boundaries/, itself or in its split to validate on; photos are not needed.
        maps: the folder of the maps.
        options, workers, seed, progress: as for `validate_boundaries`.

    Raises:
        UnavailableError: a folder is missing, or has no maps.
        DlaError: no map can be read.
    """
    found = _by_stem(Path(maps))
    annotated = _annotated(data)
    jobs = [_Job(pair, found.get(pair.name, ""), False) for pair in annotated]
    if not any(job.map for job in jobs):
        raise UnavailableError(
            f"{maps} has no map of the {len(jobs):,} photos of {data}, such as {jobs[0].pair.name}.png"
        )
    one, failed = _scored(os.fspath(maps), None, jobs, options, workers, seed, str(data), progress)
    return BoundaryResults(os.fspath(data), options, (one,), (), failed, _empty_note(one))


def validate_annotators(
    data: str | os.PathLike[str],
    *,
    options: BoundaryOptions = BoundaryOptions(),
    workers: int | None = BatchOptions.workers,
    seed: int = 0,
    progress: Progress = NO_PROGRESS,
) -> BoundaryResults:
    """Score each annotator of a photo against its others: how well people agree.

    Args:
        data: a folder with boundaries/, itself or in its split to validate on; photos are not needed.
        options: the tolerance.
        workers, seed, progress: as for `validate_boundaries`.

    Raises:
        UnavailableError: the folder is missing, or no photo has two annotators.
        DlaError: no map can be read.
    """
    annotated = _annotated(data)
    several = [pair for pair in annotated if len(pair.targets) > 1]
    if not several:
        raise UnavailableError(f"no photo of {data} has two annotators, so they cannot be compared")
    jobs = [_Job(replace(pair, targets=(*pair.targets[:k], *pair.targets[k + 1 :])), target, False, lines=True)
            for pair in several for k, target in enumerate(pair.targets)]  # fmt: skip
    single = replace(options, thresholds=1)
    one, failed = _scored(str(data), None, jobs, single, workers, seed, str(data), progress)
    alone = len(annotated) - len(several)
    notes = (f"{alone:,} photos with one annotator are left out",) if alone else ()
    return BoundaryResults(os.fspath(data), single, (one,), (), failed, notes, annotators=True)


@dataclass(frozen=True, slots=True)
class _Job:
    """The map of a photo to match with its annotators. `turn` says that they are turned as the photo is."""

    pair: Pair
    map: str | Unreadable
    turn: bool
    lines: bool = False


def _annotated(data: str | os.PathLike[str]) -> list[Pair]:
    """Return the annotators' maps of each photo by its name; the photos may be missing."""
    folder = split_folder(data, "boundaries")
    return [Pair(stem, "", maps) for stem, maps in sorted(annotators_by_stem(folder).items())]


def _by_stem(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UnavailableError(
            f"{folder} {'is no folder' if folder.exists() else 'does not exist'}. Give a folder of maps"
        )
    return {os.path.splitext(path.relative_to(folder))[0]: str(path) for path in sorted(folder.rglob("*.*"))}


def _write_maps(
    model: EdgeDetector, pairs: Sequence[Pair], folder: Path, options: dict[str, Any], progress: Progress
) -> Iterator[str | Unreadable]:
    """Write the map of each photo, and yield its path, or the error."""
    progress.start("finding boundaries", len(pairs))
    answers = model((pair.photo for pair in pairs), **options)
    for row, (pair, answer) in enumerate(zip(pairs, answers, strict=True)):
        progress.advance()
        if answer.error is not None or answer.probability is None:
            error = answer.error
            yield Unreadable(pair.name, error.code if error else "", error.message if error else "")
            continue
        path = folder / f"{row}.png"
        Image.fromarray(answer.probability).save(path, compress_level=1)
        yield str(path)


def _scored(
    source: str, model: EdgeDetector | None, jobs: Sequence[_Job], options: BoundaryOptions, workers: int | None,
    seed: int, data: str, progress: Progress,
) -> tuple[BoundaryResult, tuple[Unreadable, ...]]:  # fmt: skip
    progress.start("matching boundaries", len(jobs))
    work = partial(_match, options=options)
    threads = BatchOptions(workers=workers).threads
    found = []
    for one in run_in_processes(work, jobs, threads, "matched boundaries"):
        found.append(one)
        progress.advance()
    failed = tuple(one for one in found if isinstance(one, Unreadable))
    read = [(job.pair, one) for job, one in zip(jobs, found, strict=True) if isinstance(one, BoundaryCounts)]
    if not read:
        raise DlaError(f"none of the {len(jobs):,} photos of {data} can be scored. The first: {failed[0].message}")
    pairs, counts = zip(*read, strict=True)
    evaluation = evaluate_boundaries([pair.name for pair in pairs], counts, options, seed)
    return BoundaryResult(source, model, evaluation, pairs, counts), failed


def _match(job: _Job, options: BoundaryOptions) -> BoundaryCounts | Unreadable:
    """Match one map with the annotators."""
    pair = job.pair
    if isinstance(job.map, Unreadable):
        return job.map
    if not job.map:
        return Unreadable(pair.name, "missing_map", f"there is no map of {pair.name}")
    try:
        header = read_header(pair.photo, name=pair.name) if job.turn else None
        annotators = [read_boundaries(target, header) for target in pair.targets]
        map_HW = read_boundaries(job.map) if job.lines else read_boundary_map(job.map)
        _check_sizes(job.map, map_HW, pair, annotators)
    except ImageError as error:
        return Unreadable(pair.name, error.code, str(error))
    if job.lines:
        return count_lines(map_HW, annotators, options.tolerance)
    return count_boundaries(map_HW, annotators, options)


def _check_sizes(path: str, map_HW: Array, pair: Pair, annotators: Sequence[Array]) -> None:
    for target, one_HW in zip(pair.targets, annotators, strict=True):
        if one_HW.shape != map_HW.shape:
            (height, width), (own_height, own_width) = map_HW.shape, one_HW.shape
            raise ImageError("size_differs", f"{target} has {own_width}x{own_height} pixels, {path} {width}x{height}")


def _empty_note(result: BoundaryResult) -> tuple[str, ...]:
    empty = sum(one.empty_annotators for one in result.counts)
    return (f"{empty:,} annotators' maps mark no boundary: their recall is 0 of 0",) if empty else ()
