"""Build the sections about segmentation and boundary networks: metrics, classes, confusions, curves, sample photos.

`names` are the readable names of the classes, in the order of the network's outputs. Masks are (H, W) of class indices,
255 where ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dla.errors import ImageError
from dla.html_report.charts import precision_recall_chart
from dla.html_report.page import (
    Chart,
    Charts,
    Figure,
    Figures,
    ImageGrid,
    Matrix,
    PageImage,
    Section,
    Share,
    SideBySide,
    Table,
    embedded,
    heat_map,
)
from dla.html_report.sections import FEW, NARROW
from dla.metrics.boundaries import BoundaryEvaluation
from dla.metrics.intervals import Interval
from dla.metrics.segmentation import SegmentationEvaluation
from dla.types import Array

SAMPLES = 12
STRIP = 330  # pixels of each picture of a strip
GREY = 128  # of ignored pixels
GAP = 6


@dataclass(frozen=True, slots=True)
class DenseSample:
    """A photo, uint8 (H, W, 3), beside the truth and the answer as pictures of its size, and lines of text about it."""

    pictures: tuple[Array, ...]
    lines: tuple[str, ...]
    path: str


def segmentation_sentence(found: SegmentationEvaluation, names: Sequence[str]) -> str:
    """Return the result in plain words: how many pixels are right, the weakest class and the most common error."""
    mean = f"the mean IoU over {found.classes_counted} classes is {_percent(found.miou)}"
    words = [f"{_percent(found.pixel_accuracy)} of the pixels are classified correctly; {mean}."]
    known = [(c.iou, names[k]) for k, c in enumerate(found.classes) if c.iou is not None]
    if len(known) > 1:
        iou, name = min(known)
        words.append(f"The weakest class is {name} (IoU {_percent(iou)}).")
    confusion_KK = found.counts.confusion_KK
    wrong_KK = confusion_KK - np.diag(confusion_KK.diagonal())
    if wrong_KK.any():
        i, j = divmod(int(wrong_KK.argmax()), len(names))
        share = wrong_KK[i, j] / confusion_KK[i].sum()
        words.append(f"The most common error: {names[i]} taken for {names[j]} ({_percent(share)} of its pixels).")
    return " ".join(words)


def segmentation_figures(found: SegmentationEvaluation) -> Figures:
    """Return the most important metrics, with their intervals."""
    absent = f"; {found.classes_absent} more have no pixel" if found.classes_absent else ""
    return Figures((
        Figure("mIoU", _percent(found.miou), f"mean over {found.classes_counted} classes{absent}; "
               f"{_between(found.miou_interval)}"),
        Figure("pixel accuracy", _percent(found.pixel_accuracy), f"of the pixels are right; "
               f"{_between(found.pixel_accuracy_interval)}"),
        Figure("mean accuracy", _percent(found.mean_accuracy), "mean recall over the classes"),
        Figure("frequency IoU", _percent(found.frequency_iou), "each class has the weight of its pixels"),
        Figure("mIoU per photo", _percent(found.miou_per_photo), "each photo's own, averaged: another figure"),
        Figure("photos", f"{found.photos:,}", f"{found.pixels:,} pixels counted, {found.ignored:,} ignored"),
    ))  # fmt: skip


def segmentation_sections(found: SegmentationEvaluation, names: Sequence[str]) -> tuple[Section | SideBySide, ...]:
    """Return the sections about classes and confusions."""
    kept = [k for k, c in enumerate(found.classes) if c.pixels or c.predicted]
    classes, confusions = _classes(found, names, kept), _confusions(found, names, kept)
    return (SideBySide((confusions, classes)),) if len(kept) <= NARROW else (classes, confusions)


def _classes(found: SegmentationEvaluation, names: Sequence[str], kept: list[int]) -> Section:
    def row(k: int) -> tuple[str | Share, ...]:
        c = found.classes[k]
        return names[k], f"{c.pixels:,}", Share(c.iou), Share(c.precision), Share(c.recall)

    rows = [row(k) for k in sorted(kept, key=lambda k: (found.classes[k].iou or 0.0, names[k]))]
    note = (
        "IoU: the pixels of the class that are predicted as it, over those that are either. Precision: share of the "
        "pixels predicted as the class that are of it. Recall: share of its pixels that are predicted as it. Weakest "
        "first."
    )
    heads = ("class", "pixels", "IoU", "precision", "recall")
    if len(rows) <= FEW:
        return Section("Classes", (Table(heads, tuple(rows)),), note)
    rest = Table(heads, tuple(rows[10:]), folded=f"The other {len(rows) - 10}")
    return Section("Classes", (Table(heads, tuple(rows[:10])), rest), note)


def _confusions(found: SegmentationEvaluation, names: Sequence[str], kept: list[int]) -> Section:
    counts_KK = found.counts.confusion_KK[np.ix_(kept, kept)]
    shares_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    note = "Rows are true classes, columns predicted classes, in per cent of the true class's pixels: blue is right."
    if len(kept) <= FEW:
        rows = tuple(tuple((round(100 * share), share) for share in row) for row in shares_KK.tolist())
        matrix = Matrix(tuple(names[k] for k in kept), rows, tuple(False for _ in kept))
        return Section("Confusions", (matrix,), note)
    picture = PageImage(heat_map(shares_KK), (), "confusion matrix", pixelated=True)
    return Section("Confusions", (ImageGrid((picture,), wide=True),), "In the order of the outputs: true classes from "
                   "top to bottom, predicted classes from left to right.")  # fmt: skip


def weakest(values_N: Array, count: int = SAMPLES) -> list[int]:
    """Return the rows of the lowest values; NaN is left out."""
    order = np.argsort(values_N, kind="stable")
    return [int(row) for row in order if not np.isnan(values_N[row])][:count]


def sample_section(samples: Sequence[DenseSample], columns: str, note: str) -> tuple[Section, ...]:
    """Return a section with each sample's pictures side by side, called `columns` from left to right."""
    if not samples:
        return ()
    items = tuple(PageImage(embedded(_strip(one.pictures)), one.lines, columns, path=one.path) for one in samples)
    return (Section("Weakest photos", (ImageGrid(items, strips=True),), f"{columns}. {note}"),)


