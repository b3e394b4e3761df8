"""Photos in parquet files: a column of paths or addresses, or of encoded photos."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from dla.errors import DamagedError, UnavailableError, UsageError, import_optional, pip_line
from dla.storage.stores import is_remote, open_store

USUAL_COLUMNS = ("image", "path", "uri", "url", "file_name")


def _opened(file: str) -> Any:
    pq = import_optional("pyarrow.parquet", f"parquet files need pyarrow: {pip_line('bulk')}")
    import pyarrow as pa

    try:
        return pq.ParquetFile(open_store(file).open(file) if is_remote(file) else file)
    except FileNotFoundError as error:
        raise UnavailableError(f"{file} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{file} is not an intact parquet file: it is cut off or altered") from error


def usual_column(file: str, wanted: str | None = None) -> str:
    """Return the column of the photos: the wanted one, or the first of `USUAL_COLUMNS` that is there.

    Raises:
        UsageError: there is none.
    """
    with _opened(file) as opened:
        names = opened.schema_arrow.names
    column = next((name for name in ((wanted,) if wanted else USUAL_COLUMNS) if name in names), None)
    if column is None:
        what = f'no column "{wanted}"' if wanted else "no column image, path, uri, url or file_name"
        raise UsageError(f"{file} has {what}. It has: {', '.join(names)}. Name one with --column")
    return column


def column_batches(file: str, column: str, count: int = 65_536) -> Iterator[Any]:
    """Yield a column in arrays of at most `count` cells.

    Raises:
        UsageError: it holds neither texts nor encoded photos.
    """
    import pyarrow as pa

    with _opened(file) as opened:
        kind = opened.schema_arrow.field(column).type
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_text or holds_photos(kind)):
            raise UsageError(f"{file}: the column {column} holds {kind}. Allowed: paths, addresses or encoded photos")
        for batch in opened.iter_batches(batch_size=count, columns=[column]):
            yield batch.column(0)


def holds_photos(kind: Any) -> bool:
    """Return whether a column of this type holds encoded photos."""
    import pyarrow as pa

    return any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_struct))


def column_type(file: str, column: str) -> Any:
    """Return the type of a column."""
    with _opened(file) as opened:
        return opened.schema_arrow.field(column).type


@lru_cache(maxsize=16)
def row_groups(file: str) -> list[int]:
    """Return the first rows of the row groups and, at the end, the number of rows."""
    with _opened(file) as opened:
        meta = opened.metadata
        counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def row_group_of(starts: list[int], row: int) -> int:
    """Return the row group of a row."""
    return bisect.bisect_right(starts, row) - 1


def read_group(file: str, group: int, column: str) -> Any:
    """Return a column of one row group."""
    with _opened(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(0)
