"""What the commands that take photos share: their flags, the photos, the network, and what is said on the way."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dla.cli.parser import MODEL_HELP, Parser
from dla.errors import UsageError
from dla.images.find import PhotoFinder
from dla.options import BatchOptions, EngineOptions, ReadOptions
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Progress

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.cli.progress import ProgressBar
    from dla.inference.classifier import Classifier, Features, Prediction

__all__ = [
    "Counter",
    "add_input_flags",
    "add_run_flags",
    "add_verbose_flag",
    "check_file",
    "check_megapixels",
    "count_photos",
    "find_photos",
    "load_classifier",
    "log",
    "reading",
    "show_progress",
    "wants_bar",
]


def add_input_flags(parser: Parser) -> None:
    """Add what is read and by which network."""
    parser.flag("images", nargs="*", help="photos, folders, quoted patterns, or - for paths on standard input")
    add_verbose_flag(parser)
    parser.flag("--model", default=DEFAULT_MODEL, metavar="M", help=MODEL_HELP)


def add_verbose_flag(parser: Parser) -> None:
    """Add the flag that `load_classifier` reads."""
    parser.flag("-v", "--verbose", action="store_true", help="say what is loaded and how")


def add_run_flags(parser: Parser) -> None:
    """Add how photos are read, and how the network runs."""
    parser.options(BatchOptions, batch_size="N")
    parser.options(EngineOptions, device="D", engine="E", precision=None, threads="N")
    parser.options(BatchOptions, workers="N")
    parser.options(ReadOptions, allow_truncated=None)
    parser.flag("--max-megapixels", type=float, default=ReadOptions.max_pixels / 1e6, metavar="N", help="refuse larger "
                f"photos (default: {ReadOptions.max_pixels / 1e6:g})")  # fmt: skip


def find_photos(args: Namespace, to_do: str, command: str) -> tuple[PhotoFinder, Iterator[str]]:
    """The photos that are meant; an error if there are none, before anything slow."""
    check_megapixels(args)
    if not args.images:
        raise UsageError(f"nothing to {to_do}: name photos, folders or patterns, as in: dla {command} photo.jpg")
    finder = PhotoFinder(args.images, (os.fsdecode(line) for line in sys.stdin.buffer))
    photos = iter(finder)
    first = next(photos, None)
    if first is None:
        where = ", ".join(finder.unmatched) or "standard input"
        other = f" ({_others(finder)})" if finder.skipped else ""
        raise UsageError(f"nothing to {to_do}: no photos in {where}{other}")
    return finder, itertools.chain([first], photos)


def check_megapixels(args: Namespace) -> None:
    """Raise a UsageError for a largest photo of no size."""
    if not 0 < args.max_megapixels * 1e6 < math.inf:
        raise UsageError(f"--max-megapixels is {args.max_megapixels}: a number above 0, such as 179")


def load_classifier(args: Namespace, model: str, photos: int | None = None) -> Classifier:
    """The network that `model` names for so many photos, with what there is to say about it said."""
    # Threads that wait without spinning leave the cores to those that decode. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.inference.classifier import load

    with show_progress(args.quiet) as progress:
        classifier = load(model, device=args.device, engine=args.engine, precision=args.precision,
                          threads=args.threads, photos=photos, progress=progress)  # fmt: skip
    classifier.engine.own_process()
    for note in classifier.notes:
        log(args, f"dla: {note}")
    if model == DEFAULT_MODEL:
        log(args, f"dla: {DEFAULT_MODEL} knows {len(classifier.classes)} classes and is for non-commercial research; "
                  "--model dla60 knows a thousand.")  # fmt: skip
    if args.verbose:
        p = classifier.preprocessing
        log(args, f"dla: {classifier.origin}, {classifier.engine.name}, {p.size[0]}x{p.size[1]} pixels, "
                  f"crop {p.crop_pct:g} {p.crop_mode}, {p.interpolation}")  # fmt: skip
    return classifier


def count_photos(args: Namespace, most: int | None = None) -> int | None:
    """How many photos are meant, `most` for more; None for those on standard input, which may be yet to come."""
    return None if "-" in args.images else sum(1 for _ in itertools.islice(PhotoFinder(args.images), most))


def reading(args: Namespace) -> dict[str, Any]:
    """The options of `Classifier.predict` and `Classifier.features` that both have."""
    return {
        "batch_size": args.batch_size,
        "workers": args.workers,
        "allow_truncated": args.allow_truncated,
        "max_pixels": int(args.max_megapixels * 1e6),
    }


class Counter:
    """Counts a run's records and says what failed. `done` of them, `failed` wrong, are there already."""

    def __init__(self, args: Namespace, finder: PhotoFinder, done: int = 0, failed: int = 0) -> None:
        self.args, self.finder = args, finder
        self.before, self.done, self.failed = done, done, failed
        self.began = time.monotonic()

    def left(self) -> int | None:
        """How many records there are still to come, where a bar shows it and somebody knows."""
        count = count_photos(self.args) if wants_bar(self.args) else None
        return None if count is None else count - self.before

    def add(self, record: Prediction | Features, progress: Progress) -> None:
        """One record more."""
        self.done += 1
        progress.advance()
        if record.error is not None:
            self.failed += 1
            progress.log(record.error.message)

    def finish(self) -> int:
        """Say how it went; the exit code."""
        seconds = time.monotonic() - self.began
        for item in self.finder.unmatched:
            log(self.args, f"dla: no photos in {item}")
        if self.finder.skipped:
            log(self.args, f"dla: passed over {_others(self.finder)}")
        if self.done > 1:
            now, output = self.done - self.before, self.args.output
            where = f" (see the errors in {output})" if self.failed and output else ""
            counts = f"{self.done - self.failed:,} answered, {self.failed:,} failed{where}"
            earlier = f" ({self.before:,} of them before)" if self.before else ""
            log(self.args, f"{self.done:,} photos{earlier}: {counts if self.failed else 'all answered'}. "
                           f"{seconds:.1f} s, {now / max(seconds, 1e-9):.0f} photos/s.")  # fmt: skip
        return 1 if self.failed else 0


