"""Build the sections about a classifier: metrics, confusions, classes, calibration, most confident errors.

`names` are the readable names of the classes, in the order of the network's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from dla.errors import ImageError
from dla.html_report.charts import reliability_diagram
from dla.html_report.page import (
    Chart,
    Charts,
    Figure,
    Figures,
    ImageGrid,
    Matrix,
    PageImage,
    Part,
    Section,
    Share,
    Table,
    heat_map,
    thumbnail,
)
from dla.metrics.classification import Evaluation
from dla.metrics.intervals import Interval
from dla.types import Array

FEW = 20  # classes of which a full table is readable
WORST = 20
PICTURES = 24


def evaluation_sections(found: Evaluation, names: Sequence[str]) -> tuple[Section, ...]:
    """Return the sections about confusions, classes and calibration."""
    kept = _classes_to_show(found)
    return (
        _confusion(found, names, kept),
        _classes(found, names, kept),
        Section(
            "Calibration",
            (Charts((Chart("", reliability_diagram(found.calibration)),)),),
            "Where a bar ends at the dashed line, the probabilities match the accuracy. On average they differ by "
            f"{100 * found.calibration.error:.1f} percentage points (expected calibration error).",
        ),
    )


def headline(found: Evaluation) -> Figures:
    """Return the most important metrics, with their intervals."""
    top5 = (Figure("top-5", _percent(found.top5), _between(found.top5_interval)),) if len(found.classes) > 5 else ()
    return Figures((
        Figure("top-1", _percent(found.top1), _between(found.top1_interval)),
        *top5,
        Figure("photos", f"{found.count:,}", f"{sum(c.support > 0 for c in found.classes)} classes with photos"),
        Figure("mean recall", _percent(found.balanced_accuracy), "mean over the classes"),
        Figure("log loss", f"{found.log_loss:.3f}", "nats; lower is better"),
        Figure("calibration error", _percent(found.calibration.error), "probability compared with accuracy"),
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
        pictures.append(PageImage(uri, (*lines, path), names[predicted]))
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


def _confusion(found: Evaluation, names: Sequence[str], kept: list[int]) -> Section:
    counts_KK = found.confusion_KK[np.ix_(kept, kept)]
    shares_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    if len(kept) <= FEW:
        rows = tuple(
            tuple(zip(*pair, strict=True)) for pair in zip(counts_KK.tolist(), shares_KK.tolist(), strict=True)
        )
        matrix = Matrix(tuple(names[k] for k in kept), rows)
        return Section("Confusions", (matrix,), "Rows are true classes, columns predicted classes.")
    picture = PageImage(heat_map(shares_KK), (), "confusion matrix", pixelated=True)
    parts: tuple[Part, ...] = (_worst(shares_KK, counts_KK, [names[k] for k in kept]), ImageGrid((picture,), wide=True))
    return Section("Confusions", parts, "The most common errors, and below them all pairs of classes as an image, in "
                   "the order of the outputs: true classes from top to bottom, predicted classes from left to "
                   "right.")  # fmt: skip


def _worst(shares_KK: Array, counts_KK: Array, names: Sequence[str]) -> Table:
    wrong_KK = np.where(np.eye(len(names), dtype=bool), 0, counts_KK)
    order = np.lexsort((-shares_KK.ravel(), -wrong_KK.ravel()))[:WORST]
    pairs = [divmod(int(place), len(names)) for place in order]
    rows = tuple(
        (names[i], names[j], str(counts_KK[i, j]), Share(float(shares_KK[i, j]))) for i, j in pairs if wrong_KK[i, j]
    )
    return Table(("true class", "predicted class", "photos", "share of its class"), rows, texts=2)


def _classes(found: Evaluation, names: Sequence[str], kept: list[int]) -> Section:
    def weakness(k: int) -> tuple[float, str]:
        f1 = found.classes[k].f1
        return (2.0 if f1 is None else f1, names[k])

    rows = []
    for k in sorted(kept, key=weakness):
        c = found.classes[k]
        name = names[k] if c.class_id in names[k] else f"{names[k]} ({c.class_id})"
        rows.append((name, str(c.support), Share(c.recall), Share(c.precision), Share(c.f1)))
    heads = ("class", "photos", "recall", "precision", "F1")
    note = (
        "Recall: share of the class's photos that are predicted as it. Precision: share of the photos predicted as it "
        "that are of the class. Weakest first."
    )
    if len(rows) <= FEW:
        return Section("Classes", (Table(heads, tuple(rows)),), note)
    first, rest = tuple(rows[:10]), tuple(rows[10:])
    return Section("Classes", (Table(heads, first), Table(heads, rest, folded=f"The other {len(rest)}")), note)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
