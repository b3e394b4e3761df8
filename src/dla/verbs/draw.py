"""A network as a picture in a file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from dla.nets.build import build
from dla.nets.table import TABLE
from dla.report.draw import lay_out
from dla.report.shapes import writer_of
from dla.report.write import write_file
from dla.verbs.describe import describe
from dla.weights.load import begin_model
from dla.weights.sources import find_source

__all__ = ["draw"]


def draw(model: str | nn.Module, output: str | os.PathLike[str]) -> None:
    """Draw a network: levels, blocks, aggregation nodes, and what each takes.

    Args:
        model: a network's name, a model folder, a file of weights; or a module: a `DLA`, a `DLAUp`, what `DLAUp.over`
            or `graft` makes, or any other that has an `HDA` in it.
        output: the file to write, .svg, or .png at twice the size.

    Raises:
        UsageError: another ending, or a module without aggregation.
        UnknownNameError: no network or file is called `model`.
        UnavailableError, DamagedError: the model cannot be had, or is not what it should be.
        OSError: the file cannot be written.
    """
    write = writer_of(output)
    drawing = describe(model) if isinstance(model, nn.Module) else describe(*_open(model))
    write_file(os.path.expanduser(output), write(lay_out(drawing)))


def _open(source: str) -> tuple[nn.Module, str]:
    """The network without its weights, and what to call it. Of a network in the table nothing is fetched."""
    name = source
    if source not in TABLE:
        found = find_source(source)
        released = [r.name for r in TABLE.values() if (found.kind, found.where) == ("hub", r.hub_id)]
        if not released:
            called = found.name or (source if found.kind == "hub" else Path(found.where).resolve().name)
            return begin_model(source), "".join(letter if letter.isprintable() else "?" for letter in called)
        name = released[0]
    with torch.device("meta"):
        return build(name), name
