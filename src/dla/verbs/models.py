"""Every network with its weights: size, work, accuracy, licence, and whether they are here. No torch, no network."""

from __future__ import annotations

import json
from pathlib import Path

from dla.nets import count
from dla.nets.table import TABLE, Row
from dla.records import ModelRow, StoredWeights
from dla.weights import hub
from dla.weights.sources import shipped, shipped_names

__all__ = ["models", "stored_of_row"]

_BYTES_A_PARAMETER = 4  # released weights are float32


def models() -> tuple[ModelRow, ...]:
    """The networks of the table in its order, then the ones that come along."""
    return tuple(map(_of_row, TABLE.values())) + tuple(map(_of_shipped, shipped_names()))


def stored_of_row(r: Row) -> StoredWeights:
    """Where the released weights of a network are."""
    if r.hub_id is None:
        return StoredWeights("none")
    path = hub.locate(r.hub_id)
    if path is None:
        return StoredWeights("to download", _BYTES_A_PARAMETER * r.params, estimated=True)
    return StoredWeights("cached", path.stat().st_size, path=str(path))


def _of_row(r: Row) -> ModelRow:
    return ModelRow(
        model=r.name,
        architecture=r.name,
        params=r.params,
        macs=r.macs,
        input_size=(3, 224, 224),
        top1=r.top1,
        num_classes=1000 if r.tag else None,
        licence=r.licence or None,
        weights=stored_of_row(r),
    )


def _of_shipped(name: str) -> ModelRow:
    folder = shipped(name)
    config = json.loads((folder / "config.json").read_bytes())
    path = folder / "model.safetensors"
    shapes = _shapes(path)
    channels, height, width = config["pretrained_cfg"]["input_size"]
    top1 = config["dla"].get("results", {}).get("top1")
    return ModelRow(
        model=f"shipped:{name}",
        architecture=config["architecture"],
        params=count.parameters(shapes),
        macs=count.macs(shapes, (height, width)),
        input_size=(channels, height, width),
        top1=None if top1 is None else round(100 * top1, 2),
        num_classes=config["num_classes"],
        licence=config["dla"].get("licence"),
        weights=StoredWeights("shipped", path.stat().st_size, path=str(path)),
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """From the header of a .safetensors file: the package's reader would load numpy or torch first."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
