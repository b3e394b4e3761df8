"""`dla models`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dla.cli.parser import Parser
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from dla.catalog import ModelRow, StoredWeights


DESCRIPTION = """\
List the networks and their weights: parameters, GMACs (1e9 multiplications for one photo), top-1,
classes, size, licence, and whether the weights are here. Nothing is fetched."""

EXAMPLE = """\
  dla models
  dla models --format json"""

HEAD = ("network", "params", "GMACs", "top-1", "classes", "MB", "weights", "licence")
LEFT = (0, 6, 7)  # the columns of words
WIDTH = 100

FOOT = f"""\
top-1: per cent of ImageNet-1k's validation photos, as published; for a shipped network, of its own.
MB: the file's size where the weights are here; ~ is 4 bytes a parameter.
More: dla info NAME. Fetch weights: dla pull NAME. The default of dla predict: {DEFAULT_MODEL}."""


def run(words: list[str]) -> int:
    parser = Parser("models", DESCRIPTION, EXAMPLE, "[--format table|json]")
    parser.flag("--format", choices=("table", "json"), default="table", help="table or json (default: table)")
    args = parser.parse_args(words)

    from dla.catalog import models

    rows = models()
    if args.format == "json":
        print(json.dumps([r.to_dict() for r in rows], indent=1))
        return 0
    print(f"{_table([HEAD, *map(_cells, rows)])}\n\n{FOOT}")
    return 0


def _cells(r: ModelRow) -> tuple[str, ...]:
    return (
        r.model,
        f"{r.params / 1e6:.1f} M",
        f"{r.macs / 1e9:.2f}",
        "" if r.top1 is None else f"{r.top1:.1f}",
        "" if r.num_classes is None else str(r.num_classes),
        _megabytes(r.weights),
        r.weights.state + (", default" if r.model == DEFAULT_MODEL else ""),
        r.license or "",
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the last one takes what is left of the terminal's usual width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = WIDTH - sum(widths[:-1]) - 2 * len(widths[:-1])
    return "\n".join("  ".join(map(_aligned, range(len(widths)), line, widths)).rstrip() for line in lines)


def _aligned(column: int, cell: str, width: int) -> str:
    cell = textwrap.shorten(cell, width, placeholder="...")
    return cell.ljust(width) if column in LEFT else cell.rjust(width)


def _megabytes(weights: StoredWeights) -> str:
    if weights.size_bytes is None:
        return ""
    return f"{'~' if weights.estimated else ''}{weights.size_bytes / 1e6:.1f}"
