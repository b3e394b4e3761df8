"""Check a dataset for problems; each photo is decoded once.

The kinds of findings and their severity are listed in docs/data.md.
"""

from __future__ import annotations

import os
import statistics
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from dla.data.dataset import find_sources, val_name
from dla.data.duplicates import identical, near_groups
from dla.data.pairs import check_not_pairs
from dla.data.scan import THUMBNAIL_SIDE, PhotoStats, scan_photos
from dla.data.sources import DataOptions, LabelledPhotos
from dla.errors import pip_line
from dla.options import cores
from dla.types import NO_PROGRESS, Progress

DATA_CHECK_SCHEMA = "dla.data-check/1"

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class DataFinding:
    """A problem of a dataset, or a fact worth knowing about it.

    `kind` is one of those in docs/data.md; `severity` is "error" if it would hurt a run. `photos` are (name, split,
    class_id) of all photos concerned; the split is "" in a dataset without splits. `class_ids` are the classes
    concerned. `exact` is, for duplicates only, whether their pixels are identical.
    """

    kind: str
    severity: Severity
    message: str
    photos: tuple[tuple[str, str, str], ...] = ()
    class_ids: tuple[str, ...] = ()
    exact: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values (docs/formats.md)."""
        photos = [{"name": n, "split": split or None, "class_id": c} for n, split, c in self.photos]
        record = asdict(self) | {"photos": photos, "class_ids": list(self.class_ids)}
        return {k: v for k, v in record.items() if v is not None}


@dataclass(frozen=True, slots=True)
class DataReport:
    """The statistics and findings of a dataset.

    `splits` has the number of photos of each class, by split; the split of a dataset without splits is "".
    `short_sides` are the smallest, median and largest short side of the photos in pixels. `formats` and `modes` count
    the readable photos by Pillow's format and mode; `exif_rotated` counts those with an EXIF orientation to apply.
    """

    data: str
    splits: Mapping[str, Mapping[str, int]]
    readable: int
    exif_rotated: int
    short_sides: tuple[int, int, int] | None
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    findings: tuple[DataFinding, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Return whether there is no finding with the severity "error"."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values (docs/formats.md)."""
        record = {"schema": DATA_CHECK_SCHEMA, **asdict(self), "passed": self.passed}
        record["splits"] = [{"split": name or None, "photos": sum(classes.values()), "classes": dict(classes)}
                            for name, classes in self.splits.items()]  # fmt: skip
        record["exif_rotated"] = {"photos": self.exif_rotated, "fraction": self.exif_rotated / max(1, self.readable)}
        record["findings"] = [finding.to_dict() for finding in self.findings]
        return record


ENDINGS = {
    "JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WebP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "AVIF": (".avif",),
}  # fmt: skip
USUAL_MODES = ("RGB", "RGBA", "L", "P")
TINY = 32  # pixels
UNEVEN = 10.0

T = TypeVar("T")
PhotoKey = tuple[str, str, str]  # name, split, class_id


@dataclass(frozen=True)
class PhotoPool:
    """All photos of a dataset, of all splits."""

    data: str
    sources: Mapping[str, LabelledPhotos]
    photos: Sequence[str | bytes]
    about: Sequence[PhotoKey]

    @classmethod
    def of(cls, data: str, sources: Mapping[str, LabelledPhotos]) -> PhotoPool:
        """Build the pool from the sources, by the name of their split."""
        photos = [photo for source in sources.values() for photo in source.photos]
        about = [(name, split, label) for split, source in sources.items()
                 for name, label in zip(source.names, source.labels, strict=True)]  # fmt: skip
        return cls(data, sources, photos, about)


