"""Compare an exported file of a dense network with PyTorch, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dla.engines.dense_files import DenseFile
from dla.exporting.dense_targets import RunDenseFile
from dla.exporting.verify import AGREEMENT, EXPORT_SCHEMA, LEVEL, SampleImage, SampleImages, of_one_size
from dla.images.preprocessing import Preprocessing
from dla.inference.dense_maps import input_pixels, resized_bands
from dla.options import DenseOptions
from dla.types import NO_PROGRESS, Array, Progress

BATCH = 3
MOST_SIDE = 1024  # of the images: larger photos are made smaller first
INT8_AGREEMENT = 0.98
SAME_PIXELS = 0.999  # required share of equal answers, from the same pixels
LOGITS_DIFFERENCE = 1e-3  # allowed, relative to the largest logit of the image


@dataclass(frozen=True, slots=True)
class DenseExportReport:
    """How an exported file of a dense network compares with PyTorch.

    The first fields are those of `ExportReport`. An answer of a pixel is its class, or the probability of a boundary to
    one of 255 levels. From the same pixels, `same_pixels` is the share of equal answers, and `max_difference` that of a
    logit, relative to the largest of its image. If the file takes photos, its pixels differ by up to
    `max_pixel_difference` (0 to 255), and `from_photos` is the share of equal answers beside dla's own scaling;
    otherwise these two are None.
    """

    model: str
    sha256: str
    task: str
    format: str
    file: str
    runtime: str
    reference: str
    photos: int
    unreadable: int
    images: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    same_pixels: float
    max_pixel_difference: int | None
    from_photos: float | None
    passed: bool
    precision: str = "fp32"
    gates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/export.md); a difference that is not finite is null."""
        record = {"schema": EXPORT_SCHEMA, **asdict(self)}
        record["max_difference"] = self.max_difference if math.isfinite(self.max_difference) else None
        return record


@dataclass
class DenseComparison:
    """The results of a comparison so far: pixels with the same answer, of all, and the largest differences."""

    images: int = 0
    pixels: int = 0
    same: int = 0
    same_from_photo: int = 0
    differences: list[float] = field(default_factory=list)
    pixel_differences: list[int] = field(default_factory=list)

    def passed(self, precision: str) -> bool:
        """Return whether all differences of a file of this precision are finite and within the limits."""
        finite = bool(np.isfinite(self.differences).all()) and max(self.differences) <= LOGITS_DIFFERENCE
        enough = self.same >= SAME_PIXELS * self.pixels and self.same_from_photo >= agreement(precision) * self.pixels
        return finite and enough and max(self.pixel_differences, default=0) <= LEVEL


def agreement(precision: str) -> float:
    """Return the required share of equal answers from photos.

    A level of a pixel can move a quantized value of an int8 model, so that undecided pixels change their class.
    """
    return INT8_AGREEMENT if precision == "int8" else AGREEMENT


def compare_dense(
    run: RunDenseFile,
    logits: Callable[[Array], Array],
    preprocessing: Preprocessing,
    file: DenseFile,
    images: SampleImages,
    least: int,
    progress: Progress = NO_PROGRESS,
) -> DenseComparison:
    """Run an exported file on the images one by one, and on a batch of crops of one size.

    `logits` is the reference, from uint8 (N, h, w, 3) to logits (N, K, h, w); `least` the smallest side that the file
    takes, to which smaller images are enlarged.
    """
    found, last = DenseComparison(), list[SampleImage]()
    progress.start("comparing", len(images), "images")
    for image in images:
        last = [*last[1 - BATCH :], SampleImage(image.name, _sized(image.image, least))]
        _compare(run, logits, preprocessing, file, last[-1:], found)
        progress.advance()
    _compare(run, logits, preprocessing, file, of_one_size(last), found)
    return found


def _sized(image: Image.Image, least: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.BICUBIC)
    return small.resize((max(least, small.width), max(least, small.height)))


def _compare(
    run: RunDenseFile,
    logits: Callable[[Array], Array],
    preprocessing: Preprocessing,
    file: DenseFile,
    images: Sequence[SampleImage],
    found: DenseComparison,
) -> None:
    """Add the results for images of one size."""
    photos = [image.image for image in images]
    size = DenseOptions().input_size(photos[0].size, file.short_side)
    prepared_NhW3, actual_NKHW, answer_NHW = run(np.stack([np.array(photo) for photo in photos]))
    own_NhW3 = np.stack([input_pixels(photo, size, preprocessing.interpolation) for photo in photos])
    to = photos[0].height, photos[0].width
    expected_NKHW = _resized(logits(prepared_NhW3), to)
    differs = not np.array_equal(own_NhW3, prepared_NhW3)
    from_photo_NKHW = _resized(logits(own_NhW3), to) if differs else expected_NKHW
    found.images += len(photos)
    found.pixels += answer_NHW.size
    found.same += _same(expected_NKHW, answer_NHW, file)
    found.same_from_photo += _same(from_photo_NKHW, answer_NHW, file)
    for expected_KHW, actual_KHW in zip(expected_NKHW, actual_NKHW, strict=True):
        largest = max(float(np.abs(expected_KHW).max()), 1e-30)
        found.differences.append(float(np.abs(actual_KHW - expected_KHW).max()) / largest)
    if file.short_side is not None:
        found.pixel_differences.append(int(np.abs(own_NhW3.astype(np.int16) - prepared_NhW3).max()))


def _resized(logits_NKhw: Array, to: tuple[int, int]) -> Array:
    size: Any = logits_NKhw.shape[2:]
    return np.stack([np.concatenate(list(resized_bands(iter([one]), size, to)), 1) for one in logits_NKhw])


def _same(logits_NKHW: Array, answer_NHW: Array, file: DenseFile) -> int:
    """Return the number of pixels with the same answer."""
    if file.task == "segment":
        return int((logits_NKHW.argmax(1) == answer_NHW).sum())
    expected_NHW = 1 / (1 + np.exp(-logits_NKHW[:, 0].astype(np.float64)))
    return int((np.abs(expected_NHW - answer_NHW) <= 1 / 255).sum())
