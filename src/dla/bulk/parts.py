"""The files of a bulk run: one parquet file per shard, from records and back to records.

The same records give the same bytes: no time, host or chance is in a part.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from dla.bulk.manifest import FIXED, from_uri, parquet, to_uri
from dla.errors import DamagedError, InputError
from dla.inference.classifier import ClassScore, Features, Prediction
from dla.storage.files import JsonObject, parse_object
from dla.types import Array

PART_SCHEMA = "dla.bulk.part/1"
R = TypeVar("R")


class PartFormat(ABC, Generic[R]):
    """How the records of a command stand in a part, beside row, path, error_code, error_message and truncated."""

    @abstractmethod
    def fields(self) -> list[Any]:
        """Return the columns."""

    @abstractmethod
    def cells(self, record: R) -> tuple[Any, ...]:
        """Return the cells of a record without an error."""

    @abstractmethod
    def record(self, path: str, cells: Sequence[Any] | None, error: InputError | None, truncated: bool) -> R:
        """Return the record that has these cells; None: it has an error."""

    def array(self, field: Any, cells: list[Any]) -> Any:
        """Return a column."""
        import pyarrow as pa

        return pa.array(cells, field.type)

    def values(self, name: str, column: Any) -> Any:
        """Return the cells of a column that was read."""
        return column.to_pylist()

    def schema(self) -> Any:
        """Return all columns as a pyarrow schema."""
        import pyarrow as pa

        first = [pa.field("row", pa.int64(), nullable=False), pa.field("path", pa.string(), nullable=False)]
        first += [pa.field("error_code", pa.string()), pa.field("error_message", pa.string())]
        return pa.schema([*first, pa.field("truncated", pa.bool_(), nullable=False), *self.fields()])


class PredictionPart(PartFormat[Prediction]):
    """Predictions: a list of classes."""

    def fields(self) -> list[Any]:
        """Return the columns."""
        import pyarrow as pa

        kinds = {"rank": pa.int32(), "index": pa.int32(), "class_id": pa.string(), "label": pa.string()}
        one = pa.struct([*kinds.items(), ("probability", pa.float64())])
        return [pa.field("predictions", pa.list_(one))]

    def cells(self, record: Prediction) -> tuple[Any, ...]:
        """Return the cells of a record."""
        return (record.to_dict()["predictions"],)

    def record(self, path: str, cells: Sequence[Any] | None, error: InputError | None, truncated: bool) -> Prediction:
        """Return the record of a row."""
        return Prediction(path, tuple(ClassScore(**c) for c in cells[0]) if cells else (), error, truncated)


@dataclass
class FeaturesPart(PartFormat[Features]):
    """Features: a list of a fixed number of floats, in float32, or in float16 where `half`."""

    shape: tuple[int, ...]
    half: bool = False

    def fields(self) -> list[Any]:
        """Return the columns."""
        import pyarrow as pa

        kind = pa.list_(pa.float16() if self.half else pa.float32(), int(np.prod(self.shape)))
        return [pa.field("features", kind, metadata={"shape": json.dumps(self.shape)})]

    def cells(self, record: Features) -> tuple[Any, ...]:
        """Return the cells of a record."""
        assert record.values is not None
        return (record.values.ravel(),)

    def array(self, field: Any, cells: list[Any]) -> Any:
        """Return a column."""
        import pyarrow as pa

        if field.name != "features":
            return super().array(field, cells)
        size = int(np.prod(self.shape))
        values_RC = np.zeros((len(cells), size), np.float16 if self.half else np.float32)
        for row, cell in enumerate(cells):
            if cell is not None:
                values_RC[row] = cell
        missing = pa.array(np.array([cell is None for cell in cells], bool))
        return pa.FixedSizeListArray.from_arrays(pa.array(values_RC.ravel()), size, mask=missing)

    def values(self, name: str, column: Any) -> Any:
        """Return the cells of a column that was read; features as the rows of an array."""
        if name != "features":
            return super().values(name, column)
        flat = [chunk.values.slice(chunk.offset * chunk.type.list_size, len(chunk) * chunk.type.list_size)
                for chunk in column.chunks]  # fmt: skip
        values = [part.to_numpy(zero_copy_only=False).astype(np.float32) for part in flat]
        return np.concatenate(values).reshape(len(column), -1)

    def record(self, path: str, cells: Sequence[Any] | None, error: InputError | None, truncated: bool) -> Features:
        """Return the record of a row."""
        values = None if cells is None else np.asarray(cells[0], np.float32).reshape(self.shape)
        return Features(path, values, error, truncated)


class MaskPart(PartFormat[Any]):
    """Masks: the classes of each photo, and its mask as the bytes of a PNG."""

    def fields(self) -> list[Any]:
        """Return the columns."""
        import pyarrow as pa

        one = [("index", pa.int32()), ("class_id", pa.string()), ("label", pa.string()), ("pixels", pa.int64())]
        classes = pa.list_(pa.struct([*one, ("share", pa.float64()), ("box", pa.list_(pa.int32(), 4))]))
        return [pa.field("classes", classes), pa.field("mask", pa.binary())]

    def cells(self, record: Any) -> tuple[Any, ...]:
        """Return the cells of a record."""
        from dla.inference.segment_files import mask_png  # here, because most runs predict

        return record.to_dict()["classes"], mask_png(record.mask, record.palette)

    def record(self, path: str, cells: Sequence[Any] | None, error: InputError | None, truncated: bool) -> Any:
        """Return the record of a row."""
        from dla.inference.segmenter import ClassArea, Segmentation

        if cells is None:
            return Segmentation(path, error=error)
        areas = tuple(ClassArea(**c | {"box": tuple(c["box"])}) for c in cells[0])
        mask_HW, palette = _decoded(cells[1])
        return Segmentation(path, mask_HW, areas, palette=palette, truncated=truncated)


class BoundaryPart(PartFormat[Any]):
    """Boundaries: the threshold, and the probabilities as the bytes of a PNG."""

    def fields(self) -> list[Any]:
        """Return the columns."""
        import pyarrow as pa

        return [pa.field("threshold", pa.float64()), pa.field("share", pa.float64()), pa.field("edges", pa.binary())]

    def cells(self, record: Any) -> tuple[Any, ...]:
        """Return the cells of a record."""
        from dla.inference.segment_files import encoded_png  # here, because most runs predict

        return record.threshold, record.to_dict()["share"], encoded_png(Image.fromarray(record.probability))

    def record(self, path: str, cells: Sequence[Any] | None, error: InputError | None, truncated: bool) -> Any:
        """Return the record of a row."""
        from dla.inference.edge_detector import Boundaries

        if cells is None:
            return Boundaries(path, error=error)
        return Boundaries(path, _decoded(cells[2])[0], cells[0], truncated=truncated)


def _decoded(png: bytes) -> tuple[Array, tuple[tuple[int, ...], ...]]:
    """Return the values and the palette of a PNG that this module wrote."""
    with Image.open(io.BytesIO(png)) as image:
        values_HW = np.asarray(image)
        levels = image.getpalette() or []
    return values_HW, tuple(tuple(levels[i : i + 3]) for i in range(0, len(levels), 3))


def part_format(command: str, settings: dict[str, Any]) -> PartFormat[Any]:
    """Return the format of a command's parts; `settings` are those of the run."""
    if command == "features":
        return FeaturesPart(tuple(settings["shape"]), settings["half"])
    formats: dict[str, type[PartFormat[Any]]] = {"predict": PredictionPart, "segment": MaskPart, "edges": BoundaryPart}
    return formats[command]()


