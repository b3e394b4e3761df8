"""What the hub has for a released network, as timm's own exporter writes it, with weights drawn at random."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from support.oracle import timm


@cache
def released(name: str) -> dict[str, bytes]:
    """The files of timm/NAME.in1k."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(timm.create_model(name), folder, safe_serialization=True)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def put_in_cache(cache: Path, name: str) -> Path:
    """The same files where huggingface_hub would put them; returns the weights' path."""
    commit = "0123456789" * 4
    repository = cache / f"models--timm--{name}.in1k"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file, data in released(name).items():
        (snapshot / file).write_bytes(data)
    return snapshot / "model.safetensors"
