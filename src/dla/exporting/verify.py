"""Whether an exported file answers as PyTorch does: on the same pixels, and on those that it makes of photos."""

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

__all__ = [
    "AGREEMENT",
    "BATCHES",
    "DIFFERENCE",
    "EXPORT_SCHEMA",
    "LEVEL",
    "SAMPLE_IMAGES",
    "Disagreement",
    "ExportReport",
    "FileComparison",
    "SampleImage",
    "SampleImages",
    "compare",
]


EXPORT_SCHEMA = "dla.export/1"


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image whose first class another way of computing changed, from `expected` to `actual` (class ids).

    `margin` is how much more probable `expected` was, from 0 to 1.
    """

    image: str
    expected: str
    actual: str
    margin: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """How an exported file answers, beside PyTorch.

    `model` is what was read, `sha256` its weight file's; `file` was written as `format`, and `runtime` ran it;
    `reference` is what it was compared with. `images` were made of `photos`, and went through it `batch_sizes` at a
    time. On the very pixels that the file's network saw, `disagreements` are other first classes, and `max_difference`
    is of probabilities. Where the file takes photos, the pixels that it makes of them differ by up to
    `max_pixel_difference` (0 to 255), and `photo_disagreements` are other first classes than those of the pixels that
    they should be; else these two are None. Of an int8 model `gates` say how good it is beside fp32.
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
        """The record as JSON has it (docs/export.md); what is no number is null there."""
        record = {"schema": EXPORT_SCHEMA, **asdict(self)}
        record["max_difference"] = self.max_difference if math.isfinite(self.max_difference) else None
        return record


BATCHES = 1, 3, 8
DIFFERENCE, LEVEL = 1e-4, 1  # at most, of probabilities and of levels of pixels
AGREEMENT = 0.995  # of first classes, at least
ODD = 13, 7  # rows and columns more, for a network that is given another size than its own


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """What a file and its reference gave for one image: probabilities (K,) of the pixels that the file's network saw.

    Of a file that takes photos also the largest difference (0 to 255) of those pixels from what they should be, and the
    reference's probabilities of these.
    """

    expected_K: Array
    found_K: Array
    pixel_difference: int | None = None
    of_photo_K: Array | None = None


@dataclass
class FileComparison:
    """What was found so far; the fields are those of `ExportReport`."""

    class_ids: Sequence[str]
    takes_photos: bool
    images: int = 0
    differences: list[float] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    pixel_differences: list[int] = field(default_factory=list)
    photo_disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it answers the same; what is no number does not."""
        same = not self.disagreements and max(self.differences) <= DIFFERENCE and np.isfinite(self.differences).all()
        most = (1 - AGREEMENT) * self.images
        return bool(same and max(self.pixel_differences, default=0) <= LEVEL and len(self.photo_disagreements) <= most)

    def add(self, image: PreparedInput, answer: FileAnswer) -> None:
        """What one image came to."""
        self.images += 1
        self.differences.append(float(np.abs(answer.found_K - answer.expected_K).max()))
        self.disagreements += self._disagreement(image.name, answer.expected_K, answer.found_K)
        if answer.pixel_difference is not None and answer.of_photo_K is not None:
            self.pixel_differences.append(answer.pixel_difference)
            self.photo_disagreements += self._disagreement(image.name, answer.of_photo_K, answer.found_K)

    def _disagreement(self, name: str, expected_K: Array, found_K: Array) -> list[Disagreement]:
        k, other = int(expected_K.argmax()), int(found_K.argmax())
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
    """Give `run`, an exported file, the images, one, three and eight at a time, and the same pixels to `expect`.

    A file that takes photos gets them one by one, and parts of one size together. One that takes pixels also gets, with
    `other_size`, some of another size than its network's own.
    """
    last = deque[SampleImage](maxlen=max(BATCHES))
    batch = 0

    def give(some: Iterable[SampleImage], total: int, sizes: int | tuple[int, ...], seen: Preprocessing) -> None:
        def prepare(image: SampleImage) -> PreparedInput:
            pixels_HW3 = seen.pixels(image.image)
            photo = (np.asarray(image.image),) if comparison.takes_photos else ()
            return PreparedInput(image.name, (*photo, pixels_HW3))

        progress.start("comparing", total, "images")
        for _ in InputPipeline(sizes, workers=0).results(some, prepare, answer, comparison.add):
            progress.advance()

    def answer(given_NHW3: Array, should_NHW3: Array | None = None) -> Iterator[FileAnswer]:
        nonlocal batch
        batch = len(given_NHW3)
        prepared_NHW3, found_NK = run(given_NHW3)
        expected_NK = expect(prepared_NHW3)
        if should_NHW3 is None:
            return map(FileAnswer, expected_NK, found_NK)
        differences_N = np.abs(should_NHW3.astype(np.int16) - prepared_NHW3).max((1, 2, 3)).tolist()
        return map(FileAnswer, expected_NK, found_NK, differences_N, expect(should_NHW3))

    def kept() -> Iterator[SampleImage]:
        for image in images:
            last.append(image)
            yield image

    give(kept(), len(images), 1 if comparison.takes_photos else BATCHES, preprocessing)
    if comparison.takes_photos:
        for count in BATCHES[1:]:
            give(_of_one_size([*last][-count:]), min(count, len(last)), count, preprocessing)
    elif other_size:
        height, width = (side + more for side, more in zip(preprocessing.size, ODD, strict=True))
        some = [SampleImage(f"{p.name}, at {width}x{height}", p.image) for p in [*last][-batch:]]
        give(some, batch, batch, replace(preprocessing, size=(height, width)))


def _of_one_size(images: Sequence[SampleImage]) -> list[SampleImage]:
    """The upper left part of each, all as large as the smallest allows."""
    width, height = (min(p.image.size[axis] for p in images) for axis in (0, 1))
    name = f"its first {width}x{height}"
    return [SampleImage(f"{p.name}, {name}", p.image.crop((0, 0, width, height))) for p in images]


SAMPLE_IMAGES = 60  # at least
SHARES, FACTORS = (0.3, 1.0), (0.3, 1.5)  # of a crop's sides, of its size


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An RGB image and what to call it."""

    name: str
    image: Image.Image


class SampleImages:
    """The photos of a folder, by default those of the package; then parts of them, until there are `SAMPLE_IMAGES`.

    The parts are the same each time. Once they have been gone through, `read` are the photos that could be read;
    `unreadable` counts the others.

    Raises:
        UsageError: there are no photos in the folder, or, once they are gone through, none that can be read.
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
        return UsageError(f"there are no photos to check with in {self.root}. Try: without --photos, with those of dla")


def _part(whole: SampleImage, generator: np.random.Generator) -> SampleImage:
    """A random part of an image at a random size, both with odd sides."""
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
