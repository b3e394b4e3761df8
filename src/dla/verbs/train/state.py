"""Checkpoints: safetensors and JSON only, complete or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["load_newest", "save"]

KEPT = 2


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step aside, flush it to the disk, put it in place; keep the newest two."""
    aside, final = folder / f".{step:09d}", folder / f"{step:09d}"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, aside / "state.safetensors")
    digest = _sha256(aside / "state.safetensors")
    (aside / "state.json").write_text(json.dumps({**facts, "sha256": digest}, indent=1))
    for name in ("state.safetensors", "state.json"):
        _flush(aside / name)
    aside.rename(final)
    _flush(folder)
    for old in sorted(p for p in folder.iterdir() if p.name.isdigit())[:-KEPT]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint, or None; a torn or altered one is passed over."""
    found = sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True) if folder.is_dir() else []
    for checkpoint in found:
        try:
            facts = json.loads((checkpoint / "state.json").read_text())
            if facts.pop("sha256") == _sha256(checkpoint / "state.safetensors"):
                return load_file(checkpoint / "state.safetensors"), facts
        except (OSError, ValueError, KeyError):
            continue
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
