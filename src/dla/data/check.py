"""The data doctor: what is wrong with a set of photos, from one look at each.

Kinds of findings and whether they would hurt a run are listed in docs/data.md.
"""

from __future__ import annotations

import os
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dla.data.duplicates import identical, near_groups
from dla.data.look import SMALL, Look
from dla.data.open import val_name
from dla.data.source import Source
from dla.records import DataFinding, DataReport

__all__ = ["ENDINGS", "Pool", "diagnose"]

ENDINGS = {
    "JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WebP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "AVIF": (".avif",),
}  # fmt: skip
USUAL_MODES = ("RGB", "RGBA", "L", "P")
TINY = 32  # pixels
UNEVEN = 10.0

T = TypeVar("T")
Photo = tuple[str, str, str]  # name, split, class_id


@dataclass(frozen=True)
class Pool:
    """All photos of a set, whatever split they are in."""

    data: str
    sources: Mapping[str, Source]
    photos: Sequence[str | bytes]
    about: Sequence[Photo]

    @classmethod
    def of(cls, data: str, sources: Mapping[str, Source]) -> Pool:
        """The photos of each source under the name of its split."""
        photos = [photo for source in sources.values() for photo in source.photos]
        about = [(name, split, label) for split, source in sources.items()
                 for name, label in zip(source.names, source.labels, strict=True)]  # fmt: skip
        return cls(data, sources, photos, about)


def diagnose(pool: Pool, looks: Sequence[Look], seconds: float) -> DataReport:
    """Everything that is found, what would hurt a run first."""
    findings = [
        *_unreadable(pool, looks),
        *_of_classes(pool),
        *_duplicates(pool, looks),
        *_of_files(pool, looks),
        *(DataFinding("not_used", False, note) for source in pool.sources.values() for note in source.notes),
    ]
    headers = [look.header for look in looks if look.header is not None]
    sides = sorted(min(header.size) for header in headers)
    return DataReport(
        data=pool.data,
        splits={name: _counts(source) for name, source in pool.sources.items()},
        readable=len(headers),
        exif_rotated=sum(header.orientation in range(2, 9) for header in headers),
        short_sides=(sides[0], statistics.median_low(sides), sides[-1]) if sides else None,
        formats=dict(Counter(header.format for header in headers).most_common()),
        modes=dict(Counter(header.mode for header in headers).most_common()),
        findings=tuple(sorted(findings, key=lambda finding: not finding.hurts)),
        seconds=seconds,
    )


def _counts(source: Source) -> dict[str, int]:
    counts = Counter(source.labels)
    return {class_id: counts[class_id] for class_id in sorted(source.class_ids)}


def _unreadable(pool: Pool, looks: Sequence[Look]) -> Iterator[DataFinding]:
    for photo, look in zip(pool.about, looks, strict=True):
        if look.error is not None:
            yield DataFinding("unreadable", True, f"{look.error.code}: {look.error.message}", (photo,))


def _of_classes(pool: Pool) -> Iterator[DataFinding]:
    learned = next((pool.sources[name] for name in ("train", "") if name in pool.sources), None)
    everything = sorted(set().union(*(source.class_ids for source in pool.sources.values())))
    for names in _same_but_for_case((name, name) for name in everything):
        yield DataFinding("similar_classes", True, "class names that differ only in case or spelling of accents: "
                          + ", ".join(names), class_ids=tuple(names))  # fmt: skip
    if learned is None:
        yield DataFinding("no_train", True, f"there is {' and '.join(pool.sources)}, but no train")
        return
    counts = _counts(learned)
    if (val := val_name(pool.sources)) and not pool.sources[val].photos:
        yield DataFinding("empty_val", True, f"{val} holds no photos to validate on")
    if len(pool.sources) == 1 and max(counts.values(), default=0) < 2:
        yield DataFinding("too_few_photos", True, "no class has two photos, so none can be kept for validation")
    for split, source in pool.sources.items():
        for class_id in sorted(source.class_ids - learned.class_ids):
            yield DataFinding("unknown_class", True, f"{split} has the class {class_id}, which train does not have",
                              class_ids=(class_id,))  # fmt: skip
        for class_id in sorted(learned.class_ids - set(source.labels)):
            if source is learned or counts[class_id]:
                where = split or "the set"
                yield DataFinding("empty_class", source is learned, f"{where} has no photos of the class {class_id}",
                                  class_ids=(class_id,))  # fmt: skip
    some = {class_id: count for class_id, count in counts.items() if count}
    if len(some) < 2:
        yield DataFinding("too_few_classes", True, f"{len(some)} classes have photos to learn from: at least two",
                          class_ids=tuple(some))  # fmt: skip
        return
    least, most = min(some, key=some.__getitem__), max(some, key=some.__getitem__)
    if some[most] >= UNEVEN * some[least]:
        message = (f"{most} has {some[most]:,} photos to learn from, {least} {some[least]:,}: "
                   f"{some[most] / some[least]:,.0f} times as many")  # fmt: skip
        yield DataFinding("imbalance", False, message, class_ids=(least, most))


