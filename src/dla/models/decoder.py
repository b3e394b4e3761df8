"""Iterative deep aggregation, after section 3.1 of "Deep Layer Aggregation", and the decoder built from it.

    I(x_1) = x_1;   I(x_1, ..., x_n) = I(N(x_1, U(P(x_2))), x_3, ..., x_n)     from the finest map to the coarsest

    N(a, b) = relu(bn(conv3x3([a, b])))     the aggregation node
    P       = relu(bn(conv1x1))             to the channels of x_1, where they differ
    U                                       upsampling to the size of x_1

    DLAUp: (S_j, ..., S_K) = all steps of I over (F_j, S_{j+1}, ..., S_K), for j = K-1, ..., 1, with S_K = F_K

F_1, ..., F_K are a backbone's maps (N, channels[j], H/strides[j], W/strides[j]), finest first; the result is the last
S_K, with the channels and size of F_1. Attribute names must not change: the authors' checkpoints use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.backbone import Backbone, check_levels
from dla.models.blocks import RELU, ActLayer, NormLayer, conv1x1, conv3x3
from dla.models.dla import init_weights
from dla.models.export_shapes import exports_any_size
from dla.models.registry import UPSAMPLINGS

torch.fx.wrap("check_maps")  # shapes are not known while a network is traced


class IDA(nn.ModuleDict):
    """I: aggregate maps from the finest to the coarsest, with the channels and size of the finest.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps, in pixels. Those of x_2, ..., x_n may be equal.
        up: "bilinear" interpolates, so that a constant map stays constant up to the border. "authors" is a learned
            transposed convolution, initialized bilinearly and zero-padded at the border, as in the authors'
            checkpoints; its strides must be multiples of the first one.
        norm_layer: called with the number of channels.
        act_layer: called without arguments.

    Raises:
        UsageError: for strides that fall or another `up`; in `forward`, for maps of other channels or sizes.
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
            self[f"up_{m}"] = upsampling(up, c, stride_m, stride)
        for m in range(1, len(channels)):  # after all others, as the checkpoints order them
            self[f"node_{m}"] = nn.Sequential(conv3x3(2 * c, c), norm_layer(c), act_layer())
        self.apply(init_weights)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the result of each step: x_1, N(x_1, x_2), ..., I(x_1, ..., x_n)."""
        check_maps(maps, self.channels)
        steps = [maps[0]]
        for m, x in enumerate(maps[1:], start=1):
            x = self[f"up_{m}"](self[f"proj_{m}"](x), maps[0].shape[2:])
            steps.append(self[f"node_{m}"](torch.cat((steps[-1], x), 1)))
        return steps


class DLAUp(nn.ModuleDict):
    """The decoder: maps, finest first -> one map with the channels and size of the finest.

    Coarser maps are `stride / finer stride` times smaller, rounded up or down.

    Args:
        channels: channels of the maps, finest first.
        strides: strides of the maps, in pixels, rising.
        up: as for `IDA`.
        norm_layer: as for `IDA`.
        act_layer: as for `IDA`.

    Raises:
        UsageError: for strides that fall or another `up`; in `forward`, for maps of other channels or sizes.
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
        """Return `backbone` with a decoder on its maps: images x_N3HW -> (N, C, H, W), for any H, W >= 1.

        Args:
            backbone: a DLA, or any module that returns maps; its parameters are shared, not copied.
            channels: channels of its maps; by default as `Backbone.of` finds them.
            strides: strides of its maps; by default as `Backbone.of` finds them.
            up: as for `IDA`.
            norm_layer: as for `IDA`.
            act_layer: as for `IDA`.

        Raises:
            UsageError: if the backbone does not return maps that a decoder can take.
        """
        maps = Backbone.of(backbone, channels, strides)
        return PixelFeatures(maps, DLAUp(maps.channels, maps.strides, up, norm_layer, act_layer), up)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the decoded map, (N, channels[0], h, w), of the maps, finest first."""
        check_maps(maps, self.channels)
        *finer, coarsest = maps
        deep = [coarsest]
        for x, ida in zip(reversed(finer), self.values(), strict=True):
            deep = ida([x, *deep])
        return deep[-1]


class PixelFeatures(nn.Module):
    """Images x_N3HW -> features of each pixel, (N, channels, H, W): a backbone, its decoder and upsampling."""

    def __init__(self, backbone: Backbone, dla_up: DLAUp, up: str = "bilinear") -> None:
        super().__init__()
        self.channels = dla_up.channels[0]
        self.backbone = backbone
        self.dla_up = dla_up
        self.up = upsampling(up, self.channels, dla_up.strides[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (N, channels, H, W) of images x_N3HW."""
        return self.up(self.dla_up(self.backbone(x)), x.shape[2:])  # type: ignore[no-any-return]


