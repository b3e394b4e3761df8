"""The batch loop of inference: prepare inputs ahead of the network, batch them, compute, and yield ordered results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from dla.data.prefetch import run_ahead
from dla.errors import DlaError, ImageError, InputError, UsageError
from dla.images.decode import to_photo
from dla.images.preprocessing import Preprocessing
from dla.options import ReadOptions
from dla.types import Array

# a path, encoded bytes, an open file, a PIL image, an array or a tensor: dla.images.decode.to_photo says which
PhotoInput = Any
T = TypeVar("T")
R = TypeVar("R")


class InputRecord(Protocol):
    """One record: the answer for an input, or the error."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def error(self) -> InputError | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """One input prepared for the network: its views, uint8 (H, W, 3), or the error.

    The inputs of a batch have views of equal sizes. `kept` is the result of `PhotoReader.keep`.
    """

    name: str
    views: tuple[Array, ...] = ()
    truncated: bool = False
    error: InputError | None = None
    kept: Image.Image | None = None


@dataclass(frozen=True)
class PhotoReader:
    """Read photos and prepare each once for every preprocessing of `views`.

    strict: raise at a photo that cannot be read, instead of returning a record with `error`.
    keep: maps each photo to `PreparedInput.kept`.
    """

    views: tuple[Preprocessing, ...]
    options: ReadOptions
    strict: bool = False
    keep: Callable[[Image.Image], Image.Image] | None = None

    def __call__(self, named: tuple[str, PhotoInput]) -> PreparedInput:
        """Prepare one (name, image) of many; something that is not an image becomes an error record."""
        try:
            return self.read(*named)
        except UsageError as error:
            if self.strict:
                raise
            return PreparedInput(named[0], error=InputError("not_an_image", str(error)))

    def read(self, name: str, image: PhotoInput) -> PreparedInput:
        """Prepare one input.

        Raises:
            UsageError: it is not an image.
            ImageError: with `strict`, it cannot be read.
        """
        try:
            return self._prepared(name, image)
        except ImageError as error:
            if self.strict:
                raise
            return PreparedInput(name, error=InputError(error.code, str(error)))

    def _prepared(self, name: str, image: PhotoInput) -> PreparedInput:
        try:
            photo = to_photo(image, self.options, name)
            kept = None if self.keep is None else self.keep(photo.image)
            pixels = tuple(view.pixels(photo.image) for view in self.views)
        except MemoryError as error:  # it costs its own record alone
            raise ImageError("decode_error", f"{name}: there is not enough memory to read it") from error
        return PreparedInput(name, pixels, photo.truncated, kept=kept)


@dataclass(frozen=True)
class InputPipeline:
    """Batch inputs and compute results, holding only a few inputs at a time, however many there are.

    batch_size: inputs per batch; several sizes are used in rotation.
    workers: threads that prepare inputs; 0: the calling thread.
    max_concurrent: batches computed at the same time, by threads. More than 1 needs a `prepare` that never raises.
    while_waiting: called several times a second while the next input is not ready; it may raise.

    Raises:
        UsageError: a batch size below 1, or a negative number of workers.
    """

    batch_size: int | tuple[int, ...]
    workers: int
    max_concurrent: int = 1
    while_waiting: Callable[[], None] | None = None

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
        """Yield one result per item, in order.

        Args:
            items: the inputs.
            prepare: prepares an item for the network; called by several threads.
            compute: takes the first views of a batch, (N, H, W, 3), then the second ones, and so on, and returns one
                row per input. Inputs with an error are left out.
            record: builds the result from an input and its row, which is None if there is an error.
        """
        ahead = max(self._sizes) + 2 * self.workers
        prepared = run_ahead(prepare, items, self.workers, ahead, while_waiting=self.while_waiting)
        batches = in_batches(prepared, cycle(self._sizes), lambda p: p.error is None)
        if self.max_concurrent < 2 or not self.workers:
            for batch in batches:
                yield from _answer(batch, compute, record)
            return
        answers = run_ahead(
            lambda batch: list(_answer(batch, compute, record)), batches, self.max_concurrent, self.max_concurrent,
            end_wait_s=None,
        )  # fmt: skip
        for results in answers:
            yield from results

    def of_photos(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        reader: PhotoReader,
        compute: Callable[..., Iterable[Any]],
        record: Callable[[PreparedInput, Any], R],
    ) -> R | Iterator[R]:
        """Return the result of a single photo, or a generator of the results of several. Arguments as in `results`.

        Raises:
            UsageError: a single input is not an image.
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
    """Yield the items in order, in lists that hold the next of `sizes` items for which `counts` is true.

    The last list may hold fewer. An item that does not count is yielded at once if no counted item waits before it. If
    the items end in an error, or in Ctrl-C while they are waited for, the items before it are yielded first.
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
    except (DlaError, KeyboardInterrupt, SystemExit):
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
