"""CenterNet's two DLA-34 networks, written from what is known of its code: names, order, shapes, what is computed.

`DLAv0` has the authors' concatenating decoder. `PoseDLA` sums and has deformable convolutions, which do not run here:
stand-ins hold their parameters. Nothing of the library is used, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from support.authors import AuthorsDLA

WIDTHS = (16, 32, 64, 128, 256, 512)
HEADS = {"hm": 80, "wh": 2, "reg": 2}


class Levels(AuthorsDLA):
    """The authors' dla34 with `return_levels`: six maps. `pose_dla_dcn` has its `fc` with ImageNet weights only."""

    def __init__(self, fc: bool) -> None:
        super().__init__("dla34")
        if not fc:
            del self.fc

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.base_layer(x), []
        for level in range(6):
            x = self.get_submodule(f"level{level}")(x)
            maps.append(x)
        return maps


def heads(outputs: Mapping[str, int]) -> dict[str, nn.Module]:
    return {
        name: nn.Sequential(nn.Conv2d(64, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, n, 1))
        for name, n in outputs.items()
    }


def up(c: int, f: int) -> nn.Module:
    return nn.ConvTranspose2d(c, c, 2 * f, f, f // 2, groups=c, bias=False)


class ConcatIDA(nn.Module):
    def __init__(self, c: int, widths: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        self.steps = range(1, len(widths))
        for m, (c_in, f) in enumerate(zip(widths, factors, strict=True)):
            same = nn.Sequential()
            projection = nn.Sequential(nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
            self.add_module(f"proj_{m}", same if c_in == c else projection)
            self.add_module(f"up_{m}", same if f == 1 else up(c, f))
        for m in self.steps:
            node = nn.Sequential(nn.Conv2d(2 * c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU())
            self.add_module(f"node_{m}", node)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        done = [maps[0]]
        for m in self.steps:
            upped = self.get_submodule(f"up_{m}")(self.get_submodule(f"proj_{m}")(maps[m]))
            done.append(self.get_submodule(f"node_{m}")(torch.cat([done[-1], upped], 1)))
        return done


class ConcatDLAUp(nn.Module):
    """Four maps, the finest first, to one of the finest's size and width."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for i in range(len(widths) - 1):
            j = len(widths) - 2 - i
            deeper = widths[-1:] if i == 0 else [widths[j + 1]] * (i + 1)
            self.add_module(f"ida_{i}", ConcatIDA(widths[j], [widths[j], *deeper], [1] + [2] * (i + 1)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        maps = list(maps)
        for i in range(len(maps) - 1):
            j = len(maps) - 2 - i
            maps[j:] = self.get_submodule(f"ida_{i}")(maps[j:])
        return maps[-1]


class DLAv0(nn.Module):
    """images_N3HW -> a map of stride 4 for each head. `base` gives six maps, `dla_up` joins the last four."""

    def __init__(self, base: nn.Module, dla_up: nn.Module | None = None) -> None:
        super().__init__()
        self.base = base
        self.dla_up = ConcatDLAUp(WIDTHS[2:]) if dla_up is None else dla_up
        for name, head in heads(HEADS).items():
            self.add_module(name, head)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.dla_up(self.base(x)[2:])
        return {name: self.get_submodule(name)(x) for name in HEADS}


class Deformable(nn.Module):
    """The parameters of a deformable convolution, norm and activation."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.actf = nn.Sequential(nn.BatchNorm2d(c_out), nn.ReLU())
        self.conv = nn.Conv2d(c_in, c_out, 3)
        self.conv.conv_offset_mask = nn.Conv2d(c_in, 27, 3)


class SumIDA(nn.Module):
    def __init__(self, c: int, widths: Sequence[int], factors: Sequence[int]) -> None:
        super().__init__()
        for m in range(1, len(widths)):
            self.add_module(f"proj_{m}", Deformable(widths[m], c))
            self.add_module(f"up_{m}", up(c, factors[m]))
            self.add_module(f"node_{m}", Deformable(c, c))


class PoseDLA(nn.Module):
    """The names and shapes of the checkpoints of `pose_dla_dcn`."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.dla_up = base, nn.Module()
        for i, j in enumerate((4, 3, 2)):
            deeper = [WIDTHS[j + 1]] * (i + 1)
            self.dla_up.add_module(f"ida_{i}", SumIDA(WIDTHS[j], [WIDTHS[j], *deeper], [1] + [2] * (i + 1)))
        self.ida_up = SumIDA(64, WIDTHS[2:5], (1, 2, 4))
        for name, head in heads(HEADS).items():
            self.add_module(name, head)
