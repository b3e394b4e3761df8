"""What an exported file is checked with: photos, and crops and sizes of them where these are few."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from dla.errors import ImageError, UsageError
from dla.images.find import PhotoFinder
from dla.images.read import ReadOptions, read_photo

__all__ = ["PICTURES", "Picture", "Pictures"]

PICTURES = 60  # at least
SHARES, FACTORS = (0.3, 1.0), (0.3, 1.5)  # of a crop's sides, of its size


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB image and what to call it."""

    name: str
    image: Image.Image


class Pictures:
    """The photos of a folder, by default those of the package; then parts of them, until there are `PICTURES`.

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
        return max(len(self.paths), PICTURES)

    def __iter__(self) -> Iterator[Picture]:
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
        for number in range(len(self.read), PICTURES):
            yield _part(self._whole(self.read[number % len(self.read)]), generator)

    def _whole(self, path: str) -> Picture:
        return Picture(Path(path).name, read_photo(path, self.options).image)

    def _nothing(self) -> UsageError:
        return UsageError(f"there are no photos to check with in {self.root}. Try: without --photos, with those of dla")


def _part(whole: Picture, generator: np.random.Generator) -> Picture:
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
    return Picture(f"{whole.name}, {width}x{height}+{left}+{top} at {size[0]}x{size[1]}", part)
