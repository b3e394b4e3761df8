"""One run at a time in a folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dla.errors import UsageError
from dla.report.write import naming
from dla.verbs.flock import lock_file

__all__ = ["run_lock"]

LOCK = "run.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep other runs from the folder, which is made where there is none; the lock dies with this process.

    A folder that it made and that nothing was written into is gone afterwards.

    Raises:
        UsageError: a run is in progress there, or it is a file.
        OSError: the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Give --output a folder, new or of a run")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as file:
        if not lock_file(file):
            file.seek(0)
            who = file.read(200).strip() or "another process"
            raise UsageError(f"a run is in progress in {folder} ({who}). Wait for its end, or give another --output")
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            if made and os.listdir(folder) == [LOCK]:
                with suppress(OSError):  # the lock is held while it goes, which some systems do not allow
                    path.unlink()
                    folder.rmdir()
