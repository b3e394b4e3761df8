"""SIGKILL at random moments, and the same command again: the end is the one of a run that nobody killed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILL_RUNS = Path(__file__).parent / "kill_runs.py"


def test_twenty_kills_change_no_bit() -> None:
    """Four in each of six runs with settings of their own, while they save and while they do not."""
    done = subprocess.run(
        [sys.executable, KILL_RUNS, "--kills", "20", "--chain", "4"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(
        r"(\d+) kills in (\d+) runs \(\d+ came too late\): (\d+) of \2 .* bit-identical\n", done.stdout
    )
    assert found is not None, done.stdout
    assert int(found[1]) >= 20
    assert int(found[2]) >= 5
