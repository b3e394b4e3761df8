"""Measure the steps per second of the training loop in one process, and in two that share each batch, one thread each.

    python benchmarks/ranks.py [--model dla34_half] [--batch 32] [--size 64] [--steps 20]

Each is started by torchrun and runs real steps of `dla train` on batches in memory (forward, backward, all-reduce of
gradients by gloo, SGD, weight average). Takes the median of --steps, after three warm-up steps. Two processes need two
free cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

STARTED = "RANK" in os.environ


def run(processes: int, words: list[str]) -> float:
    """Return the steps per second."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run([*command, __file__, *words], env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return 1 / float(found)


def step_seconds(model: str, batch: int, size: int, steps: int) -> float | None:
    """Return the median seconds per step; None on other ranks than the main one."""
    import numpy as np
    import torch

    from dla.training.batches import Batch
    from dla.training.distributed import process_group
    from dla.training.model import build_initial
    from dla.training.recipe_files import recipe_from
    from dla.training.trainer import Trainer

    torch.set_num_threads(1)
    recipe = recipe_from(None, {"model": model, "batch_size": batch, "lr": 0.01, "average.decay": 0.99})
    classes = tuple(map(str, range(10)))
    with process_group() as ranks:
        torch.manual_seed(0)
        targets_N = np.arange(batch // ranks.world) % 10
        fit = Trainer(build_initial(recipe, classes), recipe, targets_N, torch.device("cpu"), None, ranks)
        pixels = np.random.default_rng(ranks.rank).integers(0, 255, (len(targets_N), size, size, 3), np.uint8)
        ready, times = Batch(pixels, targets_N, np.arange(len(targets_N))), []
        for _ in range(steps + 3):
            began = time.monotonic()
            fit.step(ready, recipe.lr)
            times.append(time.monotonic() - began)
        return statistics.median(times[3:]) if ranks.is_main else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="dla34_half")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    if STARTED:
        seconds = step_seconds(args.model, args.batch, args.size, args.steps)
        if seconds is not None:
            print(seconds)
    else:
        one, two = (run(processes, sys.argv[1:]) for processes in (1, 2))
        print(f"{args.model}, {args.batch} photos of {args.size} pixels, one thread a process")
        print(f"1 process    {one:6.2f} steps/s   {one * args.batch:5.0f} photos/s")
        print(f"2 processes  {two:6.2f} steps/s   {two * args.batch:5.0f} photos/s   {two / one:.2f} times")
