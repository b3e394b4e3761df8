"""What a run of `dla train` ended in, as far as it must not depend on whether the run was stopped on the way."""

from __future__ import annotations

import json
from pathlib import Path


def ended_in(folder: Path) -> dict[str, object]:
    """Everything that must not depend on a kill."""
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    record = json.loads((newest / "state.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = {"seconds", "photos_per_second", "data_wait"}
    return {
        "last checkpoint": (newest / "state.safetensors").read_bytes(),
        "its facts": (record["step"], record["facts"]),
        "best/model.safetensors": (folder / "best" / "model.safetensors").read_bytes(),
        "best/config.json": (folder / "best" / "config.json").read_bytes(),
        "metrics.jsonl": [{k: v for k, v in line.items() if k not in times} for line in lines],
    }


def differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The names of what differs."""
    return [name for name in one if one[name] != other[name]]
