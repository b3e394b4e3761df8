"""The findings of `dla data check` as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from dla.data.check import DataFinding, DataReport
from dla.data.pair_check import PairReport, SplitPixels

MOST_NAMED = 3
WIDTH = 32
TITLES = {  # singular, plural
    "unreadable": ("unreadable", "unreadable"),
    "too_few_classes": ("lack of classes", "lack of classes"),
    "too_few_photos": ("lack of photos", "lack of photos"),
    "no_train": ("lack of train", "lack of train"),
    "empty_val": ("empty val", "empty val"),
    "similar_classes": ("class name in two spellings", "class names in two spellings"),
    "unknown_class": ("class unknown to train", "classes unknown to train"),
    "empty_class": ("class without photos", "classes without photos"),
    "in_two_splits": ("in two splits", "in two splits"),
    "under_two_labels": ("under two labels", "under two labels"),
    "duplicate": ("twice in its class", "twice in their class"),
    "imbalance": ("uneven pair of classes", ""),
    "wrong_ending": ("named like another format", "named like another format"),
    "odd_mode": ("of an unusual kind", "of an unusual kind"),
    "tiny": ("tiny", "tiny"),
    "similar_names": ("file name in two spellings", "file names in two spellings"),
    "missing_mask": ("photo without a mask", "photos without a mask"),
    "missing_annotators": ("photo without annotators", "photos without annotators"),
    "missing_image": ("mask without a photo", "masks without a photo"),
    "two_masks": ("photo with two masks", "photos with two masks"),
    "two_images": ("name of two photos", "names of two photos"),
    "size_differs": ("mask of another size", "masks of another size"),
    "unknown_id": ("unknown id in masks", "unknown ids in masks"),
    "unknown_colour": ("unknown colour in masks", "unknown colours in masks"),
    "lossy_mask": ("lossy mask", "lossy masks"),
    "not_a_mask": ("file that is no mask", "files that are no masks"),
    "not_two_valued": ("map of several values", "maps of several values"),
    "all_ignored": ("mask all ignored", "masks all ignored"),
    "empty_map": ("empty boundary map", "empty boundary maps"),
    "absent_class": ("class without pixels", "classes without pixels"),
    "one_class_only": ("set of one class", "sets of one class"),
    "ambiguous_turn": ("mask that may be turned", "masks that may be turned"),
    "assumed_classes": ("assumption", "assumptions"),
    "not_used": ("set aside", "set aside"),
    "not_checked": ("check left out", "checks left out"),
}


def report_lines(report: DataReport | PairReport, most: int = MOST_NAMED) -> Iterator[str]:
    """Yield the lines of the report for a terminal; of each kind, `most` findings are listed."""
    yield _all_pairs(report) if isinstance(report, PairReport) else _whole(report)
    for severity, title in (("error", "would hurt a run"), ("warning", "good to know")):
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            yield f"{title}:"
            yield from _findings(report, found, most)
    yield from _pixel_facts(report) if isinstance(report, PairReport) else _facts(report)
    kinds = len({finding.kind for finding in report.findings if finding.severity == "error"})
    things = f"{kinds} kind{'s' if kinds > 1 else ''} of trouble would hurt a run."
    yield things if kinds else "Nothing was found that would hurt a run."


def _all_pairs(report: PairReport) -> str:
    total = sum(split.pairs for split in report.splits)
    of = f" in {len(report.classes):,} classes" if report.task == "segment" else ""
    parts = [f", {split.split} {split.pairs:,}" for split in report.splits if split.split]
    what = "photos with masks" if report.task == "segment" else "photos with boundary maps"
    return f"{_plain(report.data)}: {total:,} {what}{of}" + "".join(parts)


def _pixel_facts(report: PairReport) -> Iterator[str]:
    for split in report.splits:
        yield from _of_split(split, report.task)


def _of_split(split: SplitPixels, task: str) -> Iterator[str]:
    name = split.split or "all"
    if task == "edges":
        yield f"{name}: {split.maps:,} maps, {split.maps / max(1, split.pairs):.1f} a photo"
        return
    total = sum(split.pixels.values())
    ignored = split.ignored / max(1, total + split.ignored)
    yield f"{name}: {total:,} pixels of classes, {ignored:.1%} of all ignored"
    for class_id, pixels in split.pixels.items():
        yield _line(
            _plain(class_id), f"{pixels / max(1, total):6.2%} of the pixels, in {split.photos[class_id]:,} photos"
        )


def _whole(report: DataReport) -> str:
    classes = set().union(*report.splits.values())
    parts = [f"{name} {sum(counts.values()):,}" for name, counts in report.splits.items() if name]
    total = sum(sum(counts.values()) for counts in report.splits.values())
    return f"{_plain(report.data)}: {total:,} photos in {len(classes):,} classes" + "".join(f", {p}" for p in parts)


def _findings(report: DataReport | PairReport, found: Sequence[DataFinding], most: int) -> Iterator[str]:
    others = {finding.kind: (f"mask: {finding.kind.replace('_', ' ')}",) * 2 for finding in found}  # errors of decoding
    for kind, titles in (others | TITLES).items():
        of_kind = [finding for finding in found if finding.kind == kind]
        for finding in of_kind[:most]:
            first = f"{len(of_kind):,} {titles[len(of_kind) > 1]}" if finding is of_kind[0] else ""
            yield _line(first, _detail(report, finding))
        if len(of_kind) > most:
            yield _line("", f"and {len(of_kind) - most:,} more")


def _detail(report: DataReport | PairReport, finding: DataFinding) -> str:
    if not finding.photos:
        return _plain(_short(report, finding.message).removeprefix(f"{report.data}: "))
    names = [_plain(_short(report, name)) for name, _, _ in finding.photos[:4]]
    more = ", ..." if len(finding.photos) > 4 else ""
    if finding.kind == "unreadable":
        return f"{names[0]} ({finding.message.partition(':')[0].replace('_', ' ')})"
    if finding.exact is None:
        return f"{', '.join(names)}{more} ({_plain(finding.message)})"
    return (" = " if finding.exact else " ~ ").join(names) + more


def _facts(report: DataReport) -> Iterator[str]:
    yield "photos:"
    for split, counts in report.splits.items():
        some = sorted(counts.values())
        if some:
            spread = f"{some[0]:,} in every class" if some[0] == some[-1] else f"{some[0]:,} to {some[-1]:,} a class"
            yield _line(split or "all", spread)
    if report.short_sides is not None:
        least, middle, most = report.short_sides
        same = f"{least:,} pixels"
        yield _line("short side", same if least == most else f"{least:,} to {most:,} pixels, half up to {middle:,}")
        yield _line("formats", f"{_counted(report.formats)}; pixels {_counted(report.modes)}")
    if report.exif_rotated:
        share = report.exif_rotated / report.readable
        yield _line("turned by EXIF", f"{report.exif_rotated:,} ({share:.1%}), read upright")


def _line(what: str, detail: str) -> str:
    return f"  {what:<{WIDTH}}{detail}".rstrip()


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _short(report: DataReport | PairReport, name: str) -> str:
    return name.removeprefix(os.path.join(report.data, ""))


def _plain(text: str) -> str:
    """Escape control characters, so that a name stays on one line."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda m: repr(m[0])[1:-1], text)
