"""Build the sections about a classifier: metrics, confusions, classes, calibration, most confident errors.

`names` are the readable names of the classes, in the order of the network's outputs.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import PurePath

import numpy as np
from PIL import Image

from dla.errors import ImageError, pip_line
from dla.html_report.charts import FEW_PHOTOS, reliability_diagram
from dla.html_report.page import (
    Chart,
    Charts,
    Code,
    Figure,
    Figures,
    ImageGrid,
    Matrix,
    PageImage,
    Section,
    Share,
    SideBySide,
    Table,
    heat_map,
    thumbnail,
)
from dla.metrics.classification import Evaluation
from dla.metrics.intervals import Interval
from dla.types import Array

FEW = 20  # classes of which a full table is readable
NARROW = 15  # classes whose matrix has room beside the table
WIDE = 0.1  # an interval of top-1 that is wider is of few photos
INTERVAL = (
    "A 95 % interval shows how much a figure depends on the choice of photos: with very many photos like these, it "
    "would lie inside in 95 of 100 cases."
)
WORST = 20
NEVER = 3  # photos of a class, none of them recognized, from which on it is said
NAMED = 3  # such classes by name
PICTURES = 24


def evaluation_sections(found: Evaluation, names: Sequence[str]) -> tuple[Section | SideBySide, ...]:
    """Return the sections about confusions, classes and calibration."""
    kept = _classes_to_show(found)
    confusions, classes = _confusions(found, names, kept), _classes(found, names, kept)
    if len(kept) <= NARROW:
        return (SideBySide((*confusions, classes)), _calibration(found))
    return (SideBySide(confusions), classes, _calibration(found))


def sentence(found: Evaluation, names: Sequence[str]) -> str:
    """Return the result in plain words: how many photos are right, the most common error, and what to expect."""
    correct, count = int(found.confusion_KK.diagonal().sum()), found.count
    verb = "is" if correct == 1 else "are"
    words = [f"{correct:,} of {count:,} photos {verb} classified correctly."]
    if errors := _common_errors(found.confusion_KK):
        i, j = errors[0]
        words.append(
            f"The most common error: {names[i]} taken for {names[j]} "
            f"({found.confusion_KK[i, j]:,} of {found.classes[i].support:,} photos)."
        )
    words.extend(_never_recognized(found, names))
    low, high = _expected(found)
    few = f"{count:,} photos are few: of" if high - low > WIDE else "Of"
    ends = list(dict.fromkeys(f"{100 * end:.0f}" for end in (low, high)))
    expected = f"between {ends[0]} and {ends[1]}" if len(ends) > 1 else f"about {ends[0]}"
    words.append(f"{few} 100 other photos like these, {expected} can be expected to be classified correctly.")
    return " ".join(words)


def _never_recognized(found: Evaluation, names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence about the classes of which no photo was recognized, the largest first."""
    never = [k for k, c in enumerate(found.classes) if c.support >= NEVER and not found.confusion_KK[k, k]]
    never.sort(key=lambda k: -found.classes[k].support)
    if not never:
        return
    shown = [f"{names[k]} ({found.classes[k].support:,})" for k in never[:NAMED]]
    if len(never) > NAMED:
        shown.append(f"{len(never) - NAMED:,} other classes")
    yield f"None of the photos of {' or '.join(filter(None, (', '.join(shown[:-1]), shown[-1])))} was recognized."


NEXT = {
    "classify": ("predict new/", "Classify the photos in a folder new/"),
    "segment": ("segment new/ --output masks/", "Segment the photos in a folder new/"),
    "edges": ("edges new/ --output boundaries/", "Find the boundaries in the photos of a folder new/"),
}


def next_steps(model: str, task: str = "classify") -> Section:
    """Return the section with the commands that use a model next."""
    model, (command, what) = shlex.quote(model), NEXT[task]
    commands = f"dla {command} --model {model}\ndla export {model} -o exported/ --to onnx"
    note = f"{what}, and export the network for programs without dla, which needs {pip_line('export')}."
    return Section("What next", (Code(commands),), note)


