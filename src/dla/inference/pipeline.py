"""What every verb that answers photos stands on: inputs of any kind, read ahead of the network, in their order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from dla.data.prefetch import run_ahead
from dla.errors import DlaError, ImageError, InputError, UsageError
from dla.images.decode import ReadOptions, to_photo
from dla.images.preprocessing import Preprocessing
from dla.types import Array

__all__ = ["InputPipeline", "PhotoInput", "PreparedInput", "in_batches"]


# a path, encoded bytes, an open file, a PIL image, an array or a tensor: dla.images.decode.to_photo says which
PhotoInput = Any
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """One input as the network takes it, uint8 (H, W, 3), or why it cannot; `kept` is what was kept of the photo."""

    name: str
    pixels_HW3: Array | None = None
    truncated: bool = False
    error: InputError | None = None
    kept: Image.Image | None = None


@dataclass(frozen=True)
class InputPipeline:
    """How inputs become batches. The fields are `Classifier.predict`'s arguments.

    keep: makes of each photo what `PreparedInput.kept` holds, in the threads that read.
    max_concurrent: batches that are answered at the same time, by threads.
    """

    preprocessing: Preprocessing
    batch_size: int
    workers: int
    strict: bool
    options: ReadOptions
    keep: Callable[[Image.Image], Image.Image] | None = None
    max_concurrent: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise UsageError(f"batch_size is {self.batch_size}, workers {self.workers}: at least 1 and 0")

    def answers(
        self, images: PhotoInput | Iterable[PhotoInput], answer: Callable[[list[PreparedInput]], Iterator[R]]
    ) -> R | Iterator[R]:
        """The one record that `answer` makes of a single input; of several, a generator of theirs."""
        if not _is_several(images):
            return next(answer([self._prepare(_name(0, images), images)]))
        ahead = self.batch_size + 2 * self.workers
        prepared = run_ahead(self._prepare_one_of_many, enumerate(images), self.workers, ahead)
        batches = in_batches(prepared, self.batch_size, lambda p: p.error is None)
        if self.strict or self.max_concurrent < 2 or not self.workers:
            return (record for batch in batches for record in answer(batch))
        answered = run_ahead(lambda batch: list(answer(batch)), batches, self.max_concurrent, self.max_concurrent)
        return (record for records in answered for record in records)

    def _prepare_one_of_many(self, numbered: tuple[int, PhotoInput]) -> PreparedInput:
        name = _name(*numbered)
        try:
            return self._prepare(name, numbered[1])
        except UsageError as error:  # among many, what is no image costs its own record only
            if self.strict:
                raise
            return PreparedInput(name, error=InputError("not_an_image", str(error)))

    def _prepare(self, name: str, image: PhotoInput) -> PreparedInput:
        try:
            photo = to_photo(image, self.options, name)
        except ImageError as error:
            if self.strict:
                raise
            return PreparedInput(name, error=InputError(error.code, str(error)))
        kept = None if self.keep is None else self.keep(photo.image)
        return PreparedInput(name, self.preprocessing.pixels(photo.image), photo.truncated, kept=kept)


def in_batches(items: Iterable[T], size: int, counts: Callable[[T], bool]) -> Iterator[list[T]]:
    """Items in their order, in lists with `size` of those that count; the last one may have fewer.

    One that does not count and has nothing to wait for is a list of its own. Where the items end in an error, those
    before it come first.
    """
    batch: list[T] = []
    filled = 0
    try:
        for item in items:
            batch.append(item)
            filled += counts(item)
            if filled in (0, size):
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
