"""The report of a validation: one HTML file."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dla.evaluation.result import Validation, Validations
from dla.html_report.charts import interval_chart
from dla.html_report.page import Chart, Charts, Facts, Part, Section, Table, write_page
from dla.html_report.sections import evaluation_sections, headline, shown_names, surest_errors
from dla.images.decode import read_photo
from dla.metrics.intervals import Interval

__all__ = ["write_report"]


def write_report(path: str | os.PathLike[str], found: Validation | Validations) -> None:
    """Write the page.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: of the disk.
    """
    models = found.models if isinstance(found, Validations) else (found,)
    sections: list[Section] = []
    if isinstance(found, Validations) and len(models) > 1:
        sections.append(_compared(found))
    for model in models:
        sections += _of_model(model, f"{model.model}: how good is it?" if len(models) > 1 else "How good is it?")
    first = models[0]
    title = f"Validation of {first.model}" if len(models) == 1 else f"{len(models)} models on the same photos"
    seen = sum(c.support > 0 for c in first.evaluation.classes)
    write_page(path, title, f"{first.data}: {first.evaluation.count:,} photos, {seen} classes", tuple(sections))


def _compared(found: Validations) -> Section:
    charts = [Chart("top-1", interval_chart([(m.model, m.top1, m.evaluation.top1_interval) for m in found.models]))]
    if any(len(m.evaluation.classes) > 5 for m in found.models):
        charts.append(
            Chart("top-5", interval_chart([(m.model, m.top5, m.evaluation.top5_interval) for m in found.models]))
        )
    pairs = [(f"{one}, less {other}", c.top1, c.top1_interval) for one, other, c in found.comparisons]
    charts.append(Chart("difference of top-1", interval_chart(pairs, zero=True)))
    rows = tuple(
        (one, other, f"{100 * c.top1:+.1f}", _span(c.top1_interval), f"{c.only_a_correct:,}", f"{c.only_b_correct:,}")
        for one, other, c in found.comparisons
    )
    heads = ("one", "other", "top-1, points", "95 % interval", "only one right", "only other right")
    note = ("An interval of a difference that does not touch zero is no accident of which photos were taken. It is "
            "narrower than those of the figures alone, because both answered the same photos.")  # fmt: skip
    return Section("Which is better?", (Charts(tuple(charts)), Table(heads, rows, texts=2)), note)


def _of_model(found: Validation, title: str) -> Iterator[Section]:
    names = shown_names(found.split.class_ids, list(found.labels))
    yield Section(title, (headline(found.evaluation), _facts(found)))
    photos = found.split.photos
    errors = surest_errors(found.evaluation, found.split.targets_N, names, lambda i: read_photo(photos[i]).image,
                           found.split.names)  # fmt: skip
    yield from evaluation_sections(found.evaluation, names)
    if errors:
        yield errors


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _facts(found: Validation) -> Part:
    facts = [
        ("model", found.origin),
        ("weights", f"SHA-256 {found.sha256}"),
        ("temperature", f"{found.temperature:g}"),
    ]
    if found.preset == "imagenet":
        facts.append(("preset", "imagenet: EXIF orientation ignored, as timm does"))
    if found.tta != "none":
        facts.append(("test-time views", found.tta))
    if c := found.calibrated:
        after = f"log loss {c.log_loss:.3f}, calibration error {100 * c.calibration_error:.1f} %"
        facts.append(("calibrated", f"temperature {c.temperature:g}, which has here {after}"))
    facts += [("not read", u.message) for u in found.unreadable[:20]]
    if len(found.unreadable) > 20:
        facts.append(("not read", f"and {len(found.unreadable) - 20:,} more"))
    facts += [("note", note) for note in found.notes]
    return Facts(tuple(facts))
