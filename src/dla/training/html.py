"""The HTML report of a run, from its folder and the logits of its best weights."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dla.data.dataset import Split
from dla.html_report.charts import Series, line_chart, percent
from dla.html_report.page import (
    Chart,
    Charts,
    Code,
    Facts,
    Figure,
    Figures,
    ImageGrid,
    PageImage,
    Section,
    embedded,
    write_page,
)
from dla.html_report.sections import evaluation_sections, headline, shown_names, surest_errors
from dla.images.decode import read_photo
from dla.metrics.classification import evaluate
from dla.storage.files import read_json
from dla.training.run_folder import read_epochs
from dla.types import Array


def write_report(run: Path, split: Split, logits_NK: Array, labels: Sequence[str]) -> Path:
    """Write `run`/report.html and return its path.

    It reads config.yaml, run.json, metrics.jsonl and mosaic.png from the run's folder; missing files are left out.

    Args:
        run: the run's folder.
        split: the validation photos.
        logits_NK: the logits of the best weights, in the order of `split`.
        labels: the classes' readable names, in the order of the outputs.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: the file cannot be written.
    """
    evaluation = evaluate(logits_NK, split.targets_N, split.class_ids)
    names = shown_names(split.class_ids, list(labels))
    epochs = read_epochs(run / "metrics.jsonl")
    facts = read_json(run / "run.json") if (run / "run.json").exists() else {}
    errors = surest_errors(evaluation, split.targets_N, names, lambda i: read_photo(split.photos[i]).image, split.names)
    sections = (
        Section("Results", (Figures((*headline(evaluation).items, *_of_run(epochs))),), "On the validation photos, "
                "with the weights in best/. Intervals are bootstraps over photos."),
        *_curves(epochs, len(split.class_ids)),
        *evaluation_sections(evaluation, names),
        *((errors,) if errors else ()),
        *_mosaic(run / "mosaic.png"),
        *_provenance(run, facts),
    )  # fmt: skip
    path = run / "report.html"
    counts = f"{evaluation.count:,} validation photos, {len(split.class_ids)} classes"
    write_page(path, f"Training run {run.resolve().name}", counts, sections)
    return path


def _of_run(epochs: list[dict[str, Any]]) -> tuple[Figure, ...]:
    if not epochs:
        return ()
    minutes = sum(e["seconds"] for e in epochs) / 60
    rate = sum(e["photos_per_second"] for e in epochs) / len(epochs)
    return (Figure("training", f"{minutes:.1f} min", f"{len(epochs)} epochs, {rate:.0f} photos/s"),)


def _curves(epochs: list[dict[str, Any]], class_count: int) -> tuple[Section, ...]:
    xs = [e["epoch"] for e in epochs]

    def of(name: str, key: str) -> Series:
        return Series(name, xs, [e.get(key) for e in epochs])

    accuracies = [of("top-1", "top1"), *([of("top-5", "top5")] if class_count > 5 else [])]
    drawings = {
        "Loss": line_chart([of("training", "loss"), of("validation", "val_loss")], "epoch"),
        "Validation accuracy": line_chart(accuracies, "epoch", percent),
        "Learning rate": line_chart([of("learning rate", "lr")], "epoch"),
        "Speed": line_chart([of("photos per second", "photos_per_second")], "epoch"),
        "Waiting for photos": line_chart([of("fraction of the time", "data_wait")], "epoch", percent),
    }
    charts = tuple(Chart(title, drawing) for title, drawing in drawings.items() if drawing is not None)
    return (Section("Progress", (Charts(charts),)),) if charts else ()


def _mosaic(path: Path) -> tuple[Section, ...]:
    if not path.exists():
        return ()
    with Image.open(path) as picture:
        uri = embedded(picture.convert("RGB"))
    note = "The first batch after augmentation, before its pixels are normalized."
    return (
        Section(
            "Training photos as the network sees them",
            (ImageGrid((PageImage(uri, (), "training photos"),), wide=True),),
            note,
        ),
    )


def _provenance(run: Path, facts: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return the section with command, versions, machine, data and recipe."""
    parts: list[Code | Facts] = []
    if command := facts.get("command"):
        parts.append(Code(command if isinstance(command, str) else shlex.join(command)))
    pairs = [pair for key in ("data", "versions", "machine") for pair in _flat(facts.get(key) or {}, f"{key}: ")]
    if pairs:
        parts.append(Facts(tuple(pairs)))
    config = run / "config.yaml"
    if config.exists():
        parts.append(Code(config.read_text(encoding="utf-8"), "config.yaml, the complete recipe"))
    return (Section("How to reproduce it", tuple(parts)),) if parts else ()


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            yield f"{prefix}{name}", shown
