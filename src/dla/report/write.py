"""Records as text: a table for people, JSON, JSON lines or CSV for programs. Written whole, one at a time."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO, get_args

from dla.records import Prediction

__all__ = ["FORMATS", "RESUMABLE", "Format", "PredictionWriter", "csv_columns", "naming", "write_file"]

Format = Literal["table", "json", "jsonl", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
RESUMABLE: tuple[Format, ...] = ("jsonl", "csv")  # a stopped run's records can be read back


class PredictionWriter:
    """Writes each prediction to `file` as it comes. Leaving the `with` block completes the file (JSON's bracket).

    In CSV a photo is a row: path, error code and message, then index, class id, label and probability by rank.
    With `goes_on` the file has its beginning already.
    """

    def __init__(self, file: TextIO, form: Format, topk: int, *, goes_on: bool = False) -> None:
        self.file, self.form, self.topk = file, form, topk
        self.goes_on = goes_on
        self.count = 0

    def __enter__(self) -> PredictionWriter:
        if not self.goes_on:
            self.file.write({"json": "[", "csv": _csv_line(csv_columns(self.topk))}.get(self.form, ""))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.form == "json":
            self.file.write("\n]\n" if self.count else "]\n")
        self.file.flush()

    def write(self, prediction: Prediction) -> None:
        """Write one record and hand it to the operating system."""
        if self.form == "json":
            text = (",\n" if self.count else "\n") + json.dumps(prediction.to_dict())
        elif self.form == "jsonl":
            text = json.dumps(prediction.to_dict()) + "\n"
        elif self.form == "csv":
            text = self._csv_row(prediction)
        else:
            text = _table(prediction)
        self.file.write(text)
        self.file.flush()
        self.count += 1

    def _csv_row(self, prediction: Prediction) -> str:
        error = prediction.error
        row: list[object] = [prediction.path, error.code if error else "", error.message if error else ""]
        row.append("true" if prediction.truncated else "")
        for c in prediction.classes:
            row += [c.index, c.class_id, c.label, c.probability]
        return _csv_line(row + [""] * (4 + 4 * self.topk - len(row)))


def csv_columns(topk: int) -> list[str]:
    """The names in the first row of a CSV file."""
    columns = ["path", "error_code", "error_message", "truncated"]
    for rank in range(1, topk + 1):
        columns += [f"{name}_{rank}" for name in ("index", "class_id", "label", "probability")]
    return columns


def _csv_line(cells: list[object] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its own line end, "\r\n", it quotes a cell with any part of that
    return line.getvalue().removesuffix("\r\n") + "\n"


@contextmanager
def naming(path: str | os.PathLike[str], aside: str | None = None) -> Iterator[None]:
    """Have errors of the disk name `path` where they name no file, as when it is full, or the one written aside."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, aside):
            error.filename = os.fspath(path)
        raise


def _table(prediction: Prediction) -> str:
    lines = [prediction.path]
    if prediction.error is not None:
        lines.append(f"  no answer: {prediction.error.code}")
    if prediction.truncated:
        lines.append("  the file ends early; this is what is there:")
    width = max((len(c.label) for c in prediction.classes), default=0)
    for c in prediction.classes:
        tail = f"   {c.class_id}" if c.class_id != c.label else ""
        lines.append(f"{c.probability:7.1%}  {c.label:<{width if tail else 0}}{tail}".replace("%", " %", 1))
    return "\n".join(lines) + "\n"


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write it whole, or leave what was there; into a pipe or a device directly.

    Raises:
        OSError: of the disk, with the path in the user's words.
    """
    from dla.weights.folder import write_files

    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        place.write_bytes(data)
        return
    with naming(path, f"{place}.part"):
        write_files({place: data})
