"""Hierarchical deep aggregation over any existing blocks, with the tree structure of `tree.py`.

    T(B_1 ... B_m) = N(L_m, ..., L_1)                              m = 1 or 2: the blocks' maps, newest first
    T(B_1 ... B_m) = T(B_{p+1} ... B_m), whose last N also takes   m > 2, p the largest power of two below m
                     R = T(B_1 ... B_p)

Each R is the next block's input. With 2^n blocks this is T_n of the paper, and equals `Tree`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from dla.errors import UnknownNameError, UsageError, nearest
from dla.models.backbone import TRIED_HW, evaluating
from dla.models.blocks import RELU, ActLayer, NormLayer
from dla.models.tree import Node


class HDA(nn.Module):
    """A stage of existing blocks with aggregation nodes between them.

    The blocks keep their weights and their names in the `nn.Sequential`. The nodes are `nodes.0`, `nodes.1`, ... in
    the order they run: one after every second block and one at the end.

    Args:
        blocks: an `nn.Sequential`, or at least one module, in the order they run. Their maps all have the same height
            and width (the first block may change those of its input).
        channels: channels of the blocks' maps: one number for all, or one per block.
        kernel_size: of the nodes, as in `Node`.
        shortcut: of the nodes, as in `Node`.
        norm_layer: of the nodes, as in `Node`.
        act_layer: of the nodes, as in `Node`.

    Raises:
        UsageError: if there are no blocks, or not one number of channels per block.
    """

    def __init__(
        self,
        blocks: nn.Sequential | Iterable[nn.Module],
        channels: int | Sequence[int],
        *,
        kernel_size: int = 1,
        shortcut: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        act_layer: ActLayer = RELU,
    ) -> None:
        super().__init__()
        stage = blocks if isinstance(blocks, nn.Sequential) else nn.Sequential(*blocks)
        widths = [channels] * len(stage) if isinstance(channels, int) else list(channels)
        if not widths or len(widths) != len(stage):
            raise UsageError(
                f"there are {len(stage)} blocks and channels for {len(widths)}. "
                "Allowed: at least one block, and one number of channels per block"
            )
        self.plan = tuple(_plan(len(stage)))
        self.names = tuple(stage._modules)
        for name, block in stage._modules.items():
            self.add_module(name, block)
        self.nodes = nn.ModuleList()
        done, results = 0, list[int]()
        for blocks_run, kept in self.plan:
            done += blocks_run
            c_in = sum(widths[done - blocks_run : done]) + sum(results[len(results) - kept :])
            results[len(results) - kept :] = [widths[done - 1]]
            node = Node(
                c_in, widths[done - 1], kernel_size=kernel_size, shortcut=shortcut,
                norm_layer=norm_layer, act_layer=act_layer,
            )  # fmt: skip
            self.nodes.append(node)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last node's map, (N, channels[-1], H', W'), for x (N, C, H, W)."""
        blocks = iter([self.get_submodule(name) for name in self.names])
        results: list[Tensor] = []  # waiting for a later node
        for (blocks_run, kept), node in zip(self.plan, self.nodes, strict=True):
            inputs = results[len(results) - kept :]
            for block in islice(blocks, blocks_run):
                x = block(x)
                inputs.insert(0, x)
            x = node(inputs)
            results[len(results) - kept :] = [x]
        return x


def _plan(blocks: int, kept: int = 0) -> Iterator[tuple[int, int]]:
    """Yield for each node how many blocks run before it, and how many of the latest earlier results it takes."""
    if blocks <= 2:
        yield blocks, kept
        return
    first = 1 << ((blocks - 1).bit_length() - 1)
    yield from _plan(first)
    yield from _plan(blocks - first, kept + 1)


MapShape = tuple[int, ...]


