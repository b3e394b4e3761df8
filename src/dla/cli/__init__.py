"""The command line: one file per command, which parses, calls and prints. Nothing else prints or exits."""

from __future__ import annotations

import codecs
import importlib
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from dla.errors import DlaError, UnknownNameError
from dla.version import __version__

__all__ = ["main"]

COMMANDS = {
    "predict": "classify photos",
    "features": "write what a network holds of photos, as arrays",
    "models": "list the networks and their weights",
    "info": "tell everything about one network",
    "draw": "draw a network's trees",
    "pull": "fetch weights, or verify those that are here",
    "convert": "write weights as a model folder, for timm, or for the authors' code",
    "export": "write a network as one file for other programs",
    "data": "check photos before training",
    "cache": "show or clear what is kept to be faster the next time",
    "train": "train a network on photos of your own",
    "bench": "measure how fast networks and engines are here",
    "validate": "tell how good a classifier is, and whether another is better",
}

HELP = f"""\
usage: dla COMMAND ...

Deep Layer Aggregation: classify photos, train networks of your own.

commands:
{chr(10).join(f"  {name:<10}{what}" for name, what in COMMANDS.items())}

  dla COMMAND --help   the options of a command, with an example
  dla --version        {__version__}

example:
  dla predict photo.jpg
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/errors.md lists them)."""
    args = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    before = signal.signal(signal.SIGTERM, _terminated)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata that no record depends on
    try:
        code = _command(args)(args[1:])
        sys.stdout.flush()
    except DlaError as error:
        print(f"dla: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain again at exit about what it could not flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"dla: {error.filename or 'the output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except MemoryError:
        print("dla: there is not enough memory for this. Close other programs, or give smaller photos or fewer at once",
              file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # the interpreter's own end is no place to raise from
    return code


def _command(argv: list[str]) -> Callable[[list[str]], int]:
    """What takes the arguments after the first one and returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        return lambda rest: _print(HELP)
    if argv[0] == "--version":
        return lambda rest: _print(f"dla {__version__}\n")
    if argv[0] not in COMMANDS:
        raise UnknownNameError("command", argv[0], COMMANDS, see="dla --help")
    run: Callable[[list[str]], int] = importlib.import_module(f"dla.cli.{argv[0]}").run
    return run


def _print(text: str) -> int:
    print(text, end="")
    return 0


def _open_streams() -> None:
    """A stream that was closed before we began goes nowhere, and every name of a file can be printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it lives as long as the process
    codecs.register_error("dla", _unencodable)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not
        sys.stdout.reconfigure(errors="dla")


def _unencodable(error: UnicodeError) -> tuple[bytes, int]:
    """A name's bytes that are no text go out as they came in; a letter that the output has no code for, as in JSON."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    if 0xDC80 <= ord(letter) <= 0xDCFF:
        return letter.encode(errors="surrogateescape"), error.start + 1
    return json.dumps(letter).strip('"').encode(), error.start + 1


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
