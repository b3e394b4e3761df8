"""Photos of a split by their row, decoded once or each time: from memory, from a folder of pixels, from the files."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL
from PIL import Image

from dla.data.dataset import Split
from dla.errors import ImageError, UsageError
from dla.images.decode import read_photo
from dla.options import PhotoCache, RuntimeOptions
from dla.storage.files import write_files
from dla.types import NO_PROGRESS, Progress

__all__ = ["Budget", "PhotoStore", "half_of_memory"]


_WAY_ON = (
    "Its header was whole, or it has changed since. Put a whole photo in its place and the same command goes on; or "
    "take it away and begin another run with another --output. dla data check finds all such photos"
)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_ALLOWED = Path("/sys/fs/cgroup/memory.max")


class Budget:
    """Bytes that are given away until none are left. Threads may share it."""

    def __init__(self, size: int) -> None:
        self._left, self._lock = size, threading.Lock()

    def take(self, size: int) -> bool:
        """Take so many, if they are left."""
        with self._lock:
            taken = size <= self._left
            self._left -= size if taken else 0
        return taken


class PhotoStore:
    """`store[row]` is a photo of the split as an upright RGB image. Threads may share it.

    What a cache keeps decides how fast a photo comes, never its pixels.

    Args:
        cache: "ram" keeps the pixels in memory, up to `most_bytes`; "disk" in files under `folder`, which can be
            deleted at any time, shared by several runs and are made again where they are damaged.
        short_side: photos whose short side is longer are made that small, before they are kept; with and without a
            cache alike. None: photos as they are.
        budget: bytes that may be kept in memory, shared by the stores that have it; by default half of the memory.
        progress: told once when the folder cannot be written; the photos then come without a cache.

    Raises:
        ImageError: on reading a row: its photo cannot be decoded; the message says what to do about it.
    """

    def __init__(
        self,
        split: Split,
        cache: PhotoCache = RuntimeOptions.photo_cache,
        folder: str | Path | None = None,
        *,
        short_side: int | None = None,
        budget: Budget | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> None:
        if cache not in get_args(PhotoCache):
            raise UsageError(f'cache is "{cache}": allowed are {", ".join(get_args(PhotoCache))}')
        if (cache == "disk") != (folder is not None):
            raise UsageError("a folder belongs to the cache on disk, and that needs one")
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
            self._progress.log(f"{folder}: photos cannot be kept there any more ({error.strerror or error})")
        return image

    def _key(self, row: int) -> str:
        """Names a photo's pixels by what they are made from: its bytes, the settings and the decoder."""
        if row not in self._keys:
            photo = self.split.photos[row]
            try:
                data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
            except OSError:
                data = b""  # decoding says what is wrong
            settings = f"{self.short_side} {PIL.__version__}\n".encode()
            self._keys[row] = hashlib.blake2b(settings + data, digest_size=20).hexdigest()
        return self._keys[row]


def half_of_memory() -> int:
    """Bytes: of the machine's memory, or of what its control group allows this process."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such group, or "max"
        whole = min(whole, int(_ALLOWED.read_text()))
    return whole // 2


# A file of pixels: width, height and the CRC-32 of what follows, as little-endian 32-bit numbers; then rows of RGB.
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
