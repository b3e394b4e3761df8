"""Hierarchical deep aggregation, after section 3.2 of "Deep Layer Aggregation".

    T_n(x)  = N(R_{n-1}, ..., R_1, L_1, L_2)
    R_{n-1} = T_{n-1}(x);   R_m = T_m(R_{m+1})     the sub-trees, deepest first
    L_1     = B(R_1);       L_2 = B(L_1)           two last blocks (R_1 is x when n = 1)

x is (N, c_in, H, W); every R, L and T is (N, c_out, ceil(H/stride), ceil(W/stride)).
Attribute names are a file format: published checkpoints spell them this way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla.nets.blocks import ActLayer, NormLayer, Reduction, conv1x1, conv_bn

__all__ = ["Node", "Tree"]

MakeBlock = Callable[[int, int, Reduction], nn.Module]


class Node(nn.Module):
    """N: concatenate, mix with a 1x1 convolution, optionally add the newest input.

    Takes a tuple of maps (N, c_i, H, W) whose channels sum to c_in; gives (N, c_out, H, W).
    """

    def __init__(self, c_in: int, c_out: int, shortcut: bool, norm_layer: NormLayer, act_layer: ActLayer) -> None:
        super().__init__()
        self.conv = conv1x1(c_in, c_out)
        self.bn = norm_layer(c_out)
        self.act = act_layer()
        self.shortcut = shortcut

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        y = self.bn(self.conv(torch.cat(inputs, 1)))
        return self.act(y + inputs[0] if self.shortcut else y)  # type: ignore[no-any-return]


class Pool(nn.Module):
    """The maximum of 2x2 neighbours, on the grid of the strided convolutions beside it.

    The last row and column of an odd size count with the neighbours they have, so that the result is
    ceil(H/2) x ceil(W/2), like the convolution's, at every size. Where a stage dilates instead of striding, each
    position takes the neighbours that the strided pooling would have taken from there.
    """

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        s, d = self.reduction.stride, self.reduction.dilation_in
        if s > 1 and not _exports_any_size(x):
            return F.max_pool2d(x, 2, s, ceil_mode=True)
        return F.max_pool2d(F.pad(x, (0, d, 0, d), value=float("-inf")), 2, s, dilation=d)


def _exports_any_size(x: Tensor) -> bool:
    """Whether an exporter must prove sizes for every H and W: it can for padding, but not for ceil_mode."""
    if not torch.compiler.is_exporting():
        return False
    # The strict exporter shows every size as an int, so there is no telling.
    return torch.compiler.is_dynamo_compiling() or not all(isinstance(n, int) for n in x.shape[2:])


class Tree(nn.Module):
    """T_n. `kept`: results waiting for N, in the order made; c_kept channels in all.

    `keep_input` hands the pooled input to the last node, which joins one stage to the next.
    """

    def __init__(
        self,
        n: int,
        make_block: MakeBlock,
        c_in: int,
        c_out: int,
        reduction: Reduction,
        *,
        norm_layer: NormLayer,
        act_layer: ActLayer,
        keep_input: bool = False,
        shortcut: bool = False,
        c_kept: int = 0,
    ) -> None:
        super().__init__()
        c_kept += c_in if keep_input else 0
        self.n, self.keep_input = n, keep_input
        self.downsample = Pool(reduction) if reduction.reduces else nn.Identity()
        if n > 1:
            self.tree1: nn.Module = Tree(
                n - 1, make_block, c_in, c_out, reduction,
                norm_layer=norm_layer, act_layer=act_layer, shortcut=shortcut,
            )  # fmt: skip
            self.tree2: nn.Module = Tree(
                n - 1, make_block, c_out, c_out, reduction.after(),
                norm_layer=norm_layer, act_layer=act_layer, shortcut=shortcut, c_kept=c_kept + c_out,
            )  # fmt: skip
        else:
            # project comes first: the order of the published files
            self.project = conv_bn(c_in, c_out, norm_layer) if c_in != c_out else nn.Identity()
            self.tree1 = make_block(c_in, c_out, reduction)
            self.tree2 = make_block(c_out, c_out, reduction.after())
            self.root = Node(2 * c_out + c_kept, c_out, shortcut, norm_layer, act_layer)

    def forward(self, x: Tensor, kept: tuple[Tensor, ...] = ()) -> Tensor:
        pooled = self.downsample(x) if self.keep_input or self.n == 1 else x
        if self.keep_input:
            kept = (*kept, pooled)
        if self.n > 1:
            r = self.tree1(x)  # R_m = T_m(R_{m+1})
            return self.tree2(r, (*kept, r))  # type: ignore[no-any-return]  # R_{m-1}, ..., then L and N
        l1 = self.tree1(x, self.project(pooled))  # L_1 = B(R_1)
        l2 = self.tree2(l1)  # L_2 = B(L_1)
        return self.root((l2, l1, *kept))  # type: ignore[no-any-return]  # T_n = N(...), in the files' order