def wants_bar(args: Namespace) -> bool:
    """Whether people look at standard error, and no records go to the screen between."""
    to_screen = args.output is None and sys.stdout.isatty()
    return not to_screen and not args.quiet and sys.stderr.isatty()


@contextmanager
def show_progress(quiet: bool, *, bar: bool | None = None, prefix: str = "dla: ") -> Iterator[Progress]:
    """What shows people how far long work is, as long as the context lasts: on a terminal a bar, else its sentences.

    Args:
        bar: whether there is a bar; None: where standard error is a terminal.
        prefix: what sentences begin with.
    """
    shown = _Shown(sys.stderr.isatty() if bar is None else bar, prefix)
    try:
        yield NO_PROGRESS if quiet else shown
    finally:
        shown.close()


NOTE_SECONDS = 30.0


class _Shown:
    """Progress on standard error. Without a bar, notes are sentences, and there is one every half minute."""

    def __init__(self, with_bar: bool, prefix: str) -> None:
        self.with_bar, self.prefix, self.last = with_bar, prefix, time.monotonic()
        self.bar: ProgressBar | None = None

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        if self.with_bar and self.bar is None:
            from dla.cli.progress import ProgressBar

            self.bar = ProgressBar()
        if self.bar is not None:
            self.bar.start(what, total, unit)

    def advance(self, count: int = 1) -> None:
        if self.bar is not None:
            self.bar.advance(count)

    def note(self, words: str) -> None:
        if self.bar is not None:
            self.bar.describe(words)
        elif time.monotonic() - self.last > NOTE_SECONDS:
            self.log(f"  {words}")

    def log(self, sentence: str) -> None:
        self.last = time.monotonic()
        if self.bar is not None:
            self.bar.print(self.prefix + sentence)
        else:
            print(self.prefix + sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def log(args: Namespace, text: str) -> None:
    """To people, unless they want quiet."""
    if not args.quiet:
        print(text, file=sys.stderr)


def _others(finder: PhotoFinder) -> str:
    return f"{finder.skipped:,} file{'s' if finder.skipped > 1 else ''} of other kinds"


def check_file(flag: str, path: str) -> None:
    """See, before minutes of work, that it can be written.

    Raises:
        UsageError: it cannot.
    """
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"{flag} {path} is a folder. Give a file")
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {path}: there is no folder {folder}. Make it, or name a file elsewhere")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: no permission. Name a file elsewhere")