def graft(
    model: nn.Module,
    stages: str | Iterable[str],
    *,
    kernel_size: int = 1,
    norm_layer: NormLayer = nn.BatchNorm2d,
    images_NCHW: Tensor | None = None,
) -> nn.Module:
    """Add hierarchical aggregation to stages of a trained network without changing its outputs.

    Each stage becomes an `HDA` of its own blocks. A node adds its result to the newest block's map, without an
    activation. The weight of its norm (without a norm, of its convolution) starts at 0, so outputs are unchanged; from
    the second training step on, all of its parameters have a gradient.

    `model` is modified in place and returned. Its tensors keep their names; the new ones are named
    `STAGE.nodes.0.conv.weight` and so on. Create the optimizer and call `torch.compile` after this.

    Args:
        model: any network with stages that are an `nn.Sequential` of blocks.
        stages: the stages' paths, such as "layer3" of a ResNet or "stages.2.blocks" of timm's ConvNeXt.
        kernel_size: of the nodes, odd.
        norm_layer: of the nodes; called with the number of channels.
        images_NCHW: network inputs for a forward pass that finds the channels; by default zeros (1, 3, 128, 192).

    Raises:
        UnknownNameError: if the network has no such stage.
        UsageError: if the stage is not an `nn.Sequential`, its blocks do not return maps (N, C, H, W) of one size, or
            the forward pass failed. `model` is unchanged.
    """
    paths = [stages] if isinstance(stages, str) else list(stages)
    if not paths:
        raise UsageError(f"stages is empty. {_allowed(_sequentials(model))}")
    chosen = {path: _stage(model, path) for path in paths}
    if images_NCHW is None:
        like = next(model.parameters(), torch.empty(0))
        images_NCHW = like.new_zeros((1, 3, *TRIED_HW))
    shapes = _block_shapes(model, chosen, images_NCHW)
    grafts = {
        path: _grafted(stage, _widths(path, shapes[path], images_NCHW.shape), kernel_size, norm_layer)
        for path, stage in chosen.items()
    }
    for path, hda in grafts.items():
        model.set_submodule(path, hda)
    return model


def _sequentials(model: nn.Module) -> list[str]:
    return [path for path, part in model.named_modules() if path and _is_sequential(part)]


def _is_sequential(part: nn.Module) -> bool:
    return isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward


def _stage(model: nn.Module, path: str) -> nn.Sequential:
    part, known = dict(model.named_modules()).get(path), _sequentials(model)
    if part is None:
        raise UnknownNameError("stage of this network", path, known, see=_few(known))
    if not path or not isinstance(part, nn.Sequential) or path not in known:
        raise UsageError(f'"{path}" is a {type(part).__name__}. {_allowed(nearest(path, known) or known)}')
    return part


def _allowed(paths: list[str]) -> str:
    return "Allowed: an nn.Sequential of blocks, " + (
        f"such as {_few(paths)}" if paths else "but this network has none"
    )


def _few(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _block_shapes(
    model: nn.Module, stages: Mapping[str, nn.Sequential], images_NCHW: Tensor
) -> dict[str, list[MapShape | None]]:
    """Return the shape of each block's output; None where it is not a tensor or the block does not run."""
    shapes: dict[str, list[MapShape | None]] = {path: [None] * len(stage) for path, stage in stages.items()}

    def record(path: str, i: int, _module: nn.Module, _inputs: object, result: object) -> None:
        shapes[path][i] = tuple(result.shape) if isinstance(result, Tensor) else None

    hooks = [
        block.register_forward_hook(partial(record, path, i))
        for path, stage in stages.items()
        for i, block in enumerate(stage)
    ]
    try:
        with evaluating(model):
            model(images_NCHW)
    except Exception as error:  # the network is user code
        raise UsageError(
            f"the network failed on images {tuple(images_NCHW.shape)}: {error}. Try: images_NCHW=... of another size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _widths(path: str, shapes: list[MapShape | None], images: MapShape) -> list[int]:
    """Return the channels of a stage's blocks; all must return maps of one size."""
    maps = [shape for shape in shapes if shape is not None and len(shape) == 4 and not _channels_last(shape, images)]
    if len(maps) < len(shapes) or len({shape[2:] for shape in maps}) != 1:
        raise UsageError(
            f'for images {tuple(images)} the blocks of "{path}" returned {_few(list(map(str, shapes))) or "nothing"}. '
            "Allowed: maps (N, C, H, W) of one size"
        )
    return [shape[1] for shape in maps]


def _channels_last(shape: MapShape, images: MapShape) -> bool:
    """Return whether the images' aspect ratio appears in the H and W of (N, H, W, C) and not of (N, C, H, W)."""
    height, width = images[2:]

    def alike(h: int, w: int) -> bool:
        return abs(h * width - w * height) < height + width

    return alike(*shape[1:3]) and not alike(*shape[2:4])


def _grafted(stage: nn.Sequential, widths: list[int], kernel_size: int, norm_layer: NormLayer) -> HDA:
    hda = HDA(
        stage, widths, kernel_size=kernel_size, shortcut=True, norm_layer=norm_layer, act_layer=nn.Identity
    ).train(stage.training)  # fmt: skip
    like = next(stage.parameters(), None)
    if like is not None:
        hda.nodes.to(device=like.device, dtype=like.dtype)
    for node in hda.nodes:
        assert isinstance(node, Node)
        scale = getattr(node.bn, "weight", None)
        nn.init.zeros_(node.conv.weight if scale is None else scale)
    return hda
