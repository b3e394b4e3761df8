"""Checkpoints: safetensors and JSON only, complete or not there at all.

    checkpoints/000007-step-840/state.safetensors    tensors by name
                                state.json           the rest, and the SHA-256 of both files

A checkpoint is written aside, flushed to the disk and renamed: its name is the mark that it is complete. The newest two
and the best are kept. One that was torn or altered later is found by its digests.
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
from dla.storage.files import open_folder_aside, read_json, remove_folder, remove_leftovers
from dla.types import Progress

__all__ = ["Checkpoints"]


SCHEMA = "dla.checkpoint/1"
TENSORS, FACTS = "state.safetensors", "state.json"
KEPT = 2
DAMAGED = "damaged-"

Loaded = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, best: bool = False) -> None:
        """Write the state after `step` steps of the run; `best` ones outlive those that come later.

        Raises:
            DlaError: the disk is full or cannot be written; the checkpoints that are there are untouched.
        """
        there = self._found()
        number = int(there[-1].name[:6]) + 1 if there else 1
        final = self.folder / f"{number:06d}-step-{step}"
        try:
            remove_leftovers(self.folder)
            with open_folder_aside(final) as aside:
                _write(aside, tensors, {"schema": SCHEMA, "step": step, "best": best, "facts": dict(facts)})
        except OSError as error:
            kept = f"{there[-1]} is kept" if there else "there is none yet"
            raise DlaError(
                f"the checkpoint {final} cannot be written: {error.strerror or error}. Of the earlier ones {kept}; "
                "the same command goes on from there"
            ) from error
        self._prune()

    def load_newest(self, progress: Progress) -> Loaded | None:
        """Tensors and facts of the newest whole checkpoint; None where there is none.

        One that is torn or altered is said, and kept under another name.
        """
        found = self._found()
        for checkpoint in reversed(found):
            try:
                return _read(checkpoint)
            except _TornError as torn:
                aside = checkpoint.with_name(DAMAGED + checkpoint.name)
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.rename(aside)
                progress.log(f"{checkpoint} {torn}: passed over, kept as {aside.name}")
        if found:
            progress.log(f"no checkpoint in {self.folder} is whole: the run begins again with its first step")
        return None

    def _found(self) -> list[Path]:
        """The checkpoints, oldest first."""
        there = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return sorted(p for p in there if re.fullmatch(r"\d{6}-step-\d+", p.name))

    def _prune(self) -> None:
        """Remove what is neither one of the newest nor the last that was best."""
        found = self._found()
        best = next((c for c in reversed(found) if _is_best(c)), None)
        for checkpoint in found[:-KEPT]:
            if checkpoint != best:
                remove_folder(checkpoint)


class _TornError(Exception):
    """What is wrong with a checkpoint, as the end of a sentence."""


def _write(folder: Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    here = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    # Arithmetic may round differently in another memory layout, so the layout comes back with the values.
    last = [name for name, t in here.items() if t.ndim == 4 and not t.is_contiguous() and _is_channels_last(t)]
    try:
        save_file({name: tensor.contiguous() for name, tensor in here.items()}, folder / TENSORS)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    with (folder / TENSORS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    record = json.loads(json.dumps({**record, "channels_last": last, "tensors_sha256": digest}))  # as it is read again
    text = json.dumps({**record, "sha256": _digest(record)}, indent=1)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def _read(folder: Path) -> Loaded:
    record = _record(folder)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise _TornError(f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != record["tensors_sha256"]:
        raise _TornError(f"was torn or altered ({TENSORS} has another digest)")
    tensors = load(data)
    for name, tensor in tensors.items():
        last = name in record["channels_last"]
        tensors[name] = tensor.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    return tensors, record["facts"]


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / FACTS)
    except DamagedError as error:
        raise _TornError(f"was torn or altered ({FACTS} is no record of a checkpoint)") from error
    except UnavailableError as error:
        raise _TornError(f"cannot be read ({error})") from error
    digest = record.pop("sha256", None)
    if digest != _digest(record):
        raise _TornError(f"was torn or altered ({FACTS} has another digest)")
    if record["schema"] != SCHEMA:
        raise _TornError(f"is of another version of dla ({record['schema']})")
    return record


def _is_best(folder: Path) -> bool:
    try:
        return bool(_record(folder)["best"])
    except _TornError:
        return False


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)
