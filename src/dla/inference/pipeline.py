"""The one loop over many inputs: each prepared ahead of the network, batched, answered; one result each, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from dla.data.prefetch import run_ahead
from dla.errors import DlaError, ImageError, InputError, UsageError
from dla.images.decode import to_photo
from dla.images.preprocessing import Preprocessing
from dla.options import ReadOptions
from dla.types import Array

__all__ = ["InputPipeline", "PhotoInput", "PhotoReader", "PreparedInput", "in_batches"]


# a path, encoded bytes, an open file, a PIL image, an array or a tensor: dla.images.decode.to_photo says which
PhotoInput = Any
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """One input as the network takes it: its views, uint8 (H, W, 3), or the error that took their place.

    A view of an input is as large as that of every other input of its batch. `kept` is what was kept of the photo.
    """

    name: str
    views: tuple[Array, ...] = ()
    truncated: bool = False
    error: InputError | None = None
    kept: Image.Image | None = None


@dataclass(frozen=True)
class PhotoReader:
    """Reads photos and prepares each once for every one of `views`.

    strict: raise at a photo that cannot be read, instead of giving a record with `error`.
    keep: makes of each photo what `PreparedInput.kept` holds.
    """

    views: tuple[Preprocessing, ...]
    options: ReadOptions
    strict: bool = False
    keep: Callable[[Image.Image], Image.Image] | None = None

    def __call__(self, named: tuple[str, PhotoInput]) -> PreparedInput:
        """Prepare one of many, given with its name: what is no image costs its own record only."""
        try:
            return self.read(*named)
        except UsageError as error:
            if self.strict:
                raise
            return PreparedInput(named[0], error=InputError("not_an_image", str(error)))

    def read(self, name: str, image: PhotoInput) -> PreparedInput:
        """Prepare one input.

        Raises:
            UsageError: it is no image.
            ImageError: with `strict`, it cannot be read.
        """
        try:
            photo = to_photo(image, self.options, name)
        except ImageError as error:
            if self.strict:
                raise
            return PreparedInput(name, error=InputError(error.code, str(error)))
        kept = None if self.keep is None else self.keep(photo.image)
        return PreparedInput(name, tuple(view.pixels(photo.image) for view in self.views), photo.truncated, kept=kept)


@dataclass(frozen=True)
class InputPipeline:
    """How inputs become batches, and batches results. Only a few inputs are held at a time, however many there are.

    batch_size: inputs that the network takes at once; of several numbers each has its turn.
    workers: threads that prepare inputs; 0 does it in the caller's thread.
    max_concurrent: batches that are answered at the same time, by threads. More than 1 is for inputs that never raise.

    Raises:
        UsageError: no inputs at once, or fewer than no workers.
    """

    batch_size: int | tuple[int, ...]
    workers: int
    max_concurrent: int = 1

    def __post_init__(self) -> None:
        if min(self._sizes) < 1 or self.workers < 0:
            raise UsageError(f"batch_size is {self.batch_size}, workers {self.workers}: at least 1 and 0")

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.batch_size,) if isinstance(self.batch_size, int) else self.batch_size

    def results(
        self,
        items: Iterable[T],
        prepare: Callable[[T], PreparedInput],
        compute: Callable[..., Iterable[Any]],
        record: Callable[[PreparedInput, Any], R],
    ) -> Iterator[R]:
        """One result for each item, in the items' order.

        Args:
            prepare: what the network takes of an item; called by several threads.
            compute: is given the first views of a batch, (N, H, W, 3), their second ones, and so on, and returns a
                row for each input. Inputs with an error are left out.
            record: makes the result of an input and its row, which is None where there is an error.
        """
        prepared = run_ahead(prepare, items, self.workers, max(self._sizes) + 2 * self.workers)
        batches = in_batches(prepared, cycle(self._sizes), lambda p: p.error is None)
        if self.max_concurrent < 2 or not self.workers:
            for batch in batches:
                yield from _answer(batch, compute, record)
            return
        answers = run_ahead(
            lambda batch: list(_answer(batch, compute, record)), batches, self.max_concurrent, self.max_concurrent
        )
        for results in answers:
            yield from results

    def of_photos(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        reader: PhotoReader,
        compute: Callable[..., Iterable[Any]],
        record: Callable[[PreparedInput, Any], R],
    ) -> R | Iterator[R]:
        """The result of a single photo; of several, a generator of theirs. The other arguments are those of `results`.

        Raises:
            UsageError: a single input is no image.
        """
        if not _is_several(images):
            return next(_answer([reader.read(_name(0, images), images)], compute, record))
        return self.results(((_name(n, image), image) for n, image in enumerate(images)), reader, compute, record)


def _answer(
    batch: list[PreparedInput], compute: Callable[..., Iterable[Any]], record: Callable[[PreparedInput, Any], R]
) -> Iterator[R]:
    views = zip(*(p.views for p in batch if p.error is None), strict=True)
    stacked = [np.stack(view) for view in views]
    rows = iter(compute(*stacked) if stacked else ())
    for p in batch:
        yield record(p, next(rows) if p.error is None else None)


def in_batches(items: Iterable[T], sizes: Iterator[int], counts: Callable[[T], bool]) -> Iterator[list[T]]:
    """Items in their order, in lists of which each has the next size of those that count; the last may have fewer.

    One that does not count and has nothing to wait for is a list of its own. Where the items end in an error, those
    before it come first.
    """
    batch: list[T] = []
    filled, size = 0, next(sizes)
    try:
        for item in items:
            batch.append(item)
            filled += counts(item)
            if filled in (0, size):
                size = next(sizes) if filled else size
                yield batch
                batch, filled = [], 0
    except DlaError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _is_several(images: Any) -> bool:
    # a mapping is neither one photo nor several: to_photo refuses it
    single = isinstance(images, str | bytes | bytearray | os.PathLike | Mapping)
    single = single or any(hasattr(images, name) for name in ("shape", "getpixel", "read"))
    return not single and isinstance(images, Iterable)


def _name(position: int, image: PhotoInput) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"input {position}"
