"""The results of segmentation and boundary networks as text tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dla.evaluation.edges import BoundaryResult, BoundaryResults
from dla.evaluation.segment import SegmentationResult, SegmentationResults, Views
from dla.metrics.intervals import Interval
from dla.text_table import text_table

WORST = 5


def segmentation_text(results: SegmentationResults) -> str:
    """Return one network's figures and classes, or one row per network and the comparison of each pair."""
    first = results.models[0].evaluation
    pixels = f"{first.pixels:,} pixels of {first.classes_counted} classes, {first.ignored:,} ignored"
    lines = [f"{results.data}: {first.photos:,} photos, {pixels}"]
    if len(results.models) == 1:
        lines += [*text_table([("  model", results.models[0].model.origin), *_figures(results.models[0])], "<<"), ""]
        return "\n".join([*lines, *_classes(results.models[0]), *_confusions(results.models[0])]) + "\n"
    rows = [("model", "mIoU", "95 % interval", "pixel accuracy", "mIoU per photo")]
    for one in results.models:
        e = one.evaluation
        rows.append((one.model.origin, _percent(e.miou), _span(e.miou_interval), _percent(e.pixel_accuracy),
                     _percent(e.miou_per_photo)))  # fmt: skip
    lines += ["", *text_table(rows, "<><>>")]
    for a, b, c in results.comparisons:
        lines += ["", f"{a} minus {b}", _difference("mIoU", c.miou, c.miou_interval),
                  _difference("pixel accuracy", c.pixel_accuracy, c.pixel_accuracy_interval),
                  _better(c.better, c.worse)]  # fmt: skip
    return "\n".join(lines) + "\n"


def boundaries_text(results: BoundaryResults) -> str:
    """Return one source's figures and worst photos, or one row per network and the comparison of each pair."""
    first = results.sources[0]
    maps = sum(one.annotators for one in first.counts)
    if results.annotators:
        found, photos = first.evaluation, len({pair.name for pair in first.pairs})
        rows = [("  precision", _percent(found.ods.precision)), ("  recall", _percent(found.ods.recall)),
                ("  F", f"{_percent(found.ods.f1)}   95 % interval {_span(found.ods_interval)}")]  # fmt: skip
        head = f"{results.data}: {len(first.pairs):,} annotators' maps of {photos:,} photos, each against the others"
        return "\n".join([head, *text_table(rows, "<<")]) + "\n"
    lines = [f"{results.data}: {len(first.pairs):,} photos, {maps:,} annotators' maps"]
    if len(results.sources) == 1:
        rows = [("  maps" if first.model is None else "  model", first.source), *_boundary_figures(first)]
        return "\n".join([*lines, *text_table(rows, "<<"), "", *_photos(first)]) + "\n"
    table = [("model", "ODS", "95 % interval", "OIS", "AP", "R50")]
    for one in results.sources:
        e = one.evaluation
        table.append((one.source, f"{e.ods.f1:.4f}", _thousandths(e.ods_interval), f"{e.ois.f1:.4f}", f"{e.ap:.4f}",
                      f"{e.r50:.4f}"))  # fmt: skip
    lines += ["", *text_table(table, "<><>>>")]
    for a, b, c in results.comparisons:
        lines += ["", f"{a} minus {b}", _difference("ODS", c.ods, c.ods_interval), _better(c.better, c.worse)]
    return "\n".join(lines) + "\n"


def views_words(views: Views) -> str:
    """Return the views in words: "scales 0.75, 1, 1.25 and mirrored"."""
    scales = f"scales {', '.join(f'{scale:g}' for scale in views.scales)}" if views.scales != (1.0,) else ""
    return " and ".join(filter(None, (scales, "mirrored" if views.flip else "")))


def _figures(one: SegmentationResult) -> Iterator[tuple[str, str]]:
    e = one.evaluation
    absent = f", {e.classes_absent} more have no pixel" if e.classes_absent else ""
    yield "  mIoU", f"{_percent(e.miou)}   95 % interval {_span(e.miou_interval)}{absent}"
    yield "  pixel accuracy", f"{_percent(e.pixel_accuracy)}   95 % interval {_span(e.pixel_accuracy_interval)}"
    yield "  mean accuracy", f"{_percent(e.mean_accuracy)}   every class has the same weight"
    yield "  frequency IoU", f"{_percent(e.frequency_iou)}   each class has the weight of its pixels"
    yield "  mIoU per photo", f"{_percent(e.miou_per_photo)}   each photo's own, averaged"
    if one.with_views is not None:
        v = one.with_views
        yield (
            "  mIoU with views",
            f"{_percent(v.miou)}   95 % interval {_span(v.miou_interval)}; {views_words(one.views)}",
        )


def _classes(one: SegmentationResult) -> list[str]:
    rows: list[tuple[str, ...]] = [("class", "pixels", "IoU", "precision", "recall", "Dice")]
    for c, name in zip(one.evaluation.classes, one.model.classes, strict=True):
        shares = (_percent(share) for share in (c.iou, c.precision, c.recall, c.dice))
        rows.append((name.label, f"{c.pixels:,}", *shares))
    return text_table(rows, "<>>>>>")


def _confusions(one: SegmentationResult) -> list[str]:
    confusion_KK = one.evaluation.counts.confusion_KK
    wrong_KK = confusion_KK - np.diag(confusion_KK.diagonal())
    names, rows = [c.label for c in one.model.classes], []
    for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:WORST].tolist():
        i, j = divmod(place, len(names))
        if wrong_KK[i, j]:
            share = wrong_KK[i, j] / confusion_KK[i].sum()
            rows.append((f"    {_percent(share)}", f"of the pixels of {names[i]} classified as {names[j]}"))
    return ["", "commonest errors", *text_table(rows, "><")] if rows else []


def _boundary_figures(one: BoundaryResult) -> Iterator[tuple[str, str]]:
    e = one.evaluation
    yield "  ODS", f"{e.ods.f1:.4f}   95 % interval {_thousandths(e.ods_interval)}; threshold {e.ods.threshold:.3f}"
    yield "", f"precision {e.ods.precision:.4f}, recall {e.ods.recall:.4f}"
    yield "  OIS", f"{e.ois.f1:.4f}"
    yield "  AP", f"{e.ap:.4f}"
    yield "  R50", f"{e.r50:.4f}"


def _photos(one: BoundaryResult) -> list[str]:
    rows: list[tuple[str, ...]] = [("weakest photos", "F", "precision", "recall", "threshold")]
    for photo in sorted(one.evaluation.photos, key=lambda photo: (photo.best.f1, photo.name))[:WORST]:
        best = photo.best
        rows.append((photo.name, *(f"{v:.4f}" for v in (best.f1, best.precision, best.recall)),
                     f"{best.threshold:.3f}"))  # fmt: skip
    return text_table(rows, "<>>>>")


def _difference(name: str, difference: float, interval: Interval) -> str:
    verdict = "may be chance" if interval.low <= 0 <= interval.high else "unlikely to be chance"
    return (f"  {name}  {100 * difference:+5.1f} points, 95 % interval {100 * interval.low:+.1f} to "
            f"{100 * interval.high:+.1f}: {verdict}")  # fmt: skip


def _better(better: int, worse: int) -> str:
    return f"  the first is better on {better:,} photos, the second on {worse:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:5.1f} %"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _thousandths(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"
