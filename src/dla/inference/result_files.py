"""Write predictions as a text table, JSON, JSON lines or CSV, one whole record at a time, and resume such files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dla.engines.select import TITLES
from dla.errors import UnavailableError, UsageError
from dla.inference.classifier import PREDICT_SCHEMA, Classifier, Prediction
from dla.inference.pipeline import in_batches
from dla.options import ResultFormat
from dla.storage.files import JsonObject, check_new, errors_name, read_json, write_files

RESUMABLE: tuple[ResultFormat, ...] = ("jsonl", "csv")  # the records of an interrupted run can be read back


class PredictionWriter:
    """Write each prediction to `file` as it comes. Leaving the `with` block completes the file (JSON's bracket).

    A CSV row holds path, error code, error message and truncated, then index, class id, label and probability by rank.
    With `resumed` the file has its header already.
    """

    def __init__(self, file: TextIO, format: ResultFormat, topk: int, *, resumed: bool = False) -> None:
        self.file, self.format, self.topk = file, format, topk
        self.resumed = resumed
        self.count = 0

    def __enter__(self) -> PredictionWriter:
        if not self.resumed:
            self.file.write({"json": "[", "csv": _csv_line(csv_columns(self.topk))}.get(self.format, ""))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.format == "json":
            self.file.write("\n]\n" if self.count else "]\n")
        self.file.flush()

    def write(self, prediction: Prediction) -> None:
        """Write one record and flush it to the operating system."""
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
    """Return the column names, the first row of a CSV file."""
    columns = ["path", "error_code", "error_message", "truncated"]
    for rank in range(1, topk + 1):
        columns += [f"{name}_{rank}" for name in ("index", "class_id", "label", "probability")]
    return columns


def _csv_line(cells: list[object] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its default line end, "\r\n", it quotes cells that contain "\r" or "\n"
    return line.getvalue().removesuffix("\r\n") + "\n"


def _table(prediction: Prediction) -> str:
    lines = [prediction.path]
    if prediction.error is not None:
        lines.append(f"  no answer: {prediction.error.message.removeprefix(f'{prediction.path}: ')}")
    if prediction.truncated:
        lines.append("  the file ends early; this is what is there:")
    width = max((len(c.label) for c in prediction.classes), default=0)
    for c in prediction.classes:
        tail = f"   {c.class_id}" if c.class_id != c.label else ""
        lines.append(f"{c.probability:7.1%}  {c.label:<{width if tail else 0}}{tail}".replace("%", " %", 1))
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """The part of a record that resuming needs.

    `error_code` is empty if there is no error; `end` is the offset in the file where the record ends, in bytes.
    """

    path: str
    error_code: str
    end: int


def read_jsonl(file: BinaryIO) -> Iterator[ResultRecord]:
    """Yield the complete records of a JSON lines file; an unfinished last one is left out.

    Raises:
        UsageError: a line is not a record.
    """
    end = 0
    for number, line in enumerate(_whole_lines(file), 1):
        end += len(line)
        try:
            root = json.loads(line)
            known = root["schema"] == PREDICT_SCHEMA
            code = root["error"]["code"] if "error" in root else ""
            record = ResultRecord(root["path"], code, end)
        except (ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known or not isinstance(code, str):
            raise _no_record(file, number)
        yield record


def read_csv(file: BinaryIO, topk: int) -> Iterator[ResultRecord]:
    """Yield the complete records of a CSV file with `topk` classes per row.

    A path may contain line ends, so a record may span lines.

    Raises:
        UsageError: a row is not a record.
    """
    columns = csv_columns(topk)
    end, number = 0, 1
    begun: list[bytes] = []  # the lines of the next record, which begins at line `number`

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
                yield ResultRecord(row[0], row[1], end)
            number += len(begun)
            begun.clear()
    except csv.Error:
        # an unterminated quoted cell: the last record is unfinished, unless the cell contains whole records
        if file.read(1) or any(line.count(b",") >= len(columns) - 1 for line in begun[1:]):
            raise _no_record(file, number) from None


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _no_record(file: BinaryIO, line: int) -> UsageError:
    return UsageError(
        f"{file.name}, line {line}: this is not a record of dla predict. Give another file, or --force to replace it"
    )


RUN_SCHEMA = "dla.predict.run/1"


@dataclass(frozen=True, slots=True)
class FinishedResults:
    """What a result file holds already: its number of records, their size in bytes, and the errors by code."""

    count: int = 0
    size: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)


def engine_of(output: str) -> str:
    """Return the engine that computed the records of a result file; "auto" if it is not recorded."""
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
    resume: bool = False,
    force: bool = False,
) -> Iterator[tuple[TextIO, FinishedResults, Iterator[str]]]:
    """Open a result file. Yield it, what it holds already, and the inputs that have no record in it yet.

    Args:
        output: the path of the file.
        format: the format of the records.
        classifier: the model, whose identity is stored for resuming.
        settings: everything else that the records depend on, including `topk` and `batch_size`.
        inputs: the paths of all inputs, in order.
        resume: keep the records of an earlier run with the same model, settings and inputs.
        force: replace an existing file.

    Raises:
        UsageError: the file exists and neither `resume` nor `force` is given, it belongs to another run or holds
            something else, or another process is writing to it. The file is unchanged.
        OSError: it cannot be written.
    """
    from dla.storage.locks import lock_file

    run_file = _run_file(output)
    run = {"schema": RUN_SCHEMA, "model": _identity(classifier), "settings": {"format": format, **settings}}
    before = FinishedResults()
    with errors_name(output), open(output, "a", encoding="utf-8", errors="surrogateescape", newline="") as results:
        if os.path.isfile(output):  # and no pipe or device
            if not lock_file(results):
                raise UsageError(f"another run is writing to {output}. Wait until it ends, or give another --output")
            if resume and os.path.getsize(output) > 0:
                _check_same(output, run_file, run)
                with open(output, "rb") as file:
                    before, inputs = _match(file, format, settings, inputs)
            else:
                if not force:
                    check_new(output, resumable=format in RESUMABLE)
                # never leave records next to the settings of another run
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
    way_out = "Give the same ones, or another --output, or --force instead of --resume to start over"
    if not run_file.exists():
        raise UsageError(
            f"{output} has no {run_file.name} next to it, which records the model and settings of its run. {way_out}"
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
            raise UsageError(f"{output} was started with {what}. {way_out}")
    for key, value in run["settings"].items():
        if settings.get(key) != value:
            raise UsageError(f"{output} was started with {key} {settings.get(key)}, and this is {value}. {way_out}")


def _match(
    file: BinaryIO, format: ResultFormat, settings: Mapping[str, Any], inputs: Iterator[str]
) -> tuple[FinishedResults, Iterator[str]]:
    """Return what to keep of the file, and the remaining inputs, including those of an unfinished batch."""
    records = read_csv(file, settings["topk"]) if format == "csv" else read_jsonl(file)
    again: list[str] = []

    def matched() -> Iterator[ResultRecord]:
        for number, record in enumerate(records, 1):
            path = next(inputs, None)
            if path != record.path:
                now = "there are fewer inputs" if path is None else f"that input is {path}"
                raise UsageError(
                    f"record {number} of {file.name} is of {record.path}, but now {now}. "
                    "Give the same inputs in the same order, or --force instead of --resume to start over"
                )
            again.append(path)
            yield record

    kept = FinishedResults()
    batch_size: int = settings["batch_size"]
    batches = in_batches(matched(), repeat(batch_size), lambda record: not record.error_code)
    for batch in batches:
        codes = [record.error_code for record in batch if record.error_code]
        if len(batch) - len(codes) not in (0, batch_size):
            next(batches, None)  # there is no further batch, but an error that ended this one is raised here
            following = next(inputs, None)
            if following is not None:
                return kept, chain(again, [following], inputs)
        again.clear()
        kept = FinishedResults(kept.count + len(batch), batch[-1].end, Counter(kept.errors) + Counter(codes))
    return kept, inputs
