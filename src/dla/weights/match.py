"""Whose weights these are: tensors compared with a network's, by name and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import nn

from dla.errors import DamagedError
from dla.nets.build import build
from dla.nets.table import TABLE
from dla.weights.names import dead_projections

__all__ = ["COUNTER", "FIRST_CONV", "HEAD", "Shapes", "check_match", "fitting", "shapes_of"]

FIRST_CONV, HEAD = "base_layer.0.weight", "fc."
COUNTER = "num_batches_tracked"

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_match(model: nn.Module, wanted: Shapes, given: Shapes, where: str) -> None:
    """Raise a readable difference unless names and shapes are the same.

    Raises:
        DamagedError: what is missing, unknown or of another shape, and what it is instead if that can be told.
    """
    missing = [name for name in wanted if name not in given]
    unknown = sorted(name for name in given if name not in wanted)
    other = [name for name in wanted if name in given and given[name] != wanted[name]]
    if not (missing or unknown or other):
        return
    shapes = [f"{name}: {_size(given[name])} in the file, {_size(wanted[name])} in the network" for name in other]
    kinds = ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
    parts = [f"{len(names)} tensors {kind} ({_few(names)})" for names, kind in kinds if names]
    name = getattr(model, "pretrained_cfg", {}).get("architecture", "this network")
    hint = _hint(given, missing + unknown + other, name)
    raise DamagedError(f"{where} does not hold the weights of {name}: {'; '.join(parts)}.{hint}")


def _hint(given: Shapes, differing: Sequence[str], name: str) -> str:
    fits = [fit for fit in fitting(given) if fit != name]
    if fits:
        return f" These are the weights of {' or '.join(fits)}."
    head = given.get(f"{HEAD}weight")
    if head and all(n.startswith(HEAD) for n in differing):
        return f" num_classes={head[0]} loads its classifier, new_head=True replaces it."
    return ""


def _few(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def fitting(shapes: Shapes) -> list[str]:
    """The networks of the table that these tensors are exactly, whatever the classes and the input's channels.

    The authors' dead projections and missing batch-norm counters are no difference.
    """
    first = shapes.get(FIRST_CONV, ())
    if len(first) != 4:
        return []
    fits = []
    for name, row in TABLE.items():
        if first[0] != row.channels[0] or shapes.get("level5.root.bn.weight") != (row.channels[5],):
            continue  # cheap, and leaves few to compare
        body, dead = _skeleton(name)
        body = body | {FIRST_CONV: (first[0], first[1], *body[FIRST_CONV][2:])}
        given = {n: shape for n, shape in shapes.items() if not n.endswith(COUNTER) and not n.startswith(HEAD)}
        if {n: shape for n, shape in given.items() if dead.get(n) != shape} == body:
            fits.append(name)
    return fits


@cache
def _skeleton(architecture: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Names and shapes of a network without its classifier, and of the authors' dead projections in it."""
    with torch.device("meta"):
        model = build(architecture, num_classes=0)
    body = {name: shape for name, shape in shapes_of(model.state_dict()).items() if not name.endswith(COUNTER)}
    return body, {name: tuple(shape) for name, shape in dead_projections(model).items()}
