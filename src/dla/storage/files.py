"""Write files whole: the atomic writer, and errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["errors_name", "write_file", "write_files"]


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder: each one whole, and none where not all can be written.

    Raises:
        OSError: of the disk; nothing has changed.
    """
    asides = {path: path.with_name(f"{path.name}.part") for path in files}
    try:
        for path, data in files.items():
            with asides[path].open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path, aside in asides.items():
            aside.replace(path)
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the renames themselves must reach the disk; Windows cannot open a folder
        descriptor = os.open(next(iter(files)).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def errors_name(path: str | os.PathLike[str], aside: str | None = None) -> Iterator[None]:
    """Have errors of the disk name `path` where they name no file, as when it is full, or the one written aside."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, aside):
            error.filename = os.fspath(path)
        raise


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write it whole, or leave what was there; into a pipe or a device directly.

    Raises:
        OSError: of the disk, with the path in the user's words.
    """
    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        place.write_bytes(data)
        return
    with errors_name(path, f"{place}.part"):
        write_files({place: data})
