"""Checkpoints in safetensors and JSON, written atomically.

    checkpoints/000007-step-840/state.safetensors    tensors by name
                                state.json           the other state, and the SHA-256 of both files

A checkpoint is written under a temporary name, flushed to disk and renamed, so that one with a final name is complete.
The newest two and the best are kept. Later damage is detected by the digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from dla.errors import DamagedError, DlaError, UnavailableError
from dla.storage.files import (
    JsonObject,
    json_shown,
    open_folder_aside,
    read_json,
    remove_folder,
    remove_leftovers,
)
from dla.types import Progress

SCHEMA = "dla.checkpoint/1"
TENSORS, FACTS = "state.safetensors", "state.json"
KEPT = 2
DAMAGED = "damaged-"

Loaded = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run, in their own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, best: bool = False) -> None:
        """Save the state after `step` steps of the run, and delete old checkpoints; the last `best` one is kept.

        Raises:
            DlaError: the disk is full or cannot be written; existing checkpoints are unchanged.
        """
        existing = self._list()
        number = int(existing[-1].name[:6]) + 1 if existing else 1
        final = self.folder / f"{number:06d}-step-{step}"
        try:
            remove_leftovers(self.folder, alone=True)
            with open_folder_aside(final) as aside:
                _write(aside, tensors, {"schema": SCHEMA, "step": step, "best": best, "facts": dict(facts)})
        except OSError as error:
            kept = (
                f"Run the same command again to continue from {existing[-1]}" if existing else "There is no earlier one"
            )
            raise DlaError(f"the checkpoint {final} cannot be written: {error.strerror or error}. {kept}") from error
        self._prune()

    def load_newest(self, progress: Progress) -> Loaded | None:
        """Return the tensors and facts of the newest intact checkpoint; None if there is none.

        Damaged checkpoints are reported and renamed.
        """
        checkpoints = self._list()
        for checkpoint in reversed(checkpoints):
            try:
                return _read(checkpoint)
            except _DamagedCheckpointError as damage:
                aside = checkpoint.with_name(DAMAGED + checkpoint.name)
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)
                progress.log(f"{checkpoint} {damage}: skipped, renamed to {aside.name}")
        if checkpoints:
            progress.log(f"no checkpoint in {self.folder} is intact: the run starts again from the first step")
        return None

    def _list(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return sorted(p for p in paths if re.fullmatch(r"\d{6}-step-\d+", p.name))

    def _prune(self) -> None:
        """Delete all but the newest checkpoints and the last best one."""
        checkpoints = self._list()
        best = next((c for c in reversed(checkpoints) if _is_best(c)), None)
        for checkpoint in checkpoints[:-KEPT]:
            if checkpoint != best:
                remove_folder(checkpoint)


class _DamagedCheckpointError(Exception):
    """A damaged checkpoint; the message is the end of a sentence."""


def _write(folder: Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    # Arithmetic may round differently in another memory layout, so the layout is saved with the values.
    channels_last = [
        name for name, t in on_cpu.items() if t.ndim == 4 and not t.is_contiguous() and _is_channels_last(t)
    ]
    try:
        save_file({name: tensor.contiguous() for name, tensor in on_cpu.items()}, folder / TENSORS)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    with (folder / TENSORS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # through JSON, so that the digest is of the values as they are read back
    record = json.loads(json.dumps({**record, "channels_last": channels_last, "tensors_sha256": digest}))
    text = json.dumps({**record, "sha256": _digest(record)}, indent=1)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def _read(folder: Path) -> Loaded:
    record = _record(folder)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise _DamagedCheckpointError(f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != record["tensors_sha256"]:
        raise _DamagedCheckpointError(f"is damaged ({TENSORS} has another digest)")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _DamagedCheckpointError(f"is damaged ({TENSORS} does not hold tensors)") from error
    for name, tensor in tensors.items():
        channels_last = name in record["channels_last"]
        tensors[name] = tensor.clone(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return tensors, record["facts"]


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / FACTS)
    except DamagedError as error:
        raise _DamagedCheckpointError(f"is damaged ({FACTS} is not the record of a checkpoint)") from error
    except UnavailableError as error:
        raise _DamagedCheckpointError(f"cannot be read ({error})") from error
    digest = record.pop("sha256", None)
    if digest != _digest(record):
        raise _DamagedCheckpointError(f"is damaged ({FACTS} has another digest)")
    if record.get("schema") != SCHEMA:
        raise _DamagedCheckpointError(f"was written by another version of dla ({json_shown(record.get('schema'))})")
    fields = JsonObject(record, FACTS)
    try:
        fields.get("facts", dict, "an object")
        fields.get("tensors_sha256", str, "a text")
        fields.get("best", bool, "true or false")
        fields.texts("channels_last")
    except DamagedError as error:
        raise _DamagedCheckpointError(f"is damaged ({error})") from error
    return record


def _is_best(folder: Path) -> bool:
    try:
        return bool(_record(folder)["best"])
    except _DamagedCheckpointError:
        return False


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
