"""Records as text: a table for people, JSON, JSON lines or CSV for programs. Written whole, one at a time."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dla.engines.select import TITLES
from dla.errors import UnavailableError, UsageError
from dla.inference.classifier import PREDICT_SCHEMA, Classifier, Prediction
from dla.inference.pipeline import in_batches
from dla.options import ResultFormat
from dla.storage.files import JsonObject, errors_name, read_json, write_files

__all__ = [
    "RESUMABLE",
    "FinishedResults",
    "PredictionWriter",
    "ResultRecord",
    "csv_columns",
    "engine_of",
    "open_results",
    "read_csv",
    "read_jsonl",
]


RESUMABLE: tuple[ResultFormat, ...] = ("jsonl", "csv")  # a stopped run's records can be read back


class PredictionWriter:
    """Writes each prediction to `file` as it comes. Leaving the `with` block completes the file (JSON's bracket).

    In CSV a photo is a row: path, error code and message, then index, class id, label and probability by rank.
    With `goes_on` the file has its beginning already.
    """

    def __init__(self, file: TextIO, format: ResultFormat, topk: int, *, goes_on: bool = False) -> None:
        self.file, self.format, self.topk = file, format, topk
        self.goes_on = goes_on
        self.count = 0

    def __enter__(self) -> PredictionWriter:
        if not self.goes_on:
            self.file.write({"json": "[", "csv": _csv_line(csv_columns(self.topk))}.get(self.format, ""))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.format == "json":
            self.file.write("\n]\n" if self.count else "]\n")
        self.file.flush()

    def write(self, prediction: Prediction) -> None:
        """Write one record and hand it to the operating system."""
        if self.format == "json":
            text = (",\n" if self.count else "\n") + json.dumps(prediction.to_dict())
        elif self.format == "jsonl":
            text = json.dumps(prediction.to_dict()) + "\n"
        elif self.format == "csv":
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


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """What of a record tells where a run stopped; the bytes of the file up to `end` hold it and those before it."""

    path: str
    failed: bool
    end: int


def read_jsonl(file: BinaryIO) -> Iterator[ResultRecord]:
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
            record = ResultRecord(found["path"], "error" in found, end)
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise _no_record(file, number)
        yield record


def read_csv(file: BinaryIO, topk: int) -> Iterator[ResultRecord]:
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
                yield ResultRecord(row[0], row[1] != "", end)
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


RUN_SCHEMA = "dla.predict.run/1"


@dataclass(frozen=True, slots=True)
class FinishedResults:
    """What a result file holds already: its records, how many of them are errors, and their bytes."""

    count: int = 0
    failed: int = 0
    size: int = 0


def engine_of(output: str) -> str:
    """The engine that answered what a result file holds already; "auto" where nothing says so."""
    name = ""
    with suppress(UnavailableError):
        run = JsonObject(read_json(_run_file(output)), output)
        name = run.object("model").get("engine", str, "an engine")
    return next((engine for engine, title in TITLES.items() if name.startswith(title)), "auto")


@contextmanager
def open_results(
    output: str,
    format: ResultFormat,
    classifier: Classifier,
    settings: Mapping[str, Any],
    inputs: Iterator[str],
    *,
    resume: bool,
) -> Iterator[tuple[TextIO, FinishedResults, Iterator[str]]]:
    """The file to write records to, what it holds already, and the inputs that have no record in it yet.

    Args:
        settings: what the records depend on; `topk` and `batch_size` are among them.
        resume: keep the records of an earlier run with the same model, settings and inputs; else begin anew.

    Raises:
        UsageError: the file was made in another way, or holds something else, or another run is writing to it; nothing
            has changed.
        OSError: it cannot be written.
    """
    from dla.storage.locks import lock_file

    run_file = _run_file(output)
    run = {"schema": RUN_SCHEMA, "model": _identity(classifier), "settings": {"format": format, **settings}}
    before = FinishedResults()
    with errors_name(output), open(output, "a", encoding="utf-8", errors="surrogateescape", newline="") as results:
        if os.path.isfile(output):  # and no pipe or device
            if not lock_file(results):
                raise UsageError(f"a run is writing to {output}. Wait for its end, or give another --output")
            if resume and os.path.getsize(output) > 0:
                _check_same(output, run_file, run)
                with open(output, "rb") as file:
                    before, inputs = _match(file, format, settings, inputs)
            else:
                # a file of records never stands beside the settings of another run
                run_file.unlink(missing_ok=True)
            results.truncate(before.size)
            if format in RESUMABLE:
                write_files({run_file: f"{json.dumps(run, indent=1)}\n".encode()})
        yield results, before, inputs


def _run_file(output: str) -> Path:
    return Path(f"{os.path.realpath(output)}.run.json")


def _identity(classifier: Classifier) -> dict[str, str]:
    config = hashlib.sha256(classifier.config.to_json().encode()).hexdigest()
    return {
        "origin": classifier.origin,
        "engine": classifier.engine.name,
        "weights_sha256": classifier.sha256,
        "config_sha256": config,
    }


def _check_same(output: str, run_file: Path, run: Mapping[str, Any]) -> None:
    way_out = "Give the same ones, or another --output, or leave --resume out to begin anew"
    if not run_file.exists():
        raise UsageError(
            f"{output} has no {run_file.name} beside it, which would say what model and settings made it. {way_out}"
        )
    try:
        saved = JsonObject(read_json(run_file), str(run_file))
        saved.get("schema", str, RUN_SCHEMA, lambda schema: schema == RUN_SCHEMA)
        model, settings = saved.get("model", dict, "an object"), saved.get("settings", dict, "an object")
    except UnavailableError as error:
        raise UsageError(f"{run_file} does not say which model and settings made {output}. {way_out}") from error
    for key in ("engine", "weights_sha256", "config_sha256"):
        if model.get(key) != run["model"][key]:
            old, new = (f"{m.get('origin')} on {m.get('engine')}" for m in (model, run["model"]))
            what = f"the model {old}, and this is {new}" if old != new else f"another model than {new} is now"
            raise UsageError(f"{output} was begun with {what}. {way_out}")
    for key, value in run["settings"].items():
        if settings.get(key) != value:
            raise UsageError(f"{output} was begun with {key} {settings.get(key)}, and this is {value}. {way_out}")


def _match(
    file: BinaryIO, format: ResultFormat, settings: Mapping[str, Any], inputs: Iterator[str]
) -> tuple[FinishedResults, Iterator[str]]:
    """What to keep of the file, and the inputs that are left; those of a batch that was not finished come again."""
    records = read_csv(file, settings["topk"]) if format == "csv" else read_jsonl(file)
    again: list[str] = []

    def matched() -> Iterator[ResultRecord]:
        for number, record in enumerate(records, 1):
            given = next(inputs, None)
            if given != record.path:
                now = "there are fewer inputs" if given is None else f"that input is {given}"
                raise UsageError(
                    f"record {number} of {file.name} is of {record.path}, but now {now}. "
                    "Give the same inputs in the same order, or leave --resume out to begin anew"
                )
            again.append(given)
            yield record

    kept = FinishedResults()
    batch_size: int = settings["batch_size"]
    batches = in_batches(matched(), repeat(batch_size), lambda record: not record.failed)
    for batch in batches:
        failed = sum(record.failed for record in batch)
        if len(batch) - failed not in (0, batch_size):
            next(batches, None)  # there is no other batch: where an error ended this one, it is raised here
            following = next(inputs, None)
            if following is not None:
                return kept, chain(again, [following], inputs)
        again.clear()
        kept = FinishedResults(kept.count + len(batch), kept.failed + failed, batch[-1].end)
    return kept, inputs
