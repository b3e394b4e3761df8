"""Download weights from the Hugging Face Hub into its cache, where all commands find them. Weights that are
already complete are not downloaded again. With --verify nothing is downloaded: cached weights are checked
against the digest that the hub announced, and loaded strictly.

Exit code 2: wrong usage, or no such network; 3: some weights cannot be downloaded, are damaged or missing.

example:
  dla pull dla34 dla60
  dla pull all
  dla pull --verify
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dla.cli.common import show_progress
from dla.cli.parser import Parser, about
from dla.errors import UsageError

if TYPE_CHECKING:
    from dla.weights.pull import PullResult


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("pull", *about(__doc__), "MODEL... | --verify [MODEL...]")
    parser.flag(
        "names", metavar="MODEL", nargs="*", help="networks (see dla models), hf-hub:owner/name[@revision], or all"
    )
    parser.flag("--verify", action="store_true", help="check cached weights (default: of every released network)")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    if not args.names and not args.verify:
        raise UsageError("nothing to download: name networks, as in: dla pull dla34 dla60, or: dla pull all")

    from dla.weights.pull import pull, verify

    failed = count = 0
    with show_progress(quiet=False) as progress:
        for pulled in verify(args.names) if args.verify else pull(args.names, progress=progress):
            count += 1
            failed += pulled.error is not None
            if args.verify:
                print(_verdict(pulled), flush=True)
            elif pulled.error is None:
                print(_line(pulled, "downloaded" if pulled.fetched else "cached"), flush=True)
            else:
                progress.log(f"{pulled.name}: {pulled.error}")
    if not count:
        print("dla: no released weights are in the cache. Try: dla pull all", file=sys.stderr)
    return 3 if failed else 0


def _verdict(pulled: PullResult) -> str:
    good, bad = _marks()
    return f"{good} {_line(pulled, 'loads')}" if pulled.error is None else f"{bad} {pulled.name}: {pulled.error}"


def _marks() -> tuple[str, str]:
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok", "NO"
    return "✓", "✗"


def _line(pulled: PullResult, what: str) -> str:
    assert pulled.path is not None
    size, folder = pulled.size_bytes / 1e6, _short(pulled.path.parents[2])  # parent of snapshots/COMMIT/FILE
    return f"{pulled.name:<15} {size:6.1f} MB  {what:<10}  SHA-256 {pulled.sha256[:12]}  {folder}"


def _short(path: Path) -> str:
    home = os.path.expanduser("~")
    return f"~{str(path)[len(home) :]}" if str(path).startswith(home + os.sep) else str(path)
