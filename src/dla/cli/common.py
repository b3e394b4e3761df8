"""Shared by the commands: flags, finding photos, loading the network, progress and messages."""

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
from dla.images.find import PhotoFinder, read_path_list
from dla.options import BatchOptions, EngineOptions, ReadOptions
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Progress

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.cli.progress import ProgressBar
    from dla.inference.classifier import Classifier, Features, Prediction


def add_input_flags(parser: Parser) -> None:
    """Add the flags for input photos and the network."""
    parser.flag("images", nargs="*", help="photos, folders, quoted patterns, or - to read paths from standard input")
    add_verbose_flag(parser)
    parser.flag("--model", default=DEFAULT_MODEL, metavar="M", help=MODEL_HELP)


def add_verbose_flag(parser: Parser) -> None:
    """Add the flag --verbose, which `load_classifier` reads."""
    parser.flag("-v", "--verbose", action="store_true", help="report which model is loaded, and how")


def add_run_flags(parser: Parser) -> None:
    """Add the flags for reading photos and running the network."""
    parser.options(BatchOptions, batch_size="N")
    parser.options(EngineOptions, device="D", engine="E", precision=None, threads="N")
    parser.options(BatchOptions, workers="N")
    parser.options(ReadOptions, allow_truncated=None)
    parser.flag("--max-megapixels", type=float, default=ReadOptions.max_pixels / 1e6, metavar="N", help="refuse larger "
                f"photos (default: {ReadOptions.max_pixels / 1e6:g})")  # fmt: skip


def find_photos(args: Namespace, to_do: str, command: str) -> tuple[PhotoFinder, Iterator[str]]:
    """Find the photos that the arguments name, before anything slow.

    Raises:
        UsageError: there are none.
    """
    check_megapixels(args)
    if not args.images:
        raise UsageError(f"nothing to {to_do}: name photos, folders or patterns, as in: dla {command} photo.jpg")
    finder = PhotoFinder(args.images, read_path_list(sys.stdin.buffer))
    photos = iter(finder)
    first = next(photos, None)
    if first is None:
        where = ", ".join(finder.unmatched) or "standard input"
        other = f" ({_others(finder)})" if finder.skipped else ""
        raise UsageError(f"nothing to {to_do}: no photos in {where}{other}")
    return finder, itertools.chain([first], photos)


def check_megapixels(args: Namespace) -> None:
    """Raise a UsageError unless --max-megapixels is a positive number."""
    if not 0 < args.max_megapixels * 1e6 < math.inf:
        raise UsageError(f"--max-megapixels is {args.max_megapixels}. Allowed: a number above 0, such as 179")


def load_classifier(args: Namespace, model: str, photos: int | None = None) -> Classifier:
    """Load the network `model` for this number of photos, and print its notes."""
    # Waiting threads must not spin: the cores are needed for decoding. Torch reads this when it is imported.
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
                  "--model dla60 knows 1,000.")  # fmt: skip
    if args.verbose:
        p = classifier.preprocessing
        log(args, f"dla: {classifier.origin}, {classifier.engine.name}, {p.size[0]}x{p.size[1]} pixels, "
                  f"crop {p.crop_pct:g} {p.crop_mode}, {p.interpolation}")  # fmt: skip
    return classifier


def count_photos(args: Namespace, limit: int | None = None) -> int | None:
    """Return the number of input photos, at most `limit`; None if paths come from standard input."""
    return None if "-" in args.images else sum(1 for _ in itertools.islice(PhotoFinder(args.images), limit))


def input_options(args: Namespace) -> dict[str, Any]:
    """Return the options that `Classifier.predict` and `Classifier.features` share."""
    return {
        "batch_size": args.batch_size,
        "workers": args.workers,
        "allow_truncated": args.allow_truncated,
        "max_pixels": int(args.max_megapixels * 1e6),
    }


class Counter:
    """Counts a run's records and reports failures. A resumed run starts with `done` records, `failed` of them wrong."""

    def __init__(self, args: Namespace, finder: PhotoFinder, done: int = 0, failed: int = 0) -> None:
        self.args, self.finder = args, finder
        self.before, self.done, self.failed = done, done, failed
        self.began = time.monotonic()

    def left(self) -> int | None:
        """Return the number of remaining records; None if it is unknown or no bar shows it."""
        count = count_photos(self.args) if wants_bar(self.args) else None
        return None if count is None else count - self.before

    def add(self, record: Prediction | Features, progress: Progress) -> None:
        """Count one record, and report its error."""
        self.done += 1
        progress.advance()
        if record.error is not None:
            self.failed += 1
            progress.log(record.error.message)

    def finish(self) -> int:
        """Print the summary, and return the exit code."""
        seconds = time.monotonic() - self.began
        for item in self.finder.unmatched:
            log(self.args, f"dla: no photos in {item}")
        if self.finder.skipped:
            log(self.args, f"dla: skipped {_others(self.finder)}")
        if self.done > 1:
            now, output = self.done - self.before, self.args.output
            where = f" (see the errors in {output})" if self.failed and output else ""
            counts = f"{self.done - self.failed:,} succeeded, {self.failed:,} failed{where}"
            earlier = f" ({self.before:,} of them in an earlier run)" if self.before else ""
            log(self.args, f"{self.done:,} photos{earlier}: {counts if self.failed else 'all succeeded'}. "
                           f"{seconds:.1f} s, {now / max(seconds, 1e-9):.0f} photos/s.")  # fmt: skip
        return 1 if self.failed else 0


def wants_bar(args: Namespace) -> bool:
    """Return whether to show a bar: standard error is a terminal, and no records are printed to one."""
    to_screen = args.output is None and sys.stdout.isatty()
    return not to_screen and not args.quiet and sys.stderr.isatty()


@contextmanager
def show_progress(quiet: bool, *, bar: bool | None = None, prefix: str = "dla: ") -> Iterator[Progress]:
    """Show progress on standard error within the context: a bar on a terminal, else messages.

    Args:
        quiet: show nothing.
        bar: whether to show a bar; None: if standard error is a terminal.
        prefix: the start of each message.
    """
    shown = _Shown(sys.stderr.isatty() if bar is None else bar, prefix)
    try:
        yield NO_PROGRESS if quiet else shown
    finally:
        shown.close()


NOTE_SECONDS = 30.0


class _Shown(Progress):
    """Progress on standard error. Without a bar, a note is printed at most every `NOTE_SECONDS`."""

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
    """Print a message on standard error, unless --quiet is given."""
    if not args.quiet:
        print(text, file=sys.stderr)


def _others(finder: PhotoFinder) -> str:
    return f"{finder.skipped:,} file{'s' if finder.skipped > 1 else ''} of other kinds"


def check_file(flag: str, path: str) -> None:
    """Check that the file can be written, before the work starts.

    Raises:
        UsageError: it cannot be written.
    """
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UsageError(f"{flag} {path} is a folder. Give a file")
    if not os.path.isdir(folder):
        raise UsageError(f"{flag} {path}: there is no folder {folder}. Create it, or give another path")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: no permission. Give another path")
