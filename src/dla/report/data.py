"""What `dla data check` says to people."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from dla.records import DataFinding, DataReport

__all__ = ["data_lines"]

MOST_NAMED = 3
WIDTH = 32
TITLES = {  # of one, of several
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
    "not_used": ("set aside", "set aside"),
}


def data_lines(report: DataReport, most: int = MOST_NAMED) -> Iterator[str]:
    """Lines for a terminal: the set, what would hurt a run, what is good to know, the verdict."""
    yield _whole(report)
    for hurts, title in ((True, "would hurt a run"), (False, "good to know")):
        found = [finding for finding in report.findings if finding.hurts == hurts]
        if found:
            yield f"{title}:"
            yield from _findings(report, found, most)
    yield from _facts(report)
    kinds = len({finding.kind for finding in report.findings if finding.hurts})
    things = f"{kinds} kind{'s' if kinds > 1 else ''} of trouble would hurt a run."
    yield things if kinds else "Nothing was found that would hurt a run."


def _whole(report: DataReport) -> str:
    classes = set().union(*report.splits.values())
    parts = [f"{name} {sum(counts.values()):,}" for name, counts in report.splits.items() if name]
    total = sum(sum(counts.values()) for counts in report.splits.values())
    return f"{_plain(report.data)}: {total:,} photos in {len(classes):,} classes" + "".join(f", {p}" for p in parts)


def _findings(report: DataReport, found: Sequence[DataFinding], most: int) -> Iterator[str]:
    for kind, titles in TITLES.items():
        of_kind = [finding for finding in found if finding.kind == kind]
        for finding in of_kind[:most]:
            first = f"{len(of_kind):,} {titles[len(of_kind) > 1]}" if finding is of_kind[0] else ""
            yield _line(first, _detail(report, finding))
        if len(of_kind) > most:
            yield _line("", f"and {len(of_kind) - most:,} more")


def _detail(report: DataReport, finding: DataFinding) -> str:
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


def _short(report: DataReport, name: str) -> str:
    return name.removeprefix(os.path.join(report.data, ""))


def _plain(text: str) -> str:
    """Names on one line, whatever is in them."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda m: repr(m[0])[1:-1], text)
