"""The HTML reports of validations of segmentation and boundary networks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dla.data.dataset import Unreadable
from dla.evaluation.dense_text import views_words
from dla.evaluation.edges import BoundaryResult, BoundaryResults
from dla.evaluation.segment import SegmentationResult, SegmentationResults
from dla.html_report.charts import interval_chart
from dla.html_report.dense_sections import (
    boundary_figures,
    boundary_sentence,
    curve_section,
    photo_table,
    segmentation_figures,
    segmentation_sections,
    segmentation_sentence,
)
from dla.html_report.page import Chart, Charts, Facts, Figure, Figures, Heading, Section, SideBySide, Table, write_page
from dla.html_report.sections import INTERVAL, next_steps, today
from dla.metrics.intervals import Interval
from dla.training.pair_html import boundary_samples, segment_samples

PAIRED = (
    "A difference whose interval excludes zero is unlikely to be due to the choice of photos. The interval is narrower "
    "than those of the single figures, because both models saw the same photos."
)


def write_segmentation_report(path: str | os.PathLike[str], results: SegmentationResults) -> None:
    """Write the report of one or several segmentation networks to `path`.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: the file cannot be written.
    """
    best = max(results.models, key=lambda one: one.evaluation.miou)
    several = len(results.models) > 1
    sections: list[Section | SideBySide] = []
    if several:
        rows = [(one.model.origin, one.evaluation.miou, one.evaluation.miou_interval) for one in results.models]
        pairs = [(a, b, c.miou, c.miou_interval, c.better, c.worse) for a, b, c in results.comparisons]
        sections.append(_compared("mIoU", rows, pairs))
    for one in results.models:
        sections += _of_segmenter(results, one, f" of {one.model.origin}" if several else "")
    sections.append(next_steps(best.model.origin, "segment"))
    words = segmentation_sentence(best.evaluation, [c.label for c in best.model.classes])
    counts = f"{results.data}: {best.evaluation.photos:,} photos, {best.evaluation.classes_counted} classes"
    write_page(path, _heading(several, len(results.models), best.model.origin, counts, words, "mIoU"), tuple(sections))


def write_boundaries_report(path: str | os.PathLike[str], results: BoundaryResults) -> None:
    """Write the report of boundary networks, of the maps in a folder, or of annotators to `path`.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: the file cannot be written.
    """
    best = max(results.sources, key=lambda one: one.evaluation.ods.f1)
    counts = f"{results.data}: {len(best.pairs):,} photos"
    if results.annotators:
        _write_annotators(path, results, best)
        return
    several = len(results.sources) > 1
    sections: list[Section | SideBySide] = []
    if several:
        rows = [(one.source, one.evaluation.ods.f1, one.evaluation.ods_interval) for one in results.sources]
        pairs = [(a, b, c.ods, c.ods_interval, c.better, c.worse) for a, b, c in results.comparisons]
        sections.append(_compared("ODS", rows, pairs))
    sections.append(curve_section([(one.source.rstrip("/").rpartition("/")[2], one.evaluation)
                                   for one in results.sources]))  # fmt: skip
    for one in results.sources:
        of = f" of {one.source}" if several else ""
        sections += [
            Section(f"Results{of}", (boundary_figures(one.evaluation),), INTERVAL),
            photo_table(one.evaluation),
        ]
        if one.model is not None:
            sections += boundary_samples(one.model, one.pairs, one.evaluation)
    sections.append(Section("About this validation", (Facts(tuple(_boundary_facts(results))),)))
    if best.model is not None:
        sections.append(next_steps(best.source, "edges"))
    heading = _heading(several, len(results.sources), best.source, counts, boundary_sentence(best.evaluation), "ODS")
    write_page(path, heading, tuple(sections))


def _heading(several: bool, count: int, best: str, counts: str, words: str, figure: str) -> Heading:
    if not several:
        return Heading("Validation of", best, counts, words)
    return Heading(f"{count} models on the same photos", "", counts, f"{best} has the highest {figure}. {words}")


def _write_annotators(path: str | os.PathLike[str], results: BoundaryResults, found: BoundaryResult) -> None:
    ods = found.evaluation.ods
    figures = Figures((
        Figure("F", f"{ods.f1:.3f}", f"95 % interval {found.evaluation.ods_interval.low:.3f} to "
               f"{found.evaluation.ods_interval.high:.3f}"),
        Figure("precision", f"{100 * ods.precision:.1f} %", "of an annotator's pixels, any other has one near"),
        Figure("recall", f"{100 * ods.recall:.1f} %", "of the others' pixels are found"),
    ))  # fmt: skip
    words = f"Scored against each other, the annotators agree to an F of {ods.f1:.3f}."
    about = Section("About this validation", (Facts(tuple(_boundary_facts(results))),))
    heading = Heading("Annotators of", results.data, f"{len(found.pairs):,} maps", words)
    write_page(path, heading, (Section("Results", (figures,), INTERVAL), about))


def _compared(
    figure: str, rows: Sequence[tuple[str, float, Interval]],
    pairs: Sequence[tuple[str, str, float, Interval, int, int]],
) -> Section:  # fmt: skip
    table = tuple(
        (a, b, f"{100 * value:+.1f}", f"{100 * span.low:+.1f} to {100 * span.high:+.1f}", f"{better:,}", f"{worse:,}")
        for a, b, value, span, better, worse in pairs
    )
    heads = ("A", "B", f"{figure} A - B, points", "95 % interval", "A better, photos", "B better, photos")
    charts = (
        Chart(figure, interval_chart(rows)),
        Chart(f"difference in {figure}",
              interval_chart([(f"{a} minus {b}", value, span) for a, b, value, span, *_ in pairs], zero=True)),
    )  # fmt: skip
    return Section("Comparison", (Charts(charts), Table(heads, table, texts=2)), PAIRED)


def _of_segmenter(results: SegmentationResults, one: SegmentationResult, of: str) -> Iterator[Section | SideBySide]:
    names = [c.label for c in one.model.classes]
    figures = segmentation_figures(one.evaluation)
    if one.with_views is not None:
        v = one.with_views
        span = f"{100 * v.miou_interval.low:.1f} to {100 * v.miou_interval.high:.1f}"
        note = f"{views_words(one.views)}; 95 % interval {span}"
        figures = Figures((*figures.items, Figure("mIoU with views", f"{100 * v.miou:.1f} %", note)))
    yield Section(f"Results{of}", (figures,), INTERVAL)
    yield from segmentation_sections(one.evaluation, names)
    yield from segment_samples(one.model, one.split, one.mask, one.evaluation.counts.photo_miou())
    facts = [("date", today()), ("data set", results.data), ("model", one.model.origin),
             ("licence", str(one.model.config.dla.get("license") or "not stated in its files")),
             ("weights", f"SHA-256 {one.model.sha256}"), *_left_out(results.unreadable, results.notes)]  # fmt: skip
    yield Section(f"About this validation{of}", (Facts(tuple(facts)),))


def _boundary_facts(results: BoundaryResults) -> Iterator[tuple[str, str]]:
    yield "date", today()
    yield "data set", results.data
    for one in results.sources:
        if one.model is not None:
            yield "model", one.source
            yield "licence", str(one.model.config.dla.get("license") or "not stated in its files")
            yield "weights", f"SHA-256 {one.model.sha256}"
        elif not results.annotators:
            yield "maps", one.source
    yield "tolerance", f"{results.options.tolerance:g} of the diagonal"
    if not results.annotators:
        yield "thresholds", f"{results.options.thresholds:,}"
        yield "non-maximum suppression", f"m {results.options.nms_m:g}" if results.options.nms else "none"
    yield from _left_out(results.unreadable, results.notes)


def _left_out(unreadable: Sequence[Unreadable], notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from (("not read", one.message) for one in unreadable[:20])
    if len(unreadable) > 20:
        yield "not read", f"and {len(unreadable) - 20:,} more"
    yield from (("note", note) for note in notes)
