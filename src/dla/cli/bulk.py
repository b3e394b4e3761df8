"""Answer millions of photos, on one machine or many, each exactly once."""

from __future__ import annotations

import os
import sys
from collections import Counter
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from dla.cli.common import (
    RunCounter,
    add_record_flags,
    add_run_flags,
    add_verbose_flag,
    check_file,
    check_photo_limits,
    log,
    reading_options,
    show_progress,
    skipped_files,
)
from dla.cli.dense import DEFAULTS, check_default
from dla.cli.parser import MODEL_HELP, Parser
from dla.errors import UnknownNameError, UsageError
from dla.images.find import PhotoFinder
from dla.models.registry import PRE_LOGITS
from dla.options import BulkBatchOptions, BulkEngineOptions, BulkOptions, DenseOptions, PredictOptions
from dla.storage.files import check_new
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.bulk.shard import BulkJob

SUBCOMMANDS = {
    "plan": "list photos, their sizes and versions in a manifest",
    "predict": "classify the photos of a manifest",
    "features": "extract their features",
    "segment": "assign a class to each of their pixels",
    "edges": "find their boundaries",
    "collect": "join the records of a run to one file",
}

HELP = f"""\
usage: dla bulk COMMAND ... [options]

Answer millions of photos, on one machine or many, each exactly once:
docs/bulk.md.

commands:
{chr(10).join(f"  {name:<10}{what}" for name, what in SUBCOMMANDS.items())}

example:
  dla bulk plan photos/ shards/*.tar -o photos.parquet
  dla bulk predict photos.parquet -o records/
  dla bulk collect records/ -o records.jsonl
"""

_PLAN = """List photos in a manifest, a parquet file with one row per photo, in the order of the inputs: folders,
patterns, text files (.txt) with a path or address a line, .parquet files with a column of them or of photos, .tar and
.zip archives (WebDataset's among them), s3://bucket/folder/, gs:// and fsspec:PROTOCOL://. Sizes and times of change
are recorded where listing tells them; a photo that is another one later gets an error record. Addresses in lists are
not read.

Exit code 0: the manifest is written; 2: wrong usage, no photos, or an address with a password or key; 3: an input is
missing or damaged."""

_RUN = """{what} in shards, in processes of this machine, of a Ray cluster, or of an array of jobs. Each shard becomes
one file in --output, part-000000.parquet, which is there whole or not at all; made twice, it has the same bytes. The
same command goes on with what is missing, from any machine. A photo that cannot be read, or that kills its process,
costs its own record. Then: dla bulk collect.

Exit code 0: all photos were answered, or all but --max-failed; 1: more failed, or the run broke; 2: wrong usage, or
another run is in --output; 3: the weights or the manifest are missing or damaged."""

_COLLECT = """Join the records of a run to one file, in the order of the manifest, as the command without bulk writes
them: .jsonl, .csv or .parquet; features as .parquet or .npz.

Exit code 0: every photo has its answer, or all but --max-failed; 1: some have an error; 2: wrong usage, or a row is
missing or double (the first ones are named), and nothing is written."""

_EXAMPLES = {
    "plan": "dla bulk plan photos/ shards/*.tar s3://bucket/photos/ -o photos.parquet\n"
    "  dla bulk plan table.parquet --column url -o photos.parquet",
    "predict": "dla bulk predict photos.parquet -o records/\n"
    "  dla bulk predict s3://bucket/photos.parquet -o s3://bucket/records --shard 0/100    # one job of an array\n"
    "  dla bulk predict photos.parquet -o records/ --runner ray",
    "features": "dla bulk features photos.parquet -o features/ --at level4.tree1",
    "segment": "dla bulk segment photos.parquet --model my-run/best -o masks/",
    "edges": "dla bulk edges photos.parquet --model my-run/best -o edges/",
    "collect": "dla bulk collect records/ -o records.jsonl\n  dla bulk collect masks/ -o masks.jsonl --unpack png/",
}
_DOES = {
    "predict": "Classify the photos of a manifest",
    "features": "Extract features of the photos of a manifest",
    "segment": "Assign a class to each pixel of the photos of a manifest",
    "edges": "Find the boundaries in the photos of a manifest",
}


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if argv[0] not in SUBCOMMANDS:
        raise UnknownNameError("command of dla bulk", argv[0], SUBCOMMANDS, see="dla bulk --help")
    args = build_subparser(argv[0]).read(argv[1:])
    return {"plan": _plan, "collect": _collect}.get(argv[0], _run)(args, argv[0])


def build_subparser(name: str) -> Parser:
    """Build the parser of `dla bulk NAME`."""
    words = {"plan": _PLAN, "collect": _COLLECT}.get(name) or _RUN.format(what=_DOES[name])
    usage = {"plan": "INPUT... -o FILE.parquet", "collect": "RUN -o FILE"}.get(name, "MANIFEST -o URI")
    parser = Parser(f"bulk {name}", words, f"  {_EXAMPLES[name]}", f"{usage} [options]")
    if name == "plan":
        parser.flag(
            "inputs", metavar="INPUT", nargs="*", help="what the photos are in; - reads paths from standard input"
        )
        parser.flag("-o", "--output", metavar="FILE", help="the manifest, a path or address that ends in .parquet")
        parser.flag(
            "--column", metavar="C", help="column of photos or addresses in .parquet files (default: image, path, ...)"
        )
        parser.flag("--force", action="store_true", help="replace --output if it exists")
    elif name == "collect":
        parser.flag("run", metavar="RUN", nargs="?", help="the folder or address of a run: its --output")
        parser.flag("-o", "--output", metavar="FILE", help="output file; its suffix is the format")
        parser.flag("--unpack", metavar="DIR", help="also write masks or boundary maps as PNG files into this folder")
        add_record_flags(parser)
    else:
        _add_run_flags(parser, name)
    parser.flag("-q", "--quiet", action="store_true", help="print only errors")
    return parser


