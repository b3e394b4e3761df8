"""The manifest of a bulk run: a parquet file with one row per photo, in input order (docs/formats.md)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import IO, Any, BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from dla.errors import DamagedError, InputError, UnavailableError, UsageError, import_optional, pip_line
from dla.images.find import PhotoFinder, read_path_list
from dla.images.located import LocatedPhoto, PhotoPlace, file_version
from dla.images.parquet_photos import column_batches, column_type, holds_photos, usual_column
from dla.storage.files import open_aside
from dla.storage.stores import check_no_secrets, is_remote, open_store
from dla.types import NO_PROGRESS, Progress

MANIFEST_SCHEMA = "dla.bulk.manifest/1"
LISTS = (".txt", ".list")
_ROWS = 65_536  # of a row group, which is what a worker reads at a time
_COLUMNS = ("uri", "size", "version", "file", "offset", "packed", "row", "column", "error_code", "error_message")
_NUMBERS = ("size", "offset", "packed", "row")
_ESCAPED = "file:"


def parquet() -> Any:
    """Import `pyarrow.parquet` and return it.

    Raises:
        UnavailableError: it is not installed.
    """
    return import_optional("pyarrow.parquet", f"dla bulk needs pyarrow: {pip_line('bulk')}")


def to_uri(name: str) -> str:
    """Return a name as text in UTF-8: a file name that is none is escaped, behind "file:"."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return _ESCAPED + quote_from_bytes(os.fsencode(name), safe="/")
    return _ESCAPED + quote_from_bytes(os.fsencode(name), safe="/") if name.startswith(_ESCAPED) else name


