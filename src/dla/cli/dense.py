"""What `dla segment`, `dla edges` and `dla explain` share: the folder of files, and the loop over the photos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dla.cli.common import (
    MANY,
    RunCounter,
    add_input_flags,
    add_record_flags,
    add_run_flags,
    check_outside_inputs,
    count_photos,
    find_photos,
    load_network,
    log,
    reading_options,
    show_progress,
    wants_bar,
)
from dla.cli.parser import Parser
from dla.errors import UnavailableError, UsageError
from dla.options import DenseOptions, ResultFormat
from dla.storage.files import check_new
from dla.types import DEFAULT_EDGE_DETECTOR, DEFAULT_SEGMENTER
from dla.weights.spec import shipped_names

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.images.find import PhotoFinder
    from dla.inference.dense_model import DenseModel
    from dla.inference.result_files import FinishedResults, RecordWriter


class PhotoFiles(Protocol):
    """Writes the files of each photo into the folder of --output."""

    def start(self) -> None:
        """Write what the folder holds beside the photos' files."""

    def write(self, record: Any) -> None:
        """Write the files of a record without an error, and their names into it."""

    def finish(self, names: list[str]) -> None:
        """Complete the folder; `names` are those of all masks in it."""


DEFAULTS = {"segment": DEFAULT_SEGMENTER, "edges": DEFAULT_EDGE_DETECTOR}
TO_DO = {"segment": "segment", "edges": "find edges in"}


def add_dense_flags(parser: Parser, task: str, output: str) -> None:
    """Add the flags that both commands have; `output` is the help of --output."""
    add_input_flags(parser, DEFAULTS[task])
    parser.options(DenseOptions, size="trained|native|N", tile="N")
    add_output_flags(parser, output)
    add_record_flags(parser, "replace the files of an earlier run in --output")
    add_run_flags(parser, batches=False)


def add_output_flags(parser: Parser, output: str) -> None:
    """Add the flags about records and files; `output` is the help of --output."""
    parser.flag("--format", type=ResultFormat, default="table", help="format of the records on standard output")
    parser.flag("-o", "--output", metavar="DIR", help=output)
    parser.flag("--resume", action="store_true", help="continue an interrupted run in --output with the same model, "
                "settings and inputs")  # fmt: skip


def check_output(args: Namespace, needs_folder: tuple[str, ...] = ()) -> None:
    """Check --output and the flags that need it, before anything slow.

    Raises:
        UsageError: a flag contradicts another, or the folder cannot be used.
    """
    for flag in ("resume", *needs_folder):
        if args[flag] and args.output is None:
            raise UsageError(f"--{flag} needs a folder. Give --output DIR")
    if args.resume and args.force:
        raise UsageError("--resume continues --output, and --force replaces it. Give one of them")
    if args.output is None:
        return
    if os.path.exists(args.output) and not os.path.isdir(args.output):
        raise UsageError(f"--output {args.output} is a file. Give a folder")
    check_outside_inputs("--output", args.output, args.images)
    if not (args.resume or args.force):
        check_new(_records(args), resumable=True)


def _records(args: Namespace) -> str:
    from dla.inference.segment_files import RECORDS

    return os.path.join(args.output, RECORDS)


def pinned_engine(args: Namespace) -> None:
    """Have a resumed run take the engine that began it."""
    if args.resume and args.engine == "auto":
        from dla.inference.result_files import engine_of

        args.engine = engine_of(_records(args))


def check_default(model: str, task: str) -> None:
    """Check that this installation has the default network, if it is the one that is asked for.

    Raises:
        UnavailableError: it does not.
    """
    if model == DEFAULTS[task] and model.partition(":")[2] not in shipped_names():
        raise UnavailableError(
            f"this installation does not have {model}, the network that is used without --model. "
            f"Give --model FOLDER; dla train DATA --task {task} makes one"
        )


def load_dense(args: Namespace, task: str, photos: int | None) -> DenseModel:
    """Load the network of --model; raises as `check_default`."""
    check_default(args.model, task)
    network: DenseModel = load_network(args, args.model, task, photos)
    if args.verbose:
        side = network.trained_side
        seen = f"a short side of {side} pixels" if side else "photos at their own size"
        log(args, f"dla: {network.origin}, {network.engine.name}, trained on {seen}")
    return network


