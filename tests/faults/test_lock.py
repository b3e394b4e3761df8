"""One run at a time in a folder; the lock goes with its process and never stays with a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dla
from dla.training.run_folder import run_lock

HOLD = """
import os, sys, time
from pathlib import Path
from dla.training.run_folder import run_lock
with run_lock(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)  # the child has begun
    time.sleep(60)
"""


def test_a_second_run_is_refused_with_its_rival(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(dla.UsageError) as caught, run_lock(tmp_path):
        pass
    assert str(caught.value).startswith(f"a run is in progress in {tmp_path} (process {os.getpid()} on ")
    with run_lock(tmp_path):
        pass


def test_the_lock_dies_with_its_process_though_a_child_lives(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            with pytest.raises(dla.UsageError, match=f"process {process.pid} on"), run_lock(tmp_path):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # it is there still
            with run_lock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_nothing_came_of_is_gone(tmp_path: Path) -> None:
    for name, left in (("a", False), ("b", True)):
        folder = tmp_path / name
        if left:
            folder.mkdir()
        with pytest.raises(dla.UsageError), run_lock(folder):
            raise dla.UsageError("a slip")
        assert folder.exists() is left
    with run_lock(tmp_path / "c"):
        (tmp_path / "c" / "run.json").write_text("{}")
    assert (tmp_path / "c" / "run.lock").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file/run"), run_lock(tmp_path / "file" / "run"):
        pass


def test_an_error_of_the_run_is_not_blamed_on_the_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="elsewhere") as caught, run_lock(tmp_path):
        raise OSError(28, "full, elsewhere")
    assert caught.value.filename is None
