"""DLAUp beside a U-Net and an FPN decoder of as many multiplications: the same backbone, data, crops and steps.

python benchmarks/decoders.py camvid/ [--epochs 10] [--seeds 0 1] [--rows dlaup unet fpn untrained frozen]

DATA has train/ and val/ with images/, masks/ and classes.json. All rows take the recipe `camvid` with its smallest
crops and so many passes over the photos. `untrained` and `frozen` are DLAUp over a backbone without pretrained weights,
and over one that does not learn. Prints a table of the mean IoU on val after the last pass; writes decoders.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla.models.decoder import DLAUp
from dla.models.dense import Dense
from dla.models.feature_net import FeatureNet
from dla.text_table import text_table
from dla.training.events import EpochEvent, TrainerCallback
from dla.training.recipe import Recipe
from dla.training.recipe_files import recipe_from
from dla.training.run_folder import repeatable
from dla.training.setup import TASKS, set_up, with_data
from dla.training.task import Runtime

SIZE = 360, 480  # at which multiplications are counted


def conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Sequential:
    layer = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """From coarse to fine: upsample, concatenate the backbone's map, two 3x3 convolutions (Ronneberger et al. 2015)."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: float) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        widths = [channels[0], *(max(8, round(width * c)) for c in channels[1:-1]), channels[-1]]
        self.nodes = nn.ModuleList(
            nn.Sequential(
                conv(widths[i + 1] + channels[i], max(8, round(width * channels[i]))),
                conv(max(8, round(width * channels[i])), widths[i]),
            )
            for i in range(len(channels) - 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[-1]
        for i in reversed(range(len(self.nodes))):
            x = self.nodes[i](torch.cat((resized(x, maps[i]), maps[i]), 1))
        return x


class FPN(nn.Module):
    """1x1 convolutions to one width, added from coarse to fine, a 3x3 convolution each; their sum at the finest size.

    Lin et al. 2017, with the sum of Kirillov et al. 2019.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: float) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)
        c = max(8, round(width * 32))
        self.lateral = nn.ModuleList(nn.Conv2d(c_in, c, 1) for c_in in channels)
        self.smooth = nn.ModuleList(conv(c, c) for _ in channels)
        self.last = conv(c, channels[0])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        added = [self.lateral[-1](maps[-1])]
        for lateral, x in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            side = lateral(x)
            added.append(side + resized(added[-1], side))
        smooth = [layer(x) for layer, x in zip(self.smooth, reversed(added), strict=True)]
        return self.last(sum(resized(x, smooth[0]) for x in smooth))


def multiplications(decoder: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> int:
    """Return the multiply-accumulates of a decoder's convolutions for one photo of 480x360. Loses its weights."""
    count = 0

    def add(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal count
        assert isinstance(layer, nn.Conv2d)
        count += output.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(add) for m in decoder.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode(), torch.device("meta"):
        maps = [torch.zeros(1, c, -(-SIZE[0] // s), -(-SIZE[1] // s)) for c, s in zip(channels, strides, strict=True)]
        decoder.to("meta").eval()(maps)
    for hook in hooks:
        hook.remove()
    return count


def fitted(kind: type[UNet | FPN], channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
    """Return the decoder whose multiplications come nearest to those of DLAUp."""
    with torch.device("meta"):
        wanted = multiplications(DLAUp(channels, strides), channels, strides)
        distance = {
            width: abs(multiplications(kind(channels, strides, width), channels, strides) - wanted)
            for width in (0.25 + i / 32 for i in range(120))
        }
    return kind(channels, strides, min(distance, key=distance.__getitem__))


def dense_over(kind: type[UNet | FPN]) -> Callable[..., Dense]:
    """Return what `Dense.over` does, with another decoder."""
    over = Dense.over

    def build(backbone: nn.Module, num_classes: int, down_ratio: int = 2, up: str = "bilinear") -> Dense:
        dlaup = over(backbone, num_classes, down_ratio, up)
        assert isinstance(dlaup.base, FeatureNet)
        decoder = fitted(kind, dlaup.dla_up.channels, dlaup.dla_up.strides)
        network = Dense(dlaup.base, decoder, num_classes, up)  # type: ignore[arg-type]
        network.pretrained_cfg = dlaup.pretrained_cfg
        return network

    return build


class Last(TrainerCallback):
    """Keeps the figures of the last epoch."""

    figures: dict[str, float] = {}  # noqa: RUF012

    def on_epoch(self, event: EpochEvent, is_best: bool) -> None:
        self.figures = dict(event.figures)


def row_recipe(name: str, data: str, epochs: int, seed: int) -> Recipe:
    settings: dict[str, Any] = {"seed": seed, "epochs": 1, "repeat": epochs, "schedule.warmup_epochs": 0.05}
    settings |= {"untrained": {"pretrained": False}, "frozen": {"freeze": "level5"}}.get(name, {})
    recipe = with_data(recipe_from("camvid", settings), data)
    return replace(recipe, augment=replace(recipe.augment, crop=recipe.augment.crops[0]))


def run(name: str, data: str, epochs: int, seed: int, workers: int, device: str) -> dict[str, Any]:
    """Train one row; return its figures."""
    began = time.monotonic()
    recipe = row_recipe(name, data, epochs, seed)
    runtime = Runtime.from_options(workers, device, "ram")
    splits = TASKS["segment"].open_photos(recipe, runtime)
    kind = {"unet": UNet, "fpn": FPN}.get(name)
    with patch.object(Dense, "over", dense_over(kind) if kind else Dense.over), repeatable():
        setup = set_up(recipe, splits, runtime)
        last = Last()
        setup.trainer.run(setup.batches, setup.validation, last)
    network = setup.trainer.network
    assert isinstance(network, Dense)
    decoder = network.dla_up
    parameters = sum(p.numel() for p in decoder.parameters())
    return {
        "row": name,
        "seed": seed,
        **last.figures,
        "decoder_mmacs": round(multiplications(decoder, decoder.channels, decoder.strides) / 1e6, 1),
        "decoder_parameters": parameters,
        "steps": setup.batches.steps,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = ("dlaup", "unet", "fpn", "untrained", "frozen")
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("decoders.json"))
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    for seed in args.seeds:
        for name in args.rows:
            found.append(run(name, args.data, args.epochs, seed, args.workers, args.device))
            args.output.write_text(json.dumps(found, indent=2))
            print(json.dumps(found[-1]), flush=True)
    lines = []
    for name in args.rows:
        ours = [f for f in found if f["row"] == name]
        mean = sum(f["miou"] for f in ours) / len(ours)
        each = ", ".join(f"{100 * f['miou']:.1f}" for f in ours)
        size = [f"{ours[0]['decoder_mmacs']:,.0f}", f"{ours[0]['decoder_parameters']:,}"]
        lines.append([name, *size, f"{100 * mean:.1f}", each])
    header = ["decoder", "million MACs", "parameters", "mIoU %", "by seed"]
    print("\n".join(text_table([header, *lines], "<>>><")))


if __name__ == "__main__":
    main()