def find_faults(pool: PhotoPool, stats: Sequence[PhotoStats], seconds: float) -> DataReport:
    """Build the report, with errors first, from the statistics of each photo in the order of `pool.photos`."""
    findings = [
        *unreadable_findings(pool, stats),
        *_of_classes(pool),
        *duplicate_findings(pool, stats),
        *file_findings(pool, stats),
        *(DataFinding("not_used", "warning", note) for source in pool.sources.values() for note in source.notes),
    ]
    headers = [one.header for one in stats if one.header is not None]
    sides = sorted(min(header.size) for header in headers)
    return DataReport(
        data=pool.data,
        splits={name: _counts(source) for name, source in pool.sources.items()},
        readable=len(headers),
        exif_rotated=sum(header.orientation in range(2, 9) for header in headers),
        short_sides=(sides[0], statistics.median_low(sides), sides[-1]) if sides else None,
        formats=dict(Counter(header.format for header in headers).most_common()),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        findings=tuple(sorted(findings, key=lambda finding: finding.severity != "error")),
        seconds=seconds,
    )


def _counts(source: LabelledPhotos) -> dict[str, int]:
    counts = Counter(source.labels)
    return {class_id: counts[class_id] for class_id in sorted(source.class_ids)}


def unreadable_findings(pool: PhotoPool, stats: Sequence[PhotoStats]) -> Iterator[DataFinding]:
    """Yield the photos that cannot be read."""
    for photo, one in zip(pool.about, stats, strict=True):
        if one.error is not None:
            yield DataFinding("unreadable", "error", f"{one.error.code}: {one.error.message}", (photo,))


def _of_classes(pool: PhotoPool) -> Iterator[DataFinding]:
    learned = next((pool.sources[name] for name in ("train", "") if name in pool.sources), None)
    everything = sorted(set().union(*(source.class_ids for source in pool.sources.values())))
    for names in _same_but_for_case((name, name) for name in everything):
        yield DataFinding("similar_classes", "error", "class names that differ only in case or spelling of accents: "
                          + ", ".join(names), class_ids=tuple(names))  # fmt: skip
    if learned is None:
        yield DataFinding("no_train", "error", f"there is {' and '.join(pool.sources)}, but no train")
        return
    counts = _counts(learned)
    if (val := val_name(pool.sources)) and not pool.sources[val].photos:
        yield DataFinding("empty_val", "error", f"{val} holds no photos to validate on")
    if len(pool.sources) == 1 and max(counts.values(), default=0) < 2:
        yield DataFinding("too_few_photos", "error", "no class has two photos, so none can be held out for validation")
    for split, source in pool.sources.items():
        for class_id in sorted(source.class_ids - learned.class_ids):
            yield DataFinding("unknown_class", "error", f"{split} has the class {class_id}, which train does not have",
                              class_ids=(class_id,))  # fmt: skip
        for class_id in sorted(learned.class_ids - set(source.labels)):
            if source is learned or counts[class_id]:
                where = split or "the set"
                severity: Severity = "error" if source is learned else "warning"
                yield DataFinding("empty_class", severity, f"{where} has no photos of the class {class_id}",
                                  class_ids=(class_id,))  # fmt: skip
    some = {class_id: count for class_id, count in counts.items() if count}
    if len(some) < 2:
        yield DataFinding("too_few_classes", "error", f"{len(some)} classes have photos to learn from: at least two",
                          class_ids=tuple(some))  # fmt: skip
        return
    least, most = min(some, key=some.__getitem__), max(some, key=some.__getitem__)
    if some[most] >= UNEVEN * some[least]:
        message = (f"{most} has {some[most]:,} photos to learn from, {least} {some[least]:,}: "
                   f"{some[most] / some[least]:,.0f} times as many")  # fmt: skip
        yield DataFinding("imbalance", "warning", message, class_ids=(least, most))


