"""Whether an exported file answers as PyTorch does: on the same pixels, and on those that it makes of photos."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dla.errors import ImageError, UsageError
from dla.exporting.targets import RunFile
from dla.images.decode import read_photo
from dla.images.find import PhotoFinder
from dla.images.preprocessing import Preprocessing
from dla.options import ReadOptions
from dla.types import Array

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
    """A picture whose first class another way of computing changed, from `expected` to `found` (class ids).

    `margin` is how much more probable `expected` was, from 0 to 1.
    """

    picture: str
    expected: str
    found: str
    margin: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """How an exported file answers, beside PyTorch.

    `model` is what was read, `sha256` its weight file's; `file` was written as `form`, and `runtime` ran it. `pictures`
    were made of `photos`, and went through it `batches` at a time. On the very pixels that the file's network saw,
    `same_flips` are other first classes, and `largest_difference` is of probabilities. Where the file takes photos, the
    pixels that it makes of them differ by up to `largest_level` (0 to 255), and `photo_flips` are other first classes
    than those of the pixels that they should be; else these two are None. Of an int8 form `gates` say how good it is
    beside fp32.
    """

    model: str
    sha256: str
    form: str
    file: str
    runtime: str
    against: str
    photos: int
    unreadable: int
    pictures: int
    batches: tuple[int, ...]
    largest_difference: float
    same_flips: tuple[Disagreement, ...]
    largest_level: int | None
    photo_flips: tuple[Disagreement, ...] | None
    passed: bool
    precision: str = "fp32"
    gates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/export.md); what is no number is null there."""
        record = {"schema": EXPORT_SCHEMA, **asdict(self)}
        record["largest_difference"] = self.largest_difference if math.isfinite(self.largest_difference) else None
        return record


BATCHES = 1, 3, 8
DIFFERENCE, LEVEL = 1e-4, 1  # at most, of probabilities and of levels of pixels
AGREEMENT = 0.995  # of first classes, at least
ODD = 13, 7  # rows and columns more, for a network that is given another size than its own

PixelBatch = tuple[list[str], list[Image.Image]]


@dataclass
class FileComparison:
    """What was found so far; the fields are those of `ExportReport`."""

    class_ids: Sequence[str]
    takes_photos: bool
    pictures: int = 0
    differences: list[float] = field(default_factory=list)
    same_flips: list[Disagreement] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    photo_flips: list[Disagreement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it answers the same; what is no number does not."""
        same = not self.same_flips and max(self.differences) <= DIFFERENCE and np.isfinite(self.differences).all()
        most = (1 - AGREEMENT) * self.pictures
        return bool(same and max(self.levels, default=0) <= LEVEL and len(self.photo_flips) <= most)

    def add(self, names: list[str], expected_NK: Array, found_NK: Array) -> None:
        """The answers to the same pixels."""
        self.pictures += len(names)
        self.differences += np.abs(found_NK - expected_NK).max(1).tolist()
        self.same_flips += self._flips(names, expected_NK, found_NK)

    def add_photos(self, names: list[str], pixels: tuple[Array, Array], expected_NK: Array, found_NK: Array) -> None:
        """The pixels that should have been and that were made of photos, and the answers to them."""
        should, were = (p.astype(np.int16) for p in pixels)
        self.levels.append(int(np.abs(should - were).max()))
        self.photo_flips += self._flips(names, expected_NK, found_NK)

    def _flips(self, names: list[str], expected_NK: Array, found_NK: Array) -> Iterator[Disagreement]:
        for name, expected_K, found_K in zip(names, expected_NK, found_NK, strict=True):
            k, other = int(expected_K.argmax()), int(found_K.argmax())
            if k != other:
                ids = self.class_ids[k], self.class_ids[other]
                yield Disagreement(name, *ids, float(expected_K[k] - expected_K[other]))


def compare(
    run: RunFile,
    expect: Callable[[Array], Array],
    preprocessing: Preprocessing,
    pictures: Iterable[SampleImage],
    comparison: FileComparison,
    *,
    other_size: bool,
) -> None:
    """Give `run`, an exported file, the pictures, one, three and eight at a time, and the same pixels to `expect`.

    A file that takes photos gets them one by one, and parts of one size together. One that takes pixels also gets, with
    `other_size`, some of another size than its network's own.
    """
    of_pixels = _of_pixels(pictures, preprocessing, other_size)
    for names, images in _of_photos(pictures) if comparison.takes_photos else of_pixels:
        prepared_NHW3, found_NK = run(np.stack([np.asarray(image) for image in images]))
        comparison.add(names, expect(prepared_NHW3), found_NK)
        if comparison.takes_photos:
            should_NHW3 = np.stack([preprocessing.pixels(image) for image in images])
            comparison.add_photos(names, (should_NHW3, prepared_NHW3), expect(should_NHW3), found_NK)


def _of_photos(pictures: Iterable[SampleImage]) -> Iterator[PixelBatch]:
    kept = list[SampleImage]()
    for picture in pictures:
        yield [picture.name], [picture.image]
        kept = [*kept, picture][-max(BATCHES) :]
    for count in BATCHES[1:]:
        some = kept[-count:]
        width, height = (min(p.image.size[axis] for p in some) for axis in (0, 1))
        yield (
            [f"{p.name}, its first {width}x{height}" for p in some],
            [p.image.crop((0, 0, width, height)) for p in some],
        )


def _of_pixels(pictures: Iterable[SampleImage], preprocessing: Preprocessing, other_size: bool) -> Iterator[PixelBatch]:
    rest, last = iter(pictures), list[SampleImage]()
    for count in cycle(BATCHES):
        some = list(islice(rest, count))
        if not some:
            break
        last = some
        yield [p.name for p in some], [Image.fromarray(preprocessing.pixels(p.image)) for p in some]
    if not other_size:
        return
    height, width = (side + more for side, more in zip(preprocessing.size, ODD, strict=True))
    odd = replace(preprocessing, size=(height, width))
    yield [f"{p.name}, at {width}x{height}" for p in last], [Image.fromarray(odd.pixels(p.image)) for p in last]


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
                picture = self._whole(path)
            except ImageError:
                self.unreadable += 1
                continue
            self.read.append(path)
            yield picture
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
    """A random part of a picture at a random size, both with odd sides."""
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
