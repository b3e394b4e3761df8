"""Iterative deep aggregation, after section 3.1 of "Deep Layer Aggregation", and the decoder that is made of it.

    I(x_1) = x_1;   I(x_1, ..., x_n) = I(N(x_1, U(P(x_2))), x_3, ..., x_n)     from the finest map to the coarsest

    N(a, b) = relu(bn(conv3x3([a, b])))     the aggregation node
    P       = relu(bn(conv1x1))             to the width of x_1, where it differs
    U                                       to the size of x_1

    DLAUp: (S_j, ..., S_K) = what I gives on its way over (F_j, S_{j+1}, ..., S_K), for j = K-1, ..., 1, with S_K = F_K

F_1, ..., F_K are a backbone's maps (N, channels[j], H/strides[j], W/strides[j]), finest first; the result is the last
S_K, of the width and size of F_1. Attribute names are a file format: the authors' checkpoints spell them this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.backbone import Backbone, check_levels
from dla.models.blocks import RELU, ActLayer, NormLayer, conv1x1, conv3x3
from dla.models.dla import init_weights

__all__ = ["IDA", "DLAUp", "PixelFeatures"]


UPSAMPLINGS = ("bilinear", "authors")


class IDA(nn.ModuleDict):
    """I: a fold of maps from the finest to the coarsest, all at the width and size of the finest.

    Maps x_1, ..., x_n -> a list of what each step gives: x_1, N(x_1, x_2), ..., I(x_1, ..., x_n).

    Args:
        channels: widths of the maps, finest first.
        strides: their strides. Those of x_2, ..., x_n may be equal.
        up: "bilinear" interpolates: a constant stays constant up to the border. "authors" convolves, with weights that
            begin bilinear and zeros beyond the border, as their checkpoints were trained; it needs strides that are
            multiples of the first one.
        norm_layer: called with the number of channels.
        act_layer: called without arguments.

    Raises:
        UsageError: strides that do not rise, another `up`; in `forward`, maps of other widths or sizes.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        up: str = "bilinear",
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
    ) -> None:
        super().__init__()
        check_levels(channels, strides)
        self.channels = tuple(channels)
        (c, *wider), (stride, *coarser) = channels, strides
        for m, (c_m, stride_m) in enumerate(zip(wider, coarser, strict=True), start=1):
            same = c_m == c
            self[f"proj_{m}"] = nn.Identity() if same else nn.Sequential(conv1x1(c_m, c), norm_layer(c), act_layer())
            self[f"up_{m}"] = _upsampling(up, c, stride_m, stride)
        for m in range(1, len(channels)):  # after all the others: the files' order
            self[f"node_{m}"] = nn.Sequential(conv3x3(2 * c, c), norm_layer(c), act_layer())
        self.apply(init_weights)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        _check_maps(maps, self.channels)
        steps = [maps[0]]
        for m, x in enumerate(maps[1:], start=1):
            x = self[f"up_{m}"](self[f"proj_{m}"](x), maps[0].shape[2:])
            steps.append(self[f"node_{m}"](torch.cat((steps[-1], x), 1)))
        return steps


