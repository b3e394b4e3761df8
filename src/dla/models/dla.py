"""DLA: a stem, two levels of convolutions, four levels of trees, and a classifier.

Shapes: images x_N3HW; the map of level l is (N, channels[l], ceil(H/2^l), ceil(W/2^l)) for any H, W >= 1; logits_NK.
With `output_stride` 8 or 16 the coarser levels keep that stride and dilate.
Module names and constructor arguments are timm's and must not change: checkpoints use them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.activation_checkpointing import set_checkpointing, without_checkpointing
from dla.models.blocks import BLOCKS, RELU, ActLayer, BlockOptions, Bottle2neck, NormLayer, Reduction
from dla.models.registry import GLOBAL_POOLS
from dla.models.tree import Tree


class GlobalPool(nn.Module):
    """Global pooling: (N, C, H, W) -> (N, C, 1, 1), or (N, 2C, 1, 1) for 'catavgmax'; '' does nothing.

    timm's 'fast' (or 'fastavg'), 'fastmax', 'fastavgmax' and 'fastcatavgmax' are the same poolings.

    Raises:
        UsageError: if there is no such pooling.
    """

    def __init__(self, pool_type: str) -> None:
        super().__init__()
        if pool_type not in GLOBAL_POOLS:
            allowed = ", ".join(repr(p) for p in GLOBAL_POOLS)
            raise UsageError(f"global_pool is {pool_type!r}. Allowed: {allowed}")
        self.pool_type = pool_type
        self.kind = "avg" if pool_type == "fast" else pool_type.removeprefix("fast")

    def feat_mult(self) -> int:
        """Return the output channels per input channel, 1 or 2 (timm's method)."""
        return 2 if self.kind == "catavgmax" else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map of x (N, C, H, W)."""
        if self.kind == "":
            return x
        if self.kind == "avg":
            return x.mean((2, 3), keepdim=True)
        if self.kind == "max":
            return x.amax((2, 3), keepdim=True)
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return 0.5 * (mean + peak) if self.kind == "avgmax" else torch.cat((mean, peak), 1)

    def extra_repr(self) -> str:
        """Return the pooling's name, for `repr`."""
        return f"pool_type={self.pool_type!r}"


class DLA(nn.Module):
    """Deep Layer Aggregation (Yu et al., CVPR 2018).

    `torch.export` supports any batch size, and any height and width above output_stride: at smaller ones level 5 is
    one pixel wide, which the exporter specializes.

    Args:
        levels: number of convolutions in levels 0 and 1, depth of the tree in levels 2 to 5.
        channels: channels of the six levels.
        output_stride: 32, or 16 or 8 by dilation.
        num_classes: K; 0 omits the classifier.
        in_chans: channels of the input.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax' or '' (none).
        cardinality: groups of the 3x3 convolutions in bottleneck blocks.
        base_width: width of these convolutions, for 64 channels and one group.
        block: 'basic', 'bottleneck', 'bottleneck_x', 'bottle2neck', or a callable (c_in, c_out, reduction, options)
            that returns a module from map to map (see `Reduction`, `BlockOptions`). If its forward has a parameter
            `shortcut`, it adds that; otherwise it has a shortcut of its own. It keeps its own initial weights.
        shortcut_root: add the newest input of each aggregation node to its output.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first one.
        norm_layer: called with the number of channels.
        act_layer: called without arguments.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        UsageError: for a value that is not allowed.
    """

    def __init__(
        self,
        levels: Sequence[int],
        channels: Sequence[int],
        output_stride: int = 32,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        cardinality: int = 1,
        base_width: int = 64,
        block: str | Callable[..., nn.Module] = Bottle2neck,
        shortcut_root: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_six(levels=levels, channels=channels)
        _check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        reductions = _reductions(output_stride)
        self.channels = list(channels)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.cardinality = cardinality
        self.base_width = base_width
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.pretrained_cfg = dict[str, Any]()
        self.default_cfg = dict[str, Any]()

        self.base_layer = nn.Sequential(
            nn.Conv2d(in_chans, channels[0], 7, padding=3, bias=False), norm_layer(channels[0]), act_layer()
        )
        self.level0 = _conv_level(channels[0], channels[0], levels[0], 1, norm_layer, act_layer)
        self.level1 = _conv_level(channels[0], channels[1], levels[1], 2, norm_layer, act_layer)

        blocks = sum(2**n for n in levels[2:])
        rates = (drop_path_rate * i / (blocks - 1) for i in range(blocks))
        options = BlockOptions(cardinality, base_width, norm_layer, act_layer, rates)
        make_block = partial(_make_block, _block_class(block), options)
        self.level2, self.level3, self.level4, self.level5 = (
            Tree(
                levels[level], make_block, channels[level - 1], channels[level], reduction,
                norm_layer=norm_layer, act_layer=act_layer, keep_input=level > 2, shortcut=shortcut_root,
            )
            for level, reduction in enumerate(reductions, start=2)
        )  # fmt: skip
        strides = [1, 2]
        for reduction in reductions:
            strides.append(strides[-1] * reduction.stride)
        self.feature_info = [
            dict[str, Any](num_chs=c, reduction=stride, module=f"level{level}")
            for level, (c, stride) in enumerate(zip(channels, strides, strict=True))
        ]

        self.num_features = channels[-1]
        self.global_pool = GlobalPool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc, self.flatten = self._classifier(num_classes)
        custom = _inside_custom_blocks(self)
        self.apply(lambda module: None if module in custom else init_weights(module))
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    @property
    def head_hidden_size(self) -> int:
        """Number of features that the classifier receives."""
        return self.num_features * self.global_pool.feat_mult()

    def _classifier(self, num_classes: int) -> tuple[nn.Module, nn.Module]:
        fc = nn.Conv2d(self.head_hidden_size, num_classes, 1) if num_classes > 0 else nn.Identity()
        return fc, nn.Flatten(1) if self.global_pool.pool_type else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the classifier: a 1x1 convolution, or Identity without classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> Self:
        """Replace the classifier by a newly initialized one (PyTorch's default). Return the network.

        `global_pool` None keeps the pooling. The new layers take the network's device, dtype and train/eval mode.
        """
        if global_pool is not None:
            self.global_pool = GlobalPool(global_pool)
        like = next(self.parameters())
        self.num_classes = num_classes
        self.fc, self.flatten = self._classifier(num_classes)
        self.fc.to(device=like.device, dtype=like.dtype)
        for module in (self.global_pool, self.fc, self.flatten):
            module.train(self.training)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the outputs of the stem, levels 0 and 1, the blocks and the nodes; recompute the rest.

        This wraps `forward` of these parts. `torch.jit.script` ignores it.
        """
        self.grad_checkpointing = enable
        set_checkpointing(self.stages(), enable)

    def __prepare_scriptable__(self) -> Self:
        """Return the network that `torch.jit.script` compiles."""
        return without_checkpointing(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameter names by depth, for layer-wise learning rate decay.

        They are for timm's `group_parameters`; with `coarse` each level is one group. The classifier matches none.
        """
        trees_before_nodes = [(r"^level(\d+)\.tree(\d+)", None), (r"^level(\d+)\.root", (2,)), (r"^level(\d+)", (1,))]
        return {"stem": r"^base_layer", "blocks": r"^level(\d+)" if coarse else trees_before_nodes}

    def stages(self) -> tuple[nn.Module, ...]:
        """Return the stem and the six levels, in the order they run."""
        return self.base_layer, self.level0, self.level1, self.level2, self.level3, self.level4, self.level5

    def forward_features(self, x: Tensor) -> Tensor:
        """Return level 5's map, (N, channels[5], ceil(H/32), ceil(W/32)), of images x_N3HW."""
        x = self.base_layer(x)  # unrolled, because TorchScript cannot loop over attributes
        x = self.level0(x)
        x = self.level1(x)
        x = self.level2(x)
        x = self.level3(x)
        x = self.level4(x)
        return self.level5(x)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return level 5's map and the maps of some levels, in the order of the levels.

        Args:
            x: images x_N3HW.
            indices: levels 0 to 5, negative ones from the end; a number n means the last n; None means all.
            norm: ignored: no norm follows the levels.
            stop_early: compute no level after the last of `indices`, and return its map in place of level 5's.
            output_fmt: "NCHW".
            intermediates_only: return only the list of maps.

        Raises:
            UsageError: if there is no such level, or for another format.
        """
        check_format(output_fmt)
        taken = take_indices(indices)
        stem, *levels = self.stages()
        x = stem(x)
        maps = []
        for level, stage in enumerate(levels[: max(taken) + 1] if stop_early else levels):
            x = stage(x)
            if level in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the levels after the last of `indices`. Return the levels of `indices`.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: ignored: no norm follows the levels.
            prune_head: also remove the classifier and its pooling; they are always removed if a level is.

        Raises:
            UsageError: if there is no such level.
        """
        taken = take_indices(indices)
        last = max(taken)
        for info in self.feature_info[last + 1 :]:
            self.set_submodule(info["module"], nn.Identity())
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or last < 5:
            self.reset_classifier(0, "")
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits_NK of level 5's map, or with `pre_logits` the pooled features (N, head_hidden_size)."""
        x = self.head_drop(self.global_pool(x))
        return self.flatten(x if pre_logits else self.fc(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits_NK of images x_N3HW."""
        return self.forward_head(self.forward_features(x))


def take_indices(indices: int | Sequence[int] | None) -> list[int]:
    """Return the levels, 0 to 5, of `indices`: None means all, a number n the last n, -1 in a list the last.

    Raises:
        UsageError: if there are none, or no such level.
    """
    if isinstance(indices, int):
        indices = range(-indices, 0)
    taken = list(range(6) if indices is None else indices)
    if not taken or not all(-6 <= i < 6 for i in taken):
        raise UsageError(
            f"indices are {taken}. "
            "Allowed: at least one level from 0 to 5 or -6 to -1, or a number of levels from 1 to 6"
        )
    return [i % 6 for i in taken]


def check_format(output_fmt: str) -> None:
    """Raise a UsageError for a layout of maps other than NCHW."""
    if output_fmt != "NCHW":
        raise UsageError(f"output_fmt is {output_fmt!r}. Allowed: 'NCHW'")


def _check_six(**shape: Sequence[int]) -> None:
    for name, six in shape.items():
        if len(six) != 6 or min(six) < 1:
            raise UsageError(f"{name} is {tuple(six)}. Allowed: six numbers from 1 up, one per level")


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UsageError(f"{name} is {rate}. Allowed: from 0 to below 1")


def _block_class(block: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not isinstance(block, str):
        return block
    if block not in BLOCKS:
        raise UsageError(f"block is {block!r}. Allowed: {', '.join(map(repr, BLOCKS))}, or a class")
    return BLOCKS[block]


def _reductions(output_stride: int) -> tuple[Reduction, ...]:
    """Return the reduction of each of levels 2 to 5."""
    strided, dilated, dilated_again = Reduction(2), Reduction(1, 1, 2), Reduction(1, 2, 4)
    by_stride = {32: (strided,) * 4, 16: (strided,) * 3 + (dilated,), 8: (strided, strided, dilated, dilated_again)}
    if output_stride not in by_stride:
        raise UsageError(f"output_stride is {output_stride}. Allowed: 8, 16, 32")
    return by_stride[output_stride]


def _conv_level(c_in: int, c_out: int, n: int, stride: int, norm: NormLayer, act: ActLayer) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n):
        conv = nn.Conv2d(c_in if i == 0 else c_out, c_out, 3, stride if i == 0 else 1, padding=1, bias=False)
        layers += [conv, norm(c_out), act()]
    return nn.Sequential(*layers)


def _make_block(
    block: Callable[..., nn.Module], options: BlockOptions, c_in: int, c_out: int, reduction: Reduction
) -> nn.Module:
    return block(c_in, c_out, reduction, options)


def _inside_custom_blocks(net: nn.Module) -> set[nn.Module]:
    """Return the modules in blocks that are not of `BLOCKS`: these keep their own initialization."""
    leaves = (tree for tree in net.modules() if isinstance(tree, Tree) and tree.n == 1)
    blocks = (block for tree in leaves for block in (tree.tree1, tree.tree2))
    return {part for block in blocks if not isinstance(block, tuple(BLOCKS.values())) for part in block.modules()}


def init_weights(module: nn.Module) -> None:
    """Initialize a convolution: normal by fan-out ignoring groups, as the published networks were."""
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # meta tensors are replaced by a file's weights
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))
