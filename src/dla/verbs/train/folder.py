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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dla.errors import DlaError, UsageError
from dla.recipes.load import differing, to_yaml
from dla.recipes.schema import Recipe
from dla.verbs.train.progress import Epoch
from dla.weights.folder import write_files

__all__ = ["RunFolder"]

SCHEMA = "dla.run/1"
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

    def claim(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Make it the folder of this recipe's run on these photos, if it is not."""
        if not (self.path / "config.yaml").exists():
            self._write("data.json", _json(data))
            self._write("config.yaml", to_yaml(recipe))

    def facts(self) -> dict[str, Any]:
        """What run.json says; nothing before the first start."""
        return self._read("run.json") or {}

    def tell(self, **facts: Any) -> None:
        """Write these facts into run.json, beside what it says already."""
        self._write("run.json", _json({"schema": SCHEMA} | self.facts() | facts))

    def data(self) -> dict[str, Any] | None:
        """What data.json says; None before the first start."""
        return self._read("data.json") if (self.path / "config.yaml").exists() else None

    def add_epoch(self, epoch: Epoch) -> None:
        """Append a line to metrics.jsonl."""
        try:
            with self.metrics.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(epoch)) + "\n")
                log.flush()
                os.fsync(log.fileno())  # before the checkpoint that says that the epoch is over
        except OSError as error:
            raise DlaError(f"{self.metrics} cannot be written: {error.strerror or error}") from error

    def keep_epochs(self, count: int) -> None:
        """Drop what metrics.jsonl says of epochs after this many, which will be run again."""
        if not self.metrics.exists():
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] <= count)
        if kept != "".join(lines):
            self._write("metrics.jsonl", kept)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(f"{self.path / name} is no JSON: {error}. Give another --output") from error

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_files({path: text.encode()})
        except OSError as error:
            raise DlaError(f"{path} cannot be written: {error.strerror or error}") from error


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"  # in ASCII, so that a name that is not UTF-8 comes back as it was


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