class DLAUp(nn.ModuleDict):
    """The decoder: any list of maps, finest first -> one map of the width and size of the finest.

    Coarser maps are `stride / finer stride` times smaller, rounded up or down.

    Args:
        channels: widths of the maps, finest first.
        strides: pixels of the image from one position of each map to the next; they rise from map to map.
        up, norm_layer, act_layer: as for `IDA`.

    Raises:
        UsageError: strides that do not rise, another `up`; in `forward`, maps of other widths or sizes.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        up: str = "bilinear",
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
    ) -> None:
        super().__init__()
        check_levels(channels, strides)
        self.channels, self.strides = tuple(channels), tuple(strides)
        levels = list(zip(channels, strides, strict=True))
        for i, (finer, coarser) in enumerate(reversed(list(pairwise(levels)))):
            widths, steps = zip(finer, *[coarser] * (i + 1), strict=True)
            self[f"ida_{i}"] = IDA(widths, steps, up, norm_layer, act_layer)

    @staticmethod
    def over(
        backbone: nn.Module,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        up: str = "bilinear",
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
    ) -> PixelFeatures:
        """`backbone` with a decoder on its maps: images x_N3HW -> (N, C, H, W), for every H and W from 1 up.

        Args:
            backbone: a DLA, or any module that returns maps; its parameters are shared, not copied.
            channels, strides: of its maps, where it should not be asked: see `Backbone.of`.
            up, norm_layer, act_layer: as for `IDA`.

        Raises:
            UsageError: no maps that a decoder can take.
        """
        maps = Backbone.of(backbone, channels, strides)
        return PixelFeatures(maps, DLAUp(maps.channels, maps.strides, up, norm_layer, act_layer), up)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        _check_maps(maps, self.channels)
        *finer, coarsest = maps
        deep = [coarsest]
        for x, ida in zip(reversed(finer), self.values(), strict=True):
            deep = ida([x, *deep])
        return deep[-1]


class PixelFeatures(nn.Module):
    """Images x_N3HW -> `channels` numbers for each pixel, (N, channels, H, W): a backbone, its decoder, up-sampling."""

    def __init__(self, backbone: Backbone, dla_up: DLAUp, up: str = "bilinear") -> None:
        super().__init__()
        self.channels = dla_up.channels[0]
        self.backbone = backbone
        self.dla_up = dla_up
        self.up = _upsampling(up, self.channels, dla_up.strides[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dla_up(self.backbone(x)), x.shape[2:])  # type: ignore[no-any-return]


class Bilinear(nn.Module):
    """U by interpolation: (N, C, H, W) and a finer size (h, w) -> (N, C, h, w).

    Both grids begin in the top left corner, as those of strided convolutions do, and stay `coarse / fine` apart at
    every size; beyond the border x goes on as it ends.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.coarse, self.fine = coarse, fine

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = _covering(x, size, self.coarse, self.fine, "replicate")
        whole = [-(-n * self.coarse // self.fine) for n in x.shape[2:]]
        return F.interpolate(x, whole, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]

    def extra_repr(self) -> str:
        return f"coarse={self.coarse}, fine={self.fine}"


class Transposed(nn.ConvTranspose2d):
    """U of the authors: each channel by itself, (N, C, H, W) and a finer size (h, w) -> (N, C, h, w)."""

    def __init__(self, channels: int, factor: int) -> None:
        self.factor = factor
        super().__init__(channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)

    def reset_parameters(self) -> None:
        """Bilinear interpolation, but for the zeros beyond the border."""
        centre = (2 * self.factor - 1 - self.factor % 2) / (2 * self.factor)
        taps = 1 - (torch.arange(2 * self.factor) / self.factor - centre).abs()
        with torch.no_grad():
            self.weight.copy_(taps[:, None] * taps)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        x = super().forward(_covering(x, size, self.factor, 1, "constant"))
        return x[:, :, : size[0], : size[1]]


def _upsampling(up: str, channels: int, coarse: int, fine: int) -> nn.Module:
    if up not in UPSAMPLINGS:
        raise UsageError(f"up is {up!r}. Allowed: {', '.join(map(repr, UPSAMPLINGS))}")
    if up == "bilinear" or coarse == fine:
        return Bilinear(coarse, fine)
    if coarse % fine:
        raise UsageError(
            f"up='authors' leads from stride {coarse} to a divisor of it, not to {fine}. Try: up='bilinear'"
        )
    return Transposed(channels, coarse // fine)


def _covering(x: Tensor, size: Sequence[int], coarse: int, fine: int, mode: str) -> Tensor:
    """x, with a last row or column more where a backbone rounded down and left the end of a finer map without one."""
    needed = [-(-n * fine // coarse) for n in size]
    missing = [n - there for n, there in zip(needed, x.shape[2:], strict=True)]
    if max(map(abs, missing)) > 1:
        raise UsageError(
            f"a map of {_by(x.shape[2:])} is {coarse / fine:g} times coarser than one of {_by(size)} by their strides. "
            f"Expected: {_by(needed)}, or one less where sizes are rounded down"
        )
    rows, columns = (max(0, n) for n in missing)
    return F.pad(x, (0, columns, 0, rows), mode) if rows or columns else x


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _check_maps(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    found = [tuple(x.shape) for x in maps]
    if [s[1:2] for s in found if len(s) == 4] != [(c,) for c in channels]:
        raise UsageError(
            f"the maps are {', '.join(map(str, found))}. Expected: (N, C, H, W) with C {', '.join(map(str, channels))}"
        )
