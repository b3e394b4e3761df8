"""Write predictions as a text table, JSON, JSON lines or CSV, one whole record at a time, and resume such files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, Protocol, Self, TextIO, TypeVar

from dla.engines.select import TITLES
from dla.errors import DamagedError, UnavailableError, UsageError, printable
from dla.inference.classifier import Classifier, Prediction
from dla.inference.pipeline import InputRecord, in_batches
from dla.options import ResultFormat
from dla.storage.files import JsonObject, check_new, errors_name, json_shown, parse_object, read_json, write_files

if TYPE_CHECKING:
    from dla.inference.dense_model import DenseModel

RESUMABLE: tuple[ResultFormat, ...] = ("jsonl", "csv")  # the records of an interrupted run can be read back


class ResultLike(InputRecord, Protocol):
    """A record that can be written as text."""

    @property
    def truncated(self) -> bool: ...  # noqa: D102
    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


R = TypeVar("R", bound=ResultLike)


class RecordWriter(ABC, Generic[R]):
    """Write each record to `file` as it comes. Leaving the `with` block completes the file (JSON's bracket).

    A CSV row holds path, error code, error message and truncated, then the cells of `columns`. With `resumed` the file
    has its header already.
    """

    columns: tuple[str, ...]

    def __init__(self, file: TextIO, format: ResultFormat, *, resumed: bool = False) -> None:
        self.file, self.format, self.resumed = file, format, resumed
        self.count = 0

    def __enter__(self) -> Self:
        if not self.resumed:
            self.file.write({"json": "[", "csv": _csv_line([*FIRST_COLUMNS, *self.columns])}.get(self.format, ""))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.format == "json":
            self.file.write("\n]\n" if self.count else "]\n")
        self.file.flush()

    def write(self, record: R) -> None:
        """Write one record and flush it to the operating system."""
        if self.format == "json":
            text = (",\n" if self.count else "\n") + json.dumps(record.to_dict())
        elif self.format == "jsonl":
            text = json.dumps(record.to_dict()) + "\n"
        elif self.format == "csv":
            text = self._csv_row(record)
        else:
            text = self._table(record, printable if self.file.isatty() else str)
        self.file.write(text)
        self.file.flush()
        self.count += 1

    @abstractmethod
    def cells(self, record: R) -> list[object]:
        """Return the cells of a CSV row after the first four; missing ones at the end are empty."""

    @abstractmethod
    def lines(self, record: R, shown: Callable[[str], str]) -> list[str]:
        """Return the lines of the table for an input that has an answer; `shown` makes names printable."""

    def _csv_row(self, record: R) -> str:
        error = record.error
        row: list[object] = [record.path, error.code if error else "", error.message if error else ""]
        row += ["true" if record.truncated else "", *self.cells(record)]
        return _csv_line(row + [""] * (len(FIRST_COLUMNS) + len(self.columns) - len(row)))

    def _table(self, record: R, shown: Callable[[str], str]) -> str:
        lines = [shown(record.path)]
        if record.error is not None:
            lines.append(f"  no answer: {record.error.message.removeprefix(f'{record.path}: ')}")
        if record.truncated:
            lines.append("  the file ends early; this is what is there:")
        return "\n".join(lines + self.lines(record, shown)) + "\n"


FIRST_COLUMNS = ("path", "error_code", "error_message", "truncated")


class PredictionWriter(RecordWriter[Prediction]):
    """Write predictions: in a CSV row index, class id, label and probability by rank."""

    def __init__(self, file: TextIO, format: ResultFormat, topk: int, *, resumed: bool = False) -> None:
        super().__init__(file, format, resumed=resumed)
        self.columns = tuple(csv_columns(topk)[len(FIRST_COLUMNS) :])

    def cells(self, record: Prediction) -> list[object]:
        """Return four cells for each class."""
        return [cell for c in record.classes for cell in (c.index, c.class_id, c.label, c.probability)]

    def lines(self, record: Prediction, shown: Callable[[str], str]) -> list[str]:
        """Return a line for each class."""
        rows = [(c.probability, c.label, c.class_id) for c in record.classes]
        return class_lines(rows, shown)


def class_lines(
    rows: list[tuple[float, str, str]], shown: Callable[[str], str], tails: Iterable[str] = ()
) -> list[str]:
    """Return an aligned line for each class: its fraction in per cent, label, class id if it differs, and a tail."""
    width = max((len(shown(label)) for _, label, _ in rows), default=0)
    lines = []
    for (fraction, label, class_id), more in zip(rows, chain(tails, repeat("")), strict=False):
        tail = f"   {shown(class_id)}" * (class_id != label) + more
        line = f"{fraction:7.1%}  {shown(label):<{width if tail else 0}}{tail}"
        lines.append(line.replace("%", " %", 1))
    return lines


def csv_columns(topk: int) -> list[str]:
    """Return the column names, the first row of a CSV file."""
    columns = [*FIRST_COLUMNS]
    for rank in range(1, topk + 1):
        columns += [f"{name}_{rank}" for name in ("index", "class_id", "label", "probability")]
    return columns


def _csv_line(cells: list[object] | list[str]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its default line end, "\r\n", it quotes cells that contain "\r" or "\n"
    return line.getvalue().removesuffix("\r\n") + "\n"


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """The part of a record that resuming needs.

    `error_code` is empty if there is no error; `end` is the offset in the file where the record ends, in bytes.
    """

    path: str
    error_code: str
    end: int


def read_jsonl(file: BinaryIO, command: str = "predict") -> Iterator[ResultRecord]:
    """Yield the complete records of a JSON lines file of a command; an unfinished last one is left out.

    Raises:
        UsageError: a line is not a record.
    """
    end = 0
    for number, line in enumerate(_whole_lines(file), 1):
        end += len(line)
        try:
            root = JsonObject(parse_object(line, file.name), file.name)
            root.get("schema", str, f"dla.{command}/1", lambda schema: schema == f"dla.{command}/1")
            code = root.object("error").get("code", str, "a code") if "error" in root.fields else ""
            record = ResultRecord(root.get("path", str, "a text"), code, end)
        except DamagedError:
            raise _no_record(file, number, command) from None
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


def _no_record(file: BinaryIO, line: int, command: str = "predict") -> UsageError:
    return UsageError(
        f"{file.name}, line {line}: this is not a record of dla {command}. Give another file, or --force to replace it"
    )


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
    model: Classifier | DenseModel,
    settings: Mapping[str, Any],
    inputs: Iterator[str],
    *,
    resume: bool = False,
    force: bool = False,
    command: str = "predict",
) -> Iterator[tuple[TextIO, FinishedResults, Iterator[str]]]:
    """Open a result file. Yield it, what it holds already, and the inputs that have no record in it yet.

    Args:
        output: the path of the file.
        format: the format of the records.
        model: the model, whose identity is stored for resuming.
        settings: everything else that the records depend on, including `topk` and `batch_size`.
        inputs: the paths of all inputs, in order.
        resume: keep the records of an earlier run with the same model, settings and inputs.
        force: replace an existing file.
        command: the command whose records these are.

    Raises:
        UsageError: the file exists and neither `resume` nor `force` is given, it belongs to another run or holds
            something else, or another process is writing to it. The file is unchanged.
        OSError: it cannot be written.
    """
    from dla.storage.locks import lock_file

    run_file = _run_file(output)
    run = {"schema": _schema(command), "model": _identity(model), "settings": {"format": format, **settings}}
    before = FinishedResults()
    with errors_name(output), open(output, "a", encoding="utf-8", errors="surrogateescape", newline="") as results:
        if os.path.isfile(output):  # and no pipe or device
            if not lock_file(results):
                raise UsageError(f"another run is writing to {output}. Wait until it ends, or give another --output")
            if resume and os.path.getsize(output) > 0:
                _check_same(output, run_file, run)
                with open(output, "rb") as file:
                    records = read_csv(file, settings["topk"]) if format == "csv" else read_jsonl(file, command)
                    before, inputs = _match(file, records, settings["batch_size"], inputs)
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


def _schema(command: str) -> str:
    return f"dla.{command}.run/1"


def _identity(model: Classifier | DenseModel) -> dict[str, str]:
    config = hashlib.sha256(model.config.to_json().encode()).hexdigest()
    return {
        "origin": model.origin,
        "engine": model.engine.name,
        "weights_sha256": model.sha256,
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
        saved.get("schema", str, run["schema"], lambda schema: schema == run["schema"])
        model, settings = saved.get("model", dict, "an object"), saved.get("settings", dict, "an object")
    except UnavailableError as error:
        raise UsageError(f"{run_file} does not say which model and settings made {output}. {way_out}") from error
    for key in ("engine", "weights_sha256", "config_sha256"):
        if model.get(key) != run["model"][key]:
            old, new = (f"{str(m.get('origin'))[:200]} on {str(m.get('engine'))[:80]}" for m in (model, run["model"]))
            what = f"the model {old}, and this is {new}" if old != new else f"another model than {new} is now"
            raise UsageError(f"{output} was started with {what}. {way_out}")
    for key, value in run["settings"].items():
        if settings.get(key) != value:
            old = json_shown(settings.get(key))
            raise UsageError(f"{output} was started with {key} {old}, and this is {json_shown(value)}. {way_out}")


def _match(
    file: BinaryIO, records: Iterator[ResultRecord], batch_size: int, inputs: Iterator[str]
) -> tuple[FinishedResults, Iterator[str]]:
    """Return what to keep of the file, and the remaining inputs, including those of an unfinished batch."""
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
