"""Functions of columns, for programs that distribute work themselves: Ray Data, Daft, Spark, multiprocessing.

Each takes a batch of columns, a mapping or a table of pyarrow, and returns it with more columns and the same number of
rows; what is wrong with a photo stands in `error_code` and `error_message`. They can be pickled, and load their network
at the first call, in the process that needs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dla.errors import UsageError
from dla.inference.classifier import load
from dla.models.registry import PRE_LOGITS
from dla.options import BatchOptions, BulkBatchOptions, BulkEngineOptions, DenseOptions, PredictOptions, ReadOptions
from dla.types import DEFAULT_EDGE_DETECTOR, DEFAULT_MODEL, DEFAULT_SEGMENTER

_COLUMNS = ("bytes", "path")  # of encoded photos, or of paths and addresses


class PhotoColumns(ABC):
    """Base of the functions below.

    Args:
        model: the network's name or path.
        column: the column of encoded photos, paths or addresses; None: "bytes" if there is one, else "path".
        workers: threads that read photos.
        load_options: keyword arguments of `dla.load`; `threads` is 1 by default.
        read_options: `allow_truncated`, `max_pixels` and `max_bytes`, as for `Classifier.predict`.
    """

    task: str | None

    def __init__(
        self,
        model: str,
        *,
        column: str | None = None,
        workers: int | None = BulkBatchOptions.workers,
        load_options: Mapping[str, Any] | None = None,
        read_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.column = model, column
        self.load_options = {"threads": BulkEngineOptions.threads, **(load_options or {})}
        self.options = {"workers": workers, **(read_options or {})}
        if unknown := sorted((read_options or {}).keys() - ReadOptions.__dataclass_fields__.keys()):
            raise UsageError(f"read_options has {unknown[0]}. Allowed: allow_truncated, max_pixels, max_bytes")
        self.network: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"network": None}

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the columns of the results.

        Raises:
            UsageError: it has no column of photos, or an option is out of range.
            UnavailableError, DamagedError: as `dla.load`.
        """
        if self.network is None:
            self.network = load(self.model, task=self.task, **self.load_options)
        is_table = hasattr(batch, "schema")
        names = batch.schema.names if is_table else list(batch)
        column = next((name for name in ((self.column,) if self.column else _COLUMNS) if name in names), None)
        if column is None:
            raise UsageError(f"the batch has no column {self.column or 'bytes or path'}. It has: {', '.join(names)}")
        photos = batch.column(column).to_pylist() if is_table else list(batch[column])
        # a missing one is a photo that cannot be read; NumPy's strings are Python's
        found = self._records([b"" if photo is None else photo for photo in photos])
        errors = [record.error for record in found]
        added = self._columns(found) | {
            "error_code": [None if error is None else error.code for error in errors],
            "error_message": [None if error is None else error.message for error in errors],
        }
        return _with_columns(batch, added) if is_table else {**batch, **added}

    @abstractmethod
    def _records(self, photos: Sequence[Any]) -> list[Any]:
        """Return the records of photos."""

    @abstractmethod
    def _columns(self, records: list[Any]) -> dict[str, Any]:
        """Return the columns of records; those with an error have empty cells."""


