"""`dla predict`."""

from __future__ import annotations

import io
import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO, cast

from dla.cli.parser import Parser
from dla.errors import UsageError
from dla.images.find import PHOTO_SUFFIXES, PhotoFinder
from dla.nets.table import DEFAULT_MODEL
from dla.report.write import FORMATS, Format, PredictionWriter

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.records import Prediction
    from dla.verbs.predict import Classifier

DESCRIPTION = """\
Classify photos. Each input gets one record, in order: its likeliest classes, or why there is no answer.
Exit code 0: all answered; 1: some were not; 2: wrong usage or nothing to do; 3: the weights cannot be had."""

EXAMPLE = """\
  dla predict cat.jpg holiday/ 'more/**/*.png'
  find . -name '*.jpg' | dla predict - --model dla60 --format jsonl --output out.jsonl"""


def build_parser() -> Parser:
    parser = Parser("predict", DESCRIPTION, EXAMPLE, "IMAGE... [options]", config="--config")
    parser.flag("images", nargs="*", help="photos, folders, quoted patterns, or - for paths on standard input")
    parser.flag("-v", "--verbose", action="store_true", help="say what is loaded and how")
    parser.flag("--model", default=DEFAULT_MODEL, metavar="M", help="a network's name, a model folder, or a "
                ".safetensors or .pth file (default: the network that comes along)")  # fmt: skip
    parser.flag("--topk", type=int, default=5, metavar="K", help="classes a photo (default: 5)")
    parser.flag("--format", choices=FORMATS, help="table, json, jsonl or csv (default: by the ending of --output, "
                "else table)")  # fmt: skip
    parser.flag("-o", "--output", metavar="FILE", help="write the records there instead of to standard output")
    parser.flag("--batch-size", type=int, default=8, metavar="N", help="photos that the network takes at once "
                "(default: 8)")  # fmt: skip
    parser.flag("--device", default="auto", metavar="D", help="auto, cpu, cuda, mps (default: auto)")
    parser.flag("--threads", type=int, metavar="N", help="threads of the network (default: one a core)")
    parser.flag("--workers", type=int, metavar="N", help="threads that read and resize photos (default: one a core)")
    parser.flag("--allow-truncated", action="store_true", help="classify what is there of files that end early")
    parser.flag("--max-megapixels", type=float, metavar="N", help="refuse larger photos (default: 179)")
    return parser


def run(words: list[str]) -> int:
    args = build_parser().parse_args(words)
    form = _format(args)
    lines = (os.fsdecode(line) for line in sys.stdin.buffer)
    finder = PhotoFinder(args.images, lines)
    photos = _first_of_all(iter(finder), finder, args)
    total = None if "-" in args.images or not _shows_progress(args) else sum(1 for _ in PhotoFinder(args.images))

    classifier = _load(args)
    began = time.monotonic()
    failed = done = 0
    with ExitStack() as stack:
        writer = stack.enter_context(PredictionWriter(stack.enter_context(_output(args)), form, args.topk))
        predictions = _predict(classifier, photos, args)
        for prediction in _with_bar(predictions, total, _shows_progress(args)):
            writer.write(prediction)
            done += 1
            if prediction.error is not None:
                failed += 1
                _say(args, f"dla: {prediction.error.message}")
    _summary(args, finder, done, failed, time.monotonic() - began)
    return 1 if failed else 0


def _format(args: Namespace) -> Format:
    ending = os.path.splitext(args.output or "")[1].lower()
    if ending in PHOTO_SUFFIXES:
        raise UsageError(f"--output {args.output} has the name of a photo. Give a file such as out.jsonl")
    if args.format is None:
        return cast(Format, ending[1:] if ending[1:] in FORMATS else "table")
    return cast(Format, args.format)


def _first_of_all(photos: Iterator[str], finder: PhotoFinder, args: Namespace) -> Iterator[str]:
    """The same photos; an error if there are none, before anything slow is done."""
    if not args.images:
        raise UsageError("nothing to classify: name photos, folders or patterns, as in: dla predict photo.jpg")
    first = next(photos, None)
    if first is None:
        where = ", ".join(finder.unmatched) or "standard input"
        other = f" ({_others(finder)})" if finder.skipped else ""
        raise UsageError(f"nothing to classify: no photos in {where}{other}")
    return itertools.chain([first], photos)


def _load(args: Namespace) -> Classifier:
    # Threads that wait without spinning leave the cores to those that decode. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.engines.torch import keep_freed_memory, use_threads
    from dla.verbs.predict import load

    keep_freed_memory()
    use_threads(args.threads or _cores())
    classifier = load(args.model, device=args.device)
    for note in classifier.notes:
        _say(args, f"dla: {note}")
    if args.model == DEFAULT_MODEL:
        _say(args, f"dla: {DEFAULT_MODEL} knows {len(classifier.classes)} classes and is for non-commercial research; "
                   "--model dla60 knows a thousand.")  # fmt: skip
    if args.verbose:
        p = classifier.preprocessing
        _say(args, f"dla: {classifier.origin}, {classifier.engine.name}, {p.size[0]}x{p.size[1]} pixels, "
                   f"crop {p.crop_pct:g} {p.crop_mode}, {p.interpolation}")  # fmt: skip
    return classifier


def _predict(classifier: Classifier, photos: Iterator[str], args: Namespace) -> Iterator[Prediction]:
    limit = {} if args.max_megapixels is None else {"max_pixels": int(args.max_megapixels * 1e6)}
    return classifier.predict(
        photos,
        args.topk,
        batch_size=args.batch_size,
        workers=_cores() if args.workers is None else args.workers,
        allow_truncated=args.allow_truncated,
        **limit,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _output(args: Namespace) -> Iterator[TextIO]:
    if args.output is None:
        # a file's name may hold bytes that are no text; they go out as they came in
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="surrogateescape")
        yield sys.stdout
    else:
        with open(args.output, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file


def _shows_progress(args: Namespace) -> bool:
    return sys.stderr.isatty() and not args.quiet and not (args.output is None and sys.stdout.isatty())


def _with_bar(predictions: Iterator[Prediction], total: int | None, shown: bool) -> Iterator[Prediction]:
    if not shown:
        return predictions
    from dla.cli.progress import bar

    return bar(predictions, total, "predicting", "photos")


def _others(finder: PhotoFinder) -> str:
    return f"{finder.skipped:,} file{'s' if finder.skipped > 1 else ''} of other kinds"


def _summary(args: Namespace, finder: PhotoFinder, done: int, failed: int, seconds: float) -> None:
    for item in finder.unmatched:
        _say(args, f"dla: no photos in {item}")
    if finder.skipped:
        _say(args, f"dla: passed over {_others(finder)}")
    if done > 1:
        where = f' (see "error" in {args.output})' if failed and args.output else ""
        counts = f"{done - failed:,} answered, {failed:,} failed{where}" if failed else "all answered"
        _say(args, f"{done:,} photos: {counts}. {seconds:.1f} s, {done / max(seconds, 1e-9):.0f} photos/s.")


def _say(args: Namespace, text: str) -> None:
    if not args.quiet:
        print(text, file=sys.stderr)