def collect(rows: Sequence[int], sample: Callable[[int], DenseSample]) -> list[DenseSample]:
    """Return the samples of these rows, without photos that have changed since and cannot be read."""
    samples = []
    for row in rows:
        try:
            samples.append(sample(row))
        except ImageError:
            continue
    return samples


def colored(mask_HW: Array, palette_K3: Array) -> Array:
    """Return a mask in its classes' colours, uint8 (H, W, 3); ignored pixels are grey."""
    table_P3 = np.full((256, 3), GREY, np.uint8)
    table_P3[: len(palette_K3)] = palette_K3[:255]
    return table_P3[mask_HW]


def legend(names: Sequence[str], palette_K3: Array) -> ImageGrid:
    """Return a small square of each class's colour, with its name."""
    items = []
    for name, color in zip(names, palette_K3.tolist(), strict=True):
        uri = embedded(Image.new("RGB", (8, 8), tuple(color)), lossless=True)
        items.append(PageImage(uri, (name,), name))
    return ImageGrid(tuple(items), swatches=True)


def boundary_sentence(found: BoundaryEvaluation) -> str:
    """Return the result in plain words."""
    ods = found.ods
    return (
        f"With one threshold for all {len(found.photos):,} photos, {_percent(ods.precision)} of the boundaries found "
        f"are right, and {_percent(ods.recall)} of the annotators' are found. The F of the two (ODS) is {ods.f1:.3f}, "
        f"at the threshold {ods.threshold:.2f}."
    )


def boundary_figures(found: BoundaryEvaluation) -> Figures:
    """Return ODS, OIS, AP and R50."""
    interval = f"{found.ods_interval.low:.3f} to {found.ods_interval.high:.3f}"
    return Figures((
        Figure("ODS", f"{found.ods.f1:.3f}", f"F at the best threshold for all photos, {found.ods.threshold:.2f}; "
               f"95 % interval {interval}"),
        Figure("OIS", f"{found.ois.f1:.3f}", "F at the best threshold of each photo"),
        Figure("AP", f"{found.ap:.3f}", "mean precision over recalls from 0 to 1"),
        Figure("R50", f"{found.r50:.3f}", "recall at a precision of one half"),
        Figure("photos", f"{len(found.photos):,}", f"{sum(p.annotators for p in found.photos):,} annotators' maps"),
    ))  # fmt: skip


def curve_section(found: Sequence[tuple[str, BoundaryEvaluation]]) -> Section:
    """Return the section with the precision-recall curves of up to three sources."""
    curves = [(name, [(p.recall, p.precision) for p in one.curve], (one.ods.recall, one.ods.precision))
              for name, one in found]  # fmt: skip
    note = (
        "Each point of a curve is a threshold. The dot is the one with the highest F, the harmonic mean of precision "
        "and recall; dashed lines join points of equal F. A predicted pixel is right if any annotator has one near it, "
        "and recall counts the pixels of every annotator."
    )
    return Section("Precision and recall", (Charts((Chart("", precision_recall_chart(curves), note),)),))


def photo_table(found: BoundaryEvaluation) -> Section:
    """Return the section with the photos of lowest F."""
    worst = sorted(found.photos, key=lambda photo: (photo.best.f1, photo.name))[:SAMPLES]
    rows = tuple((p.name.rpartition("/")[2], Share(p.best.f1), Share(p.best.precision), Share(p.best.recall),
                  f"{p.best.threshold:.2f}", str(p.annotators)) for p in worst)  # fmt: skip
    heads = ("photo", "F", "precision", "recall", "threshold", "annotators")
    return Section("Photos", (Table(heads, rows),), "Each at its own best threshold; the weakest first.")


def grey_picture(map_HW: Array) -> Array:
    """Return a map, of booleans, shares or uint8, as a picture (H, W, 3): dark lines on white."""
    levels_HW = map_HW if map_HW.dtype == np.uint8 else (255 * map_HW.astype(float)).astype(np.uint8)
    return np.repeat(255 - levels_HW[..., None], 3, axis=2)


def _strip(pictures: Sequence[Array]) -> Image.Image:
    """Return pictures of one size side by side."""
    height, width = pictures[0].shape[:2]
    scale = min(1.0, STRIP / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    page = Image.new("RGBA", (len(pictures) * (size[0] + GAP) - GAP, size[1]))
    for n, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture).resize(size, Image.Resampling.BOX), (n * (size[0] + GAP), 0))
    return page


def _between(interval: Interval) -> str:
    return f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
