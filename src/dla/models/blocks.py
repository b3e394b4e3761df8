"""The four residual blocks of the networks.

Shapes: x is (N, c_in, H, W); the result is (N, c_out, ceil(H/stride), ceil(W/stride)); `shortcut`, if not None, has
the shape of the result. Attribute names must not change: published checkpoints use them.

Dilation: a stage that keeps the resolution where the plain network halves it has `stride` 1, the dilation of its input
(`dilation_in`) and twice that for its own convolutions (`dilation`), so that every second position holds exactly what
the plain network computes there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from dla.errors import UsageError
from dla.models.export_shapes import exports_any_size, to_even_sides

NormLayer = Callable[[int], nn.Module]
ActLayer = Callable[[], nn.Module]

RELU: ActLayer = partial(nn.ReLU, inplace=True)


@dataclass(frozen=True, slots=True)
class Reduction:
    """How a block or tree reduces resolution: by striding, or by dilation instead of a stride."""

    stride: int = 1
    dilation_in: int = 1
    dilation: int = 1

    @property
    def reduces(self) -> bool:
        """Whether the plain network halves the resolution here."""
        return self.stride > 1 or self.dilation != self.dilation_in

    def after(self) -> Reduction:
        """Return the reduction of the next block, at the new resolution."""
        return Reduction(1, self.dilation, self.dilation)


@dataclass(slots=True)
class BlockOptions:
    """Settings shared by all blocks of a network. `drop_path` yields the stochastic depth rate of each next block."""

    cardinality: int = 1
    base_width: int = 64
    norm_layer: NormLayer = nn.BatchNorm2d
    act_layer: ActLayer = RELU
    drop_path: Iterator[float] = field(default_factory=lambda: iter(()))

    def next_drop_path(self) -> nn.Module:
        """Return the stochastic depth of the next block."""
        rate = next(self.drop_path, 0.0)
        return DropPath(rate) if rate else nn.Identity()

    def width(self, c_out: int) -> int:
        """Return the channels of the 3x3 convolution in a bottleneck (DLA divides by an expansion of 2).

        Raises:
            UsageError: if that is not a positive multiple of the cardinality.
        """
        width = c_out * self.base_width // 64 * self.cardinality // 2
        if width < 1 or width % self.cardinality:
            raise UsageError(
                f"{c_out} channels with base_width {self.base_width} and cardinality {self.cardinality} make blocks "
                f"{width} channels wide inside. Allowed: a positive multiple of the cardinality"
            )
        return width


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drop a sample's residual branch with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), with dropped samples zeroed and the others rescaled in training."""
        if not self.training:
            return x
        kept_N111 = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1 - self.rate)
        return x * kept_N111 / (1 - self.rate)

    def extra_repr(self) -> str:
        """Return the rate, for `repr`."""
        return f"rate={self.rate}"


def conv3x3(c_in: int, c_out: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False)


def conv1x1(c_in: int, c_out: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2d(c_in, c_out, 1, bias=False)


def conv_bn(c_in: int, c_out: int, norm_layer: NormLayer) -> nn.Sequential:
    """Return a projection: 1x1 convolution and norm, without activation."""
    return nn.Sequential(conv1x1(c_in, c_out), norm_layer(c_out))


class Basic(nn.Module):
    """Two 3x3 convolutions (He et al. 2016). Cardinality and base width are ignored."""

    def __init__(self, c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> None:
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, reduction.stride, reduction.dilation_in)
        self.bn1 = options.norm_layer(c_out)
        self.act = options.act_layer()
        self.conv2 = conv3x3(c_out, c_out, 1, reduction.dilation)
        self.bn2 = options.norm_layer(c_out)
        self.drop_path = options.next_drop_path()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the block's map; `shortcut` replaces x in the residual addition."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(y)))
        y = y + (x if shortcut is None else shortcut)
        return self.act(y)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions; with cardinality > 1, ResNeXt's block (Xie et al. 2017)."""

    def __init__(self, c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> None:
        super().__init__()
        mid = options.width(c_out)
        self.conv1 = conv1x1(c_in, mid)
        self.bn1 = options.norm_layer(mid)
        self.conv2 = conv3x3(mid, mid, reduction.stride, reduction.dilation_in, options.cardinality)
        self.bn2 = options.norm_layer(mid)
        self.conv3 = conv1x1(mid, c_out)
        self.bn3 = options.norm_layer(c_out)
        self.act = options.act_layer()
        self.drop_path = options.next_drop_path()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the block's map; `shortcut` replaces x in the residual addition."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.drop_path(self.bn3(self.conv3(y)))
        y = y + (x if shortcut is None else shortcut)
        return self.act(y)  # type: ignore[no-any-return]


class Bottle2neck(nn.Module):
    """Res2Net's block (Gao et al. 2021): the 3x3 convolution is split over `SCALE` chunks of the channels.

    Where the resolution is reduced, the chunks are convolved independently and the last one is average-pooled (zero
    padding counted, as for the published weights). Elsewhere the result of the previous chunk is added to each chunk
    before its convolution, and the last chunk is unchanged.
    """

    SCALE = 4
    __constants__ = ("SCALE",)

    def __init__(self, c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> None:
        super().__init__()
        groups, width = options.cardinality, options.width(c_out)
        self.reduces, self.width = reduction.reduces, width
        self.stride, self.dilation_in = reduction.stride, reduction.dilation_in
        self.conv1 = conv1x1(c_in, width * self.SCALE)
        self.bn1 = options.norm_layer(width * self.SCALE)
        self.convs = nn.ModuleList(
            conv3x3(width, width, reduction.stride, reduction.dilation_in, groups) for _ in range(self.SCALE - 1)
        )
        self.bns = nn.ModuleList(options.norm_layer(width) for _ in range(self.SCALE - 1))
        self.conv3 = conv1x1(width * self.SCALE, c_out)
        self.bn3 = options.norm_layer(c_out)
        self.act = options.act_layer()
        self.drop_path = options.next_drop_path()

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Return the block's map; `shortcut` replaces x in the residual addition."""
        chunks = self.act(self.bn1(self.conv1(x))).chunk(self.SCALE, 1)
        done: list[Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):  # symbolic tracing: no loop over chunks
            joined = chunks[i] if self.reduces or i == 0 else done[-1] + chunks[i]
            done.append(self.act(bn(conv(joined))))
        done.append(self._mean3x3(chunks[-1]) if self.reduces else chunks[-1])
        y = self.drop_path(self.bn3(self.conv3(torch.cat(done, 1))))
        y = y + (x if shortcut is None else shortcut)
        return self.act(y)  # type: ignore[no-any-return]

    def _mean3x3(self, x: Tensor) -> Tensor:
        if self.dilation_in == 1:
            if not is_scripting():  # noqa: SIM102 - TorchScript skips the inner branch
                if self.stride > 1 and exports_any_size(x):
                    x = to_even_sides(x, 0.0)  # adds only padding that the pooling adds anyway
            return F.avg_pool2d(x, 3, self.stride, padding=1)
        # Average pooling has no dilation, so the mean is a depthwise convolution.
        d, c = self.dilation_in, self.width
        return F.conv2d(x, x.new_full((c, 1, 3, 3), 1 / 9), padding=d, dilation=d, groups=c)


BLOCKS: dict[str, type[nn.Module]] = {
    "basic": Basic,
    "bottleneck": Bottleneck,
    "bottleneck_x": Bottleneck,
    "bottle2neck": Bottle2neck,
}
