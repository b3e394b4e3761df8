"""The authors' module tree, written from what is known of their code, to load their files into.

Only names, order, shapes and what is computed matter here: a projection belongs to every tree that changes the number
of channels and is registered last; only those of the innermost trees change the result. Average pooling has a fixed
window. Nothing of the library is used, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MakeBlock = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Shape:
    levels: tuple[int, ...]
    channels: tuple[int, ...]
    groups: int = 0  # 0: basic blocks, 1: bottlenecks, more: grouped bottlenecks
    residual: bool = False


WIDE, COMPACT = (16, 32, 128, 256, 512, 1024), (16, 32, 64, 64, 128, 256)
SHAPES = {
    "dla34": Shape((1, 1, 1, 2, 2, 1), (16, 32, 64, 128, 256, 512)),
    "dla46_c": Shape((1, 1, 1, 2, 2, 1), COMPACT, 1),
    "dla46x_c": Shape((1, 1, 1, 2, 2, 1), COMPACT, 32),
    "dla60x_c": Shape((1, 1, 1, 2, 3, 1), COMPACT, 32),
    "dla60": Shape((1, 1, 1, 2, 3, 1), WIDE, 1),
    "dla60x": Shape((1, 1, 1, 2, 3, 1), WIDE, 32),
    "dla102": Shape((1, 1, 1, 3, 4, 1), WIDE, 1, True),
    "dla102x": Shape((1, 1, 1, 3, 4, 1), WIDE, 32, True),
    "dla102x2": Shape((1, 1, 1, 3, 4, 1), WIDE, 64, True),
    "dla169": Shape((1, 1, 2, 3, 5, 1), WIDE, 1, True),
}


class Basic(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + shortcut).relu()


class Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, groups: int) -> None:
        super().__init__()
        width = c_out // 2 if groups == 1 else c_out * groups // 32
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        return (self.bn3(self.conv3(y)) + shortcut).relu()


class Root(nn.Module):
    def __init__(self, c_in: int, c_out: int, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.residual = residual

    def forward(self, *maps: Tensor) -> Tensor:
        y = self.bn(self.conv(torch.cat(maps, 1)))
        return (y + maps[0] if self.residual else y).relu()


class Aggregation(nn.Module):
    """A tree; `c_root` are the channels that its last root takes."""

    def __init__(
        self, n: int, make: MakeBlock, c_in: int, c_out: int, stride: int, level_root: bool, c_root: int, residual: bool
    ) -> None:
        super().__init__()
        c_root = (c_root or 2 * c_out) + (c_in if level_root else 0)
        self.n, self.level_root, self.stride = n, level_root, stride
        if n == 1:
            self.tree1, self.tree2 = make(c_in, c_out, stride), make(c_out, c_out, 1)
            self.root = Root(c_root, c_out, residual)
        else:
            self.tree1 = Aggregation(n - 1, make, c_in, c_out, stride, False, 0, residual)
            self.tree2 = Aggregation(n - 1, make, c_out, c_out, 1, False, c_root + c_out, residual)
        if c_in != c_out:
            self.project = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor, kept: tuple[Tensor, ...] = ()) -> Tensor:
        bottom = nn.functional.max_pool2d(x, self.stride, self.stride) if self.stride > 1 else x
        if self.level_root:
            kept = (*kept, bottom)
        if self.n > 1:
            x1 = self.tree1(x)
            return self.tree2(x1, (*kept, x1))
        x1 = self.tree1(x, self.project(bottom) if hasattr(self, "project") else bottom)
        x2 = self.tree2(x1, x1)
        return self.root(x2, x1, *kept)


def convs(c_in: int, c_out: int, count: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        conv = nn.Conv2d(c_out if i else c_in, c_out, kernel, 1 if i else stride, kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers)


class AuthorsDLA(nn.Module):
    """One of `SHAPES`; `pool` is the side of the window of the last pooling, an image's side over 32."""

    def __init__(self, name: str, num_classes: int = 1000, pool: int = 7) -> None:
        super().__init__()
        shape = SHAPES[name]
        c, groups = shape.channels, shape.groups

        def make(c_in: int, c_out: int, stride: int) -> nn.Module:
            return Bottleneck(c_in, c_out, stride, groups) if groups else Basic(c_in, c_out, stride)

        self.base_layer = convs(3, c[0], 1, kernel=7)
        self.level0 = convs(c[0], c[0], shape.levels[0])
        self.level1 = convs(c[0], c[1], shape.levels[1], stride=2)
        for i in range(2, 6):
            tree = Aggregation(shape.levels[i], make, c[i - 1], c[i], 2, i > 2, 0, shape.residual)
            self.add_module(f"level{i}", tree)
        self.avgpool = nn.AvgPool2d(pool)
        self.fc = nn.Conv2d(c[5], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("base_layer", *(f"level{i}" for i in range(6)), "avgpool", "fc"):
            x = self.get_submodule(name)(x)
        return x.flatten(1)
