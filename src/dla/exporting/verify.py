"""Compare an exported file with PyTorch, on the same pixels and from photos through its own preprocessing."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dla.errors import ImageError, UsageError
from dla.exporting.targets import RunFile
from dla.images.decode import read_photo
from dla.images.find import PhotoFinder
from dla.images.preprocessing import Preprocessing
from dla.inference.pipeline import InputPipeline, PreparedInput
from dla.options import ReadOptions
from dla.types import NO_PROGRESS, Array, Progress

EXPORT_SCHEMA = "dla.export/1"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image whose first class differs from the reference: `actual` instead of `expected` (class ids).

    `margin` is how much more probable `expected` was in the reference, from 0 to 1.
    """

    image: str
    expected: str
    actual: str
    margin: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """How an exported file compares with PyTorch.

    `model` is what was read, `sha256` the hash of its weight file. `file` was written as `format` and run by `runtime`;
    `reference` is what it was compared with. `images`, made from `photos`, ran in batches of `batch_sizes`. On the same
    preprocessed pixels, `disagreements` are images with another first class, and `max_difference` is the largest
    difference of a probability. If the file takes photos, its preprocessed pixels differ by up to
    `max_pixel_difference` (0 to 255), and `photo_disagreements` are images whose first class differs from that of dla's
    own preprocessing; otherwise these two are None. `gates` describe how an int8 model compares with fp32.
    """

    model: str
    sha256: str
    format: str
    file: str
    runtime: str
    reference: str
    photos: int
    unreadable: int
    images: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    disagreements: tuple[Disagreement, ...]
    max_pixel_difference: int | None
    photo_disagreements: tuple[Disagreement, ...] | None
    passed: bool
    precision: str = "fp32"
    gates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/export.md); a difference that is not finite is null."""
        record = {"schema": EXPORT_SCHEMA, **asdict(self)}
        record["max_difference"] = self.max_difference if math.isfinite(self.max_difference) else None
        return record


BATCHES = 1, 3, 8
DIFFERENCE, LEVEL = 1e-4, 1  # allowed differences of probabilities and of pixels
AGREEMENT = 0.995  # required fraction of equal first classes
ODD = 13, 7  # added rows and columns, to run the network at another size than its own


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """The results of a file and its reference for one image: probabilities (K,) from the same preprocessed pixels.

    For a file that takes photos, also the largest difference (0 to 255) of its preprocessed pixels from dla's, and the
    reference's probabilities for dla's pixels.
    """

    expected_K: Array
    actual_K: Array
    pixel_difference: int | None = None
    photo_expected_K: Array | None = None


@dataclass
class FileComparison:
    """The results of a comparison so far; the fields are as in `ExportReport`."""

    class_ids: Sequence[str]
    takes_photos: bool
    images: int = 0
    differences: list[float] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    pixel_differences: list[int] = field(default_factory=list)
    photo_disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Return whether all differences are finite and within the limits."""
        same = not self.disagreements and max(self.differences) <= DIFFERENCE and np.isfinite(self.differences).all()
        most = (1 - AGREEMENT) * self.images
        return bool(same and max(self.pixel_differences, default=0) <= LEVEL and len(self.photo_disagreements) <= most)

    def add(self, image: PreparedInput, answer: FileAnswer) -> None:
        """Add the results for one image."""
        self.images += 1
        self.differences.append(float(np.abs(answer.actual_K - answer.expected_K).max()))
        self.disagreements += self._disagreement(image.name, answer.expected_K, answer.actual_K)
        if answer.pixel_difference is not None and answer.photo_expected_K is not None:
            self.pixel_differences.append(answer.pixel_difference)
            self.photo_disagreements += self._disagreement(image.name, answer.photo_expected_K, answer.actual_K)

    def _disagreement(self, name: str, expected_K: Array, actual_K: Array) -> list[Disagreement]:
        k, other = int(expected_K.argmax()), int(actual_K.argmax())
        if k == other:
            return []
        return [Disagreement(name, self.class_ids[k], self.class_ids[other], float(expected_K[k] - expected_K[other]))]


