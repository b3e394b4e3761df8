"""Two processes on this machine: started as a user starts them, with torchrun, or forked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore
from torch.distributed.launcher import LaunchConfig, elastic_launch

from support.warm import WARM, become, run_python, run_together

ALONE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment() -> dict[str, str]:
    """This process's own, one thread a rank, without the variables of torchrun."""
    env = {name: value for name, value in os.environ.items() if name not in ALONE}
    return env | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """`python WORDS` on two ranks; torchrun finds a free port by itself."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *start, *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)


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


@contextmanager
def elastic(*words: str | Path, log: Path, restarts: int = 0) -> Iterator[BaseProcess]:
    """torchrun's agent with `python WORDS` on two ranks, which it forks; all that they print is in `log`."""
    process = WARM.Process(target=_agent, args=(tuple(map(str, words)), environment(), log, restarts))
    process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join()


def _agent(words: tuple[str, ...], env: dict[str, str], log: Path, restarts: int) -> None:
    become(env, (log, log))
    config = LaunchConfig(
        1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts,
        start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _rank)(words)


def _rank(words: tuple[str, ...]) -> None:
    try:
        run_python(words)
    except SystemExit as stop:  # the agent waits for the result of a rank that ends well
        if stop.code:
            raise
