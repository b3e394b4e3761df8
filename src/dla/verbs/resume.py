"""Result files of `dla predict` that know how they were made, so that a stopped run goes on where it was.

Beside a result file F stands F.run.json with the model and the settings. A photo's last digits depend on the photos
that the network takes with it, so a run goes on after the last whole batch: what comes out is what one run makes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dla.engines.choose import TITLES
from dla.errors import UsageError
from dla.report.read import Record, read_csv, read_jsonl
from dla.report.write import RESUMABLE, Format, naming
from dla.verbs.flock import lock_file
from dla.verbs.inputs import in_batches
from dla.verbs.predict import Classifier
from dla.weights.folder import write_files

__all__ = ["Answered", "engine_of", "open_results"]

RUN_SCHEMA = "dla.predict.run/1"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a result file holds already: its records, how many of them are errors, and their bytes."""

    count: int = 0
    failed: int = 0
    size: int = 0


def engine_of(output: str) -> str:
    """The engine that answered what a result file holds already; "auto" where nothing says so."""
    try:
        name = json.loads(_run_file(output).read_bytes())["model"]["engine"]
        return next((engine for engine, title in TITLES.items() if name.startswith(title)), "auto")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "auto"


@contextmanager
def open_results(
    output: str,
    form: Format,
    classifier: Classifier,
    settings: Mapping[str, Any],
    inputs: Iterator[str],
    *,
    resume: bool,
) -> Iterator[tuple[TextIO, Answered, Iterator[str]]]:
    """The file to write records to, what it holds already, and the inputs that have no record in it yet.

    Args:
        settings: what the records depend on; `topk` and `batch_size` are among them.
        resume: keep the records of an earlier run with the same model, settings and inputs; else begin anew.

    Raises:
        UsageError: the file was made in another way, or holds something else, or another run is writing to it; nothing
            has changed.
        OSError: it cannot be written.
    """
    run_file = _run_file(output)
    run = {"schema": RUN_SCHEMA, "model": _identity(classifier), "settings": {"format": form, **settings}}
    before = Answered()
    with naming(output), open(output, "a", encoding="utf-8", errors="surrogateescape", newline="") as results:
        if os.path.isfile(output):  # and no pipe or device
            if not lock_file(results):
                raise UsageError(f"a run is writing to {output}. Wait for its end, or give another --output")
            if resume and os.path.getsize(output) > 0:
                _check_same(output, run_file, run)
                with open(output, "rb") as file:
                    before, inputs = _match(file, form, settings, inputs)
            else:
                # a file of records never stands beside the settings of another run
                run_file.unlink(missing_ok=True)
            results.truncate(before.size)
            if form in RESUMABLE:
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
    try:
        saved = json.loads(run_file.read_bytes())
        model, settings = saved["model"], saved["settings"]
        known = saved["schema"] == RUN_SCHEMA and isinstance(model, dict) and isinstance(settings, dict)
    except FileNotFoundError:
        raise UsageError(
            f"{output} has no {run_file.name} beside it, which would say what model and settings made it. {way_out}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise UsageError(f"{run_file} does not say which model and settings made {output}. {way_out}")
    for key in ("engine", "weights_sha256", "config_sha256"):
        if model.get(key) != run["model"][key]:
            old, new = (f"{m.get('origin')} on {m.get('engine')}" for m in (model, run["model"]))
            what = f"the model {old}, and this is {new}" if old != new else f"another model than {new} is now"
            raise UsageError(f"{output} was begun with {what}. {way_out}")
    for key, value in run["settings"].items():
        if settings.get(key) != value:
            raise UsageError(f"{output} was begun with {key} {settings.get(key)}, and this is {value}. {way_out}")


def _match(
    file: BinaryIO, form: Format, settings: Mapping[str, Any], inputs: Iterator[str]
) -> tuple[Answered, Iterator[str]]:
    """What to keep of the file, and the inputs that are left; those of a batch that was not finished come again."""
    records = read_csv(file, settings["topk"]) if form == "csv" else read_jsonl(file)
    again: list[str] = []

    def matched() -> Iterator[Record]:
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

    kept = Answered()
    batch_size: int = settings["batch_size"]
    batches = in_batches(matched(), batch_size, lambda record: not record.failed)
    for batch in batches:
        failed = sum(record.failed for record in batch)
        if len(batch) - failed not in (0, batch_size):
            next(batches, None)  # there is no other batch: where an error ended this one, it is raised here
            following = next(inputs, None)
            if following is not None:
                return kept, chain(again, [following], inputs)
        again.clear()
        kept = Answered(kept.count + len(batch), kept.failed + failed, batch[-1].end)
    return kept, inputs
