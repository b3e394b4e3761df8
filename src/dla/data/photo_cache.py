"""Read the photos of a split by row, with or without a cache of decoded pixels in memory or on disk."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import PIL
from PIL import Image

from dla.data.archived import bytes_of
from dla.errors import ImageError, UsageError
from dla.images.decode import read_photo
from dla.options import PhotoCache, RuntimeOptions
from dla.storage import cache
from dla.storage.files import write_files
from dla.types import NO_PROGRESS, Progress

_WAY_ON = (
    "Its header could be read, or the file has changed since. Replace it with an intact photo, and the same command "
    "continues; or remove it and start a new run with another --output. dla data check finds all such photos"
)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ALLOWED = Path("/sys/fs/cgroup/memory.max")


class Budget:
    """A thread-safe budget of bytes."""

    def __init__(self, size: int) -> None:
        self._left, self._lock = size, threading.Lock()

    @classmethod
    def of_processes(cls, count: int) -> Budget:
        """Return an equal part of half of the memory, for one of `count` processes."""
        return cls(half_of_memory() // count)

    def take(self, size: int) -> bool:
        """Take `size` bytes if that many are left, and return whether they were."""
        with self._lock:
            taken = size <= self._left
            self._left -= size if taken else 0
        return taken


class Photos(Protocol):
    """Photos (paths or encoded bytes) and their names in messages."""

    @property
    def photos(self) -> Sequence[str | bytes]:
        """The photos."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Their names."""
        ...

    def __len__(self) -> int: ...


class PhotoStore:
    """The photos of a split: `store[row]` is an upright RGB image. It is thread-safe.

    The cache changes the speed, never the pixels.

    Args:
        split: the photos.
        cache: "ram" caches the pixels in memory, within `budget`; "disk" in files under `folder`, which can be deleted
            at any time and shared by several runs, and are replaced if damaged.
        folder: the folder of the cache on disk.
        short_side: photos with a longer short side are resized to it (pixels), with and without a cache. None does not
            resize.
        budget: bytes for the cache in memory, shared by all stores that have it; by default half of the memory.
        progress: logs once if the folder cannot be written; photos are then decoded without a cache.

    Raises:
        ImageError: on reading a row, if its photo cannot be decoded; the message says what to do.
        UsageError: `cache` has another value, or does not match `folder`.
    """

    def __init__(
        self,
        split: Photos,
        cache: PhotoCache = RuntimeOptions.photo_cache,
        folder: str | Path | None = None,
        *,
        short_side: int | None = None,
        budget: Budget | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        if cache not in get_args(PhotoCache):
            raise UsageError(f'cache is "{cache}". Allowed: {", ".join(get_args(PhotoCache))}')
        if (cache == "disk") != (folder is not None):
            raise UsageError(f'cache is "{cache}" and folder is {folder}. Give a folder for "disk", and only for it')
        self.split, self.short_side = split, short_side
        self._folder = None if folder is None else Path(folder)
        self._kept: dict[int, Pixels] = {}
        self._budget = Budget(0) if cache != "ram" else budget or Budget(half_of_memory())
        self._lock, self._progress = threading.Lock(), progress
        self._keys: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> Image.Image:
        kept = self._kept.get(row)
        if kept is not None:
            return Image.fromarray(kept)
        if self._folder is not None:
            return self._from_disk(self._folder, row)
        image = self._decode(row)
        self._keep(row, image)
        return image

    def _decode(self, row: int) -> Image.Image:
        try:
            image = read_photo(self.split.photos[row], name=self.split.names[row]).image
        except ImageError as error:
            raise ImageError(error.code, f"{error}. {_WAY_ON}") from error
        short = min(image.size)
        if self.short_side is None or short <= self.short_side:
            return image
        width, height = (max(1, round(side * self.short_side / short)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)

    def _keep(self, row: int, image: Image.Image) -> None:
        size = 3 * image.width * image.height
        with self._lock:
            if row not in self._kept and self._budget.take(size):
                self._kept[row] = np.array(image)

    def _from_disk(self, folder: Path, row: int) -> Image.Image:
        key = self._key(row)
        path = folder / key[:2] / f"{key}.rgb"
        kept = _read_pixels(path)
        if kept is not None:
            return Image.fromarray(kept)
        image = self._decode(row)
        try:
            _write_pixels(path, np.asarray(image))
        except OSError as error:
            self._folder = None
            self._progress.log(f"{folder}: photos cannot be cached there ({error.strerror or error})")
        return image

    def _key(self, row: int) -> str:
        """Return a hash of everything that determines the pixels: the photo's bytes, the settings and the decoder."""
        if row not in self._keys:
            photo = self.split.photos[row]
            try:
                data = photo if isinstance(photo, bytes) else bytes_of(photo)
            except (ImageError, OSError):
                data = b""  # decoding reports the error
            settings = f"{self.short_side} {PIL.__version__}\n".encode()
            self._keys[row] = hashlib.blake2b(settings + data, digest_size=20).hexdigest()
        return self._keys[row]


def open_store(split: Photos, kind: PhotoCache, budget: Budget, progress: Progress) -> PhotoStore:
    """Open the photos of a split with a cache of this kind; on disk, in the user's cache folder."""
    place = cache.cache_folder() / cache.PHOTOS if kind == "disk" else None
    return PhotoStore(split, kind, place, budget=budget, progress=progress)


def half_of_memory() -> int:
    """Return half of the memory in bytes: the machine's, or the limit of the process's control group."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such group, or "max"
        whole = min(whole, int(_ALLOWED.read_text()))
    return whole // 2


# A cache file: width, height and the CRC-32 of the pixels as little-endian 32-bit integers; then rows of RGB pixels.
def _write_pixels(path: Path, pixels_HW3: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels_HW3.shape
    data = pixels_HW3.tobytes()
    header = np.array([width, height, zlib.crc32(data)], "<u4").tobytes()
    write_files({path: header + data}, fsync=False)


def _read_pixels(path: Path) -> Pixels | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < 12:
        return None
    width, height, crc = np.frombuffer(data, "<u4", 3).tolist()
    if len(data) != 12 + 3 * width * height or zlib.crc32(data[12:]) != crc:
        return None
    return np.frombuffer(data, np.uint8, offset=12).reshape(height, width, 3)
