"""Files that a verb writes at its end: looked at before the work, and written whole."""

from __future__ import annotations

import os
from pathlib import Path

from dla.errors import UsageError
from dla.report.write import naming

__all__ = ["check_file", "write_file"]


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


def write_file(path: str, data: bytes) -> None:
    """Write it whole, or leave what was there; into a pipe or a device directly.

    Raises:
        OSError: of the disk, with the path in the user's words.
    """
    from dla.weights.folder import write_files

    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        place.write_bytes(data)
        return
    with naming(path, f"{place}.part"):
        write_files({place: data})
