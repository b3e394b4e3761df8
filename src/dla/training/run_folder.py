"""The folder of a run: its files and its lock.

config.yaml      the complete recipe, with the path of the photos: `dla train --recipe runs/x/config.yaml` repeats it
run.json         command, versions, machine, data, best epoch, and whether the run is finished
data.json        the photos of each split
metrics.jsonl    one line per epoch
mosaic.png       the first training batch as the network sees it
checkpoints/     the states from which a run continues
best/            the model folder of the best epoch
report.html      the results, once the run is finished
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from dla.data.split_file import DATA_SCHEMA
from dla.errors import DamagedError, DlaError, UnavailableError, UsageError, without_secrets
from dla.storage.files import JsonObject, errors_name, parse_object, read_json, remove_leftovers, write_files
from dla.storage.locks import lock_file
from dla.storage.option_files import parse_yaml
from dla.training.distributed import Ranks
from dla.training.events import EpochEvent
from dla.training.recipe import Recipe
from dla.training.recipe_files import differing, to_yaml

SCHEMA = "dla.run/1"
_WRITTEN = ("data.json", "run.json", "metrics.jsonl", "mosaic.png", "report.html", "best")
MOST_DATA_BYTES = 2**32  # a data.json names every photo
_NEEDED = ("config.yaml", "data.json", "run.json")  # to continue from a checkpoint


class RunFolder:
    """The folder of one run. `figure` is the name of the one by which its best epoch is told."""

    def __init__(self, path: Path, figure: str = "top1") -> None:
        self.path, self.figure = path, figure
        self.best, self.checkpoints = path / "best", path / "checkpoints"
        self.metrics, self.mosaic = path / "metrics.jsonl", path / "mosaic.png"
        self.report = path / "report.html"

    def check(self, recipe: Recipe) -> None:
        """Check that the folder is new or belongs to a run of this recipe.

        Raises:
            UsageError: it belongs to a run with other settings, or files of the run are missing or damaged.
        """
        config = self.path / "config.yaml"
        missing = [name for name in _NEEDED if not (self.path / name).exists()]
        if self.checkpoints.exists() and missing:
            raise UsageError(
                f"{self.path} has checkpoints of a run, but {missing[0]} is missing. Give another --output"
            )
        if not config.exists():
            self._check_unused()
            return
        try:
            stored = parse_yaml(config)
        except UsageError as error:
            raise UsageError(f"{error}. Give another --output") from error
        if not isinstance(stored, dict):
            raise UsageError(f"{config} is not a recipe. Give another --output")
        wanted = yaml.safe_load(to_yaml(recipe))
        others = [f"{name} is {_show(old)} there and {_show(new)} here" for name, old, new in differing(stored, wanted)]
        if others:
            more = f", and {len(others) - 3} more differ" if len(others) > 3 else ""
            raise UsageError(
                f"{self.path} holds a run with other settings: {'; '.join(others[:3])}{more}. "
                "Give another --output, or the same settings to continue it"
            )

    def _check_unused(self) -> None:
        """Refuse a folder with files that a run would replace, except a data.json that an interrupted claim left."""
        written = [name for name in _WRITTEN if (self.path / name).exists()]
        if written == ["data.json"] and (self._read("data.json") or {}).get("schema") == DATA_SCHEMA:
            return
        if written:
            raise UsageError(
                f"{self.path} is not the folder of a run, and a run would replace its {written[0]}. Give another "
                "--output"
            )

    def claim(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Write the recipe and the splits if the folder is new, and remove what a killed run left behind."""
        remove_leftovers(self.path, alone=True)
        remove_leftovers(self.best, alone=True)
        if not (self.path / "config.yaml").exists():
            self._write("data.json", _json(data))
            self._write("config.yaml", to_yaml(recipe))

    def facts(self) -> dict[str, Any]:
        """Return run.json; empty before the first start.

        Raises:
            UsageError: it was altered.
        """
        facts = self._read("run.json") or {}
        try:
            _check_facts(JsonObject(facts, str(self.path / "run.json")), self.figure)
        except DamagedError as error:
            raise UsageError(f"{error} Give another --output") from error
        return facts

    def update(self, **facts: Any) -> None:
        """Add these facts to run.json."""
        self._write("run.json", _json({"schema": SCHEMA} | self.facts() | facts))

    def data(self) -> dict[str, Any] | None:
        """Return data.json; None before the first start."""
        return self._read("data.json") if (self.path / "config.yaml").exists() else None

    def add_epoch(self, epoch: EpochEvent) -> None:
        """Append the epoch to metrics.jsonl.

        Raises:
            DlaError: the file cannot be written.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as log:
                log.write(json.dumps(epoch.to_dict()) + "\n")
                log.flush()
                os.fsync(log.fileno())  # it must be on disk before the checkpoint that ends the epoch
        except OSError as error:
            raise DlaError(f"{self.metrics} cannot be written: {error.strerror or error}") from error

    def truncate_epochs(self, count: int) -> None:
        """Drop the epochs after the first `count` from metrics.jsonl: they will run again."""
        if not self.metrics.exists():
            return
        lines = "".join(f"{json.dumps(line)}\n" for line in read_epochs(self.metrics) if line["epoch"] <= count)
        if lines.encode() != self.metrics.read_bytes():
            self._write("metrics.jsonl", lines)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            return read_json(path, MOST_DATA_BYTES)
        except UnavailableError as error:
            raise UsageError(f"{error} Give another --output") from error

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_files({path: text.encode()})
        except OSError as error:
            raise DlaError(f"{path} cannot be written: {error.strerror or error}") from error


def _check_facts(facts: JsonObject, figure: str) -> None:
    """Raise a DamagedError unless the facts of run.json that are used have their types."""
    facts.get("finished", bool, "true or false", default=False)
    for part in ("versions", "machine", "data"):
        facts.object(part)
    best = facts.object("best")
    if best.fields or facts.fields.get("finished"):
        best.get("epoch", int, "a number")
        best.get(figure, (int, float), "a number")
    if facts.fields.get("finished"):
        best.get(f"{figure}_interval", list, "two numbers", _are_two_numbers)


def _are_two_numbers(values: list[Any]) -> bool:
    return len(values) == 2 and all(type(value) in (int, float) for value in values)


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return the epochs of a metrics.jsonl, without incomplete or damaged lines."""
    epochs = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        with suppress(DamagedError):
            epoch = JsonObject(parse_object(line, str(path)), str(path))
            for name in ("epoch", "seconds", "photos_per_second"):
                epoch.get(name, int if name == "epoch" else (int, float), "a number")
            for name in epoch.fields:
                epoch.get(name, (int, float), "a number", default=None)
            if line.endswith(b"\n"):
                epochs.append(dict(epoch.fields))
    return epochs


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"  # in ASCII, so that file names that are not UTF-8 survive


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


