"""A run's folder: what lies in it, and whose it is.

config.yaml      the whole recipe, photos included: `dla train --recipe runs/x/config.yaml` runs it again
run.json         command, versions, machine, data, and how far the run is
data.json        the photos of each split
metrics.jsonl    a line an epoch
mosaic.png       the first training batch as the network sees it
checkpoints/     where the run goes on
best/            the model folder of the best epoch
report.html      what came out, once it is finished
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from dla.data.split_file import DATA_SCHEMA
from dla.errors import DlaError, UnavailableError, UsageError
from dla.storage.files import errors_name, read_json, remove_leftovers, write_files
from dla.storage.locks import lock_file
from dla.training.distributed import Ranks
from dla.training.events import EpochEvent
from dla.training.recipe import Recipe
from dla.training.recipe_files import differing, to_yaml

__all__ = ["RunFolder", "environment", "environment_difference", "read_epochs", "repeatable", "run_lock"]


SCHEMA = "dla.run/1"
_WRITTEN = ("data.json", "run.json", "metrics.jsonl", "mosaic.png", "report.html", "best")
MOST_DATA_BYTES = 2**32  # a data.json names every photo
_NEEDED = ("config.yaml", "data.json", "run.json")  # to go on from a checkpoint


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best, self.checkpoints = path / "best", path / "checkpoints"
        self.metrics, self.mosaic = path / "metrics.jsonl", path / "mosaic.png"
        self.report = path / "report.html"

    def check(self, recipe: Recipe) -> None:
        """See that no other run has it.

        Raises:
            UsageError: it belongs to a run with other settings, or files of a run are missing or damaged.
        """
        config = self.path / "config.yaml"
        if self.checkpoints.exists() and (gone := [n for n in _NEEDED if not (self.path / n).exists()]):
            raise UsageError(f"{self.path} has checkpoints of a run, but {gone[0]} is gone. Give another --output")
        if not config.exists():
            self._refuse_foreign()
            return
        try:
            held = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{config} is no YAML: {' '.join(str(error).split())}. Give another --output") from error
        if not isinstance(held, dict):
            raise UsageError(f"{config} is no recipe. Give another --output")
        asked = yaml.safe_load(to_yaml(recipe))
        others = [f"{name} is {_show(old)} there and {_show(new)} here" for name, old, new in differing(held, asked)]
        if others:
            more = f", and {len(others) - 3} more differ" if len(others) > 3 else ""
            raise UsageError(
                f"{self.path} holds a run with other settings: {'; '.join(others[:3])}{more}. "
                "Give another --output, or the same settings to go on with it"
            )

    def _refuse_foreign(self) -> None:
        """A run that was stopped while it claimed its folder leaves a data.json; nothing else there is a run's."""
        written = [name for name in _WRITTEN if (self.path / name).exists()]
        if written == ["data.json"] and (self._read("data.json") or {}).get("schema") == DATA_SCHEMA:
            return
        if written:
            raise UsageError(
                f"{self.path} is no run's folder, and a run would replace its {written[0]}. Give another --output"
            )

    def claim(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Make it the folder of this recipe's run on these photos, if it is not, and remove what a kill left in it."""
        remove_leftovers(self.path)
        remove_leftovers(self.best)
        if not (self.path / "config.yaml").exists():
            self._write("data.json", _json(data))
            self._write("config.yaml", to_yaml(recipe))

    def facts(self) -> dict[str, Any]:
        """What run.json says; nothing before the first start."""
        return self._read("run.json") or {}

    def update(self, **facts: Any) -> None:
        """Write these facts into run.json, beside what it says already."""
        self._write("run.json", _json({"schema": SCHEMA} | self.facts() | facts))

    def data(self) -> dict[str, Any] | None:
        """What data.json says; None before the first start."""
        return self._read("data.json") if (self.path / "config.yaml").exists() else None

    def add_epoch(self, epoch: EpochEvent) -> None:
        """Append a line to metrics.jsonl."""
        try:
            with self.metrics.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(epoch)) + "\n")
                log.flush()
                os.fsync(log.fileno())  # before the checkpoint that says that the epoch is over
        except OSError as error:
            raise DlaError(f"{self.metrics} cannot be written: {error.strerror or error}") from error

    def truncate_epochs(self, count: int) -> None:
        """Drop what metrics.jsonl says of epochs after this many, which will be run again."""
        if not self.metrics.exists():
            return
        kept = "".join(f"{json.dumps(line)}\n" for line in read_epochs(self.metrics) if line["epoch"] <= count)
        if kept.encode() != self.metrics.read_bytes():
            self._write("metrics.jsonl", kept)

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


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; one that was torn or altered is none."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        with suppress(ValueError):
            epoch = json.loads(line)
            if line.endswith(b"\n") and isinstance(epoch, dict) and isinstance(epoch.get("epoch"), int):
                found.append(epoch)
    return found


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"  # in ASCII, so that a name that is not UTF-8 comes back as it was


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


LOCK = "run.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other runs from the folder, which is made where there is none; the lock dies with this process.

    A folder that it made and that nothing was written into is gone afterwards.

    Raises:
        UsageError: a run is in progress there, or it is a file.
        OSError: the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give --output a folder, new or of a run")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as file:
        if not lock_file(file):
            file.seek(0)
            who = file.read(200).strip() or "another process"
            raise UsageError(f"a run is in progress in {folder} ({who}). Wait for its end, or give another --output")
        with errors_name(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if made and os.listdir(folder) == [LOCK]:
                with suppress(OSError):  # the lock is held while it goes, which some systems do not allow
                    path.unlink()
                    folder.rmdir()


PACKAGES = ("dla", "torch", "numpy", "pillow", "kornia")


def environment(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The command, the versions of what computes, and the machine."""
    return {
        "command": sys.argv,
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
    """What differs of versions and machine, and what that means, in a sentence; None where nothing does."""
    differences = [
        f"{name} {'were' if name.endswith('s') else 'was'} {old}, now {now[part].get(name)}"
        for part in ("versions", "machine")
        for name, old in before.get(part, {}).items()
        if now[part].get(name) != old
    ]
    if not differences:
        return None
    return f"{'; '.join(differences)}: the last bits may differ from those of a run that nothing interrupted"


@contextmanager
def repeatable() -> Iterator[None]:
    """Let cuDNN take only algorithms that give the same bits each time. The flags are of the whole process."""
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
