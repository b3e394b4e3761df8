"""The HTML reports of runs of segmentation and boundary networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from dla.data.masks import read_boundaries
from dla.data.pair_split import PairSplit
from dla.data.pairs import Pair
from dla.drawing.palette import class_palette
from dla.html_report.dense_sections import (
    DenseSample,
    boundary_figures,
    boundary_sentence,
    collect,
    colored,
    curve_section,
    grey_picture,
    legend,
    photo_table,
    sample_section,
    segmentation_figures,
    segmentation_sections,
    segmentation_sentence,
    weakest,
)
from dla.html_report.page import ImageGrid, Section
from dla.images.decode import read_header
from dla.inference.classifier import load
from dla.inference.edge_detector import EdgeDetector
from dla.inference.segmenter import Segmenter
from dla.metrics.boundaries import BoundaryEvaluation
from dla.metrics.segmentation import SegmentationEvaluation
from dla.training.html import Curves, write_run_page
from dla.types import Array

SEGMENT_COLUMNS = "From left to right: photo, mask, answer"
EDGES_COLUMNS = "From left to right: photo, annotators (the darker, the more of them), probability of a boundary"


def write_segment_report(run: Path, split: PairSplit, found: SegmentationEvaluation) -> Path:
    """Write `run`/report.html for the validation photos of a split and what was found on them; return its path."""
    model: Segmenter = load(str(run / "best"), task="segment", engine="torch", device="cpu")
    names = [c.label for c in model.classes]
    counts = f"{found.photos:,} validation photos, {len(names)} classes"
    sections = (*segmentation_sections(found, names),
                *segment_samples(model, split, split.mask, found.counts.photo_miou()))  # fmt: skip
    curves = Curves("Validation", {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"})
    mosaic = "with the mask beside each photo: check that they fit. Grey pixels are ignored"
    heading = counts, segmentation_sentence(found, names)
    return write_run_page(run, "segment", heading, segmentation_figures(found), curves, sections, mosaic)


def write_edges_report(run: Path, split: PairSplit, found: BoundaryEvaluation) -> Path:
    """Write `run`/report.html for the validation photos of a split and what was found on them; return its path."""
    model: EdgeDetector = load(str(run / "best"), task="edges", engine="torch", device="cpu")
    counts = f"{len(found.photos):,} validation photos"
    sections = (curve_section([("validation", found)]), photo_table(found),
                *boundary_samples(model, split.pairs, found))  # fmt: skip
    curves = Curves("Validation, on some photos", {"ODS": "ods", "OIS": "ois", "AP": "ap"}, "{:g}".format,
                    "{:.3f}".format)  # fmt: skip
    mosaic = "with the target beside each photo: white is boundary; grey pixels, which few annotators mark, are ignored"
    heading = counts, boundary_sentence(found)
    return write_run_page(run, "edges", heading, boundary_figures(found), curves, sections, mosaic)


def segment_samples(
    model: Segmenter, split: PairSplit, mask: Callable[[int], Array], photo_miou_N: Array
) -> tuple[Section, ...]:
    """Return the section with the photos of lowest own mIoU; `mask` gives the model's indices of a row."""
    palette_K3 = class_palette(len(model.classes), model.config.dla.get("palette"))

    def sample(row: int) -> DenseSample:
        photo_HW3, answer_HW = _answer(model, split.photos[row], "mask")
        pictures = photo_HW3, colored(mask(row), palette_K3), colored(answer_HW, palette_K3)
        return DenseSample(pictures, (f"mIoU {100 * photo_miou_N[row]:.1f} %",), _short(split.names[row]))

    found = sample_section(collect(weakest(photo_miou_N), sample), SEGMENT_COLUMNS, "By each photo's own mIoU.")
    key: ImageGrid = legend([c.label for c in model.classes], palette_K3)
    return tuple(Section(one.title, (key, *one.parts), one.note) for one in found)


def boundary_samples(model: EdgeDetector, pairs: Sequence[Pair], found: BoundaryEvaluation) -> tuple[Section, ...]:
    """Return the section with the photos of lowest F."""

    def sample(row: int) -> DenseSample:
        pair, best = pairs[row], found.photos[row].best
        photo_HW3, answer_HW = _answer(model, pair.photo, "probability")
        header = read_header(pair.photo, name=pair.name)
        marked_HW = np.mean([read_boundaries(target, header) for target in pair.targets], axis=0)
        pictures = photo_HW3, grey_picture(marked_HW), grey_picture(answer_HW)
        return DenseSample(pictures, (f"F {best.f1:.3f} at its own threshold {best.threshold:.2f}",), _short(pair.name))

    rows = weakest(np.array([photo.best.f1 for photo in found.photos]))
    return sample_section(collect(rows, sample), EDGES_COLUMNS, "By each photo's own F.")


def _answer(model: Any, photo: str, key: str) -> tuple[Array, Array]:
    answer = model(photo, strict=True, workers=0)
    return np.asarray(answer.photo), getattr(answer, key)


def _short(name: str) -> str:
    return "/".join(PurePath(name).parts[-2:])
