"""The cache folder: files that can be rebuilt, and int8 models, addressed by what they were made from.

A file is named KIND/KEY and begins with the SHA-256 of the rest, so that a damaged one is noticed and rebuilt. If the
folder is not writable, nothing is cached and nothing fails.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dla.storage.files import is_leftover, write_files

PHOTOS = "photos"  # decoded training photos, written by dla.data.photo_cache
INT8 = "int8"  # int8 models; `clear` leaves them, because they were made from the user's photos
_OURS = re.compile(r"[0-9a-f]{32}")
_DECODED = re.compile(r"[0-9a-f]{40}\.rgb")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A file in the cache: its kind, path and size in bytes."""

    kind: str
    path: Path
    size: int


def cache_folder() -> Path:
    """Return the cache folder: `DLA_CACHE`, or `dla` in the user's cache folder."""
    if chosen := os.environ.get("DLA_CACHE"):
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_cache_path

    return user_cache_path("dla", appauthor=False)


def key_of(*parts: str) -> str:
    """Return the key of something made from these parts: other parts, or another order, give another key."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{len(part.encode())}:".encode() + part.encode())
    return whole.hexdigest()[:32]


def read(kind: str, key: str) -> bytes | None:
    """Return the cached bytes, or None if they are missing or damaged."""
    with suppress(OSError), open(cache_folder() / kind / key, "rb") as file:
        digest, data = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(data).digest() == digest:
            return data
    return None


def write(kind: str, key: str, data: bytes) -> bool:
    """Cache `data`, replacing an earlier entry. Return whether the disk could be written."""
    with suppress(OSError):
        place = cache_folder() / kind
        place.mkdir(parents=True, exist_ok=True)
        write_files({place / key: hashlib.sha256(data).digest() + data})
        return True
    return False


def entries() -> Iterator[CacheEntry]:
    """Yield every file of `write` and every decoded photo, partly written ones included, and no foreign file."""
    ours = [path for path in cache_folder().glob("*/*") if _is_ours(path, _OURS)]
    photos = [path for path in (cache_folder() / PHOTOS).glob("*/*") if _is_ours(path, _DECODED)]
    for path in sorted(ours + photos):
        with suppress(OSError):
            yield CacheEntry(path.relative_to(cache_folder()).parts[0], path, path.stat().st_size)


def _is_ours(path: Path, names: re.Pattern[str]) -> bool:
    return bool(names.fullmatch(path.name)) or is_leftover(path.name)


def clear() -> list[CacheEntry]:
    """Remove all entries except int8 models. Return the removed entries."""
    removed = [entry for entry in entries() if entry.kind != INT8]
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    return removed
