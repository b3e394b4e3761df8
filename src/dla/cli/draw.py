"""Draw a network's aggregation trees: levels, blocks and aggregation nodes with their inputs, channels and
strides. No weights are downloaded. An .svg shows details on hover; a .png has twice its resolution.

Exit code 2: no such network, or another file type.

example:
  dla draw dla34 --output tree.svg
  dla draw runs/mine/best -o tree.png
"""

from __future__ import annotations

import os

from dla.cli.common import check_file
from dla.cli.parser import MODEL_HELP, Parser, about, default_model


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("draw", *about(__doc__), "[MODEL] --output FILE")
    parser.flag("model", metavar="MODEL", nargs="?", default=default_model(), help=MODEL_HELP)
    parser.flag("-o", "--output", metavar="FILE", help="output file, .svg or .png")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser()
    args = parser.read(argv)
    if args.output is None:
        raise parser.missing("--output", "Give a file that ends in .svg or .png")

    from dla.drawing.shapes import writer_of

    writer_of(args.output)  # raises for other file types before the network is built
    check_file("--output", os.path.expanduser(args.output))
    from dla.drawing.network import draw

    draw(args.model, args.output)
    return 0
