"""Compare a training step of dla and of timm in the same loop: its seconds and its peak memory.

    python benchmarks/train.py [--models dla34 dla60] [--batch 32] [--size 224] [--steps 3]

A step is a forward pass, cross-entropy, a backward pass and SGD with momentum, in float32 on the CPU, on one random
batch and from equal weights: the first loss of every side is compared. Each side is a process of its own, and they
alternate, one step each at a time; seconds are the median of --steps after one warm-up step. Memory is the peak
resident memory of the process, less what it held with the network and the batch before the first step. It includes
gradients and momentum.

timm's network runs as its users run it (NCHW) and in channels_last; dla's in channels_last as in `dla train`, without
and with gradient checkpointing (where `dla train` also keeps glibc from retaining freed maps). Needs the extra `dev`
for timm.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

SIDES = ("timm", "timm, channels_last", "dla", "dla, checkpointing")


def network(name: str, side: str) -> torch.nn.Module:
    """Build a side's network, with equal weights on every side."""
    from dla.models.build import build

    torch.manual_seed(0)
    model: torch.nn.Module = build(name)
    if side.startswith("timm"):
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        from support.oracle import timm

        ours, model = model, timm.create_model(name)
        model.load_state_dict(ours.state_dict())
    if side.endswith("checkpointing"):
        from dla.training.memory import give_memory_back

        model.set_grad_checkpointing()
        give_memory_back()
    return model.train()


def memory(key: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def work(name: str, side: str, batch: int, size: int) -> None:
    """Run one side: a step for each line of input, with its results as a line of JSON."""
    layout = torch.contiguous_format if side == "timm" else torch.channels_last
    model = network(name, side).to(memory_format=layout)
    torch.manual_seed(1)
    x_N3HW = torch.randn(batch, 3, size, size).to(memory_format=layout)
    y_N = torch.randint(1000, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    floor = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for _ in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x_N3HW), y_N)
        loss.backward()
        optimizer.step()
        facts = {"seconds": time.perf_counter() - began, "processor": time.process_time() - used}
        print(json.dumps({**facts, "loss": loss.item(), "peak": memory("VmHWM") - floor}), flush=True)


def compare(name: str, args: argparse.Namespace) -> None:
    workers = {side: start(name, side, args) for side in SIDES}
    rounds = [{side: step(worker) for side, worker in workers.items()} for _ in range(args.steps + 1)]
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    expected = rounds[0]["timm"]["loss"]
    for side in SIDES:
        if not math.isclose(rounds[0][side]["loss"], expected, rel_tol=1e-4):
            raise SystemExit(f"{side}: the loss is {rounds[0][side]['loss']}, not {expected}")
        seconds, processor = (statistics.median(r[side][k] for r in rounds[1:]) for k in ("seconds", "processor"))
        ratios = sorted(r["timm"]["seconds"] / r[side]["seconds"] for r in rounds[1:])
        peak, base = rounds[-1][side]["peak"], rounds[-1]["timm"]["peak"]
        print(
            f"{name:<8}{side:<22}{seconds:7.2f} s a step, {processor:.2f} s of processors"
            f"   {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) of timm's speed"
            f"{peak / 2**20:7.0f} MiB peak   {peak / base:.2f} of timm's",
            flush=True,
        )


def start(name: str, side: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--side", side, "--models", name]
    options = ["--batch", str(args.batch), "--size", str(args.size)]
    return subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def step(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("step\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["dla34", "dla60"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="this one only, in this process, for each line that it reads")
    args = parser.parse_args()
    if args.side:
        work(args.models[0], args.side, args.batch, args.size)
        return
    threads = torch.get_num_threads()
    print(f"batches of {args.batch} images of {args.size} pixels, {threads} threads, torch {torch.__version__}")
    for name in args.models:
        compare(name, args)


if __name__ == "__main__":
    main()
