"""Join the parts of a bulk run to one file, in the order of the manifest, if every row is there exactly once."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dla.bulk.manifest import FIXED, parquet
from dla.bulk.parts import Part, PartFormat, part_name
from dla.bulk.run_file import BulkRun, OutputFolder
from dla.data.prefetch import run_ahead
from dla.errors import UsageError
from dla.inference.classifier import output_name
from dla.options import ResultFormat
from dla.storage.files import open_aside, write_files
from dla.types import NO_PROGRESS, ClassName, Progress

ENDINGS = {"features": (".parquet", ".npz")}
_TEXT = (".jsonl", ".csv", ".parquet")
_AHEAD = 4  # parts that are read in advance


@dataclass(frozen=True)
class Collected:
    """What was collected: the number of records, and of errors by code."""

    records: int
    errors: Counter[str]


def check_ending(command: str, output: str) -> str:
    """Return the ending of an output file.

    Raises:
        UsageError: the records of this command cannot be written so.
    """
    ending, allowed = os.path.splitext(output)[1].lower(), ENDINGS.get(command, _TEXT)
    if ending not in allowed:
        raise UsageError(
            f"--output is {output}. Allowed: a file that ends in {', '.join(allowed[:-1])} or {allowed[-1]}"
        )
    return ending


def collect(uri: str, output: str, unpack: str | None = None, progress: Progress = NO_PROGRESS) -> Collected:
    """Write the records of a finished run to one file.

    Args:
        uri: the folder of the run.
        output: a .jsonl, .csv or .parquet file; of features a .parquet or .npz file.
        unpack: a folder for the masks or boundary maps as PNG files.
        progress: advanced with each record.

    Raises:
        UsageError: there is no run, it is not finished, or a row is missing or double; no file is written.
    """
    folder = OutputFolder(uri)
    run = folder.run()
    if run is None:
        raise UsageError(f"{uri} has no bulk run: there is no run.json in it. Give the --output of dla bulk")
    ending = check_ending(run.command, output)
    if unpack is not None and run.command not in ("segment", "edges"):
        raise UsageError(f"--unpack is for masks and boundary maps, and {uri} has those of dla bulk {run.command}")
    _check_complete(folder, run)
    errors, count = Counter[str](), 0
    progress.start("collecting", run.rows)
    with _open_writer(run, output, ending) as write:
        unpacker = None if unpack is None else _unpacker(run, Path(unpack))
        parts = run_ahead(lambda shard: _checked_part(folder, run, shard), range(run.shards), _AHEAD, 2 * _AHEAD)
        for part in parts:
            errors.update(part.errors)
            count += len(part.table)
            write(part, unpacker)
            progress.advance(len(part.table))
    return Collected(count, errors)


def _check_complete(folder: OutputFolder, run: BulkRun) -> None:
    there = folder.shards()
    gaps = [_rows_text(run.rows_of(shard)) for shard in range(run.shards) if shard not in there]
    if gaps:
        more = f" and {len(gaps) - 3:,} more shards" if len(gaps) > 3 else ""
        raise UsageError(f"{folder.uri} is not complete: {', '.join(gaps[:3])}{more} are missing. Run the same "
                         f"dla bulk {run.command} again, which makes only what is missing")  # fmt: skip
    if others := sorted(there - set(range(run.shards))):
        raise UsageError(f"{folder.uri} has {part_name(others[0])}, but the run has {run.shards:,} shards, so rows "
                         "would be double. Remove it")  # fmt: skip


def _rows_text(rows: range) -> str:
    return f"rows {rows.start:,} to {rows.stop - 1:,}" if len(rows) > 1 else f"row {rows.start:,}"


def _checked_part(folder: OutputFolder, run: BulkRun, shard: int) -> Part:
    where, part = folder.path(part_name(shard)), folder.part(shard)
    if part.metadata.get("run_sha256") != run.sha256:
        raise UsageError(f"{where} is of another run. Remove it and run the same dla bulk {run.command} again")
    found, wanted = part.table["row"].to_pylist(), run.rows_of(shard)
    if found != list(wanted):
        counts = Counter(found)
        double = [row for row, n in counts.items() if n > 1 or row not in wanted]
        missing = [row for row in wanted if row not in counts]
        what = [f"row {double[0]:,} is double or of another shard"] * bool(double)
        what += [f"row {missing[0]:,} is missing"] * bool(missing)
        raise UsageError(f"{where}: {' and '.join(what) or 'the rows are in another order'}. Remove it and run the "
                         f"same dla bulk {run.command} again")  # fmt: skip
    return part


Unpack = Callable[[Any], None]
Write = Callable[[Part, Unpack | None], None]


@contextmanager
def _open_writer(run: BulkRun, output: str, ending: str) -> Iterator[Write]:
    """Yield a function that writes the records of a part, and hands them to a function that unpacks their files."""
    format, settings = run.part_format, run.settings
    if run.command == "features":
        from dla.inference.feature_files import open_features

        about = {"at": settings["at"], "model": run.config["model"]["architecture"]}
        about["weights_sha256"] = run.config["model"]["weights_sha256"]
        with open_features(output, tuple(settings["shape"]), about) as target:
            yield lambda part, unpack: _each(part, format, None, target.write)
        return
    with open_aside(output) as file:
        if ending == ".parquet":
            schema = format.schema()
            with parquet().ParquetWriter(file, schema, **FIXED) as writer:

                def write_table(part: Part, unpack: Unpack | None) -> None:
                    writer.write_table(part.table.cast(schema))
                    if unpack is not None:
                        _each(part, format, unpack)

                yield write_table
            return
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        with _text_writer(run, text, cast(ResultFormat, ending[1:])) as records:
            yield lambda part, unpack: _each(part, format, unpack, records.write)
        text.detach()


def _each(part: Part, format: PartFormat[Any], *functions: Callable[[Any], None] | None) -> None:
    """Call each function with each record."""
    for _, record in part.records(format):
        for function in functions:
            if function is not None:
                function(record)


def _text_writer(run: BulkRun, file: Any, format: ResultFormat) -> Any:
    if run.command == "predict":
        from dla.inference.result_files import PredictionWriter

        return PredictionWriter(file, format, run.settings["topk"])
    from dla.inference.segment_files import EdgesWriter, SegmentWriter

    if run.command == "edges":
        return EdgesWriter(file, format)
    return SegmentWriter(file, format, [ClassName(name, name, name) for name in run.settings["class_ids"]])


def _unpacker(run: BulkRun, folder: Path) -> Callable[[Any], None]:
    from dla.inference.segment_files import EdgeFiles, mask_png

    folder.mkdir(parents=True, exist_ok=True)
    files = EdgeFiles(folder)

    def unpack(record: Any) -> None:
        if record.error is not None:
            return
        if run.command == "edges":
            files.write(record)
            return
        name = f"{output_name(record.path)}.mask.png"
        write_files({folder / name: mask_png(record.mask, record.palette)})
        record.files["mask"] = name

    return unpack
