"""Hierarchical deep aggregation, after section 3.2 of "Deep Layer Aggregation".

    T_n(x)  = N(R_{n-1}, ..., R_1, L_1, L_2)
    R_{n-1} = T_{n-1}(x);   R_m = T_m(R_{m+1})     the sub-trees, deepest first
    L_1     = B(R_1);       L_2 = B(L_1)           the last two blocks (R_1 is x when n = 1)

x is (N, c_in, H, W); every R, L and T is (N, c_out, ceil(H/stride), ceil(W/stride)).
Attribute names must not change: published checkpoints use them.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from dla.errors import UsageError
from dla.models.blocks import RELU, ActLayer, NormLayer, Reduction, conv_bn
from dla.models.export_shapes import exports_any_size, to_even_sides

MakeBlock = Callable[[int, int, Reduction], nn.Module]


class Node(nn.Module):
    """N, the aggregation node: concatenate, convolve, normalize, optionally add the newest input, activate.

    Args:
        c_in: total channels of the inputs.
        c_out: channels of the result; with `shortcut` also of the newest input.
        kernel_size: size of the convolution, odd; 1 in the classifiers, 3 in decoders.
        shortcut: add the newest input before the activation.
        norm_layer: called with c_out.
        act_layer: called without arguments.

    Raises:
        UsageError: if `kernel_size` is even.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel_size: int = 1,
        shortcut: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise UsageError(f"kernel_size is {kernel_size}. Allowed: odd numbers, such as 1 and 3")
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = norm_layer(c_out)
        self.act = act_layer()
        self.shortcut = shortcut
        self.summed = False

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Return the map (N, c_out, H, W) of maps (N, c_i, H, W), newest first, whose channels sum to c_in."""
        y = self._sum(inputs) if self.summed and self.training else self.conv(torch.cat(inputs, 1))
        y = self.bn(y)
        return self.act(y + inputs[0] if self.shortcut else y)  # type: ignore[no-any-return]

    def _sum(self, inputs: list[Tensor]) -> Tensor:
        """Return conv(cat(inputs)), computed as the sum of each input convolved with its slice of the weight."""
        slices, padding = torch.split(self.conv.weight, [x.shape[1] for x in inputs], 1), self.conv.kernel_size[0] // 2
        y = F.conv2d(inputs[0], slices[0], padding=padding)
        for x, weight in zip(inputs[1:], slices[1:], strict=True):
            y += F.conv2d(x, weight, padding=padding)
        return y


def sum_nodes(model: nn.Module, enable: bool = True) -> None:
    """Make each node of `model` sum over slices of its weight in training, instead of concatenating its inputs.

    The concatenation is then not stored for the backward pass, which saves a tenth to a sixth of the activation memory
    (`benchmarks/node.py`). Weights and names are unchanged; results differ by rounding. Evaluation stores no
    activations and always concatenates.
    """
    for module in model.modules():
        if isinstance(module, Node):
            module.summed = enable


class CeilMaxPool(nn.Module):
    """2x2 max pooling on the grid of the strided convolutions.

    At odd sizes the windows at the border are partial, so that the result is ceil(H/2) x ceil(W/2), like the
    convolutions'. With dilation in place of stride, each position pools the neighbours that strided pooling would.
    """

    def __init__(self, reduction: Reduction) -> None:
        super().__init__()
        self.stride, self.dilation = reduction.stride, reduction.dilation_in

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map of x (N, C, H, W)."""
        s, d = self.stride, self.dilation
        if s == 1:
            return F.max_pool2d(F.pad(x, (0, d, 0, d), value=float("-inf")), 2, 1, dilation=d)
        if not is_scripting():  # noqa: SIM102 - TorchScript skips the inner branch
            if exports_any_size(x):
                return F.max_pool2d(to_even_sides(x, float("-inf")), 2, s)
        return F.max_pool2d(x, 2, s, ceil_mode=True)


class Tree(nn.Module):
    """T_n, a tree of blocks and aggregation nodes.

    `keep_input` passes the pooled input to the last node, which connects one stage to the next. A first block whose
    forward has a parameter `shortcut` gets its pooled and projected input there. All other blocks add their own input,
    or their own shortcut.

    Args:
        n: depth of the tree.
        make_block: called with (c_in, c_out, reduction) for each block.
        c_in: channels of the input.
        c_out: channels of the result.
        reduction: of the resolution, in the first block.
        norm_layer: called with the number of channels.
        act_layer: called without arguments.
        keep_input: pass the pooled input to the last node.
        shortcut: of the nodes, as in `Node`.
        c_kept: total channels of the earlier maps that the last node aggregates too.
    """

    __constants__ = ("gives_shortcut", "is_leaf", "keep_input")  # TorchScript skips the branches that they exclude

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
        self.is_leaf, self.gives_shortcut = n == 1, False
        self.downsample = CeilMaxPool(reduction) if reduction.reduces else nn.Identity()
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
            first, second = make_block(c_in, c_out, reduction), make_block(c_out, c_out, reduction.after())
            self.gives_shortcut = "shortcut" in signature(first.forward).parameters
            projects = self.gives_shortcut and c_in != c_out
            # project comes first, as the published checkpoints order it
            self.project = conv_bn(c_in, c_out, norm_layer) if projects else nn.Identity()
            self.tree1, self.tree2 = first, second
            self.root = Node(2 * c_out + c_kept, c_out, shortcut=shortcut, norm_layer=norm_layer, act_layer=act_layer)

    def forward(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """Return T_n(x); `kept` are the earlier maps for the last node, in the order they were computed."""
        kept = [] if kept is None else kept
        pooled = self.downsample(x) if self.keep_input or self.gives_shortcut else x
        if self.keep_input:
            kept = kept + [pooled]
        if self.is_leaf:
            l1 = self.tree1(x, self.project(pooled)) if self.gives_shortcut else self.tree1(x)  # L_1 = B(R_1)
            l2 = self.tree2(l1)  # L_2 = B(L_1)
            y = self.root([l2, l1] + kept)  # T_n = N(...), inputs as the checkpoints order them
        else:
            r = self.tree1(x)  # R_m = T_m(R_{m+1})
            y = self.tree2(r, kept + [r])  # R_{m-1}, ..., then L and N
        return y  # type: ignore[no-any-return]