def duplicate_findings(pool: PhotoPool, stats: Sequence[PhotoStats]) -> Iterator[DataFinding]:
    """Yield the pictures that are there several times."""
    exact = identical([one.digest for one in stats])
    for rows in exact:
        yield from _same_picture(pool, rows, exact=True)
    members = {rows[0]: rows for rows in exact}
    others = {row for rows in exact for row in rows[1:]}
    if any(one.error is None and one.phash is None for one in stats):
        yield DataFinding("not_checked", "warning", f"near duplicates, which need imagehash: {pip_line('train')}")
        return
    single = [row for row, one in enumerate(stats) if one.error is None and row not in others]
    phashes_N = np.array([stats[row].phash for row in single], np.uint64)
    small = np.frombuffer(b"".join(stats[row].small for row in single), np.uint8)
    for group in near_groups(phashes_N, small.reshape(len(single), 3 * THUMBNAIL_SIDE * THUMBNAIL_SIDE)):
        rows = sorted(row for i in group for row in members.get(single[i], [single[i]]))
        yield from _same_picture(pool, rows, exact=False)


def _same_picture(pool: PhotoPool, rows: Sequence[int], exact: bool) -> Iterator[DataFinding]:
    photos = tuple(pool.about[row] for row in rows)
    splits, labels = (list(dict.fromkeys(photo[i] for photo in photos)) for i in (1, 2))
    how = "the same pixels" if exact else "the same picture, stored in another way"
    if len(splits) > 1:
        yield DataFinding("in_two_splits", "error", f"{how} in {' and '.join(splits)}", photos, exact=exact)
    if len(labels) > 1:
        yield DataFinding("under_two_labels", "error", f"{how} as {' and as '.join(labels)}", photos, exact=exact)
    if len(splits) == len(labels) == 1:
        yield DataFinding("duplicate", "warning", f"{how}, {len(photos)} times in one class", photos, exact=exact)


def file_findings(pool: PhotoPool, stats: Sequence[PhotoStats]) -> Iterator[DataFinding]:
    """Yield wrong endings, odd modes, tiny photos, and names that differ only in case."""
    for file, photo, one in zip(pool.photos, pool.about, stats, strict=True):
        header = one.header
        if header is None:
            continue
        ending = os.path.splitext(file)[1].lower() if isinstance(file, str) else ""
        if any(ending in of_one for of_one in ENDINGS.values()) and ending not in ENDINGS[header.format]:
            yield DataFinding("wrong_ending", "warning", f"{header.format} named {ending}", (photo,))
        if header.mode not in USUAL_MODES:
            yield DataFinding("odd_mode", "warning", f"pixels of mode {header.mode} are converted to RGB", (photo,))
        if min(header.size) < TINY:
            yield DataFinding("tiny", "warning", f"{header.size[0]}x{header.size[1]} pixels", (photo,))
    paths = [photo for file, photo in zip(pool.photos, pool.about, strict=True) if isinstance(file, str)]
    for same in _same_but_for_case((photo[0], photo) for photo in dict.fromkeys(paths)):
        if len({photo[0] for photo in same}) > 1:
            yield DataFinding("similar_names", "warning", "on other systems these are one file", tuple(same))


def _same_but_for_case(named: Iterable[tuple[str, T]]) -> list[list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for name, thing in named:
        folder, own = os.path.split(name)
        groups[os.path.join(folder, unicodedata.normalize("NFC", own).casefold())].append(thing)
    return [things for things in groups.values() if len(things) > 1]


def check_data(
    data: str | Path,
    options: DataOptions = DataOptions(),
    *,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> DataReport:
    """Decode every photo of `data` once and report what would hurt a training run. Nothing is written.

    Without imagehash only identical pictures are found; the report says so.

    Args:
        data: a folder or a table of photos (docs/data.md).
        options: the columns of a table, and the share held out for validation.
        workers: processes that decode; None is one per core.
        progress: advanced with each photo.

    Raises:
        UnavailableError: the data does not exist.
        UsageError: the photos have no classes, or are paired with masks or boundary maps.
    """
    began = time.monotonic()
    check_not_pairs(data)
    pool = PhotoPool.of(str(data), find_sources(Path(data), options))
    names = [name for name, _, _ in pool.about]
    progress.start("checking", len(pool.photos))
    stats = []
    for one in scan_photos(pool.photos, names, cores() if workers is None else workers):
        stats.append(one)
        progress.advance()
    return find_faults(pool, stats, time.monotonic() - began)
