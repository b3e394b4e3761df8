"""Files that save time and can be made again, and int8 forms: our cache folder, by content.

A file is called KIND/KEY-DIGEST: KEY says what it was made from, DIGEST is its own SHA-256, so that a damaged one is
seen, thrown away and made again. Each is written aside and renamed: two processes at once do each other no harm. Where
the folder cannot be written, nothing is kept and nothing fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FORMS", "PHOTOS", "Entry", "clear", "entries", "folder", "key_of", "recall", "remember"]


PHOTOS = "photos"  # what training has decoded: dla.data.store keeps it there, by content too
FORMS = "int8"  # networks in int8: made from photos of the user's, so that no clearing takes them
LOOKS = 5  # while one process lists the folder, another may put something newer in the place of what was there
_OURS = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}|\.part-\w+")
_DECODED = re.compile(r"[0-9a-f]{40}\.(rgb|\d+-\d+)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache: its kind, its path, its size in bytes."""

    kind: str
    path: Path
    size: int


def folder() -> Path:
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


def recall(kind: str, key: str) -> bytes | None:
    """What was remembered, whole, or None."""
    with suppress(OSError):
        for _ in range(LOOKS):
            for path in reversed(_kept(folder() / kind, key)):
                with suppress(FileNotFoundError):
                    data = path.read_bytes()
                    if hashlib.sha256(data).hexdigest() == path.name.partition("-")[2]:
                        return data
                    path.unlink()
    return None


def _kept(place: Path, key: str) -> list[Path]:
    """What is there under a key, the newest last."""
    times = []
    for path in place.glob(f"{key}-*"):
        with suppress(FileNotFoundError):
            times.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(times)]


def remember(kind: str, key: str, data: bytes) -> bool:
    """Keep `data` for `recall` in place of what was there, if the disk lets us; whether it did."""
    with suppress(OSError):
        place = folder() / kind
        place.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=place, prefix=".part-")
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path = place / f"{key}-{hashlib.sha256(data).hexdigest()}"
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise
        kept = _kept(place, key)
        for older in kept[: kept.index(path) if path in kept else 0]:
            older.unlink(missing_ok=True)
        return True
    return False


def entries() -> Iterator[Entry]:
    """Every file that `remember` wrote, and every photo that training keeps, half written ones too; nobody else's."""
    ours = [path for path in folder().glob("*/*") if _OURS.fullmatch(path.name)]
    photos = [path for path in (folder() / PHOTOS).glob("*/*") if _DECODED.fullmatch(path.name)]
    for path in sorted(ours + photos):
        with suppress(OSError):
            yield Entry(path.relative_to(folder()).parts[0], path, path.stat().st_size)


def clear() -> list[Entry]:
    """Remove them but for `FORMS`, and give what was removed."""
    removed = [entry for entry in entries() if entry.kind != FORMS]
    for entry in removed:
        entry.path.unlink(missing_ok=True)
    return removed