def _add_run_flags(parser: Parser, name: str) -> None:
    parser.flag("manifest", metavar="MANIFEST", nargs="?", help="the .parquet file of dla bulk plan, a path or address")
    parser.flag("-o", "--output", metavar="URI", help="the folder or address of the parts")
    parser.flag("--model", default=DEFAULTS.get(name, DEFAULT_MODEL), metavar="MODEL", help=f"{MODEL_HELP}; the same "
                "on all machines")  # fmt: skip
    if name == "predict":
        parser.options(PredictOptions, topk="K")
    elif name == "features":
        parser.flag("--at", default=PRE_LOGITS, metavar="NODE", help="as for dla features")
        parser.flag("--half", action="store_true", help="store features in float16")
    else:
        parser.options(DenseOptions, size="trained|native|N", tile="N")
    if name == "edges":
        parser.flag("--threshold", type=float | None, metavar="T", help="as for dla edges")
    parser.options(BulkOptions, rows_per_shard="N", runner=None, address="ADDRESS", processes="N", shard="I/N",
                   retry_failed=None)  # fmt: skip
    add_verbose_flag(parser)
    add_record_flags(parser, "remove the run that is in --output first")
    add_run_flags(parser, batches=name in ("predict", "features"), batch=BulkBatchOptions, engine=BulkEngineOptions)


def _plan(args: Namespace, name: str) -> int:
    from dla.bulk.manifest import plan
    from dla.storage.stores import check_no_secrets, is_remote

    parser = build_subparser(name)
    if args.output is None:
        raise parser.missing("--output", "Give a file that ends in .parquet")
    if not args.inputs:
        raise parser.missing("INPUT")
    if not args.output.endswith(".parquet"):
        raise UsageError(f"--output is {args.output}. Allowed: a file that ends in .parquet")
    check_no_secrets(args.output)
    if not is_remote(args.output):
        check_file("--output", args.output)
        if not args.force:
            check_new(args.output)
    with show_progress(args.quiet) as progress:
        count, finder = plan(args.inputs, args.output, args.column, sys.stdin.buffer, progress)
    for item in finder.unmatched:
        log(args, f"dla: no photos in {item}")
    if finder.skipped:
        log(args, f"dla: skipped {skipped_files(finder)}")
    log(args, f"{count:,} photos in {args.output}")
    return 0


def _run(args: Namespace, name: str) -> int:
    parser = build_subparser(name)
    with RunCounter(args, f"bulk {name}") as counter:
        if args.manifest is None or args.output is None:
            raise parser.missing("MANIFEST" if args.manifest is None else "--output")
        check_photo_limits(args)
        options = BulkOptions(**{key: args[key] for key in BulkOptions.__dataclass_fields__})
        job, settings = _job(args, name)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from dla.bulk.runners import photos_of_run, prepare_output, resolve, run_bulk

        prepare_output(args.output, force=args.force)
        # Ray prints on standard output
        with open(os.devnull, "w") as null, redirect_stdout(null), show_progress(args.quiet) as progress:
            job, network = resolve(job, options.rows_per_shard, settings)
            for note in network.notes:
                log(args, f"dla: {note}")
            if args.model == DEFAULT_MODEL:
                log(
                    args,
                    f"dla: {DEFAULT_MODEL} is for non-commercial research and knows {len(network.classes)} classes.",
                )
            if args.verbose:
                log(args, f"dla: {network.origin}, {network.engine.name}")
            del network  # the processes have their own
            counter.kept = f" Finished shards are in {args.output}; the same command continues the run"
            counter.begin(PhotoFinder(()), photos_of_run(job, options))
            by_worker = Counter[str]()
            for done in run_bulk(job, options, progress):
                by_worker.update([done.worker] if done.worker else ())
                counter.done += done.photos
                counter.before += done.photos if done.earlier else 0
                counter.errors.update(done.errors)
        if args.verbose and by_worker:
            shares = ", ".join(f"{count:,} by node {worker[:12]}" for worker, count in by_worker.items())
            log(args, f"dla: shards made: {shares}")
    return counter.exit_code


def _job(args: Namespace, name: str) -> tuple[BulkJob, dict[str, Any]]:
    """Return the job of these arguments, and the settings that its records depend on."""
    from dla.bulk.shard import BulkJob
    from dla.storage.stores import check_no_secrets

    if name in DEFAULTS:
        check_default(args.model, name)
    for address in (args.manifest, args.output, args.model):
        check_no_secrets(address)
    settings = reading_options(args)
    settings |= {
        key: args[key] for key in ("topk", "at", "half", "size", "tile", "threshold", "batch_size") if key in args
    }
    load_options = {key: args[key] for key in ("device", "engine", "precision", "threads")}
    workers = args.get("workers")
    job = BulkJob(
        name, args.model, load_options, args.manifest, args.output, 1 if workers is None else workers, os.getcwd()
    )
    return job, settings


def _collect(args: Namespace, name: str) -> int:
    parser = build_subparser(name)
    args.model = None
    with RunCounter(args, "bulk collect") as counter:
        if args.run is None or args.output is None:
            raise parser.missing("RUN" if args.run is None else "--output")
        check_file("--output", args.output)
        if not args.force:
            check_new(args.output)
        from dla.bulk.collect import collect

        counter.begin(PhotoFinder(()), None)
        with show_progress(args.quiet) as progress:
            collected = collect(args.run, args.output, args.unpack, progress)
        counter.total = counter.done = collected.records
        counter.errors.update(collected.errors)
    return counter.exit_code
