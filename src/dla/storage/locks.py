"""File locks that the operating system releases when the process ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

_locked: WeakSet[IO[Any]] = WeakSet()
_descriptors: set[int] = set()


def lock_file(file: IO[Any]) -> bool:
    """Lock an open file until it is closed or this process ends. Return False if another process holds the lock.

    Forked children do not inherit the lock. Return True without a lock on Windows and on file systems without locks.
    """
    if sys.platform == "win32":
        return True  # without fcntl, two runs are not kept apart
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    _locked.add(file)
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder for the `with` block: True; False if another process has or removed it; None without locks.

    Windows and some file systems have no locks.
    """
    if sys.platform == "win32":
        yield None
        return
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    _descriptors.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError:
            held = None
        yield held
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _release() -> None:
    """Point a forked child's locked files at the null device: a lock lasts while any process has its file open."""
    for descriptor in [file.fileno() for file in _locked if not file.closed] + list(_descriptors):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)
    _locked.clear()
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release)