def today() -> str:
    """Return the date, such as 27 November 2026."""
    now = datetime.now().astimezone()
    return f"{now.day} {now:%B %Y}"


def _expected(found: Evaluation) -> tuple[float, float]:
    """Return the interval of top-1. If all photos are right, or none, it has no width, and the rule of three holds."""
    low, high = found.top1_interval.to_list()
    margin = min(3 / found.count, 1.0) if low == high else 0.0
    return max(low - margin, 0.0), min(high + margin, 1.0)


def _calibration(found: Evaluation) -> Section:
    faded = " Faded bars are of fewer than five photos." if _any_few(b.count for b in found.calibration.bins) else ""
    note = (
        "The photos are grouped by the probability of their predicted class. Where a bar ends at the dashed line, the "
        "probabilities match the accuracy: of the photos that are classified with a probability of 80 %, 80 % are "
        f"right. A shorter bar means overconfidence.{faded} On average, bars and line are "
        f"{100 * found.calibration.error:.1f} percentage points apart; this is the calibration error."
    )
    return Section("Calibration", (Charts((Chart("", reliability_diagram(found.calibration), note),)),))


def _any_few(counts: Iterable[int]) -> bool:
    return any(0 < count < FEW_PHOTOS for count in counts)


def headline(found: Evaluation) -> Figures:
    """Return the most important metrics, with their intervals."""
    top5 = (Figure("top-5", _percent(found.top5), f"have it among the first five; {_between(found.top5_interval)}"),)
    shown5 = top5 if len(found.classes) > 5 else ()
    return Figures((
        Figure("top-1", _percent(found.top1), f"of the photos have the true class as their first; "
               f"{_between(found.top1_interval)}"),
        *shown5,
        Figure("photos", f"{found.count:,}", f"{sum(c.support > 0 for c in found.classes)} classes with photos"),
        Figure("mean recall", _percent(found.balanced_accuracy), "mean over the classes, which all count the same"),
        Figure("log loss", f"{found.log_loss:.3f}", "mean of ln(1/p) in nats, with p the probability of the true "
               f"class: 0 is perfect, guessing gives {math.log(len(found.classes)):.2f}"),
        Figure("calibration error", _percent(found.calibration.error), "mean distance between probability and "
               "accuracy: 0 is perfect"),
    ))  # fmt: skip


def _between(interval: Interval) -> str:
    """Format an interval of shares."""
    return f"95 % interval {interval.percent()}"


def surest_errors(
    found: Evaluation, targets_N: Array, names: Sequence[str], photo: Callable[[int], Image.Image],
    photo_names: Sequence[str],
) -> Section | None:  # fmt: skip
    """Return a section with the misclassified photos of highest confidence, or None if there are none.

    `photo(i)` reads photo i.
    """
    wrong = np.flatnonzero(~found.sample_results.right(1))
    surest = wrong[np.argsort(-found.sample_results.confidence_N[wrong], kind="stable")][:PICTURES]
    pictures = []
    for i in surest.tolist():
        try:
            uri = thumbnail(photo(i))
        except ImageError:  # changed since the evaluation
            continue
        predicted, confidence = found.sample_results.predicted_N[i], found.sample_results.confidence_N[i]
        lines = f"predicted {names[predicted]}, {_percent(confidence)}", f"true class {names[targets_N[i]]}"
        path = "/".join(PurePath(photo_names[i]).parts[-2:])
        pictures.append(PageImage(uri, lines, names[predicted], path=path))
    if not pictures:
        return None
    note = f"Of {len(wrong):,} errors, those with the highest probability. Some may be wrong labels."
    return Section("Most confident errors", (ImageGrid(tuple(pictures)),), note)


