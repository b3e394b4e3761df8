"""Show or clear the cache: networks converted for the engines, decoded training photos and engine timings. They
are recreated when needed. int8 models made from your photos are stored here too; --clear keeps them.
Downloaded weights are not part of it; dla models lists them.

example:
  dla cache
  dla cache --clear
"""

from __future__ import annotations

import json
from collections import Counter

from dla.cli.parser import Parser, about, table_width
from dla.storage import cache
from dla.text_table import text_table

KINDS = {
    "ops": "networks that run without PyTorch",
    "onnx": "networks optimized by ONNX Runtime",
    "photos": "photos decoded for training",
    "timings": "speed of the engines",
    cache.INT8: "int8 models made from your photos; --clear keeps them",
}


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("cache", *about(__doc__), "[options]")
    parser.flag("--clear", action="store_true", help="clear the cache, except int8 models")
    parser.output_format()
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)

    entries = cache.clear() if args.clear else list(cache.entries())
    files, sizes = Counter[str](), Counter[str]()
    for entry in entries:
        files[entry.kind] += 1
        sizes[entry.kind] += entry.size
    done = "removed from " if args.clear else ""
    if args.format == "json":
        kinds = {kind: {"files": files[kind], "bytes": sizes[kind]} for kind in sorted(files)}
        print(
            json.dumps(
                {"schema": "dla.cache/1", "folder": str(cache.cache_folder()), "removed": args.clear, "kinds": kinds}
            )
        )
        return 0
    print(f"{done}{cache.cache_folder()}: {len(entries)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    rows = [(f"  {k}", f"{files[k]} files", f"{sizes[k] / 1e6:.1f} MB", KINDS.get(k, "")) for k in sorted(files)]
    if rows:
        print("\n".join(text_table(rows, "<>><", table_width())))
    return 0
