"""The command line: one module per command, which parses, calls and prints. Nothing else prints or exits."""

from __future__ import annotations

import atexit
import codecs
import importlib
import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dla.errors import DlaError, GuessedWarning, UnknownNameError, printable, sentence
from dla.version import __version__

COMMANDS = {
    "predict": "classify photos",
    "explain": "show which places of photos speak for a class",
    "segment": "assign a class to each pixel of photos",
    "edges": "find the boundaries in photos",
    "features": "extract features of photos as arrays",
    "bulk": "answer millions of photos in shards, on one machine or many",
    "serve": "serve a model over HTTP, with a page for people",
    "models": "list the networks and their weights",
    "info": "show everything about one network",
    "draw": "draw a network's aggregation trees",
    "pull": "download weights, or verify downloaded ones",
    "convert": "convert weights to a model folder, timm's or the authors' format",
    "export": "export a network to ONNX, OpenVINO or PyTorch",
    "data": "check photos before training",
    "cache": "show or clear the cache",
    "train": "train or fine-tune a network on your photos",
    "bench": "benchmark networks and engines on this machine",
    "validate": "measure a network on labelled photos, or compare several",
    "completion": "print a script that completes commands and options in a shell",
}

HELP = f"""\
usage: dla COMMAND ...

Deep Layer Aggregation: classify photos, train your own networks.

commands:
{chr(10).join(f"  {name:<12}{what}" for name, what in COMMANDS.items())}

  dla COMMAND --help   show the options of a command, with examples
  dla --version        {__version__}

example:
  dla predict photo.jpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/errors.md lists them).

    Without `argv` it is the command of this process. A signal then ends it without taking its modules apart, which
    lasts seconds with PyTorch.
    """
    if argv is None:
        return _main_of_process()
    _open_streams()
    before = signal.signal(signal.SIGTERM, _terminated)
    watch = _BlockedReadWatch() if sys.platform == "linux" else None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata that does not affect results
            warnings.filterwarnings("default", category=GuessedWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            code = _command(argv)(list(argv[1:]))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has closed it. Without this, Python would report the failed flush again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DlaError, OSError, MemoryError) as error:
        print(f"dla: {printable(sentence(error))}", file=sys.stderr)
        return error.exit_code if isinstance(error, DlaError) else 1
    except KeyboardInterrupt:
        return 130
    finally:
        if watch is not None:
            watch.close()
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # do not raise while the interpreter shuts down
    return code


def _main_of_process() -> int:
    code = 1
    atexit.register(lambda: _end_process(code))  # before PyTorch's, so it is called after them
    try:
        code = main(sys.argv[1:])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
        raise
    return code


def _end_process(code: int) -> None:
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _command(argv: Sequence[str]) -> Callable[[list[str]], int]:
    """Return the function that takes the arguments after the command and returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        return lambda rest: _print(HELP)
    if argv[0] == "--version":
        return lambda rest: _print(f"dla {__version__}\n")
    if argv[0] not in COMMANDS:
        raise UnknownNameError("command", argv[0], COMMANDS, see="dla --help")
    with _without_attrs():
        run: Callable[[list[str]], int] = importlib.import_module(f"dla.cli.{argv[0]}").run
    from dla.options import limit_threads  # here, because --help and --version need no options

    limit_threads()
    return run


@contextmanager
def _without_attrs() -> Iterator[None]:
    """Hide attrs, which jsonargparse would load where it is installed: dla has no such classes."""
    absent = "attrs" not in sys.modules
    if absent:
        sys.modules["attrs"] = None  # type: ignore[assignment]  # it is not found
    try:
        yield
    finally:
        if absent:
            del sys.modules["attrs"]


def _show_warning(
    usual: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    """Print our own warnings like other messages, and others as usual."""
    if category is GuessedWarning:
        print(f"dla: {message}", file=sys.stderr)
    else:
        usual(message, category, *place, **more)


def _print(text: str) -> int:
    print(text, end="")
    return 0


def _open_streams() -> None:
    """Replace closed streams by the null device, and make every file name printable on standard output."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the process ends
    codecs.register_error("dla", _unencodable)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not in a notebook
        sys.stdout.reconfigure(errors="dla")
        if sys.stdout.isatty():
            with suppress(io.UnsupportedOperation):  # a replacement without a file
                file = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "w", closefd=False))
                sys.stdout = _Terminal(file, sys.stdout.encoding, "dla", line_buffering=True)


class _Terminal(io.TextIOWrapper):
    """Standard output on a terminal: names and labels cannot move its cursor or change its settings."""

    def write(self, text: str) -> int:
        super().write(printable(text, keep="\n\t"))
        return len(text)


def _unencodable(error: UnicodeError) -> tuple[bytes, int]:
    """Write undecodable bytes of file names unchanged, and other unencodable characters as JSON escapes."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return character.encode(errors="surrogateescape"), error.start + 1
    return json.dumps(character).strip('"').encode(), error.start + 1


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


class _BlockedReadWatch:
    """Ends the process after a signal while the main thread is stuck in the kernel, where no signal handler can run.

    That is so while it reads from a network disk that does not answer. A main thread that writes is left alone. Linux
    only.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader, threading.get_native_id()), daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)

    def _watch(self, signals: int, main_thread: int) -> None:
        number = next((n for [n] in iter(lambda: os.read(signals, 1), b"") if n in (signal.SIGINT, signal.SIGTERM)), 0)
        while number and not self._closed.wait(0.1):
            if _stays_blocked(main_thread):
                os._exit(128 + number)
        os.close(signals)


def _stays_blocked(thread: int) -> bool:
    """Return whether the thread is stuck in a read for a second without a pause."""
    from dla.storage.files import WRITING

    for _ in range(10):
        state = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
        if state != "D" or threading.main_thread().ident in WRITING:
            return False
        time.sleep(0.1)
    return True
