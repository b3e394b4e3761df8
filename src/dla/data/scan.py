"""Decode each photo once and reduce it to statistics of a few hundred bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dla.data.prefetch import run_ahead, run_in_processes
from dla.errors import ImageError, InputError
from dla.images.decode import Header, read_header, read_photo
from dla.storage.stores import is_remote

THUMBNAIL_SIDE = 16  # pixels; near duplicates are verified on thumbnails
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class PhotoStats:
    """The statistics of one photo, or the error if it cannot be read.

    `digest` is a hash of the size and the upright RGB pixels, `phash` imagehash's 64-bit perceptual hash (None where
    imagehash is not installed), `small` the pixels of a thumbnail, `THUMBNAIL_SIDE` x `THUMBNAIL_SIDE` x 3 uint8.
    """

    error: InputError | None = None
    header: Header | None = None
    digest: bytes = b""
    phash: int | None = None
    small: bytes = b""


def scan_photos(photos: Sequence[str | bytes], names: Sequence[str], workers: int) -> Iterator[PhotoStats]:
    """Yield the statistics of each photo, in order.

    Several workers are processes if the system can fork, else threads: for small photos most time is spent in Python.

    Raises:
        DlaError: one of the processes was killed.
    """
    with suppress(ImportError):
        import imagehash  # noqa: F401  (before the processes fork)
    starts = range(0, len(photos), _CHUNK)
    parts = ((photos[i : i + _CHUNK], names[i : i + _CHUNK]) for i in starts)
    if any(isinstance(photo, str) and is_remote(photo) for photo in photos):
        found = run_ahead(_look_at_each, parts, workers, 2 * workers)  # a store's client does not survive a fork
    else:
        found = run_in_processes(_look_at_each, list(parts), workers, "decoded photos")
    for part in found:
        yield from part


def _look_at_each(part: tuple[Sequence[str | bytes], Sequence[str]]) -> list[PhotoStats]:
    return [_look_at(photo, name) for photo, name in zip(*part, strict=True)]


def _look_at(photo: str | bytes, name: str) -> PhotoStats:
    try:
        header, image = read_header(photo, name=name), read_photo(photo, name=name).image
    except ImageError as error:
        return PhotoStats(InputError(error.code, str(error)))
    digest = hashlib.blake2b(f"{image.width}x{image.height}\n".encode() + image.tobytes(), digest_size=16).digest()
    box = Image.Resampling.BOX
    small = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), box).tobytes()
    return PhotoStats(None, header, digest, _phash(image.resize((4 * THUMBNAIL_SIDE, 4 * THUMBNAIL_SIDE), box)), small)


def _phash(image: Image.Image) -> int | None:
    try:
        import imagehash
    except ImportError:
        return None
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")
