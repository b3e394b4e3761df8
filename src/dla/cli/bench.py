"""Measure the speed of networks on this CPU, one row per engine, precision and batch size. Each row runs in its
own process and is measured once per round. Networks whose weights are not on this machine run with random
ones; nothing is downloaded.

Exit code 2: wrong usage, or nothing requested can run here; 3: a package or weights are missing.

example:
  dla bench
  dla bench dla34 dla60 --precision all --batch-size 1,8,16 --against timm
  dla bench dla34 --format json --output bench.json --picture bench.svg
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from dla.cli.common import check_file, log, show_progress
from dla.cli.parser import MODEL_HELP, Parser, about, default_model
from dla.errors import UsageError, pip_line
from dla.options import BenchOptions, cores
from dla.storage.files import write_file
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.benchmarking.rows import BenchReport


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("bench", *about(__doc__), "[MODEL...] [options]")
    parser.flag("models", metavar="MODEL", nargs="*", help=f"networks, each {MODEL_HELP} (default: {DEFAULT_MODEL})")
    parser.options(BenchOptions, engine="E", precision=None)
    batches = ",".join(map(str, BenchOptions.batches))
    parser.flag(
        "--batch-size", default=batches, metavar="N,...", help=f"photos per call, one row each (default: {batches})"
    )
    parser.options(BenchOptions, against=None, threads="N", rounds="N")
    parser.output_format()
    parser.flag("-o", "--output", metavar="FILE", help="write to this file instead of standard output")
    parser.flag("--picture", metavar="FILE", help="also plot accuracy over latency; .svg or .png")
    parser.flag("-q", "--quiet", action="store_true", help="print only results")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    batches = _batches(args.batch_size)
    _check_files(args)
    from dla.benchmarking.baseline import BUSY_CORES
    from dla.benchmarking.bench import Bench, BenchmarkPlan

    models = tuple(args.models) or (default_model(),)
    plan = BenchmarkPlan(models, args.engine, args.precision, batches, args.against, args.threads, args.rounds)
    bench = Bench(plan)
    if bench.background_load_before is None:
        log(args, "dla: without psutil it is not known whether other processes disturb the measurement: "
                  f"{pip_line('bench')}")  # fmt: skip
    elif bench.background_load_before > BUSY_CORES:
        load = f"{bench.background_load_before:.1f} of {cores()} cores"
        log(args, f"dla: this machine is busy: other processes use {load}, "
                  "so the results are slower than on an idle machine, and vary.")  # fmt: skip
    try:
        with show_progress(args.quiet) as progress:
            bench.measure(progress)
    finally:
        if bench.rows:  # after Ctrl-C too: report what was measured
            _write(args, bench.report())
    return 0


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise UsageError(
            f"--batch-size is {text}. Allowed: whole numbers from 1, separated by commas, such as 1,8"
        ) from None


def _check_files(args: Namespace) -> None:
    """Check the output files before minutes of measuring."""
    from dla.drawing.shapes import writer_of

    if args.picture is not None:
        writer_of(args.picture, "--picture")
    for flag in ("output", "picture"):
        if args[flag] is not None:
            check_file(f"--{flag}", args[flag])


def _write(args: Namespace, report: BenchReport) -> None:
    from dla.benchmarking.chart import bench_chart
    from dla.benchmarking.rows import bench_table
    from dla.drawing.shapes import writer_of

    text = json.dumps(report.to_dict(), indent=1) + "\n" if args.format == "json" else bench_table(report)
    if args.output is None:
        sys.stdout.write(text)
    else:
        write_file(args.output, text.encode())
    if args.picture is not None:
        write_file(args.picture, writer_of(args.picture)(bench_chart(report)))
