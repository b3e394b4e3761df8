"""Measure whether aggregation helps: small networks with and without it, equal parameters and steps, three seeds.

    python benchmarks/aggregation.py DATA --output DIR [--epochs 5] [--more 2] [--seeds 3]

DATA holds train.parquet and val.parquet with the columns `image` (encoded photos) and `synset`, as Tiny ImageNet (see
docs/results.md). Of its 200 classes every fourth is taken, and photos are halved to 32 pixels: 25,000 to train with,
2,500 to test on. Two questions:

From scratch. `aggregated` is a DLA with the depths of dla34, a quarter of its width from level 2 on and one
downsampling less; `plain` has the same stem and the same blocks in sequence, without nodes, and slightly wider levels 4
and 5, which match the parameters to 0.1 %.

Grafted. The `plain` network, trained as above, is trained for --more epochs: unchanged (`continued`), with `dla.graft`
on its four stages (`grafted`), and with exactly as many new parameters in the same places that take only the newest map
(`deepened`: x + bn(conv(relu(conv(x)))), bn initialized to 0, for each node). All three start with the same outputs.

Each run is SGD with Nesterov momentum, batch 128, a warm-up and a cosine, random shifts and flips; runs of one seed see
the same photos in the same order. Top-1 is measured once, after the last step; nothing was chosen on the test photos.

Finished runs are in DIR/runs.json and are not repeated: an interruption loses at most one run. On one core of an AMD
EPYC (AVX2) a step takes 0.26 to 0.36 s, so a run takes 5 minutes (2 for the second question), and all 15 runs 45
minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dla
from dla.models.blocks import Basic, BlockOptions, Reduction, conv_bn
from dla.models.dla import init_weights

LEVELS, CHANNELS = (1, 1, 1, 2, 2, 1), (8, 16, 16, 32, 64, 128)
WIDER = (8, 16, 16, 32, 68, 132)  # of the plain network: 965,282 parameters for 964,522
STAGES = ("level2", "level3", "level4", "level5")
CLASSES, BATCH, SHIFT = 50, 128, 4
CASES = ("aggregated", "plain", "grafted", "deepened", "continued")

Data = tuple[Tensor, Tensor]  # photos_N3HW (uint8), labels_N


# -- networks


class First(nn.Module):
    """The first block of a stage, whose shortcut is pooled and projected as in a tree."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.block = Basic(c_in, c_out, Reduction(2), BlockOptions())
        self.project = conv_bn(c_in, c_out, nn.BatchNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.project(F.max_pool2d(x, 2)))


def aggregated() -> nn.Module:
    net = dla.DLA(LEVELS, CHANNELS, block="basic", num_classes=CLASSES)
    net.level1[0].stride = (1, 1)  # 32 pixels are few: level 5 is at 2x2, not at 1x1
    return net


def plain() -> nn.Module:
    """Build the network of the same blocks in sequence. Its stages `level2` to `level5` are nn.Sequential."""
    like = dla.DLA(LEVELS, WIDER, block="basic", num_classes=CLASSES)
    like.level1[0].stride = (1, 1)
    parts = OrderedDict(stem=like.base_layer, level0=like.level0, level1=like.level1)
    for level in range(2, 6):
        c_in, c_out, count = WIDER[level - 1], WIDER[level], 2 ** LEVELS[level]
        rest = (Basic(c_out, c_out, Reduction(), BlockOptions()) for _ in range(count - 1))
        parts[f"level{level}"] = nn.Sequential(First(c_in, c_out), *rest).apply(init_weights)
    return nn.Sequential(parts | OrderedDict(pool=nn.AdaptiveAvgPool2d(1), fc=like.fc, flat=nn.Flatten()))


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