def part_name(number: int) -> str:
    """Return the name of a shard's file."""
    return f"part-{number:06}.parquet"


@dataclass
class PartWriter:
    """Collects the records of a shard and encodes them; `first` is the row of its first photo."""

    format: PartFormat[Any]
    first: int
    errors: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.schema = self.format.schema()
        self.columns: list[list[Any]] = [[] for _ in self.schema]
        self.empty = (None,) * (len(self.columns) - 5)

    def add(self, record: Any) -> None:
        """Add the record of the next row."""
        error = record.error
        code, message = (error.code, error.message) if error else (None, None)
        if code is not None:
            self.errors[code] += 1
        first = self.first + len(self.columns[0]), to_uri(record.path), code, message and _utf8(message)
        cells = self.empty if error else self.format.cells(record)
        for column, cell in zip(self.columns, (*first, record.truncated, *cells), strict=True):
            column.append(cell)

    def encoded(self, run_sha256: str, about: dict[str, str]) -> bytes:
        """Return the file."""
        import pyarrow as pa

        metadata = {"schema": PART_SCHEMA, "run_sha256": run_sha256, "errors": json.dumps(self.errors, sort_keys=True)}
        arrays = [self.format.array(f, cells) for f, cells in zip(self.schema, self.columns, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=self.schema.with_metadata(metadata | about))
        buffer = pa.BufferOutputStream()
        dictionary = ["error_code", "predictions.list.element.class_id", "predictions.list.element.label"]
        with parquet().ParquetWriter(buffer, table.schema, use_dictionary=dictionary, **FIXED) as target:
            target.write_table(table, row_group_size=max(1, len(table)))
        return bytes(buffer.getvalue())


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass
class Part:
    """A part that was read: what its metadata says, and its columns."""

    where: str
    metadata: dict[str, str]
    table: Any

    @property
    def errors(self) -> Counter[str]:
        """The number of errors by code."""
        return Counter(parse_object(self.metadata.get("errors", "{}").encode(), self.where))

    def records(self, format: PartFormat[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the rows and their records."""
        columns = {name: format.values(name, self.table[name]) for name in self.table.schema.names}
        names = [f.name for f in format.schema()][5:]
        for i, row in enumerate(columns["row"]):
            code = columns["error_code"][i]
            error = None if code is None else InputError(code, columns["error_message"][i] or "")
            cells = None if error else [columns[name][i] for name in names]
            yield row, format.record(from_uri(columns["path"][i]), cells, error, columns["truncated"][i])


def read_part(source: Any, where: str, *, metadata_only: bool = False) -> Part:
    """Read a part from its path or an open file; `where` names it in messages.

    Raises:
        DamagedError: it is none, or altered.
        FileNotFoundError: it is not there.
    """
    import pyarrow as pa

    try:
        with parquet().ParquetFile(source) as file:
            metadata = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
            table = None if metadata_only else file.read()
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{where} is not an intact part of a bulk run. Remove it and run the command again"
        ) from error
    JsonObject(metadata, where).get("schema", str, PART_SCHEMA, lambda schema: schema == PART_SCHEMA)
    return Part(where, metadata, table)
