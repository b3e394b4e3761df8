"""Write features to NumPy .npz or .parquet files, one row per input (docs/formats.md).

Rows are written as they come and never all held in memory. The file appears under its name when it is complete; an
interrupted run leaves none.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

import numpy as np

from dla.errors import UsageError, import_optional, pip_line
from dla.inference.classifier import Features
from dla.storage.files import open_aside

FEATURES_SCHEMA = "dla.features/1"


ROW_GROUP_BYTES = 1 << 20


class FeatureWriter(Protocol):
    """A writer of feature records."""

    def write(self, features: Features) -> None:
        """Write one record."""
        ...


def check_output(output: str) -> None:
    """Check that a file with this extension can be written.

    Raises:
        UsageError: the extension is neither .npz nor .parquet.
        UnavailableError: pyarrow is not installed, which .parquet needs.
    """
    if _ending(output) not in _WRITERS:
        raise UsageError(f"--output is {output}. Allowed: a file that ends in .npz or .parquet")
    if _ending(output) == ".parquet":
        import_optional("pyarrow.parquet", f"parquet files need pyarrow: {pip_line('train')}")


@contextmanager
def open_features(output: str, shape: tuple[int, ...], about: dict[str, str]) -> Iterator[FeatureWriter]:
    """Open a writer of `output`, which is created when the `with` block ends without an error.

    Args:
        output: a path that ends in .npz or .parquet.
        shape: the shape of one photo's features.
        about: further metadata to store, such as the model.

    Raises:
        UsageError, UnavailableError: as `check_output`.
        OSError: the file cannot be written, or the disk is full.
    """
    check_output(output)
    about = {"schema": FEATURES_SCHEMA, **about}
    with open_aside(output) as file, _WRITERS[_ending(output)](file, shape, about) as writer:
        yield writer


@contextmanager
def _npz(file: IO[bytes], shape: tuple[int, ...], about: dict[str, str]) -> Iterator[FeatureWriter]:
    """Hold values and texts in unnamed temporary files until the number of rows, which the header needs, is known."""
    folder = os.path.dirname(os.path.abspath(file.name))
    with tempfile.TemporaryFile(dir=folder) as values, tempfile.TemporaryFile(dir=folder) as texts:
        writer = _Npz(file, values, texts, shape)
        yield writer
        writer.finish(about)


@contextmanager
def _parquet(file: IO[bytes], shape: tuple[int, ...], about: dict[str, str]) -> Iterator[FeatureWriter]:
    """Write a row group per megabyte."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        pa.field("path", pa.string(), nullable=False),
        pa.field("features", pa.list_(pa.float32(), math.prod(shape))),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
    metadata = {name: _utf8(text) for name, text in about.items()} | {"shape": json.dumps(shape).encode()}
    with pq.ParquetWriter(file, pa.schema(fields, metadata), use_dictionary=["error_code"]) as target:
        writer = _Parquet(target, math.prod(shape))
        yield writer
        writer.finish()


_WRITERS = {".npz": _npz, ".parquet": _parquet}


def _ending(output: str) -> str:
    return os.path.splitext(output)[1].lower()


class _Npz:
    def __init__(self, file: IO[bytes], values: IO[bytes], texts: IO[bytes], shape: tuple[int, ...]) -> None:
        self.file, self.values, self.texts, self.shape = file, values, texts, shape
        self.count = 0
        self.missing = np.full(shape, np.nan, "<f4").tobytes()
        self.widths = dict.fromkeys(("path", "error_code", "error_message"), 1)

    def write(self, features: Features) -> None:
        self.values.write(self.missing if features.values is None else features.values.astype("<f4").tobytes())
        row = _texts(features)
        for name in self.widths:
            self.widths[name] = max(self.widths[name], len(row[name] or ""))
        self.texts.write(json.dumps(row | {"truncated": features.truncated}).encode() + b"\n")
        self.count += 1

    def finish(self, about: dict[str, str]) -> None:
        with zipfile.ZipFile(self.file, "w") as archive:
            for name, text in about.items():
                _add(archive, name, f"<U{len(text)}", (), [_utf32(text, len(text))])
            for name, width in self.widths.items():
                cells = (_utf32(row[name] or "", width) for row in self._rows())
                _add(archive, name, f"<U{width}", (self.count,), cells)
            _add(archive, "truncated", "|b1", (self.count,), (bytes([row["truncated"]]) for row in self._rows()))
            self.values.seek(0)
            _add(archive, "features", "<f4", (self.count, *self.shape), iter(lambda: self.values.read(1 << 20), b""))

    def _rows(self) -> Iterator[dict[str, Any]]:
        self.texts.seek(0)
        return map(json.loads, self.texts)


def _utf32(text: str, width: int) -> bytes:
    """Encode a cell of a NumPy array of strings."""
    return text.encode("utf-32-le", "surrogatepass").ljust(4 * width, b"\0")


def _add(archive: zipfile.ZipFile, name: str, descr: str, shape: tuple[int, ...], data: Iterable[bytes]) -> None:
    """Add an array to the archive from pieces of its bytes. Strings, which are padded, are compressed."""
    entry = zipfile.ZipInfo(f"{name}.npy")  # without a time, so that equal features give equal files
    entry.compress_type = zipfile.ZIP_STORED if descr == "<f4" else zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for piece in data:
            file.write(piece)


class _Parquet:
    def __init__(self, target: Any, size: int) -> None:
        self.target = target
        self.values_RC = np.zeros((max(1, ROW_GROUP_BYTES // (4 * size)), size), np.float32)
        self.rows: list[dict[str, Any]] = []

    def write(self, features: Features) -> None:
        if features.values is not None:
            self.values_RC[len(self.rows)] = features.values.ravel()
        texts = {name: text and _utf8(text) for name, text in _texts(features).items()}
        self.rows.append(texts | {"features": features.values is not None, "truncated": features.truncated})
        if len(self.rows) == len(self.values_RC):
            self.finish()

    def finish(self) -> None:
        """Write the buffered rows as a row group."""
        import pyarrow as pa

        if not self.rows:
            return
        columns: dict[str, Any] = {name: [row[name] for row in self.rows] for name in self.target.schema.names}
        flat, missing = self.values_RC[: len(self.rows)].ravel(), ~np.array(columns["features"])
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, self.values_RC.shape[1], mask=pa.array(missing))
        self.target.write_table(pa.table(columns, self.target.schema))
        self.rows.clear()


def _utf8(text: str) -> bytes:
    """Encode a path or text; bytes of a file name that are not valid UTF-8 become \\udcxx."""
    return text.encode("utf-8", "backslashreplace")


def _texts(features: Features) -> dict[str, str | None]:
    code, message = (None, None) if features.error is None else (features.error.code, features.error.message)
    return {"path": features.path, "error_code": code, "error_message": message}