def from_uri(uri: str) -> str:
    """Return the name that `to_uri` has made a text of."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix(_ESCAPED))) if uri.startswith(_ESCAPED) else uri


def plan(
    inputs: Iterable[str], output: str, column: str | None = None, lines: Any = None, progress: Progress = NO_PROGRESS
) -> tuple[int, PhotoFinder]:
    """Write the manifest of the photos that the inputs name; return their number, and what was found beside photos.

    Args:
        inputs: what `PhotoFinder` takes, and text files that end in .txt or .list, which list paths or addresses.
        output: a path or an address that ends in .parquet.
        column: the column of parquet inputs that holds the photos.
        lines: the file for "-".
        progress: advanced with each photo.

    Raises:
        UsageError: there are no photos, or an address has secrets; nothing is written.
    """
    inputs = list(inputs)
    for item in inputs:
        check_no_secrets(item)
    finder = PhotoFinder((), (), column)
    progress.start("listing photos")
    with _open_output(output) as file, _Writer(file) as writer:
        for item in inputs:
            for chunk in _chunks(item, finder, lines):
                progress.advance(writer.add(chunk))
        if not writer.count:
            where = ", ".join(inputs)
            raise UsageError(f"nothing to plan: no photos in {where}")
    return writer.count, finder


@contextmanager
def _open_output(output: str) -> Iterator[IO[bytes] | Any]:
    if not is_remote(output):
        with open_aside(output) as file:
            yield file
        return
    import pyarrow as pa

    buffer = pa.BufferOutputStream()
    yield buffer
    open_store(output).write(output, buffer.getvalue().to_pybytes())


def _chunks(item: str, finder: PhotoFinder, lines: Any) -> Iterator[list[str]]:
    """Yield the photos of an input in lists."""
    if item == "-":
        yield from _in_lists(_listed(lines))
    elif item.lower().endswith(LISTS):
        with closing(open_store(item).open(item) if is_remote(item) else _open_list(item)) as file:
            yield from _in_lists(_listed(file))
    elif (cells := _text_column(item, finder.column)) is not None:
        yield from (batch.fill_null("").to_pylist() for batch in cells)
    else:
        finder.inputs = [item]
        yield from _in_lists(iter(finder))


def _listed(file: Any) -> Iterator[str]:
    return filter(None, (line.rstrip("\r\n") for line in read_path_list(file)))


def _text_column(item: str, wanted: str | None) -> Iterator[Any] | None:
    """Return the column of paths of a parquet file in pieces; None if it holds photos, or the input is another one."""
    if not item.lower().endswith(".parquet") or any(c in item for c in "*?["):
        return None
    column = usual_column(item, wanted)
    return None if holds_photos(column_type(item, column)) else column_batches(item, column, _ROWS)


def _open_list(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error


def _in_lists(found: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(islice(found, _ROWS)):
        yield chunk


def manifest_schema() -> Any:
    """Return the columns of a manifest as a pyarrow schema."""
    import pyarrow as pa

    fields = [pa.field(name, pa.int64() if name in _NUMBERS else pa.string()) for name in _COLUMNS]
    fields[0] = fields[0].with_nullable(False)
    return pa.schema(fields, {"schema": MANIFEST_SCHEMA})


class _Writer:
    """Writes photos to a manifest."""

    def __init__(self, file: Any) -> None:
        self.schema, self.count = manifest_schema(), 0
        repeated = ["version", "file", "column", "error_code", "error_message"]
        self.target = parquet().ParquetWriter(file, self.schema, use_dictionary=repeated, **FIXED)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.target.close()

    def add(self, photos: list[str]) -> int:
        """Write a row group; return its number of rows."""
        import pyarrow as pa

        if all(map(_is_unread, photos)):
            uris = pa.array(photos, pa.string())
            columns = [uris, *(pa.nulls(len(photos), field.type) for field in list(self.schema)[1:])]
            table = pa.Table.from_arrays(columns, schema=self.schema)
        else:
            rows = [_row(photo) for photo in photos]
            columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(self.schema)]
            table = pa.Table.from_arrays(columns, schema=self.schema)
        self.target.write_table(table, row_group_size=_ROWS)
        self.count += len(photos)
        return len(photos)


# Equal rows give equal bytes, of the manifest as of the parts: nothing is left to pyarrow's defaults.
FIXED: dict[str, Any] = {"version": "2.6", "data_page_version": "1.0", "compression": "zstd", "compression_level": 3}


def _is_unread(photo: str) -> bool:
    """Return whether nothing is known of a photo but its address; raise a UsageError if that has secrets."""
    if type(photo) is not str or not is_remote(photo):
        return False
    if "@" in photo or "?" in photo:
        check_no_secrets(photo)
    return True


def _row(photo: str) -> tuple[Any, ...]:
    if isinstance(photo, LocatedPhoto):
        place, fault = photo.place, photo.fault
        file = None if place.file == str(photo) else to_uri(place.file)
        code, message = (fault.code, fault.message) if fault else (None, None)
        where = file, place.offset, place.packed, place.row, place.column
        return to_uri(str(photo)), place.size, place.version, *where, code, message
    check_no_secrets(photo)  # of any kind, also one that dla does not read
    if is_remote(photo):
        return photo, *[None] * 9
    try:
        about = os.stat(photo)
    except (OSError, ValueError):  # reading it reports why
        return to_uri(photo), *[None] * 9
    return to_uri(photo), about.st_size, file_version(about), *[None] * 7


@dataclass
class Manifest:
    """A manifest that was planned."""

    uri: str
    _groups: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def _file(self) -> Any:
        import pyarrow as pa

        pq = parquet()
        try:
            file = pq.ParquetFile(open_store(self.uri).open(self.uri) if is_remote(self.uri) else self.uri)
        except FileNotFoundError as error:
            raise UnavailableError(f"{self.uri} does not exist") from error
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{self.uri} is not an intact manifest of dla bulk plan: it is cut off or "
                               "altered") from error  # fmt: skip
        if (file.schema_arrow.metadata or {}).get(b"schema") != MANIFEST_SCHEMA.encode():
            raise UsageError(f"{self.uri} is no manifest. Make one: dla bulk plan PHOTOS... -o photos.parquet")
        return file

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @cached_property
    def sha256(self) -> str:
        """The hash of the file."""
        len(self)  # checks that it is one
        digest = hashlib.sha256()
        with open_store(self.uri).open(self.uri) if is_remote(self.uri) else open(self.uri, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()

    @cached_property
    def _starts(self) -> list[int]:
        meta, starts = self._file.metadata, [0]
        for group in range(meta.num_row_groups):
            starts.append(starts[-1] + meta.row_group(group).num_rows)
        return starts

    def photos(self, start: int, stop: int) -> list[str]:
        """Return the photos of these rows."""
        import pyarrow as pa

        wanted = [g for g, first in enumerate(self._starts[:-1]) if first < stop and self._starts[g + 1] > start]
        for group in self._groups.keys() - set(wanted):
            del self._groups[group]
        for group in wanted:
            if group not in self._groups:
                self._groups[group] = self._file.read_row_group(group)
        if not wanted:
            return []
        table = pa.concat_tables([self._groups[group] for group in wanted])
        rows = table.slice(start - self._starts[wanted[0]], stop - start).to_pydict()
        return [_photo(*cells) for cells in zip(*(rows[name] for name in _COLUMNS), strict=True)]


def _photo(
    uri: str, size: int | None, version: str | None, file: str | None, offset: int | None, packed: int | None,
    row: int | None, column: str | None, code: str | None, message: str | None,
) -> str:  # fmt: skip
    name = from_uri(uri)
    fault = None if code is None else InputError(code, message or "")
    place = PhotoPlace(name if file is None else from_uri(file), size, version, offset, packed, row, column)
    return name if fault is None and place == PhotoPlace(name) else LocatedPhoto(name, place, fault)
