"""Result files read back, whole or cut off anywhere."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dla.errors import InputError, UsageError
from dla.inference.classifier import ClassScore, Prediction
from dla.inference.result_files import PredictionWriter, ResultRecord, read_csv, read_jsonl
from dla.options import ResultFormat

TOPK = 2
CLASSES = (ClassScore(1, 7, "n1", 'a "b", c', 0.75), ClassScore(2, 3, "n2", "d", 0.25))
PREDICTIONS = [
    Prediction("a.jpg", CLASSES),
    Prediction('two\nlines, "quoted"\r\n.jpg', error=InputError("not_found", 'two\nlines: "none"')),
    Prediction("caf\udce9 ü.jpg", CLASSES, truncated=True),
    Prediction("a lone\rreturn\r", CLASSES),
    Prediction("last.jpg", CLASSES[:1]),
]


def written(folder: Path, form: ResultFormat) -> tuple[Path, list[ResultRecord]]:
    """A file of the predictions, and what reading it must give; each record's end is taken while writing."""
    path, expected = folder / f"out.{form}", []
    with (
        open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        PredictionWriter(file, form, TOPK) as writer,
    ):
        for p in PREDICTIONS:
            writer.write(p)
            expected.append(ResultRecord(p.path, p.error.code if p.error else "", path.stat().st_size))
    return path, expected


def read(path: Path, form: ResultFormat) -> list[ResultRecord]:
    with path.open("rb") as file:
        return list(read_csv(file, TOPK) if form == "csv" else read_jsonl(file))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_file_cut_at_any_byte_gives_its_whole_records(form: ResultFormat, tmp_path: Path) -> None:
    path, expected = written(tmp_path, form)
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        assert read(path, form) == [record for record in expected if record.end <= size]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("junk", ["no record\n", '{"schema": "dla.other/1", "path": "a"}\n', "[]\n", 'a "b" c,"d\n'])
def test_what_is_no_record_is_said_and_not_taken_for_a_cut(form: ResultFormat, junk: str, tmp_path: Path) -> None:
    path, _ = written(tmp_path, form)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], junk.encode(), *lines[2:]]))
    with pytest.raises(UsageError, match=r"out\.\w+, line \d+: this is not a record of dla predict"):
        read(path, form)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("junk", [b"[" * 100_000, b'"a.jpg,,,', b"\0"])
def test_a_spoilt_line_is_named(form: ResultFormat, junk: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"out.{form}"
    with path.open("w", newline="") as file, PredictionWriter(file, form, TOPK) as writer:
        for i in range(20):
            writer.write(Prediction(f"{i}.jpg", (ClassScore(1, 7, "n1", "a", 0.75),)))
    lines = path.read_bytes().split(b"\n")
    lines[10] = junk
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(UsageError, match=r"out\.\w+, line 11: this is not a record"):
        read(path, form)


def test_csv_is_what_pythons_reader_reads(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "csv")
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file, strict=True))
    assert [row[0] for row in rows[1:]] == [p.path for p in PREDICTIONS]


def test_csv_of_another_number_of_classes(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "csv")
    with pytest.raises(UsageError, match="line 1"), path.open("rb") as file:
        list(read_csv(file, TOPK + 1))


def test_an_empty_file_has_no_records() -> None:
    assert list(read_jsonl(io.BytesIO())) == list(read_csv(io.BytesIO(), TOPK)) == []
