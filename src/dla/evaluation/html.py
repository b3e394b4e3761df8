"""The HTML report of a validation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from dla.evaluation.result import Validation, Validations
from dla.html_report.charts import interval_chart
from dla.html_report.page import Chart, Charts, Facts, Heading, Part, Section, SideBySide, Table, write_page
from dla.html_report.sections import (
    INTERVAL,
    evaluation_sections,
    headline,
    next_steps,
    sentence,
    shown_names,
    surest_errors,
    today,
)
from dla.images.decode import read_photo


def write_report(path: str | os.PathLike[str], result: Validation | Validations) -> None:
    """Write the report of one or several validations to `path`.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: the file cannot be written.
    """
    models = result.models if isinstance(result, Validations) else (result,)
    sections: list[Section | SideBySide] = []
    if isinstance(result, Validations) and len(models) > 1:
        sections.append(_compared(result))
    for model in models:
        sections += _of_model(model, f" of {model.model}" if len(models) > 1 else "")
    sections.append(next_steps(max(models, key=lambda m: m.top1).model))
    write_page(path, _heading(models), tuple(sections))


def _heading(models: Sequence[Validation]) -> Heading:
    """Return the heading, whose sentence is about the only model or the one with the highest top-1."""
    first, best = models[0], max(models, key=lambda m: m.top1)
    words = sentence(best.evaluation, shown_names(best.split.class_ids, list(best.labels)))
    seen = sum(c.support > 0 for c in first.evaluation.classes)
    left_out = f"; {len(first.unreadable):,} could not be read" if first.unreadable else ""
    counts = f"{first.data}: {first.evaluation.count:,} photos, {seen} classes{left_out}"
    if len(models) == 1:
        return Heading("Validation of", first.model, counts, words)
    return Heading(
        f"{len(models)} models on the same photos", "", counts, f"{best.model} has the highest top-1. {words}"
    )


def _compared(result: Validations) -> Section:
    charts = [Chart("top-1", interval_chart([(m.model, m.top1, m.evaluation.top1_interval) for m in result.models]))]
    if any(len(m.evaluation.classes) > 5 for m in result.models):
        top5 = [(m.model, m.top5, m.evaluation.top5_interval) for m in result.models]
        charts.append(Chart("top-5", interval_chart(top5)))
    pairs = [(f"{one} minus {other}", c.top1, c.top1_interval) for one, other, c in result.comparisons]
    charts.append(Chart("difference in top-1", interval_chart(pairs, zero=True)))
    rows = tuple(
        (a, b, f"{100 * c.top1:+.1f}", c.top1_interval.percent("+"), f"{c.only_a_correct:,}", f"{c.only_b_correct:,}")
        for a, b, c in result.comparisons
    )
    heads = ("A", "B", "top-1 A - B, points", "95 % interval", "only A correct", "only B correct")
    note = ("A difference whose interval excludes zero is unlikely to be due to the choice of photos. The interval is "
            "narrower than those of the single figures, because both models classified the same photos.")  # fmt: skip
    return Section("Comparison", (Charts(tuple(charts)), Table(heads, rows, texts=2)), note)


def _of_model(result: Validation, of_model: str) -> Iterator[Section | SideBySide]:
    names = shown_names(result.split.class_ids, list(result.labels))
    yield Section(f"Results{of_model}", (headline(result.evaluation),), INTERVAL)
    photos = result.split.photos
    errors = surest_errors(result.evaluation, result.split.targets_N, names, lambda i: read_photo(photos[i]).image,
                           result.split.names)  # fmt: skip
    yield from evaluation_sections(result.evaluation, names)
    if errors:
        yield errors
    yield Section(f"About this validation{of_model}", (_facts(result),))


def _facts(result: Validation) -> Part:
    facts = [
        ("date", today()),
        ("data set", result.data),
        ("model", result.origin),
        ("licence", result.license or "not stated in its files"),
        ("weights", f"SHA-256 {result.sha256}"),
        ("temperature", f"{result.temperature:g}"),
    ]
    if result.preset == "imagenet":
        facts.append(("preset", "imagenet: EXIF orientation ignored, as in timm"))
    if result.tta != "none":
        facts.append(("test-time views", result.tta))
    if c := result.calibrated:
        after = f"log loss {c.log_loss:.3f}, calibration error {100 * c.calibration_error:.1f} %"
        facts.append(("calibrated", f"temperature {c.temperature:g}; with it on these photos: {after}"))
    facts += [("not read", u.message) for u in result.unreadable[:20]]
    if len(result.unreadable) > 20:
        facts.append(("not read", f"and {len(result.unreadable) - 20:,} more"))
    facts += [("note", note) for note in result.notes]
    return Facts(tuple(facts))
