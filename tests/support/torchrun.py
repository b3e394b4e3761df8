"""Two processes on this machine: started as a user starts them, with torchrun, or forked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore

from support.warm import run_together

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


def two_ranks(*words: str | Path) -> list[subprocess.CompletedProcess[str]]:
    """`python WORDS` on two ranks that are forked as `support.warm` does, with a store that outlives them both.

    torchrun is three more starts of PyTorch; what is about torchrun itself has `torchrun`.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = environment() | {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    return run_together([shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"], *map(str, words))
