"""Photos that are not files of their own: members of archives, rows of parquet files, objects in stores.

Such a photo has a name, `photos.tar!cats/1.jpg`, `photos.parquet#17` or `s3://bucket/1.jpg`, and can be given wherever
a path can. A `LocatedPhoto` is such a name that knows where the bytes are, so that no archive is searched for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

from dla.errors import ImageError, InputError
from dla.images.archives import archive_kind, members, unpack
from dla.images.parquet_photos import (
    column_batches,
    column_type,
    holds_photos,
    read_group,
    row_group_of,
    row_groups,
    usual_column,
)
from dla.storage.stores import StoredFile, is_remote, open_store

MEMBER, ROW = "!", "#"


@dataclass(frozen=True, slots=True)
class PhotoPlace:
    """Where the bytes of a photo are.

    file: a path, or an address in a store.
    size: of the photo, in bytes; None: unknown.
    version: of the file, which may have changed since: the time of its last change; None: unknown.
    offset: where a member of an archive begins: its bytes in a tar, its header in a zip; None: the whole file.
    packed: the compressed size of a member of a zip that is compressed.
    row: of a parquet file, whose `column` holds photos.
    """

    file: str
    size: int | None = None
    version: str | None = None
    offset: int | None = None
    packed: int | None = None
    row: int | None = None
    column: str | None = None


class LocatedPhoto(str):
    """The name of a photo, with its place, or with the reason why it cannot be read."""

    place: PhotoPlace
    fault: InputError | None

    def __new__(cls, name: str, place: PhotoPlace, fault: InputError | None = None) -> LocatedPhoto:
        """Create one with its place, and the reason why it cannot be read, if there is one."""
        self = super().__new__(cls, name)
        self.place, self.fault = place, fault
        return self

    def __getnewargs__(self) -> tuple[str, PhotoPlace, InputError | None]:  # type: ignore[override]
        return str(self), self.place, self.fault


def of_stored(stored: StoredFile) -> LocatedPhoto:
    """Return the photo that a file in a store is."""
    return LocatedPhoto(stored.uri, PhotoPlace(stored.uri, stored.size, stored.version))


def file_version(about: os.stat_result) -> str:
    """Return the version of a local file."""
    return str(about.st_mtime_ns)


def open_located(name: str, max_bytes: int, open_file: Callable[[str, int], BinaryIO]) -> BinaryIO:
    """Open a photo by its name; `open_file` opens one that is a file. Raises as `read_located`."""
    place = name.place if isinstance(name, LocatedPhoto) and name.fault is None else None
    if place is None or place.offset is not None or place.row is not None or is_remote(place.file):
        return BytesIO(read_located(name, max_bytes))
    file = open_file(place.file, max_bytes)
    about = os.fstat(file.fileno())
    if place.size not in (None, about.st_size) or place.version not in (None, file_version(about)):
        file.close()
        raise changed()
    return file


def read_located(name: str, max_bytes: int) -> bytes:
    """Return the bytes of a photo by its name.

    Raises:
        ImageError: there is none, it is another one now, it is too large, or its file is damaged.
        StoreError: a store refuses access, or does not answer.
    """
    photo = name if isinstance(name, LocatedPhoto) else find_located(name)
    if photo is None:
        raise ImageError("not_found", "there is no such file")
    if photo.fault is not None:
        raise ImageError(photo.fault.code, photo.fault.message)
    place = photo.place
    if place.row is not None:
        return _cell(place)
    if place.size is not None and place.size > max_bytes:
        raise _too_large(place.size, max_bytes)
    try:
        data = _stored_bytes(place, max_bytes) if is_remote(place.file) else _local_bytes(place)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("not_found", "there is no such file") from None
    if place.offset is not None:
        return unpack(data, archive_kind(place.file), place.size or 0, place.packed)
    if len(data) > max_bytes:
        raise _too_large(len(data), max_bytes)
    if place.size not in (None, len(data)):
        raise changed()
    return data


def changed() -> ImageError:
    """Return the error about a file that is not the one that was planned."""
    return ImageError("changed", "the file was changed or replaced since it was listed. List it again")


def _too_large(size: int, max_bytes: int) -> ImageError:
    return ImageError("too_large", f"the photo has {size:,} bytes, more than the {max_bytes:,} allowed")


def _stored_bytes(place: PhotoPlace, max_bytes: int) -> bytes:
    store = open_store(place.file)
    if place.offset is None:
        data, version = store.read_versioned(place.file, max_bytes)
    else:
        data, version = store.read_versioned(place.file, _span(place) - 1, place.offset)
    if place.version is not None and version is not None and version != place.version:
        raise changed()
    return data


def _local_bytes(place: PhotoPlace) -> bytes:
    with open(place.file, "rb") as file:
        if place.version not in (None, file_version(os.fstat(file.fileno()))):
            raise changed()
        file.seek(place.offset or 0)
        return file.read(_span(place))


_ZIP_HEADER_BYTES = 30 + 2 * 65_535  # the most that stands before the bytes of a member


def _span(place: PhotoPlace) -> int:
    """Return how many bytes to read for a member, in a zip with its header."""
    size = (place.size if place.packed is None else place.packed) or 0
    return size + (_ZIP_HEADER_BYTES if archive_kind(place.file) == "zip" else 0)


def find_located(name: str) -> LocatedPhoto | None:
    """Return the photo of this name; None if there is none. An archive is searched from its start."""
    file, mark, _ = name.partition(MEMBER)
    if mark and archive_kind(file) and (is_remote(file) or os.path.isfile(file)):
        return _index(file, _stamp(file)).get(name)
    file, mark, row = name.rpartition(ROW)
    if mark and row.isdecimal() and file.lower().endswith(".parquet"):
        return LocatedPhoto(name, PhotoPlace(file, row=int(row)))
    return LocatedPhoto(name, PhotoPlace(name)) if is_remote(name) else None


def _stamp(file: str) -> str | None:
    if is_remote(file):
        stored = open_store(file).info(file)
        return None if stored is None else stored.version
    return file_version(os.stat(file))


_LOCK = threading.Lock()


def _index(file: str, version: str | None) -> dict[str, LocatedPhoto]:
    with _LOCK:  # not by several threads at once
        return _read_index(file, version)


@lru_cache(maxsize=4)
def _read_index(file: str, version: str | None) -> dict[str, LocatedPhoto]:
    index: dict[str, LocatedPhoto] = {}
    for photo in photos_in(file):
        index.setdefault(str(photo), photo)
    return index


def photos_in(file: str, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[LocatedPhoto]:
    """Yield the members of an archive whose names are `wanted`, in its order, and those with a fault."""
    version = _stamp(file)
    for member in members(file, wanted):
        place = PhotoPlace(file, member.size, version, member.offset, member.packed)
        yield LocatedPhoto(f"{file}{MEMBER}{member.name}" if member.name else file, place, member.fault)


def photos_of(file: str, column: str | None = None) -> Iterator[str]:
    """Yield the photos of a parquet file: the texts of a column, or its rows if it holds encoded photos.

    Raises:
        UsageError, UnavailableError: there is no such column, or the file cannot be read.
    """
    column = usual_column(file, column)
    is_photos, first = holds_photos(column_type(file, column)), 0
    for cells in column_batches(file, column):
        if is_photos:
            rows = range(first, first + len(cells))
            yield from (LocatedPhoto(f"{file}{ROW}{row}", PhotoPlace(file, row=row, column=column)) for row in rows)
            first = rows.stop
        else:
            yield from (text or "" for text in cells.to_pylist())


def _cell(place: PhotoPlace) -> bytes:
    with _LOCK:
        value = _cell_of(place)
    if isinstance(value, dict):  # the Image feature of Hugging Face datasets
        value = value.get("bytes")
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise ImageError("not_an_image", f"the column holds {type(value).__name__}, not an encoded photo")
    return value


def _cell_of(place: PhotoPlace) -> Any:
    groups = row_groups(place.file)
    if place.row is None or place.row >= groups[-1]:
        raise ImageError("not_found", "there is no such row")
    group = row_group_of(groups, place.row)
    cells = _cells(place.file, group, place.column or usual_column(place.file))
    return cells[place.row - groups[group]].as_py()


@lru_cache(maxsize=2)
def _cells(file: str, group: int, column: str) -> Any:
    return read_group(file, group, column)
