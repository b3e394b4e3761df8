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

    The parts are the same each time. Photos that cannot be read are passed over, and counted in `unreadable`.

    Raises:
        UsageError: there are no photos in the folder, or none that can be read.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, options: ReadOptions) -> None:
        self.options = options
        root = str(files("dla").joinpath("shipped", "photos")) if folder is None else os.fspath(folder)
        found = list(PhotoFinder([root]))
        self.paths = [path for path in found if self._is_readable(path)]
        self.unreadable = len(found) - len(self.paths)
        if not self.paths:
            raise UsageError(f"there are no photos to check with in {root}. Try: without --photos, with those of dla")

    def __len__(self) -> int:
        return max(len(self.paths), PICTURES)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            yield Picture(Path(path).name, read_photo(path, self.options).image)
        generator = np.random.default_rng(0)
        for number in range(len(self.paths), PICTURES):
            path = self.paths[number % len(self.paths)]
            yield _part(Picture(Path(path).name, read_photo(path, self.options).image), generator)

    def _is_readable(self, path: str) -> bool:
        try:
            read_photo(path, self.options)
        except ImageError:
            return False
        return True


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
