"""Locks on files that end with the process that took them, however it ends."""

from __future__ import annotations

import os
import sys
from typing import IO, Any
from weakref import WeakSet

__all__ = ["lock_file"]


_locked: WeakSet[IO[Any]] = WeakSet()


def lock_file(file: IO[Any]) -> bool:
    """Keep other processes from an open file until it is closed or this process ends; False: another one has it.

    Children do not have it locked when this process is gone. Where the file system has no locks it is True.
    """
    if sys.platform == "win32":
        return True  # it has no fcntl: nothing keeps two runs apart there
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    _locked.add(file)
    return True


def _let_go() -> None:
    """In a forked child: a lock lasts as long as anyone has the file open, so the child has another one open."""
    for file in _locked:
        if not file.closed:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, file.fileno(), inheritable=False)
            os.close(nothing)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
