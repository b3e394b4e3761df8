"""The exceptions that users see, and the exit code of each.

    DlaError                 1   an input failed or the run broke
    ├── ImageError           1   a photo cannot be read; `code` says why (docs/errors.md)
    ├── UsageError           2   an unknown flag, name or field; nothing to do
    │   ├── UnknownNameError 2   an unknown name; carries the nearest known ones
    │   └── OnlyTorchError   2   a network with parts that no engine but PyTorch runs
    ├── UnavailableError     3   weights or data are unavailable: offline, missing, refused
    │   ├── NoSuchPathError  3   a model's path does not exist
    │   └── DamagedError     3   weights or data are truncated, altered or of another kind
    └── CheckError           4   a check or gate did not pass

Each message is one or two sentences: what happened, the value, what is allowed, what to do next.
"""

from __future__ import annotations

import difflib
import importlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class InputError:
    """Why an input has no result: `code` as listed in docs/errors.md, `message` for people."""

    code: str
    message: str


class DlaError(Exception):
    """The base of all errors above. The command line prints its message and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


ERROR_CODES = {
    "not_found": "there is no file with that name",
    "is_a_directory": "the path is a folder",
    "not_a_file": "the path is a pipe, a socket or a device",
    "permission_denied": "this user has no permission to read the file",
    "read_error": "the disk or the network failed while the file was being read",
    "empty_file": "the file has no bytes",
    "not_an_image": "the file is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, whatever its name says",
    "too_large": "the photo has more pixels, or the file more bytes, than the limit; nothing was decoded",
    "truncated": "the file ends before the picture does",
    "decode_error": "the file is damaged, or uses a feature of its format that is not supported",
    "bad_member": "the member of an archive is a link, encrypted, an archive, or has an earlier one's name",
    "changed": "the file was changed or replaced since it was listed (`dla bulk plan`)",
    "worker_died": "the process that read the photo died, twice, with this photo alone (`dla bulk`)",
}


class ImageError(DlaError):
    """A photo cannot be read. `code`, one of `ERROR_CODES`, is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.code, str(self))


class UsageError(DlaError, ValueError):
    """The call itself is wrong: an unknown option, a value out of range, nothing to do."""

    exit_code = 2


class UnknownNameError(UsageError, RuntimeError):
    """An unknown name; `nearest` lists the known names most like it. A RuntimeError too, because timm raises one."""

    def __init__(self, kind: str, name: str, known: Iterable[str], see: str = "") -> None:
        self.nearest = nearest(name, known)
        hint = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        more = f" All: {see}" if see else ""
        super().__init__(f'no {kind} is called "{name}".{hint}{more}')


class OnlyTorchError(UsageError):
    """A network with parts that no engine but PyTorch runs."""


class UnavailableError(DlaError):
    """Weights or data are unavailable."""

    exit_code = 3


class NoSuchPathError(UnavailableError, ValueError):
    """A model's path does not exist. A ValueError too, because timm raises one."""


class DamagedError(UnavailableError):
    """Weights or data are truncated, altered or of another kind."""


class CheckError(DlaError):
    """A check or gate did not pass."""

    exit_code = 4


class GuessedWarning(UserWarning):
    """The class names and preprocessing of a model are guesses, because a bare weight file has none."""


_SECRETS = (
    re.compile(r"(://)[^/\s@]+(?=@)"),  # user and password
    re.compile(r"(https?://[^\s?'\"]+\?)[^\s'\"]+"),  # the query of a signed address
    re.compile(r"(\b(?:token|password|passwd|secret|api[_-]?key|signature)=)[^\s&'\"]+", re.IGNORECASE),
    re.compile(r"(\b(?:Bearer|Basic) )[\w.~+/=-]{6,}"),
    re.compile(r"(\bhf_)[A-Za-z0-9]{6,}"),
)


def without_secrets(text: str) -> str:
    """Return the text of a message with *** for tokens, and for passwords and queries in URLs."""
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def sentence(error: BaseException) -> str:
    """Return what is printed about an error that ends a command."""
    if isinstance(error, OSError):
        return without_secrets(f"{error.filename or 'the output'}: {error.strerror or error}")
    if isinstance(error, MemoryError):
        return "not enough memory. Close other programs, or give smaller photos or a smaller batch size"
    return without_secrets(str(error) or type(error).__name__)


_HIDDEN = ("Cc", "Zl", "Zp")
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # letters that reverse the order of others


def printable(text: str, keep: str = "") -> str:
    """Return text for a terminal: control characters but those in `keep` are escaped, as in JSON."""
    if text.isprintable():
        return text
    return "".join(
        f"\\u{ord(c):04x}" if c not in keep and (unicodedata.category(c) in _HIDDEN or _TURNING.match(c)) else c
        for c in text
    )


def import_optional(module: str, message: str) -> Any:
    """Import a module of an optional package; raise an UnavailableError with `message` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UnavailableError(message) from None


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return at most `count` known names most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.65)


def pip_line(extra: str) -> str:
    """Return the command that installs the packages of an extra, in a checkout of this repository."""
    return f"pip install '.[{extra}]'"