def shown_names(class_ids: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of the classes, followed by the class id where several classes have the same label."""
    twice = {name for name in labels if labels.count(name) > 1} if len(set(labels)) < len(labels) else set()
    return tuple(f"{n} ({c})" if n in twice else n for c, n in zip(class_ids, labels, strict=True))


def _classes_to_show(found: Evaluation) -> list[int]:
    """Return the indices of the classes that have photos or were predicted."""
    return [k for k, c in enumerate(found.classes) if c.support or c.predicted]


def _confusions(found: Evaluation, names: Sequence[str], kept: list[int]) -> tuple[Section, ...]:
    counts_KK = found.confusion_KK[np.ix_(kept, kept)]
    shares_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    if len(kept) <= FEW:
        rows = tuple(
            tuple(zip(*pair, strict=True)) for pair in zip(counts_KK.tolist(), shares_KK.tolist(), strict=True)
        )
        few = tuple(bool(0 < count < FEW_PHOTOS) for count in counts_KK.sum(1))
        faded = " Classes of fewer than five photos are faded." if any(few) else ""
        matrix = Matrix(tuple(names[k] for k in kept), rows, few)
        return (Section("Confusions", (matrix,), "Rows are true classes, columns predicted classes: blue photos are "
                        f"classified correctly, red ones are errors.{faded}"),)  # fmt: skip
    picture = PageImage(heat_map(shares_KK), (), "confusion matrix", pixelated=True)
    common = Section("Confusions", (_worst(shares_KK, counts_KK, [names[k] for k in kept]),), "The most common errors.")
    return common, Section("All pairs of classes", (ImageGrid((picture,), wide=True),), "In the order of the outputs: "
                           "true classes from top to bottom, predicted classes from left to right.")  # fmt: skip


def _worst(shares_KK: Array, counts_KK: Array, names: Sequence[str]) -> Table:
    few_K = counts_KK.sum(1) < FEW_PHOTOS
    rows = tuple(
        (names[i], names[j], str(counts_KK[i, j]), Share(float(shares_KK[i, j]), bool(few_K[i])))
        for i, j in _common_errors(counts_KK)[:WORST]
    )
    return Table(("true class", "predicted class", "photos", "share of its class"), rows, texts=2)


def _common_errors(counts_KK: Array) -> list[tuple[int, int]]:
    """Return the (true, predicted) classes of all errors, by their count and then by their share of the true class."""
    wrong_KK = np.where(np.eye(len(counts_KK), dtype=bool), 0, counts_KK)
    shares_KK = wrong_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    order = np.lexsort((-shares_KK.ravel(), -wrong_KK.ravel()))[: np.count_nonzero(wrong_KK)]
    return [divmod(int(place), len(counts_KK)) for place in order]


def _classes(found: Evaluation, names: Sequence[str], kept: list[int]) -> Section:
    def weakness(k: int) -> tuple[float, str]:
        f1 = found.classes[k].f1
        return (2.0 if f1 is None else f1, names[k])

    rows = []
    for k in sorted(kept, key=weakness):
        c = found.classes[k]
        name = names[k] if c.class_id in names[k] else f"{names[k]} ({c.class_id})"
        few, few_predicted = c.support < FEW_PHOTOS, c.predicted < FEW_PHOTOS
        shares = Share(c.recall, few), Share(c.precision, few_predicted), Share(c.f1, few or few_predicted)
        rows.append((name, f"{c.support:,}", *shares))
    heads = ("class", "photos", "recall", "precision", "F1")
    note = (
        "Recall: share of the class's photos that are predicted as it. Precision: share of the photos predicted as it "
        "that are of the class. F1: their harmonic mean. Weakest first."
    )
    if _any_few(n for k in kept for n in (found.classes[k].support, found.classes[k].predicted)):
        note += " Figures of fewer than five photos are faded."
    if len(rows) <= FEW:
        return Section("Classes", (Table(heads, tuple(rows)),), note)
    first, rest = tuple(rows[:10]), tuple(rows[10:])
    return Section("Classes", (Table(heads, first), Table(heads, rest, folded=f"The other {len(rest)}")), note)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
