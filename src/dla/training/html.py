"""The HTML report of a run: what every task's has, and that of classifiers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dla.data.dataset import Split
from dla.html_report.charts import NumberFormat, Series, line_chart, percent
from dla.html_report.page import (
    Chart,
    Charts,
    Code,
    Facts,
    Figure,
    Figures,
    Heading,
    ImageGrid,
    PageImage,
    Section,
    SideBySide,
    embedded,
    write_page,
)
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
from dla.metrics.classification import evaluate
from dla.storage.files import read_json
from dla.training.run_folder import read_epochs
from dla.types import Array

FALL = 0.1  # a figure that ends this far below that of the best epoch has fallen
RISE = 1.05  # a validation loss that ends this many times above its minimum has risen


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
    errors = surest_errors(evaluation, split.targets_N, names, lambda i: read_photo(split.photos[i]).image, split.names)
    counts = f"{evaluation.count:,} validation photos, {len(split.class_ids)} classes"
    keys = {"top-1": "top1"} | ({"top-5": "top5"} if len(split.class_ids) > 5 else {})
    sections = (*evaluation_sections(evaluation, names), *((errors,) if errors else ()))
    mosaic = (
        "with the label of each photo: check that crops and labels are right. A + joins the labels of two mixed photos"
    )
    curves, heading = Curves("Validation accuracy", keys), (counts, sentence(evaluation, names))
    return write_run_page(run, "classify", heading, headline(evaluation), curves, sections, mosaic)


def _tenths(share: float) -> str:
    return f"{100 * share:.1f} %"


@dataclass(frozen=True, slots=True)
class Curves:
    """The figures of the validations that a report draws: a title, names and keys in metrics.jsonl, the axis's format.

    The first is the one by which the best epoch was chosen.
    """

    title: str
    keys: Mapping[str, str]
    format: NumberFormat = percent
    shown: NumberFormat = _tenths


def write_run_page(
    run: Path, task: str, heading: tuple[str, str], figures: Figures, curves: Curves,
    sections: Sequence[Section | SideBySide], mosaic: str,
) -> Path:  # fmt: skip
    """Write `run`/report.html from what a task has to show and what the run's folder holds; return its path.

    Args:
        run: the run's folder.
        task: the task of the network.
        heading: a line of counts, and the result in words.
        figures: the figures of the best weights.
        curves: the figures of the validations to draw.
        sections: sections about the best weights.
        mosaic: what the mosaic has beside the photos.
    """
    epochs = read_epochs(run / "metrics.jsonl")
    facts = read_json(run / "run.json") if (run / "run.json").exists() else {}
    best = (facts.get("best") or {}).get("epoch")
    whole = (
        Section("Results", (Figures((*figures.items, *_of_run(epochs))),), _results_note(epochs, best)),
        *_curves(epochs, curves, best),
        *sections,
        *_mosaic(run / "mosaic.png", mosaic),
        *_about(run, facts),
        next_steps(str(run / "best"), task),
    )
    path = run / "report.html"
    write_page(path, Heading("Training run", run.resolve().name, *heading), whole)
    return path


def _results_note(epochs: list[dict[str, Any]], best: int | None) -> str:
    weights = f"the weights of epoch {best} of {len(epochs)}, which are" if best else "the weights"
    return (
        f"The figures are of the validation photos, with {weights} in best/. They are slightly optimistic, because the "
        f"epoch was chosen on the same photos. {INTERVAL}"
    )


def _of_run(epochs: list[dict[str, Any]]) -> tuple[Figure, ...]:
    if not epochs:
        return ()
    minutes = sum(e["seconds"] for e in epochs) / 60
    rate = sum(e["photos_per_second"] for e in epochs) / len(epochs)
    return (
        Figure("training", f"{minutes:.1f} min", f"{len(epochs)} epochs, {rate:.{0 if rate >= 10 else 1}f} photos/s"),
    )


def _curves(epochs: list[dict[str, Any]], curves: Curves, best: int | None) -> tuple[Section, ...]:
    xs = [e["epoch"] for e in epochs]

    def of(name: str, key: str) -> Series:
        return Series(name, xs, [e.get(key) for e in epochs])

    chosen = next((e.get(next(iter(curves.keys.values()))) for e in epochs if e["epoch"] == best), None)
    mark = None if best is None or chosen is None else (f"best: epoch {best}, {curves.shown(chosen)}", best)
    results = {
        curves.title: line_chart([of(*named) for named in curves.keys.items()], "epoch", curves.format, mark=mark),
        "Loss": line_chart([of("training", "loss"), of("validation", "val_loss")], "epoch",
                           mark=mark and (f"best: epoch {best}", mark[1])),
    }  # fmt: skip
    running = {
        "Learning rate": line_chart([of("learning rate", "lr")], "epoch"),
        "Speed": line_chart([of("photos per second", "photos_per_second")], "epoch"),
        "Waiting for photos": line_chart([of("fraction of the time", "data_wait")], "epoch", percent),
    }
    parts = tuple(
        Charts(tuple(Chart(title, drawing) for title, drawing in drawings.items() if drawing is not None), folded)
        for drawings, folded in ((results, ""), (running, "Learning rate, speed and waiting for photos"))
    )
    shown = tuple(part for part in parts if part.items)
    note = " ".join(filter(None, (_fall(epochs, curves, best), _overfitting(epochs))))
    return (Section("Progress", shown, note),) if shown else ()


def _fall(epochs: list[dict[str, Any]], curves: Curves, best: int | None) -> str:
    """Return how far the first figure of the curves fell after the best epoch; empty if it did not, clearly."""
    name, key = next(iter(curves.keys.items()))
    values = {e["epoch"]: e[key] for e in epochs if e.get(key) is not None}
    if best not in values or values[best] - values[last := max(values)] < FALL:
        return ""
    return (
        f"On the validation photos, {name} fell from {curves.shown(values[best])} in epoch {best} to "
        f"{curves.shown(values[last])} in epoch {last}; best/ keeps the weights of epoch {best}."
    )


def _overfitting(epochs: list[dict[str, Any]]) -> str:
    """Return what a validation loss that rises towards the end means; empty if it does not."""
    measured = [e for e in epochs if e.get("val_loss") is not None]
    if not measured:
        return ""
    lowest, last = min(measured, key=lambda e: e["val_loss"]), measured[-1]
    if last["val_loss"] < RISE * lowest["val_loss"] or last["loss"] >= lowest["loss"]:
        return ""
    return (
        f"The validation loss was lowest in epoch {lowest['epoch']} ({lowest['val_loss']:.3f}) and rose to "
        f"{last['val_loss']:.3f} in epoch {last['epoch']}, while the training loss fell: from then on the network "
        "mostly memorized the training photos (overfitting). More photos or fewer epochs help."
    )


def _mosaic(path: Path, beside: str) -> tuple[Section, ...]:
    if not path.exists():
        return ()
    with Image.open(path) as picture:
        uri = embedded(picture.convert("RGBA"))
    note = f"The first batch after augmentation, {beside}."
    return (
        Section(
            "Training photos as the network sees them",
            (ImageGrid((PageImage(uri, (), "training photos"),), wide=True),),
            note,
        ),
    )


def _about(run: Path, facts: Mapping[str, Any]) -> tuple[Section, ...]:
    """Return the sections with date, data set and licence, and with command, versions, machine and recipe."""
    model = read_json(run / "best" / "config.json").get("dla") or {} if (run / "best" / "config.json").exists() else {}
    known = [
        ("data set", model.get("dataset")),
        ("network", model.get("starts_from")),
        ("licence", model.get("license")),
    ]
    about = Facts((("date", today()), *((name, str(value)) for name, value in known if value)))
    parts: list[Code | Facts] = []
    if command := facts.get("command"):
        words = [command] if isinstance(command, str) else list(command)
        started_dla = Path(words[0]).name in ("dla", "__main__.py")
        parts.append(Code(shlex.join(["dla", *words[1:]] if started_dla else words)))
    pairs = [pair for key in ("data", "versions", "machine") for pair in _flat(facts.get(key) or {}, f"{key}: ")]
    if pairs:
        parts.append(Facts(tuple(pairs), "Data, versions and machine"))
    config = run / "config.yaml"
    if config.exists():
        parts.append(Code(config.read_text(encoding="utf-8"), "config.yaml, the complete recipe"))
    reproduce = (Section("How to reproduce it", tuple(parts)),) if parts else ()
    return (Section("About this run", (about,)), *reproduce)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            yield f"{prefix}{name}", shown
