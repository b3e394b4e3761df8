"""File locks that the operating system releases when the process ends."""

from __future__ import annotations

import os
import sys
from typing import IO, Any
from weakref import WeakSet

_locked: WeakSet[IO[Any]] = WeakSet()


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


def _release() -> None:
    """Point a forked child's locked files at the null device: a lock lasts while any process has its file open."""
    for file in _locked:
        if not file.closed:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, file.fileno(), inheritable=False)
            os.close(null)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release)