def _duplicates(pool: Pool, looks: Sequence[Look]) -> Iterator[DataFinding]:
    exact = identical([look.digest for look in looks])
    for rows in exact:
        yield from _same_picture(pool, rows, exact=True)
    members = {rows[0]: rows for rows in exact}
    others = {row for rows in exact for row in rows[1:]}
    single = [row for row, look in enumerate(looks) if look.error is None and row not in others]
    phashes_N = np.array([looks[row].phash for row in single], np.uint64)
    small = np.frombuffer(b"".join(looks[row].small for row in single), np.uint8)
    for group in near_groups(phashes_N, small.reshape(len(single), 3 * SMALL * SMALL)):
        rows = sorted(row for i in group for row in members.get(single[i], [single[i]]))
        yield from _same_picture(pool, rows, exact=False)


def _same_picture(pool: Pool, rows: Sequence[int], exact: bool) -> Iterator[DataFinding]:
    photos = tuple(pool.about[row] for row in rows)
    splits, labels = (list(dict.fromkeys(photo[i] for photo in photos)) for i in (1, 2))
    how = "the same pixels" if exact else "the same picture, stored in another way"
    if len(splits) > 1:
        yield DataFinding("in_two_splits", True, f"{how} in {' and '.join(splits)}", photos, exact=exact)
    if len(labels) > 1:
        yield DataFinding("under_two_labels", True, f"{how} as {' and as '.join(labels)}", photos, exact=exact)
    if len(splits) == len(labels) == 1:
        yield DataFinding("duplicate", False, f"{how}, {len(photos)} times in one class", photos, exact=exact)


def _of_files(pool: Pool, looks: Sequence[Look]) -> Iterator[DataFinding]:
    for file, photo, look in zip(pool.photos, pool.about, looks, strict=True):
        header = look.header
        if header is None:
            continue
        ending = os.path.splitext(file)[1].lower() if isinstance(file, str) else ""
        if any(ending in of_one for of_one in ENDINGS.values()) and ending not in ENDINGS[header.format]:
            yield DataFinding("wrong_ending", False, f"{header.format} named {ending}", (photo,))
        if header.mode not in USUAL_MODES:
            yield DataFinding("odd_mode", False, f"pixels of the kind {header.mode} become RGB", (photo,))
        if min(header.size) < TINY:
            yield DataFinding("tiny", False, f"{header.size[0]}x{header.size[1]} pixels", (photo,))
    paths = [photo for file, photo in zip(pool.photos, pool.about, strict=True) if isinstance(file, str)]
    for same in _same_but_for_case((photo[0], photo) for photo in dict.fromkeys(paths)):
        if len({photo[0] for photo in same}) > 1:
            yield DataFinding("similar_names", False, "on other systems these are one file", tuple(same))


def _same_but_for_case(named: Iterable[tuple[str, T]]) -> list[list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for name, thing in named:
        folder, own = os.path.split(name)
        groups[os.path.join(folder, unicodedata.normalize("NFC", own).casefold())].append(thing)
    return [things for things in groups.values() if len(things) > 1]
