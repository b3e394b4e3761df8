"""Whether an exported file answers as PyTorch does: on the same pixels, and on those that it makes of photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import numpy as np
from PIL import Image

from dla.engines.base import Array
from dla.images.prepare import Preprocessing
from dla.records import Flip
from dla.verbs.export.forms import Run
from dla.verbs.export.pictures import Picture

__all__ = ["AGREEMENT", "BATCHES", "DIFFERENCE", "LEVEL", "Comparison", "compare"]

BATCHES = 1, 3, 8
DIFFERENCE, LEVEL = 1e-4, 1  # at most, of probabilities and of levels of pixels
AGREEMENT = 0.995  # of first classes, at least
ODD = 13, 7  # rows and columns more, for a network that is given another size than its own

Batch = tuple[list[str], list[Image.Image]]


@dataclass
class Comparison:
    """What was found so far; the fields are those of `ExportReport`."""

    class_ids: Sequence[str]
    takes_photos: bool
    pictures: int = 0
    differences: list[float] = field(default_factory=list)
    same_flips: list[Flip] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    photo_flips: list[Flip] = field(default_factory=list)

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

    def _flips(self, names: list[str], expected_NK: Array, found_NK: Array) -> Iterator[Flip]:
        for name, expected_K, found_K in zip(names, expected_NK, found_NK, strict=True):
            k, other = int(expected_K.argmax()), int(found_K.argmax())
            if k != other:
                ids = self.class_ids[k], self.class_ids[other]
                yield Flip(name, *ids, float(expected_K[k] - expected_K[other]))


def compare(
    run: Run,
    expect: Callable[[Array], Array],
    preprocessing: Preprocessing,
    pictures: Iterable[Picture],
    comparison: Comparison,
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


def _of_photos(pictures: Iterable[Picture]) -> Iterator[Batch]:
    kept = list[Picture]()
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


def _of_pixels(pictures: Iterable[Picture], preprocessing: Preprocessing, other_size: bool) -> Iterator[Batch]:
    rest, last = iter(pictures), list[Picture]()
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