class Deepened(nn.Module):
    """A block followed by a residual layer with `hidden` channels."""

    def __init__(self, block: nn.Module, c: int, hidden: int) -> None:
        super().__init__()
        self.block = block
        self.layer = nn.Sequential(
            nn.Conv2d(c, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, c, 1, bias=False), nn.BatchNorm2d(c)
        )
        nn.init.zeros_(self.layer[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x + self.layer(x)


def deepened(net: nn.Module, grafted: nn.Module) -> nn.Module:
    """Return `net` with a layer in place of each node of `grafted`, with as many parameters."""
    for name in STAGES:
        stage, done = net.get_submodule(name), 0
        for (blocks, _), node in zip(grafted.get_submodule(name).plan, grafted.get_submodule(name).nodes, strict=True):
            done += blocks
            c_out, c_in = node.conv.weight.shape[:2]
            stage[done - 1] = Deepened(stage[done - 1], c_out, c_in // 2)
    return net


def begin(case: str, trained: Path) -> nn.Module:
    """Return a case's network before its first step; the last three start from the plain network in `trained`."""
    if case == "aggregated":
        return aggregated()
    net = plain()
    if case == "plain":
        return net
    net.load_state_dict(load_file(trained))
    if case == "grafted":
        return dla.graft(net, STAGES)
    return deepened(net, dla.graft(plain(), STAGES)) if case == "deepened" else net


# -- data


def load(data: Path, output: Path) -> tuple[Data, Data]:
    """Return the photos for training and for the test, decoded once and stored with the results."""
    file = output / "photos.npz"
    if not file.exists():
        tables = {
            part: pq.read_table(data / f"{part}.parquet", columns=["image", "synset"]) for part in ("train", "val")
        }
        classes = sorted(set(tables["train"]["synset"].to_pylist()))[::4][:CLASSES]
        arrays = {}
        for part, table in tables.items():
            synsets = table["synset"].to_pylist()
            rows = [row for row, synset in enumerate(synsets) if synset in classes]
            photos = [Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB").reduce(2) for row in rows]
            arrays[f"{part}_photos"] = np.stack([np.asarray(photo).transpose(2, 0, 1) for photo in photos])
            arrays[f"{part}_labels"] = np.array([classes.index(synsets[row]) for row in rows])
        np.savez(file, **arrays)
    stored = np.load(file)
    train, val = (
        (torch.from_numpy(stored[f"{part}_photos"]), torch.from_numpy(stored[f"{part}_labels"]))
        for part in ("train", "val")
    )
    return train, val


def ready(photos_N3HW: Tensor) -> Tensor:
    return ((photos_N3HW.float() - 118) / 70).contiguous(memory_format=torch.channels_last)


def varied(photos_N3HW: Tensor, random: torch.Generator) -> Tensor:
    """Shift each photo by up to SHIFT pixels and flip it at random."""
    side = photos_N3HW.shape[-1]
    wide = F.pad(ready(photos_N3HW), (SHIFT,) * 4, mode="reflect")
    draws = zip(wide, *torch.randint(2 * SHIFT + 1, (2, len(wide)), generator=random).tolist(), strict=True)
    shifted = torch.stack([photo[:, y : y + side, x : x + side] for photo, y, x in draws])
    flip = torch.rand(len(wide), 1, 1, 1, generator=random) < 0.5
    return torch.where(flip, shifted.flip(3), shifted)


# -- runs


def train(net: nn.Module, data: Data, epochs: int, rate: float, seed: int) -> float:
    """Train `net` and return the seconds per step."""
    photos_N3HW, labels_N = data
    random = torch.Generator().manual_seed(seed)
    per_epoch = len(labels_N) // BATCH
    steps = per_epoch * epochs
    optimiser = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=5e-4, nesterov=True)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    net.train()
    begun = time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(labels_N), generator=random)
        for batch in order[: per_epoch * BATCH].split(BATCH):
            logits_NK = net(varied(photos_N3HW[batch], random))
            loss = F.cross_entropy(logits_NK, labels_N[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return (time.perf_counter() - begun) / steps


@torch.no_grad()
def top1(net: nn.Module, data: Data) -> float:
    """Return the top-1 accuracy in per cent."""
    net.eval()
    hits = sum(
        int((net(ready(photos)).argmax(1) == labels).sum())
        for photos, labels in zip(*(part.split(500) for part in data), strict=True)
    )
    return 100 * hits / len(data[1])


def run(case: str, seed: int, args: argparse.Namespace, data: tuple[Data, Data]) -> dict[str, object]:
    trained = args.output / f"plain-{seed}-{args.epochs}-{args.photos}.safetensors"
    torch.manual_seed(seed)
    net = begin(case, trained).to(memory_format=torch.channels_last)
    from_start = case in ("aggregated", "plain")
    epochs, rate, order = (args.epochs, 0.1, seed) if from_start else (args.more, 0.05, 1000 + seed)
    at_first = top1(net, data[1])
    seconds = train(net, tuple(part[: args.photos] for part in data[0]), epochs, rate, order)
    if case == "plain":
        save_file({name: t.contiguous() for name, t in net.state_dict().items()}, trained)
    found = {"top1": top1(net, data[1]), "at_first": at_first, "parameters": parameters(net), "seconds": seconds}
    return found | {"steps": epochs * (min(args.photos, len(data[0][1])) // BATCH)}


def report(results: dict[str, dict[str, float]]) -> None:
    print(
        f"\n{'network':<12}{'parameters':>12}{'steps':>8}{'top-1, mean':>13}{'spread':>16}{'s a step':>10}   each seed"
    )
    for case in CASES:
        runs = [found for key, found in results.items() if key.startswith(f"{case} ")]
        if runs:
            top = [found["top1"] for found in runs]
            spread = f"{min(top):.1f} to {max(top):.1f}"
            sizes = f"{runs[0]['parameters']:>12,}{runs[0]['steps']:>8,}"
            seconds = statistics.mean(found["seconds"] for found in runs)
            each = ", ".join(f"{t:.2f}" for t in top)
            print(f"{case:<12}{sizes}{statistics.mean(top):>11.2f} %{spread:>16}{seconds:>10.3f}   {each}")
    for case, twin in (("aggregated", "plain"), ("grafted", "deepened"), ("grafted", "continued")):
        pairs = [
            found["top1"] - results[key.replace(case, twin)]["top1"]
            for key, found in results.items()
            if key.startswith(f"{case} ") and key.replace(case, twin) in results
        ]
        if pairs:
            each = ", ".join(f"{d:+.2f}" for d in pairs)
            print(f"{case} - {twin}: {statistics.mean(pairs):+.2f} points (seed by seed: {each})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--more", type=int, default=2, help="epochs of the second question")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=25_000, help="train with fewer, to try it out")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "runs.json"
    data = load(args.data, args.output)
    settings = f"{args.epochs}+{args.more} epochs, {args.photos} photos"
    everything = json.loads(file.read_text()) if file.exists() else {}
    results = everything.setdefault(settings, {})
    for seed in range(args.seeds):
        for case in ("plain", *(case for case in CASES if case != "plain")):
            key = f"{case} {seed}"
            if key in results:
                continue
            results[key] = run(case, seed, args, data)
            beside = file.with_suffix(".part")
            beside.write_text(json.dumps(everything, indent=1))
            beside.replace(file)
            print(f"{key}: {results[key]}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
