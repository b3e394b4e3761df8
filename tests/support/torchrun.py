"""Two processes on this machine, started as a user starts them: with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def command(*words: str | Path, restarts: int = 0) -> list[str]:
    """Of `python WORDS` on two ranks; torchrun finds a free port by itself."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"--max-restarts={restarts}"]
    return [sys.executable, *start, *map(str, words)]


def environment() -> dict[str, str]:
    """This process's own, one thread a rank, without the variables of torchrun."""
    env = {name: value for name, value in os.environ.items() if name not in ALONE}
    return env | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def torchrun(*words: str | Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, restarts=restarts), env=environment(), capture_output=True, text=True, timeout=300
    )
