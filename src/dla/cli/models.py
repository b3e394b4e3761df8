"""List the networks and their weights: parameters, GMACs (1e9 multiplications per photo), top-1, classes, size,
whether the weights are on this machine, and licence. Nothing is downloaded.

example:
  dla models
  dla models --format json
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from dla.cli.parser import Parser, about, table_width
from dla.text_table import text_table
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from dla.catalog import ModelRow, StoredWeights

HEAD = ("network", "params", "GMACs", "top-1", "classes", "MB", "weights", "licence")
ALIGN = "<>>>>><<"

FOOT = f"""\
top-1: published accuracy on ImageNet-1k in per cent; of a built-in network, on its own photos.
MB: size of the weight file; ~ is an estimate of 4 bytes per parameter.
Details: dla info NAME. Download weights: dla pull NAME. Default of dla predict: {DEFAULT_MODEL}."""


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("models", *about(__doc__), "[--format table|json]")
    parser.output_format()
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)

    from dla.catalog import models

    rows = models()
    if args.format == "json":
        print(json.dumps([r.to_dict() for r in rows], indent=1))
        return 0
    table = text_table([HEAD, *map(_cells, rows)], ALIGN, table_width())
    print("\n".join([*table, "", FOOT]))
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


def _megabytes(weights: StoredWeights) -> str:
    if weights.size_bytes is None:
        return ""
    return f"{'~' if weights.estimated else ''}{weights.size_bytes / 1e6:.1f}"
