"""Hierarchical deep aggregation over any blocks: the trees of `tree.py` for modules that are there already.

    T(B_1 ... B_m) = N(L_m, ..., L_1)                              m = 1 or 2: the blocks' maps, the newest first
    T(B_1 ... B_m) = T(B_{p+1} ... B_m), whose last N also takes   m > 2, p the largest power of two below m
                     R = T(B_1 ... B_p)

Each R is the next block's input. With 2^n blocks this is T_n of the paper, and gives what `Tree` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from torch import Tensor, nn

from dla.errors import UsageError
from dla.nets.blocks import RELU, ActLayer, NormLayer
from dla.nets.tree import Node

__all__ = ["HDA"]


class HDA(nn.Module):
    """A stage of given blocks with aggregation nodes between them: x -> the map of the last node.

    The blocks keep their weights and, under this module, the names that they have in an `nn.Sequential`; the nodes
    are `nodes.0`, `nodes.1`, ... in the order they run: one after every second block, and one at the end.

    Args:
        blocks: an `nn.Sequential`, or modules in the order they run; any number from 1 up. All of their maps have
            the same height and width (the first block may change those of its input).
        channels: of the blocks' maps: one number, or one for each block.
        kernel_size, shortcut, norm_layer, act_layer: of the nodes, as in `Node`.

    Raises:
        UsageError: no blocks, or another number of channels than of blocks.
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
                "Allowed: at least one block, and a number for each"
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
        blocks = iter([self.get_submodule(name) for name in self.names])
        results: list[Tensor] = []  # that wait for a later node
        for (blocks_run, kept), node in zip(self.plan, self.nodes, strict=True):
            inputs = results[len(results) - kept :]
            for block in islice(blocks, blocks_run):
                x = block(x)
                inputs.insert(0, x)
            x = node(tuple(inputs))
            results[len(results) - kept :] = [x]
        return x


def _plan(blocks: int, kept: int = 0) -> Iterator[tuple[int, int]]:
    """For each node: how many blocks run before it, and how many earlier results it takes (the latest ones)."""
    if blocks <= 2:
        yield blocks, kept
        return
    first = 1 << ((blocks - 1).bit_length() - 1)
    yield from _plan(first)
    yield from _plan(blocks - first, kept + 1)
