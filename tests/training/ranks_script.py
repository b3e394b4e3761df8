"""What each of two ranks does and finds, for test_ranks.py: `ranks_script.py FOLDER WHAT`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dla.errors import DlaError, UsageError
from dla.training.distributed import Ranks, process_group

FOLDER, WHAT = Path(sys.argv[1]), sys.argv[2]


def all_of_it(ranks: Ranks) -> dict[str, object]:
    rows = ranks.shard(np.arange(7))
    scores = np.stack([rows * 10.0, rows + 0.25], 1).astype(np.float32)
    weights = torch.full((3,), float(ranks.rank))
    ranks.broadcast([weights])
    if ranks.is_main:
        time.sleep(0.5)
        (FOLDER / "late").touch()
    ranks.barrier()
    waited = (FOLDER / "late").exists()
    return {
        "ranks": [ranks.rank, ranks.world, ranks.local_rank],
        "rows": rows.tolist(),
        "sum": ranks.sum(torch.tensor([1.5 + ranks.rank, 2.0])).tolist(),
        "largest": [ranks.max(ranks.rank * 15), ranks.max(2 - ranks.rank)],
        "from_main": ranks.broadcast_object(lambda: {"pid": os.getpid(), "none": None}),
        "gathered": ranks.gather_rows(scores, rows, 7).tolist(),
        "spread": weights.tolist(),
        "waited": waited,
        "pid": os.getpid(),
    }


def break_off(ranks: Ranks) -> None:
    """One rank has an error while the other waits for it, which would be for half an hour."""
    if WHAT == "error on the second" and ranks.rank == 1:
        raise UsageError("this one has three legs")
    if WHAT == "error on both":
        raise DlaError(f"both stumble, {'left' if ranks.is_main else 'right'}")
    if WHAT == "killed" and ranks.rank == 1:
        os.kill(os.getpid(), 9)
    while True:
        ranks.sum(torch.ones(1))


signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, before this one has said what happened to the other
try:
    with process_group() as here:
        if WHAT != "all":
            break_off(here)
        (FOLDER / f"{here.rank}.json").write_text(json.dumps(all_of_it(here)))
except DlaError as error:
    print(f"dla: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
