"""Records as text: a table for people, JSON, JSON lines or CSV for programs. Written whole, one at a time."""

from __future__ import annotations

import csv
import io
import json
from typing import Literal, TextIO, get_args

from dla.records import Prediction

__all__ = ["FORMATS", "Format", "PredictionWriter"]

Format = Literal["table", "json", "jsonl", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)


class PredictionWriter:
    """Writes each prediction to `file` as it comes. Leaving the `with` block completes the file (JSON's bracket).

    In CSV a photo is a row: path, error code and message, then index, class id, label and probability by rank.
    """

    def __init__(self, file: TextIO, form: Format, topk: int) -> None:
        self.file, self.form, self.topk = file, form, topk
        self.count = 0

    def __enter__(self) -> PredictionWriter:
        self.file.write({"json": "[", "csv": self._csv_head()}.get(self.form, ""))
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

    def _csv_head(self) -> str:
        columns = ["path", "error_code", "error_message", "truncated"]
        for rank in range(1, self.topk + 1):
            columns += [f"{name}_{rank}" for name in ("index", "class_id", "label", "probability")]
        return _csv_line(columns)

    def _csv_row(self, prediction: Prediction) -> str:
        error = prediction.error
        row: list[object] = [prediction.path, error.code if error else "", error.message if error else ""]
        row.append("true" if prediction.truncated else "")
        for c in prediction.classes:
            row += [c.index, c.class_id, c.label, c.probability]
        return _csv_line(row + [""] * (4 + 4 * self.topk - len(row)))


def _csv_line(cells: list[object] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


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
