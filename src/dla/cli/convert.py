"""Convert weights to another format, in float32.

  folder    a model folder, which dla and timm (local-dir:OUT) load; --labels to
            --exif say what a bare weight file cannot
  timm      only the weights, as .safetensors or .pth by the suffix of OUT
  authors   a .pth that loads strictly in the authors' code and in projects that
            use it (CenterNet, SMOKE, FairMOT, CLRerNet)

Exit code 2: wrong usage, OUT exists, or the format does not support the network; 3: MODEL is missing or damaged.

example:
  dla convert dla34 dla34-ba72cf86.pth --to authors
  dla convert mine.pth models/mine --labels classes.txt --input-size 128 --crop-pct 1
  dla convert old.pth models/dla60 --architecture dla60
  dla convert runs/mine mine.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from dla.cli.parser import MODEL_HELP, Parser, about
from dla.errors import UsageError, printable
from dla.options import ConvertFormat, PreprocessingOptions

RESULTS = {
    "folder": "model folder of {name}",
    "timm": "weights of {name} under timm's names",
    "authors": "weights of {name} under the authors' names",
}


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("convert", *about(__doc__), "MODEL OUT [options]")
    parser.flag("MODEL", help=MODEL_HELP)
    parser.flag("OUT", help="output folder, or file by its suffix")
    parser.flag(
        "--architecture", metavar="NAME", help="network of a bare weight file, if its tensors do not identify it"
    )
    parser.flag("--to", type=ConvertFormat | None, help="output format (default: timm if OUT ends with .safetensors or "
                ".pth, else folder)")  # fmt: skip
    parser.flag("--labels", metavar="FILE", help="text file with one class per line, in the order of the network's "
                "outputs: its name, and after a tab its readable label if it has another")  # fmt: skip
    parser.options(PreprocessingOptions, input_size="N", crop_pct="X", crop_mode=None, interpolation=None)
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.flag(f"--{name}", nargs=3, type=float, metavar=("R", "G", "B"), help=f"{what} of red, green and blue, "
                    "for pixels from 0 to 1")  # fmt: skip
    parser.options(PreprocessingOptions, exif=None)
    parser.flag("--force", action="store_true", help="replace OUT if it exists")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    labels = None if args.labels is None else _labels(args.labels)

    from dla.weights.convert import convert
    from dla.weights.save import FIELDS

    preprocessing = {name: args[name] for name in FIELDS if args[name] is not None}
    converted = convert(args.MODEL, args.OUT, architecture=args.architecture, to=args.to, labels=labels,
                        preprocessing=preprocessing, force=args.force)  # fmt: skip
    for note in converted.notes:
        print(f"dla: {printable(note)}", file=sys.stderr)
    what = RESULTS[converted.format].format(name=converted.architecture)
    size = f"{converted.size_bytes / 1e6:.1f} MB"
    print(f"{converted.path}: {what}, {size}, SHA-256 {converted.sha256[:8]}...")
    return 0


def _labels(path: str) -> dict[str, str]:
    """Return the readable label of each class in a file of --labels, by its name."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"--labels {path} cannot be read: {reason}") from error
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, _, label = (part.strip() for part in line.partition("\t"))
        if not name or name in labels:
            what = f'names "{name}" a second time' if name else "is empty"
            raise UsageError(f"--labels {path}: line {number} {what}. Give one class per line, each once")
        labels[name] = label or name
    return labels
