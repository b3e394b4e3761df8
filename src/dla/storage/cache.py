"""Files that save time and can be made again, and int8 models: our cache folder, by content.

A file is called KIND/KEY, for what it was made from, and begins with the SHA-256 of the rest: a damaged one is seen,
and what is made again takes its place. Where the folder cannot be written, nothing is kept and nothing fails.
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

__all__ = ["INT8", "PHOTOS", "CacheEntry", "cache_folder", "clear", "entries", "key_of", "read", "write"]


PHOTOS = "photos"  # what training has decoded: dla.data.photo_cache keeps it there, by content too
INT8 = "int8"  # networks in int8: made from photos of the user's, so that no clearing takes them
_OURS = re.compile(r"[0-9a-f]{32}")
_DECODED = re.compile(r"[0-9a-f]{40}\.rgb")
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache: its kind, its path, its size in bytes."""

    kind: str
    path: Path
    size: int


def cache_folder() -> Path:
    """`DLA_CACHE`, else `dla` in the user's cache folder."""
    if chosen := os.environ.get("DLA_CACHE"):
        return Path(os.path.expanduser(chosen))
    from platformdirs import user_cache_path

    return user_cache_path("dla", appauthor=False)


def key_of(*parts: str) -> str:
    """One word for what something is made from: other parts, or others' order, give another."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{len(part.encode())}:".encode() + part.encode())
    return whole.hexdigest()[:32]


def read(kind: str, key: str) -> bytes | None:
    """What was remembered, whole, or None."""
    with suppress(OSError), open(cache_folder() / kind / key, "rb") as file:
        digest, data = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(data).digest() == digest:
            return data
    return None


def write(kind: str, key: str, data: bytes) -> bool:
    """Keep `data` for `read` in place of what was there, if the disk lets us; whether it did."""
    with suppress(OSError):
        place = cache_folder() / kind
        place.mkdir(parents=True, exist_ok=True)
        write_files({place / key: hashlib.sha256(data).digest() + data})
        return True
    return False


def entries() -> Iterator[CacheEntry]:
    """Every file that `write` wrote, and every photo that training keeps, half written ones too; nobody else's."""
    ours = [path for path in cache_folder().glob("*/*") if _is_ours(path, _OURS)]
    photos = [path for path in (cache_folder() / PHOTOS).glob("*/*") if _is_ours(path, _DECODED)]
    for path in sorted(ours + photos):
        with suppress(OSError):
            yield CacheEntry(path.relative_to(cache_folder()).parts[0], path, path.stat().st_size)


def _is_ours(path: Path, names: re.Pattern[str]) -> bool:
    return bool(names.fullmatch(path.name)) or is_leftover(path.name)


def clear() -> list[CacheEntry]:
    """Remove them but for `INT8`, and give what was removed."""
    removed = [entry for entry in entries() if entry.kind != INT8]
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    return removed