def compare(
    run: RunFile,
    expect: Callable[[Array], Array],
    preprocessing: Preprocessing,
    images: SampleImages,
    comparison: FileComparison,
    *,
    other_size: bool,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Run an exported file on the images in batches of 1, 3 and 8, and `expect`, the reference, on the same pixels.

    A file that takes photos runs on whole photos one by one, and on batches of crops of equal size. One that takes
    pixels also runs, with `other_size`, on a batch of another size than the network's own. `comparison` collects the
    results.
    """
    last = deque[SampleImage](maxlen=max(BATCHES))
    batch = 0

    def feed(samples: Iterable[SampleImage], total: int, sizes: int | tuple[int, ...], prep: Preprocessing) -> None:
        def prepare(image: SampleImage) -> PreparedInput:
            pixels_HW3 = prep.pixels(image.image)
            photo = (np.asarray(image.image),) if comparison.takes_photos else ()
            return PreparedInput(image.name, (*photo, pixels_HW3))

        progress.start("comparing", total, "images")
        for _ in InputPipeline(sizes, workers=0).results(samples, prepare, answer, comparison.add):
            progress.advance()

    def answer(input_NHW3: Array, expected_NHW3: Array | None = None) -> Iterator[FileAnswer]:
        nonlocal batch
        batch = len(input_NHW3)
        prepared_NHW3, actual_NK = run(input_NHW3)
        expected_NK = expect(prepared_NHW3)
        if expected_NHW3 is None:
            return map(FileAnswer, expected_NK, actual_NK)
        differences_N = np.abs(expected_NHW3.astype(np.int16) - prepared_NHW3).max((1, 2, 3)).tolist()
        return map(FileAnswer, expected_NK, actual_NK, differences_N, expect(expected_NHW3))

    def remembering_last() -> Iterator[SampleImage]:
        for image in images:
            last.append(image)
            yield image

    feed(remembering_last(), len(images), 1 if comparison.takes_photos else BATCHES, preprocessing)
    if comparison.takes_photos:
        for count in BATCHES[1:]:
            feed(of_one_size([*last][-count:]), min(count, len(last)), count, preprocessing)
    elif other_size:
        height, width = (side + extra for side, extra in zip(preprocessing.size, ODD, strict=True))
        samples = [SampleImage(f"{p.name}, at {width}x{height}", p.image) for p in [*last][-batch:]]
        feed(samples, batch, batch, replace(preprocessing, size=(height, width)))


def of_one_size(images: Sequence[SampleImage]) -> list[SampleImage]:
    """Return the upper left crop of each image, all of the largest size that fits every image."""
    width, height = (min(p.image.size[axis] for p in images) for axis in (0, 1))
    name = f"its first {width}x{height}"
    return [SampleImage(f"{p.name}, {name}", p.image.crop((0, 0, width, height))) for p in images]


SAMPLE_IMAGES = 60  # at least
SHARES, FACTORS = (0.3, 1.0), (0.3, 1.5)  # ranges of a crop's sides relative to the image, and of its scaling


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An RGB image and its name."""

    name: str
    image: Image.Image


class SampleImages:
    """Iterate over the photos of a folder, by default the package's, then over crops of them, up to `SAMPLE_IMAGES`.

    The crops are the same each time. After an iteration `read` lists the photos that could be read; `unreadable` counts
    the others.

    Raises:
        UsageError: the folder has no photos, or, while iterating, none can be read.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, options: ReadOptions) -> None:
        self.options = options
        self.root = str(files("dla").joinpath("shipped", "photos")) if folder is None else os.fspath(folder)
        self.paths = list(PhotoFinder([self.root]))
        self.read, self.unreadable = list[str](), 0
        if not self.paths:
            raise self._nothing()

    def __len__(self) -> int:
        return max(len(self.paths), SAMPLE_IMAGES)

    def __iter__(self) -> Iterator[SampleImage]:
        self.read, self.unreadable = [], 0
        for path in self.paths:
            try:
                image = self._whole(path)
            except ImageError:
                self.unreadable += 1
                continue
            self.read.append(path)
            yield image
        if not self.read:
            raise self._nothing()
        generator = np.random.default_rng(0)
        for number in range(len(self.read), SAMPLE_IMAGES):
            yield _part(self._whole(self.read[number % len(self.read)]), generator)

    def _whole(self, path: str) -> SampleImage:
        return SampleImage(Path(path).name, read_photo(path, self.options).image)

    def _nothing(self) -> UsageError:
        return UsageError(f"{self.root} has no photos to check with. Leave --photos out to check with dla's own")


def _part(whole: SampleImage, generator: np.random.Generator) -> SampleImage:
    """Return a random crop of an image at a random size, both with odd sides."""
    image = whole.image
    width, height = (max(1, int(side * generator.uniform(*SHARES))) | 1 for side in image.size)
    width, height = min(width, image.width), min(height, image.height)
    left, top = (
        int(generator.integers(have - want + 1)) for have, want in zip(image.size, (width, height), strict=True)
    )
    factor = generator.uniform(*FACTORS)
    size = tuple(max(1, round(side * factor)) | 1 for side in (width, height))
    part = image.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))  # type: ignore[arg-type]
    return SampleImage(f"{whole.name}, {width}x{height}+{left}+{top} at {size[0]}x{size[1]}", part)
