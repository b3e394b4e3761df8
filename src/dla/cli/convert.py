"""`dla convert`."""

from __future__ import annotations

import sys

from dla.cli.parser import MODEL_HELP, Parser
from dla.errors import printable
from dla.options import ConvertFormat

RESULTS = {
    "folder": "model folder of {name}",
    "timm": "weights of {name} under timm's names",
    "authors": "weights of {name} under the authors' names",
}

DESCRIPTION = """\
Convert weights to another format, in float32.

  folder    a model folder, which dla and timm (local-dir:OUT) load
  timm      only the weights, as .safetensors or .pth by the suffix of OUT
  authors   a .pth that loads strictly in the authors' code and in projects that
            use it (CenterNet, SMOKE, FairMOT, CLRerNet)

Exit code 2: wrong usage, OUT exists, or the format does not support the network; 3: IN is missing or damaged."""

EXAMPLE = """\
  dla convert dla34 dla34-ba72cf86.pth --to authors
  dla convert old.pth models/dla60 --model dla60
  dla convert runs/mine mine.safetensors"""


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = Parser("convert", DESCRIPTION, EXAMPLE, "IN OUT [options]")
    parser.flag("IN", help=MODEL_HELP)
    parser.flag("OUT", help="output folder, or file by its suffix")
    parser.flag("--model", metavar="NAME", help="network of a bare weight file, if its tensors do not identify it")
    parser.flag("--to", type=ConvertFormat | None, help="output format (default: timm if OUT ends with .safetensors or "
                ".pth, else folder)")  # fmt: skip
    parser.flag("--force", action="store_true", help="replace OUT if it exists")
    args = parser.read(argv)

    from dla.weights.convert import convert

    converted = convert(args.IN, args.OUT, architecture=args.model, to=args.to, force=args.force)
    for note in converted.notes:
        print(f"dla: {printable(note)}", file=sys.stderr)
    what = RESULTS[converted.format].format(name=converted.architecture)
    size = f"{converted.size_bytes / 1e6:.1f} MB"
    print(f"{converted.path}: {what}, {size}, SHA-256 {converted.sha256[:8]}...")
    return 0
