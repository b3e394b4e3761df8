"""Check photos paired with masks or boundary maps; each file is decoded once.

K is the number of classes.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dla.data.check import DataFinding, PhotoPool, Severity, duplicate_findings, file_findings, unreadable_findings
from dla.data.dataset import Unreadable
from dla.data.mask_classes import MaskClasses, classes_of_ids, find_mask_classes
from dla.data.masks import check_mask_header, read_boundaries, read_ids, read_mask, require_known
from dla.data.pairs import Pair, PairSource, PairSplits, PairTask, Unpaired, class_folders, find_pairs
from dla.data.prefetch import run_ahead
from dla.data.scan import scan_photos
from dla.data.sources import DataOptions
from dla.errors import CheckError, ImageError
from dla.images.decode import Header, read_header, read_photo
from dla.options import RuntimeOptions, cores
from dla.types import NO_PROGRESS, Array, Progress

PAIR_CHECK_SCHEMA = "dla.pair-check/1"
UNEVEN_PIXELS = 100.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class TargetStats:
    """What the mask of a photo, or its annotators' maps, hold; or the first error.

    `pixels_K` counts the pixels of each class, `unknown` those of each id or colour that is none. `empty` are the
    boundary maps without a boundary.
    """

    error: ImageError | None = None
    pixels_K: Array | None = None
    ignored: int = 0
    unknown: Mapping[int | str, int] | None = None
    ambiguous: bool = False
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitPixels:
    """The pairs of a split: their number, for masks the pixels and photos of each class, for boundaries the maps."""

    split: str
    pairs: int
    pixels: Mapping[str, int]
    photos: Mapping[str, int]
    ignored: int
    maps: int


@dataclass(frozen=True, slots=True)
class PairReport:
    """The statistics and findings of a dataset of pairs. `classes` are empty for boundaries."""

    data: str
    task: PairTask
    classes: tuple[str, ...]
    splits: tuple[SplitPixels, ...]
    findings: tuple[DataFinding, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether there is no finding with the severity "error"."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        record = {"schema": PAIR_CHECK_SCHEMA, **asdict(self), "passed": self.passed}
        record["findings"] = [finding.to_dict() for finding in self.findings]
        return record


def mask_classes(
    data: str | Path,
    sources: Mapping[str, PairSource],
    workers: int = RuntimeOptions.workers,
    progress: Progress = NO_PROGRESS,
) -> MaskClasses:
    """Return the classes that a file beside the data names; without one, the ids of all its masks, which are read.

    Raises:
        UsageError: several files name the classes, or the masks hold no ids.
        UnavailableError: the file is damaged.
    """
    named = find_mask_classes(class_folders(data))
    if named is not None:
        return named
    paths = [pair.targets[0] for source in sources.values() for pair in source.pairs]
    progress.start("reading masks", len(paths), "masks")
    found: set[int] = set()
    for ids in _ahead(_ids_in, paths, workers, progress):
        found |= ids
    return classes_of_ids(found)


def check_pairs(
    data: str | Path,
    task: PairTask,
    options: DataOptions = DataOptions(),
    *,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> PairReport:
    """Decode every photo and mask of `data` once and report what would hurt a training run. Nothing is written.

    Args:
        data: a folder, or a table of photos and masks.
        task: what the photos are paired with.
        options: the columns of a table.
        workers: processes and threads that decode; None is one per core.
        progress: advanced with each photo and each mask.

    Raises:
        UnavailableError: the data does not exist, or imagehash is not installed.
        UsageError: it is of no known layout, or there are no classes.
    """
    began, workers = time.monotonic(), cores() if workers is None else workers
    sources = find_pairs(data, task, options)
    classes = mask_classes(data, sources, workers, progress) if task == "segment" else None
    about = [(pair.name, split, "") for split, source in sources.items() for pair in source.pairs]
    pairs = [pair for source in sources.values() for pair in source.pairs]
    pool = PhotoPool(str(data), {}, [pair.photo for pair in pairs], about)
    progress.start("checking photos", len(pairs))
    photos = []
    for one in scan_photos(pool.photos, [pair.name for pair in pairs], workers):
        photos.append(one)
        progress.advance()
    progress.start("checking masks", len(pairs), "masks")
    headers = [one.header for one in photos]
    targets = list(
        _ahead(lambda at: _look_at(at[0], at[1], classes), list(zip(pairs, headers, strict=True)), workers, progress)
    )
    # frames of a video are alike, so within a split only identical photos are told
    duplicates = (
        replace(finding, message=finding.message.removesuffix(" in one class"))
        for finding in duplicate_findings(pool, photos)
        if finding.kind == "in_two_splits" or finding.exact
    )
    findings = [
        *(_of_unpaired(split, one) for split, source in sources.items() for one in source.unpaired),
        *unreadable_findings(pool, photos),
        *_of_targets(about, pairs, targets, classes),
        *(_of_classes(sources, about, targets, classes) if classes is not None else ()),
        *duplicates,
        *file_findings(pool, photos),
        *(DataFinding("not_used", "warning", note) for source in sources.values() for note in source.notes),
    ]
    if classes is not None and classes.note:
        findings.append(DataFinding("assumed_classes", "warning", classes.note))
    return PairReport(
        data=str(data),
        task=task,
        classes=classes.class_ids if classes is not None else (),
        splits=tuple(_pixels_of(split, source, about, targets, classes) for split, source in sources.items()),
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "error")),
        seconds=time.monotonic() - began,
    )


def without_faulty_pairs(
    splits: PairSplits,
    classes: MaskClasses | None,
    max_unreadable: float = DataOptions.max_unreadable,
    workers: int = RuntimeOptions.workers,
    progress: Progress = NO_PROGRESS,
) -> PairSplits:
    """Return the splits without faulty pairs, before a run: headers of photos are read, and all masks.

    `unreadable` lists them, and the photos without a mask; `notes` mentions them. `classes` are None for boundaries.

    Raises:
        CheckError: they are more than `max_unreadable` (0 to 1) of a split, or all of it.
    """
    parts, faults = [], []
    for source in (splits.train, splits.val):
        kept, own = _without(source, classes, workers, progress)
        total = len(kept.pairs) + len(own)
        if not kept.pairs or len(own) > max_unreadable * total:
            raise CheckError(
                f"{len(own):,} of {total:,} photos have no usable mask or cannot be read ({len(own) / total:.1%}; up "
                f"to {max_unreadable:.1%} are left out): {_some(own)}. dla data check lists them; "
                "--data.max-unreadable allows more"
            )
        parts.append(kept)
        faults += own
    notes = splits.notes
    if faults:
        notes = (*notes, f"pairs with a fault are left out ({len(faults):,}): {_some(faults)}")
    return replace(splits, train=parts[0], val=parts[1], notes=notes, unreadable=tuple(faults))


def _without(
    source: PairSource, classes: MaskClasses | None, workers: int, progress: Progress
) -> tuple[PairSource, list[Unreadable]]:
    progress.start("reading masks", len(source.pairs), "masks")
    found = list(_ahead(lambda pair: _fault(pair, classes), source.pairs, workers, progress))
    kept = [pair for pair, fault in zip(source.pairs, found, strict=True) if fault is None]
    faults = [fault for fault in found if fault is not None]
    faults += [Unreadable(one.names[0], one.kind, one.message) for one in source.unpaired]
    return replace(source, pairs=kept), faults


def _fault(pair: Pair, classes: MaskClasses | None) -> Unreadable | None:
    try:
        header = read_header(pair.photo, name=pair.name)
        if not header.ends:
            read_photo(pair.photo, name=pair.name)
        for path in pair.targets:
            check_mask_header(path, read_header(path), header)
            if classes is None:
                read_boundaries(path, header)
            else:
                mask = read_mask(path, classes, header)
                if (require_known(path, mask, classes) == classes.ignore_index).all():
                    raise ImageError("all_ignored", f"{path}: all pixels are ignored")
    except ImageError as error:
        return Unreadable(pair.name, error.code, str(error))
    return None


def _some(faults: Sequence[Unreadable]) -> str:
    named = ", ".join(f"{fault.name} ({fault.code})" for fault in faults[:3])
    return named + (", ..." if len(faults) > 3 else "")


def _ahead(work: Callable[[Any], T], items: Sequence[Any], workers: int, progress: Progress) -> Iterator[T]:
    for result in run_ahead(work, items, workers, 64):
        progress.advance()
        yield result


def _ids_in(path: str) -> set[int]:
    """Return the ids in a mask; none for RGB and for what cannot be read, which the check reports."""
    try:
        ids = read_ids(path)
    except ImageError:
        return set()
    return set() if ids.ndim == 3 else set(np.unique(ids).tolist())


def _look_at(pair: Pair, header: Header | None, classes: MaskClasses | None) -> TargetStats:
    try:
        if classes is None:
            return TargetStats(empty=tuple(p for p in pair.targets if not read_boundaries(p, header).any()))
        mask = read_mask(pair.targets[0], classes, header)
    except ImageError as error:
        return TargetStats(error)
    count = len(classes.class_ids)
    ids = mask.ids_HW[(mask.ids_HW >= 0) & (mask.ids_HW < count)]
    ignored = int(np.count_nonzero(mask.ids_HW == classes.ignore_index))
    return TargetStats(None, np.bincount(ids, minlength=count), ignored, mask.unknown, mask.ambiguous)


def _of_unpaired(split: str, one: Unpaired) -> DataFinding:
    return DataFinding(one.kind, "error", one.message, tuple((name, split, "") for name in one.names))


def _of_targets(
    about: Sequence[tuple[str, str, str]],
    pairs: Sequence[Pair],
    targets: Sequence[TargetStats],
    classes: MaskClasses | None,
) -> Iterator[DataFinding]:
    """Yield what is wrong with single masks or maps, and each unknown id with its pixels and files."""
    unknown: dict[int | str, list[tuple[int, int]]] = defaultdict(list)
    for row, (photo, pair, one) in enumerate(zip(about, pairs, targets, strict=True)):
        if one.error is not None:
            yield DataFinding(one.error.code, "error", str(one.error), (photo,))
        for path in one.empty:
            yield DataFinding("empty_map", "warning", f"{path} marks no boundary: its recall is 0 of 0", (photo,))
        if one.ambiguous:
            message = f"{pair.targets[0]} fits the photo both as stored and turned by EXIF; it is taken as upright"
            yield DataFinding("ambiguous_turn", "warning", message, (photo,))
        for value, pixels in (one.unknown or {}).items():
            unknown[value].append((row, pixels))
        if one.pixels_K is not None and not one.pixels_K.sum() and not one.unknown:
            yield DataFinding("all_ignored", "warning", f"all pixels of {pair.targets[0]} are ignored", (photo,))
    for value, places in sorted(unknown.items(), key=lambda item: str(item[0])):
        yield _unknown(value, places, about, pairs, classes)


def _unknown(
    value: int | str,
    places: Sequence[tuple[int, int]],
    about: Sequence[tuple[str, str, str]],
    pairs: Sequence[Pair],
    classes: MaskClasses | None,
) -> DataFinding:
    pixels, files = sum(count for _, count in places), [pairs[row].targets[0] for row, _ in places]
    shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
    known = f". Known: {classes.known()}" if classes is not None and isinstance(value, int) else ""
    kind, what = ("unknown_id", "id ") if isinstance(value, int) else ("unknown_colour", "the colour ")
    message = f"{pixels:,} pixels of {what}{value} in {len(files):,} masks ({shown}){known}"
    return DataFinding(kind, "error", message, tuple(about[row] for row, _ in places))


def _of_classes(
    sources: Mapping[str, PairSource],
    about: Sequence[tuple[str, str, str]],
    targets: Sequence[TargetStats],
    classes: MaskClasses,
) -> Iterator[DataFinding]:
    """Yield classes without pixels, sets of one class, and classes with far more pixels than others."""
    if "" not in sources and "train" not in sources:
        yield DataFinding("no_train", "error", f"there is {' and '.join(sources)}, but no train")
    for split, source in sources.items():
        if not source.pairs:
            continue
        pixels = _pixels_of(split, source, about, targets, classes).pixels
        learned = split in ("", "train")
        severity: Severity = "error" if learned else "warning"
        for class_id in (c for c, count in pixels.items() if not count):
            message = f"{split or 'the set'} has no pixels of the class {class_id}"
            yield DataFinding("absent_class", severity, message, class_ids=(class_id,))
        some = {c: count for c, count in pixels.items() if count}
        if len(some) == 1:
            message = f"{split or 'the set'} has pixels of one class alone, {next(iter(some))}"
            yield DataFinding("one_class_only", severity, message, class_ids=tuple(some))
        if learned and len(some) > 1:
            least, most = min(some, key=some.__getitem__), max(some, key=some.__getitem__)
            if some[most] >= UNEVEN_PIXELS * some[least]:
                message = (f"{most} has {some[most]:,} pixels to learn from, {least} {some[least]:,}: "
                           f"{some[most] / some[least]:,.0f} times as many")  # fmt: skip
                yield DataFinding("imbalance", "warning", message, class_ids=(least, most))


def _pixels_of(
    split: str,
    source: PairSource,
    about: Sequence[tuple[str, str, str]],
    targets: Sequence[TargetStats],
    classes: MaskClasses | None,
) -> SplitPixels:
    own = [one for photo, one in zip(about, targets, strict=True) if photo[1] == split]
    names = classes.class_ids if classes is not None else ()
    counts = [one.pixels_K for one in own if one.pixels_K is not None]
    pixels_NK = np.array(counts, np.int64).reshape(len(counts), len(names))
    return SplitPixels(
        split,
        len(source.pairs),
        dict(zip(names, pixels_NK.sum(0).tolist(), strict=True)),
        dict(zip(names, (pixels_NK > 0).sum(0).tolist(), strict=True)),
        sum(one.ignored for one in own),
        sum(len(pair.targets) for pair in source.pairs),
    )