def _with_columns(table: Any, added: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    columns = {name: table.column(name) for name in table.schema.names}
    for name, cells in added.items():
        if isinstance(cells, np.ndarray):
            kind = pa.list_(pa.float32(), cells[0].size if len(cells) else 1)
            missing = [None if code is not None else cell.ravel() for cell, code in
                       zip(cells, added["error_code"], strict=True)]  # fmt: skip
            columns[name] = pa.array(missing, kind)
        else:
            columns[name] = pa.array(cells, _kind(name))
    return type(table).from_pydict(columns)


def _kind(name: str) -> Any:
    """Return the type of a column, which must not depend on the rows of a batch."""
    import pyarrow as pa

    kinds = {"class_ids": pa.list_(pa.string()), "labels": pa.list_(pa.string())}
    kinds |= {"probabilities": pa.list_(pa.float64()), "shares": pa.list_(pa.float64())}
    kinds |= {"mask": pa.binary(), "edges": pa.binary(), "share": pa.float64()}
    return kinds.get(name, pa.string())


class PredictColumns(PhotoColumns):
    """Adds the columns `class_ids`, `labels` and `probabilities`: lists of the `topk` most probable classes.

    `batch_size` photos are computed at once.
    """

    task = "classify"

    def __init__(
        self, model: str = DEFAULT_MODEL, topk: int = PredictOptions.topk, batch_size: int = BatchOptions.batch_size,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(model, **options)
        self.topk, self.options["batch_size"] = topk, batch_size

    def _records(self, photos: Sequence[Any]) -> list[Any]:
        return list(self.network.predict(photos, self.topk, **self.options))

    def _columns(self, records: list[Any]) -> dict[str, Any]:
        return {
            "class_ids": [[c.class_id for c in record.classes] for record in records],
            "labels": [[c.label for c in record.classes] for record in records],
            "probabilities": [[c.probability for c in record.classes] for record in records],
        }


class FeatureColumns(PhotoColumns):
    """Adds the column `features`, float32 (N, C) or (N, C, H, W), at a feature node; NaN where there is an error.

    In a table of pyarrow it is a list of fixed length, null where there is an error.
    """

    task = None

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        at: str = PRE_LOGITS,
        batch_size: int = BatchOptions.batch_size,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.at, self.options["batch_size"] = at, batch_size

    def _records(self, photos: Sequence[Any]) -> list[Any]:
        return list(self.network.features(photos, self.at, **self.options))

    def _columns(self, records: list[Any]) -> dict[str, Any]:
        values = np.full((len(records), *self.network.features_shape(self.at)), np.nan, np.float32)
        for row, record in enumerate(records):
            if record.values is not None:
                values[row] = record.values
        return {"features": values}


class _DenseColumns(PhotoColumns):
    """Base of the functions of dense networks; `size` and `tile` are those of `Segmenter`."""

    def __init__(
        self, model: str, size: int | str = DenseOptions.size, tile: int = DenseOptions.tile, **options: Any
    ) -> None:
        super().__init__(model, **options)
        self.options |= {"size": size, "tile": tile}

    def _records(self, photos: Sequence[Any]) -> list[Any]:
        return list(self.network(photos, **self.options))


class SegmentColumns(_DenseColumns):
    """Adds the columns `class_ids` and `shares`, lists of the classes of each photo, and `mask`, the bytes of a PNG."""

    task = "segment"

    def __init__(self, model: str = DEFAULT_SEGMENTER, **options: Any) -> None:
        super().__init__(model, **options)

    def _columns(self, records: list[Any]) -> dict[str, Any]:
        from dla.inference.segment_files import mask_png  # here, because most networks classify

        return {
            "class_ids": [[area.class_id for area in record.classes] for record in records],
            "shares": [[area.share for area in record.classes] for record in records],
            "mask": [None if r.mask is None else mask_png(r.mask, r.palette) for r in records],
        }


class EdgeColumns(_DenseColumns):
    """Adds the column `share`, of the pixels on a boundary, and `edges`, the probabilities as the bytes of a PNG."""

    task = "edges"

    def __init__(self, model: str = DEFAULT_EDGE_DETECTOR, threshold: float | None = None, **options: Any) -> None:
        super().__init__(model, **options)
        self.options["threshold"] = threshold

    def _columns(self, records: list[Any]) -> dict[str, Any]:
        from dla.inference.segment_files import encoded_png

        maps = [record.probability for record in records]
        return {
            "share": [None if m is None else r.to_dict()["share"] for m, r in zip(maps, records, strict=True)],
            "edges": [None if m is None else encoded_png(Image.fromarray(m)) for m in maps],
        }


Predict, Features, Segment, Edges = PredictColumns, FeatureColumns, SegmentColumns, EdgeColumns
