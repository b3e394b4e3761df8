"""Shared by the commands: flags, finding photos, loading the network, progress and messages."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from dla.cli.parser import MODEL_HELP, Parser
from dla.errors import DlaError, UsageError, printable, sentence, without_secrets
from dla.images.find import PhotoFinder, read_path_list
from dla.options import BatchOptions, EngineOptions, ReadOptions
from dla.storage.files import write_file
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Progress

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from dla.cli.progress import ProgressBar
    from dla.inference.classifier import Classifier
    from dla.inference.pipeline import InputRecord


def add_input_flags(parser: Parser, model: str = DEFAULT_MODEL) -> None:
    """Add the flags for input photos and the network, by default `model`."""
    parser.flag("images", metavar="IMAGE", nargs="*", help="photos, folders, quoted patterns, .tar, .zip and .parquet "
                "files, addresses such as s3://bucket/folder/, or - to read paths from standard input")  # fmt: skip
    parser.flag("--column", metavar="C", help="column of photos or paths in .parquet files (default: image, path, ...)")
    add_verbose_flag(parser)
    parser.flag("--model", default=model, metavar="MODEL", help=MODEL_HELP)


def add_verbose_flag(parser: Parser) -> None:
    """Add the flag --verbose, which `load_network` reads."""
    parser.flag("-v", "--verbose", action="store_true", help="report which model is loaded, and how")


def add_run_flags(
    parser: Parser, *, batches: bool = True, batch: Any = BatchOptions, engine: Any = EngineOptions
) -> None:
    """Add the flags for reading photos and running the network; `batches`: on several photos at a time."""
    if batches:
        parser.options(batch, batch_size="N")
    parser.options(engine, device="D", engine="E", precision=None, threads="N")
    if batches:
        parser.options(batch, workers="N")
    parser.options(ReadOptions, allow_truncated=None)
    parser.flag("--max-megapixels", type=float, default=ReadOptions.max_pixels / 1e6, metavar="N", help="refuse larger "
                f"photos (default: {ReadOptions.max_pixels / 1e6:g})")  # fmt: skip
    parser.flag("--max-megabytes", type=float, default=ReadOptions.max_bytes / 1e6, metavar="N", help="refuse larger "
                f"files (default: {ReadOptions.max_bytes / 1e6:g})")  # fmt: skip


def add_record_flags(parser: Parser, force: str = "replace --output if it exists") -> None:
    """Add the flags about an existing output, failed inputs and the summary, which `RunCounter` reads."""
    parser.flag("--force", action="store_true", help=force)
    parser.flag("--max-failed", type=str | int, default="0", metavar="N|P%", help="exit with 0 if at most so many "
                "inputs failed, a number or a percentage such as 1%% (default: 0)")  # fmt: skip
    parser.flag("--summary", metavar="FILE", help="also write counts, times and the exit code of this run as JSON; "
                "replaces FILE")  # fmt: skip


def find_photos(args: Namespace, to_do: str, command: str) -> tuple[PhotoFinder, Iterator[str]]:
    """Find the photos that the arguments name, before anything slow.

    Raises:
        UsageError: there are none.
    """
    check_photo_limits(args)
    if not args.images:
        raise UsageError(f"nothing to {to_do}: name photos, folders or patterns, as in: dla {command} photo.jpg")
    finder = PhotoFinder(args.images, read_path_list(sys.stdin.buffer), args.column)
    photos = iter(finder)
    first = next(photos, None)
    if first is None:
        where = ", ".join(finder.unmatched) or "standard input"
        other = f" ({skipped_files(finder)})" if finder.skipped else ""
        raise UsageError(f"nothing to {to_do}: no photos in {where}{other}")
    return finder, itertools.chain([first], photos)


def check_photo_limits(args: Namespace) -> None:
    """Raise a UsageError unless --max-megapixels and --max-megabytes are positive numbers."""
    for flag, value, example in (
        ("--max-megapixels", args.max_megapixels, ReadOptions.max_pixels),
        ("--max-megabytes", args.max_megabytes, ReadOptions.max_bytes),
    ):
        if not 0 < value * 1e6 < math.inf:
            raise UsageError(f"{flag} is {value}. Allowed: a number above 0, such as {example / 1e6:g}")


def check_outside_inputs(flag: str, folder: str, inputs: Sequence[str], suffix: str = ".png") -> None:
    """Raise a UsageError if files with this suffix would be saved among the inputs, where a run would take them."""
    saved = PurePath(os.path.realpath(folder), f"photo-00000000{suffix}")
    for item in inputs:
        path = os.path.realpath(item)
        deep = "**" in item and fnmatchcase(str(saved), path.replace("**/", "*"))
        if deep or saved.match(path) or (os.path.isdir(path) and saved.is_relative_to(path)):
            raise UsageError(f"{flag} {folder} is in {item}, which is an input. Give a folder outside of it")


def load_network(args: Namespace, model: str, task: str | None, photos: int | None = None) -> Any:
    """Load the network `model` of this task (None: any) for this number of photos, and print its notes."""
    # Waiting threads must not spin: the cores are needed for decoding. Torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.inference.classifier import load

    with show_progress(args.quiet) as progress:
        options: dict[str, Any] = {key: args[key] for key in ("device", "engine", "precision", "threads")}
        network: Any = load(model, photos=photos, progress=progress, **options | {"task": task})
    network.engine.own_process()
    for note in network.notes:
        log(args, f"dla: {note}")
    return network


def load_classifier(args: Namespace, model: str, photos: int | None = None) -> Classifier:
    """Load the classifier `model`; arguments as in `load_network`."""
    classifier: Classifier = load_network(args, model, "classify", photos)
    if model == DEFAULT_MODEL:
        log(args, f"dla: {DEFAULT_MODEL} is for non-commercial research and knows {len(classifier.classes)} classes.")
    if args.verbose:
        p = classifier.preprocessing
        log(args, f"dla: {classifier.origin}, {classifier.engine.name}, {p.size[0]}x{p.size[1]} pixels, "
                  f"crop {p.crop_pct:g} {p.crop_mode}, {p.interpolation}")  # fmt: skip
    return classifier


def count_photos(args: Namespace, limit: int | None = None) -> int | None:
    """Return the number of input photos, at most `limit`; None if paths come from standard input."""
    finder = PhotoFinder(args.images, (), args.column)
    return None if "-" in args.images else sum(1 for _ in itertools.islice(finder, limit))


def input_options(args: Namespace) -> dict[str, Any]:
    """Return the options that `Classifier.predict` and `Classifier.features` share."""
    return {"batch_size": args.batch_size, "workers": args.workers} | reading_options(args)


def reading_options(args: Namespace) -> dict[str, Any]:
    """Return the options of every network about how photos are read."""
    return {
        "allow_truncated": args.allow_truncated,
        "max_pixels": int(args.max_megapixels * 1e6),
        "max_bytes": int(args.max_megabytes * 1e6),
    }


_MAX_FAILED = re.compile(r"(?P<count>\d{1,15})|(?P<percent>\d{1,3}(\.\d{1,9})?)\s*%")
MANY = 10_000  # inputs are not counted further before a run


class RunCounter:
    """Counts a run's records and reports failures.

    Leaving the `with` block prints the last line, or that the run was stopped, and writes the file of --summary, so
    the block begins before the other flags are checked. `exit_code` is then the code of the run. `kept` says what
    becomes of the records of a stopped run.

    Raises:
        UsageError: --max-failed or --summary is not allowed.
    """

    def __init__(self, args: Namespace, command: str) -> None:
        self.args, self.command = args, command
        self.kept = ""
        self.finder: PhotoFinder | None = None
        self.total: int | None = None
        self.before = self.done = self.exit_code = 0
        self.errors = Counter[str]()
        self.started, self.began = time.time(), time.monotonic()
        self.limit = _MAX_FAILED.fullmatch(str(args.max_failed).strip())
        if self.limit is None or float(self.limit["percent"] or 0) > 100:
            raise UsageError(f"--max-failed is {args.max_failed}. Allowed: a number of inputs, such as 5, or a "
                             "percentage of them, such as 1%")  # fmt: skip
        if args.summary is not None:
            check_file("--summary", args.summary)
            for flag in ("output", "coco"):
                if (path := args.get(flag)) is not None and os.path.realpath(path) == os.path.realpath(args.summary):
                    raise UsageError(f"--{flag} and --summary are both {path}. Give two files")

    def begin(
        self, finder: PhotoFinder, expected: int | None, before: int = 0, errors: Mapping[str, int] | None = None
    ) -> None:
        """Start the clock, with `before` records and these `errors` of an earlier run.

        `expected` is the number of all inputs, if it is known.
        """
        self.finder, self.total = finder, expected
        self.before = self.done = before
        self.errors.update(errors or {})
        self.began = time.monotonic()

    def left(self) -> int | None:
        """Return the number of remaining records; None if it is unknown and no bar shows it."""
        if self.total is None and wants_bar(self.args):
            self.total = count_photos(self.args)
        return None if self.total is None else self.total - self.before

    def add(self, record: InputRecord, progress: Progress) -> None:
        """Count one record, and report its error."""
        self.done += 1
        progress.advance()
        if record.error is not None:
            self.errors[record.error.code] += 1
            progress.log(record.error.message)

    def __enter__(self) -> RunCounter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        seconds = time.monotonic() - self.began
        if error is None:
            self.exit_code = int(self._too_many())
            self._say_end(seconds)
        else:
            self.exit_code = _exit_code(error)
            if isinstance(error, KeyboardInterrupt | SystemExit) and self.finder is not None:
                of = f" of {self.total:,}" if self.total is not None else ""
                log(self.args, f"dla: stopped after {self.done:,}{of} photos.{self.kept}")
        if self.args.summary is not None:
            with nullcontext() if error is None else suppress(OSError):  # the first error is the one to report
                self._write_summary(seconds, error)

    def _too_many(self) -> bool:
        assert self.limit is not None
        percent, count = self.limit["percent"], self.limit["count"]
        failed = self.errors.total()
        return failed > int(count) if percent is None else 100 * failed > float(percent) * self.done

    def _say_end(self, seconds: float) -> None:
        assert self.finder is not None
        for item in self.finder.unmatched:
            log(self.args, f"dla: no photos in {item}")
        if self.finder.skipped:
            log(self.args, f"dla: skipped {skipped_files(self.finder)}")
        if self.done < 2:
            return
        failed, output, counts = self.errors.total(), self.args.output, "all answered"
        if failed:
            codes = ", ".join(f"{count:,} {code}" for code, count in self.errors.most_common())
            where = f"; see {output}" if output else ""
            counts = f"{self.done - failed:,} answered, {failed:,} failed ({codes}{where})"
        earlier = f" ({self.before:,} of them in an earlier run)" if self.before else ""
        rate = self._rate(seconds)
        pace = "" if rate is None else f", {rate:.{0 if rate >= 10 else 1}f} photos/s"
        log(self.args, f"{self.done:,} photos{earlier}: {counts}. {seconds:.1f} s{pace}.")

    def _rate(self, seconds: float) -> float | None:
        """Return the photos per second of this run, or None if it did none."""
        return (self.done - self.before) / max(seconds, 1e-9) if self.done > self.before else None

    def _write_summary(self, seconds: float, error: BaseException | None) -> None:
        failed, rate = self.errors.total(), self._rate(seconds)
        stopped = isinstance(error, KeyboardInterrupt | SystemExit | BrokenPipeError)
        summary = {
            "schema": "dla.summary/1",
            "command": self.command,
            "model": self.args.model,
            "output": self.args.output,
            "exit_code": self.exit_code,
            "status": "complete" if error is None else "stopped" if stopped else "failed",
            "message": None if error is None or stopped else sentence(error),
            "total": self.done,
            "answered": self.done - failed,
            "failed": failed,
            "errors": dict(self.errors.most_common()),
            "from_earlier_run": self.before,
            "started": _utc(self.started),
            "ended": _utc(time.time()),
            "seconds": round(seconds, 3),
            "photos_per_s": None if rate is None else round(rate, 3),
        }
        write_file(self.args.summary, f"{json.dumps(summary, indent=1)}\n".encode())


def _exit_code(error: BaseException) -> int:
    """Return the exit code of a run that this error ended."""
    if isinstance(error, DlaError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    return {KeyboardInterrupt: 130, BrokenPipeError: 0}.get(type(error), 1)


def _utc(seconds: float) -> str:
    """Return a time as ISO 8601 text in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def wants_bar(args: Namespace) -> bool:
    """Return whether to show a bar: standard error is a terminal, and no records are printed to one."""
    printed = args.output is None or os.path.isdir(args.output)  # a folder is for pictures
    return not (printed and sys.stdout.isatty()) and not args.quiet and sys.stderr.isatty()


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
    """Progress on standard error. Without a bar, a note is printed at most every `NOTE_SECONDS`, with the rate."""

    def __init__(self, with_bar: bool, prefix: str) -> None:
        self.with_bar, self.prefix, self.last = with_bar, prefix, time.monotonic()
        self.bar: ProgressBar | None = None
        self.total: int | None = None
        self.began, self.done, self.unit = self.last, 0, ""

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        self.began, self.done, self.total, self.unit = time.monotonic(), 0, total, unit
        if self.with_bar and self.bar is None:
            from dla.cli.progress import ProgressBar

            self.bar = ProgressBar()
        if self.bar is not None:
            self.bar.start(what, total, unit)

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.advance(count)

    def note(self, words: str) -> None:
        if self.bar is not None:
            self.bar.describe(words)
        elif time.monotonic() - self.last > NOTE_SECONDS:
            from dla.cli.progress import left_text, rate_text

            seconds = time.monotonic() - self.began
            pace = rate_text(self.done, seconds, self.unit), left_text(self.done, self.total, seconds)
            self.log("  ".join(filter(None, (f"  {words}", *pace))))

    def log(self, sentence: str) -> None:
        self.last = time.monotonic()
        sentence = printable(without_secrets(sentence))
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
        print(printable(without_secrets(text), keep="\n"), file=sys.stderr)


def skipped_files(finder: PhotoFinder) -> str:
    """Return how many files were skipped, with the most frequent suffixes."""
    counts = [(count, suffix or "without a suffix") for suffix, count in finder.others.most_common(5)]
    rest = finder.others.total() - sum(count for count, _ in counts)
    counts += [(rest, "others"), (finder.skipped - finder.others.total(), "hidden")]
    kinds = ", ".join(f"{count:,} {kind}" for count, kind in counts if count)
    return f"{finder.skipped:,} file{'s' if finder.skipped > 1 else ''} of other kinds: {kinds}"


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