LOCK = "run.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder against other runs; create it if needed. The lock ends with the process at the latest.

    A folder that it created is removed afterwards if it is still empty.

    Raises:
        UsageError: a run is in progress there, or the path is a file.
        OSError: the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give --output a new folder, or that of a run")
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as file:
        if not lock_file(file):
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            raise UsageError(
                f"a run is in progress in {folder} ({owner}). Wait until it ends, or give another --output"
            )
        with errors_name(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if created and os.listdir(folder) == [LOCK]:
                with suppress(OSError):  # some systems do not remove a locked file
                    path.unlink()
                    folder.rmdir()


PACKAGES = ("dla", "torch", "numpy", "pillow", "kornia")


def environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """Return the command, the versions of the packages that affect results, and the machine."""
    return {
        "command": [without_secrets(word) for word in sys.argv],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {
            "device": device.type,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "processes": ranks.world,
            "system": platform.platform(),
        },
    }


def environment_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a sentence about differences in versions and machine; None if there are none."""
    differences = [
        f"{name} {'were' if name.endswith('s') else 'was'} {old}, now {now[part].get(name)}"
        for part in ("versions", "machine")
        for name, old in before.get(part, {}).items()
        if now[part].get(name) != old
    ]
    if not differences:
        return None
    return f"{'; '.join(differences)}: the results may differ in the last bits from those of an uninterrupted run"


@contextmanager
def repeatable() -> Iterator[None]:
    """Make cuDNN use deterministic algorithms only. The flags apply to the whole process."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
