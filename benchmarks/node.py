"""Compare two forms of an aggregation node in training: one convolution of the concatenation, or a sum over slices.

    python benchmarks/node.py [--model dla34] [--batch 8] [--size 224] [--steps 5]

Both compute the same from the same stored weight (checked here in float64). For each form, a process of its own reports
what autograd keeps for the backward pass (every storage once, without parameters), the peak resident memory (0.6 GiB
before any network is built), and the CPU seconds of a forward and backward pass (the median of --steps, after one
warm-up).

On one core of an AMD EPYC, torch 2.13, float32, 5 steps, with other load on the machine (concatenation, then sum):

    dla34,  16 of 224 pixels     721,  647 MiB kept    2139, 1995 MiB peak    2.21, 2.14 s
    dla60,   8 of 224 pixels     734,  641 MiB kept    2080, 2024 MiB peak    2.01, 1.87 s
    dla102,  8 of 160 pixels     537,  452 MiB kept    1797, 1561 MiB peak    1.55, 1.55 s
    dla60,   2 of 160 pixels      94,   82 MiB kept                           0.27, 0.29 s
    dla169,  2 of 160 pixels     196,  161 MiB kept                           0.68, 0.75 s

So the sum saves memory (10 to 18 % of what autograd keeps), but no time reliably, and is slower on tiny maps: the
networks concatenate unless `sum_nodes` is set.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor, nn

from dla.models.build import build
from dla.models.tree import sum_nodes

FORMS = ("concatenation", "sum")


def network(name: str, form: str) -> nn.Module:
    torch.manual_seed(0)
    net = build(name)
    sum_nodes(net, form == "sum")
    return net


def largest_difference(name: str) -> float:
    """Return the largest difference between the forms, in logits and gradients in float64, relative to each tensor."""
    x_N3HW, found = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for form in FORMS:
        net = network(name, form).double()
        logits_NK = net(x_N3HW)
        logits_NK.square().sum().backward()
        found.append([logits_NK.detach(), *(p.grad for p in net.parameters())])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True))


def kept_bytes(net: nn.Module, x_N3HW: Tensor) -> int:
    """Return the bytes that autograd holds between the forward and the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = net(x_N3HW)  # held, so that no storage's address is used twice
    assert result.requires_grad
    return sum(storages.values())


def measure(name: str, form: str, batch: int, size: int, steps: int) -> None:
    net, x_N3HW = network(name, form).train(), torch.randn(batch, 3, size, size)
    kept, seconds = kept_bytes(net, x_N3HW), []
    for _ in range(steps + 1):
        net.zero_grad()
        begun = time.process_time()
        net(x_N3HW).sum().backward()
        seconds.append(time.process_time() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    median = statistics.median(seconds[1:])
    print(f"{form:<15}{kept / 2**20:12.0f} MiB kept{peak / 2**20:12.0f} MiB peak{median:12.3f} s a step", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dla34")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--form", choices=FORMS, help="this one only, in this process")
    args = parser.parse_args()
    if args.form:
        measure(args.model, args.form, args.batch, args.size, args.steps)
        return
    print(f"{args.model}, {args.batch} images of {args.size} pixels, {torch.get_num_threads()} threads")
    print(f"largest difference in float64: {largest_difference(args.model):.1e}", flush=True)
    for form in FORMS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--form", form], check=True)


if __name__ == "__main__":
    main()
