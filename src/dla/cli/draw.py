"""`dla draw`."""

from __future__ import annotations

import os

from dla.cli.common import check_file
from dla.cli.parser import MODEL_HELP, Parser, default_model
from dla.errors import UsageError
from dla.types import DEFAULT_MODEL

DESCRIPTION = f"""\
Draw a network's trees: its levels, blocks and aggregation nodes, what each takes, channels and strides;
without a name, those of the default of dla predict ({DEFAULT_MODEL}). No weights are fetched.
An .svg tells more to those who point at its parts; a .png has twice its size.

Exit code 2: no such network, or a file of another kind."""

EXAMPLE = """\
  dla draw dla34 --output tree.svg
  dla draw runs/mine/best -o tree.png"""


def run(argv: list[str]) -> int:
    parser = Parser("draw", DESCRIPTION, EXAMPLE, "[MODEL] --output FILE")
    parser.flag("model", nargs="?", default=default_model(), help=MODEL_HELP)
    parser.flag("-o", "--output", metavar="FILE", help="the file to write, .svg or .png")
    args = parser.read(argv)
    if args.output is None:
        raise UsageError("--output is missing. Give a file that ends in .svg or .png")

    from dla.drawing.shapes import writer_of

    writer_of(args.output)  # says so at once where it is no picture
    check_file("--output", os.path.expanduser(args.output))
    from dla.drawing.network import draw

    draw(args.model, args.output)
    return 0
