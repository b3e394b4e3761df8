"""Facts about other projects' networks that are recorded in tests/reference; its README.md names the sources."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "reference"


@dataclass(frozen=True)
class Figures:
    """Of one released network: its size, and its published accuracies in percent."""

    parameters: int
    macs_224: int
    top1: float
    top5: float


def recorded_shapes(network: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Shapes by name, in order, of the tensors whose names start with the prefix, which is taken off.

    `network` is a file of tests/reference/keys: "timm-dla34", or "ucbdrive-dla34up" of the authors.
    """
    recorded = json.loads((REFERENCE / "keys" / f"{network}.json").read_text(encoding="utf-8"))
    return {name.removeprefix(prefix): tuple(shape) for name, shape in recorded.items() if name.startswith(prefix)}


def recorded_figures() -> dict[str, Figures]:
    """Of the twelve released networks, by name."""
    with (REFERENCE / "figures.tsv").open(encoding="utf-8", newline="") as file:
        return {
            row["name"]: Figures(int(row["parameters"]), int(row["macs_224"]), float(row["top1"]), float(row["top5"]))
            for row in csv.DictReader(file, delimiter="\t")
        }
