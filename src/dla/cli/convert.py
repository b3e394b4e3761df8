"""`dla convert`."""

from __future__ import annotations

import sys

from dla.cli.parser import Parser
from dla.options import ConvertFormat

FORMS = {
    "folder": "model folder of {name}",
    "timm": "weights of {name} under timm's names",
    "authors": "weights of {name} under the authors' names",
}

DESCRIPTION = """\
Write weights in another format, as float32. IN is whatever --model takes elsewhere: a network's name,
a model folder, a .safetensors or .pth file, shipped:NAME.

  folder    a model folder, which dla and timm (local-dir:OUT) read
  timm      the weights alone, .safetensors or .pth by OUT's ending
  authors   a .pth that the authors' code loads strictly, and what is built on
            it (CenterNet, SMOKE, FairMOT, CLRerNet)

Exit code 2: OUT exists, or the network cannot be written in that format; 3: IN cannot be had or is damaged."""

EXAMPLE = """\
  dla convert dla34 dla34-ba72cf86.pth --to authors
  dla convert old.pth models/dla60 --model dla60
  dla convert runs/mine mine.safetensors"""


def run(argv: list[str]) -> int:
    parser = Parser("convert", DESCRIPTION, EXAMPLE, "IN OUT [options]")
    parser.flag("IN", help="where the weights are")
    parser.flag("OUT", help="where they go: a folder, or a file by its ending")
    parser.flag("--model", metavar="NAME", help="the network in a bare file, where its tensors do not tell")
    parser.flag("--to", type=ConvertFormat | None, help="the form (default: timm where OUT ends with .safetensors or "
                ".pth, else folder)")  # fmt: skip
    parser.flag("--force", action="store_true", help="replace what is at OUT")
    args = parser.read(argv)

    from dla.weights.convert import convert

    made = convert(args.IN, args.OUT, architecture=args.model, to=args.to, force=args.force)
    for note in made.notes:
        print(f"dla: {note}", file=sys.stderr)
    what = FORMS[made.format].format(name=made.architecture)
    print(f"{made.path}: {what}, {made.size_bytes / 1e6:.1f} MB, SHA-256 {made.sha256[:8]}...")
    return 0