class Bilinear(nn.Module):
    """U by interpolation: (N, C, H, W) and a finer size (h, w) -> (N, C, h, w).

    Both grids start in the top left corner, like those of strided convolutions, at the scale `coarse / fine` for every
    size; x is replicated beyond the border.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.coarse, self.fine = coarse, fine

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return x at `size`, (h, w)."""
        x = _covering(x, size, self.coarse, self.fine, "replicate")
        whole = [-(-n * self.coarse // self.fine) for n in x.shape[2:]]
        return _cut(F.interpolate(x, whole, mode="bilinear", align_corners=False), size)

    def extra_repr(self) -> str:
        """Return the two strides, for `repr`."""
        return f"coarse={self.coarse}, fine={self.fine}"


class Transposed(nn.ConvTranspose2d):
    """U of the authors, a depthwise transposed convolution: (N, C, H, W) and a finer size (h, w) -> (N, C, h, w)."""

    def __init__(self, channels: int, factor: int) -> None:
        self.factor = factor
        super().__init__(channels, channels, 2 * factor, factor, factor // 2, groups=channels, bias=False)

    def reset_parameters(self) -> None:
        """Initialize to bilinear interpolation with zeros beyond the border."""
        centre = (2 * self.factor - 1 - self.factor % 2) / (2 * self.factor)
        taps = 1 - (torch.arange(2 * self.factor) / self.factor - centre).abs()
        with torch.no_grad():
            self.weight.copy_(taps[:, None] * taps)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Return x at `size`, (h, w)."""
        return _cut(super().forward(_covering(x, size, self.factor, 1, "constant")), size)


def upsampling(up: str, channels: int, coarse: int, fine: int) -> nn.Module:
    """Return U from stride `coarse` to stride `fine`: "bilinear", or "authors", a transposed convolution.

    Raises:
        UsageError: another `up`, or strides that it does not support.
    """
    if up not in UPSAMPLINGS:
        raise UsageError(f"up is {up!r}. Allowed: {', '.join(map(repr, UPSAMPLINGS))}")
    if up == "bilinear" or coarse == fine:
        return Bilinear(coarse, fine)
    if coarse % fine:
        raise UsageError(f"stride {coarse} is not a multiple of {fine}, as up='authors' needs. Try: up='bilinear'")
    return Transposed(channels, coarse // fine)


def _covering(x: Tensor, size: Sequence[int], coarse: int, fine: int, mode: str) -> Tensor:
    """Return x, padded by a row or column where the backbone rounded down and x does not cover the finer map."""
    if exports_any_size(x):
        return x  # networks that are exported round up, and their sizes are not known here
    needed = [-(-n * fine // coarse) for n in size]
    missing = [n - side for n, side in zip(needed, x.shape[2:], strict=True)]
    if max(map(abs, missing)) > 1:
        raise UsageError(
            f"a map of {_by(x.shape[2:])} is {coarse / fine:g} times coarser than one of {_by(size)} by their strides. "
            f"Expected: {_by(needed)}, or one less where sizes are rounded down"
        )
    rows, columns = (max(0, n) for n in missing)
    return F.pad(x, (0, columns, 0, rows), mode) if rows or columns else x


def _cut(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first rows and columns of x."""
    if exports_any_size(x):  # a slice would fix whether there is anything to cut
        rows, columns = (torch.arange(n, device=x.device) for n in size)
        return x.index_select(2, rows).index_select(3, columns)
    return x[:, :, : size[0], : size[1]]


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def check_maps(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Raise a UsageError unless these are maps (N, C, H, W) of these channels. Tracing does not look into it."""
    shapes = [tuple(x.shape) for x in maps]
    if [s[1:2] for s in shapes if len(s) == 4] != [(c,) for c in channels]:
        raise UsageError(
            f"the maps are {', '.join(map(str, shapes))}. Expected: (N, C, H, W) with C {', '.join(map(str, channels))}"
        )
