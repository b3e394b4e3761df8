"""Files that a verb writes at its end: looked at before the work."""

from __future__ import annotations

import os

from dla.errors import UsageError

__all__ = ["check_file"]


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
