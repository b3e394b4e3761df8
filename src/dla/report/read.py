"""Records of `dla predict` read back from the file that a stopped run left behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dla.errors import UsageError
from dla.records import PREDICT_SCHEMA
from dla.report.write import csv_columns

__all__ = ["Record", "read_csv", "read_jsonl"]


@dataclass(frozen=True, slots=True)
class Record:
    """What of a record tells where a run stopped; the bytes of the file up to `end` hold it and those before it."""

    path: str
    failed: bool
    end: int


def read_jsonl(file: BinaryIO) -> Iterator[Record]:
    """The whole records of a file of JSON lines; a last one that was not finished is left out.

    Raises:
        UsageError: a line is no record.
    """
    end = 0
    for number, line in enumerate(_whole_lines(file), 1):
        end += len(line)
        try:
            found = json.loads(line)
            known = found["schema"] == PREDICT_SCHEMA
            record = Record(found["path"], "error" in found, end)
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise _no_record(file, number)
        yield record


def read_csv(file: BinaryIO, topk: int) -> Iterator[Record]:
    """The same for CSV with `topk` classes a row. A name may hold line ends, so that a record may span lines."""
    columns = csv_columns(topk)
    end, number = 0, 1
    begun: list[bytes] = []  # the lines of the record that comes next, which begins at line `number`

    def lines() -> Iterator[str]:
        nonlocal end
        for line in _whole_lines(file):
            end += len(line)
            begun.append(line)
            yield line.decode("utf-8", "surrogateescape")

    rows = csv.reader(lines(), strict=True)
    try:
        for row in rows:
            if len(row) != len(columns) or (number == 1 and row != columns):
                raise _no_record(file, number)
            if number > 1:
                yield Record(row[0], row[1] != "", end)
            number += len(begun)
            begun.clear()
    except csv.Error:
        # a quoted cell without an end: the last record was not finished, unless there are whole ones in that cell
        if file.read(1) or any(line.count(b",") >= len(columns) - 1 for line in begun[1:]):
            raise _no_record(file, number) from None


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _no_record(file: BinaryIO, line: int) -> UsageError:
    return UsageError(
        f"{file.name}, line {line}: this is no record of dla predict. Give another --output, or leave --resume out"
    )