def answer_photos(
    counter: RunCounter,
    options: dict[str, Any],
    outputs: Callable[[Any], tuple[RecordWriter[Any], PhotoFiles]],
    settings: tuple[str, ...] = (),
) -> None:
    """Answer all photos, print records and write files.

    Args:
        counter: counts the records; its command, "segment" or "edges", is the task of the networks.
        options: keyword arguments of the network, beside the shared ones.
        outputs: returns the writers of records, to standard output, and of files for a network.
        settings: more flags that the files depend on.
    """
    args, task = counter.args, counter.command
    seen = {key: args[key] for key in ("size", "tile")}
    options = options | seen | reading_options(args)
    found = find_photos(args, TO_DO[task], task)
    pinned_engine(args)
    expected = count_photos(args, MANY)
    network: Any = load_dense(args, task, expected)
    network((), **options)  # checks the options before a file is emptied
    answer = partial(network, **options)
    write_answers(counter, found, expected, network, (*settings, *seen), outputs(network), answer, "computing")


def write_answers(
    counter: RunCounter,
    found: tuple[PhotoFinder, Iterator[str]],
    expected: int | None,
    network: Any,
    settings: tuple[str, ...],
    writers: tuple[RecordWriter[Any], PhotoFiles],
    answer: Callable[[Iterator[str]], Iterable[Any]],
    doing: str,
) -> None:
    """Print the record of each photo, and store it and its files in --output.

    Args:
        counter: counts the records.
        found: the photos, as `find_photos` returns them.
        expected: their number, `MANY` if there are too many to count, None from standard input.
        network: what answers.
        settings: the flags that the files depend on, beside those about reading.
        writers: of records, to standard output, and of files.
        answer: returns the records of photos.
        doing: what the progress says.
    """
    args, (finder, photos), (printer, files) = counter.args, found, writers
    fixed = {key: args[key] for key in (*settings, "allow_truncated", "max_megapixels", "max_megabytes")}
    with _stored(args, counter.command, network, fixed, photos, files) as (store, before, left):
        if args.output is not None:
            counter.kept = f" Their files are in {args.output}; --resume continues the run"
        counter.begin(finder, None if expected == MANY else expected, before.count, before.errors)
        with printer, show_progress(args.quiet, bar=wants_bar(args)) as progress:
            progress.start(doing, counter.left())
            for record in answer(left):
                store(record)
                printer.write(record)
                counter.add(record, progress)


@contextmanager
def _stored(
    args: Namespace, task: str, network: Any, settings: dict[str, Any], photos: Iterator[str], files: PhotoFiles
) -> Iterator[tuple[Callable[[Any], None], FinishedResults, Iterator[str]]]:
    """Open --output and --coco; yield a function that stores a record, what is stored already, and what is left."""
    from dla.inference.classifier import output_name
    from dla.inference.coco import open_coco
    from dla.inference.result_files import FinishedResults, open_results
    from dla.inference.segment_files import add_earlier, earlier_records

    coco_file, file, before = args.get("coco"), None, FinishedResults()
    earlier: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if args.output is not None:
            os.makedirs(args.output, exist_ok=True)
            results = open_results(_records(args), "jsonl", network, {"batch_size": 1, **settings}, photos,
                                   resume=args.resume, force=args.force, command=task)  # fmt: skip
            file, before, photos = stack.enter_context(results)
            files.start()
            earlier = earlier_records(_records(args), before.count)
        coco = None if coco_file is None else stack.enter_context(open_coco(coco_file, network.classes))
        if coco is not None:
            add_earlier(coco, Path(args.output or ""), earlier, network.classes)
        names = [output_name(record["path"]) for record in earlier]

        def store(record: Any) -> None:
            if record.error is None:
                if file is not None:
                    files.write(record)
                    names.append(output_name(record.path))
                if coco is not None:
                    coco.add(record.path, record.mask, record.classes)
            if file is not None:
                file.write(json.dumps(record.to_dict()) + "\n")
                file.flush()

        yield store, before, photos
        if file is not None:
            files.finish(names)
