"""Aggregation over any blocks: a tree over modules that are there, and a network of other people's blocks."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.aggregation import HDA
from dla.models.blocks import Basic, BlockOptions, Reduction
from dla.models.dla import DLA
from dla.models.tree import Node, Tree
from support.oracle import timm

X_N4HW = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(3))


def conv(c_in: int = 4, c_out: int = 4, stride: int = 1) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1)


def joined(blocks: list[str]) -> list[list[str]]:
    """What each node takes, by counting in binary: node j carries for each one that j ends in, the last one all."""
    waiting: list[str] = []
    nodes = []
    for j in range((len(blocks) + 1) // 2):
        pair = blocks[2 * j : 2 * j + 2]
        ones = len(bin(j)) - len(bin(j).rstrip("1"))
        carried = len(waiting) if 2 * j + 2 >= len(blocks) else ones
        taken = waiting[len(waiting) - carried :]
        waiting = [*waiting[: len(waiting) - carried], f"N{j}"]
        nodes.append([*reversed(pair), *taken])
    return nodes


@pytest.mark.parametrize("count", range(1, 18))
def test_each_node_joins_its_blocks_and_the_trees_before_them(count: int) -> None:
    """The whole computation by hand, on plain convolutions and linear nodes."""
    net = HDA([conv() for _ in range(count)], 4, norm_layer=nn.Identity, act_layer=nn.Identity)
    maps, x = dict[str, Tensor](), X_N4HW
    for j, taken in enumerate(joined([str(i) for i in range(count)])):
        for block in reversed([name for name in taken if name.isdecimal()]):
            x = maps[block] = net.get_submodule(block)(x)
        weight = net.get_submodule(f"nodes.{j}.conv").weight
        x = maps[f"N{j}"] = nn.functional.conv2d(torch.cat([maps[name] for name in taken], 1), weight)
    assert len(net.nodes) == (count + 1) // 2
    assert torch.equal(net(X_N4HW), x)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("shortcut", [False, True])
def test_two_to_the_n_blocks_make_the_tree_of_the_networks(depth: int, shortcut: bool) -> None:
    def make_block(c_in: int, c_out: int, reduction: Reduction) -> nn.Module:
        return Basic(c_in, c_out, reduction, BlockOptions())

    tree = Tree(depth, make_block, 4, 4, Reduction(), norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU, shortcut=shortcut)
    blocks = [module for module in tree.modules() if isinstance(module, Basic)]
    nodes = [module for module in tree.modules() if isinstance(module, Node)]
    net = HDA(blocks, 4, shortcut=shortcut)
    for mine, theirs in zip(net.nodes, nodes, strict=True):
        mine.load_state_dict(theirs.state_dict())
    net.train()
    assert torch.equal(net(X_N4HW), tree(X_N4HW))


def test_blocks_of_any_widths_under_their_own_names() -> None:
    blocks = nn.Sequential(OrderedDict(first=conv(4, 6, stride=2), second=conv(6, 5), last=conv(5, 3)))
    net = HDA(blocks, [6, 5, 3], kernel_size=3, norm_layer=nn.InstanceNorm2d, act_layer=nn.SiLU)
    assert net(X_N4HW).shape == (2, 3, 4, 5)
    assert [node.conv.weight.shape for node in net.nodes] == [(5, 11, 3, 3), (3, 8, 3, 3)]
    assert {type(module) for node in net.nodes for module in node.children()} == {nn.Conv2d, nn.InstanceNorm2d, nn.SiLU}
    assert list(net.state_dict())[:6] == list(blocks.state_dict())
    assert net.first is blocks.first


def test_every_parameter_has_a_gradient_and_copies_are_equal() -> None:
    net = HDA([conv() for _ in range(5)], 4)
    net(X_N4HW).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    net.eval()
    again = HDA([conv() for _ in range(5)], 4).eval()
    again.load_state_dict(net.state_dict())
    for other in (again, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.fx.symbolic_trace(net)):
        assert torch.equal(other(X_N4HW), net(X_N4HW))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X_N4HW), net(X_N4HW))


def test_one_block_in_two_places_keeps_one_weight() -> None:
    block = conv()
    net = HDA([block, block, block], 4, norm_layer=nn.Identity, act_layer=nn.Identity)
    one, two = block(X_N4HW), block(block(X_N4HW))
    first = net.nodes[0]((two, one))
    assert torch.equal(net(X_N4HW), net.nodes[1]((block(first), first)))


@pytest.mark.parametrize(("blocks", "channels"), [(0, 4), (0, []), (3, [4, 4])])
def test_blocks_and_channels_must_go_together(blocks: int, channels: int | list[int]) -> None:
    counted = 0 if isinstance(channels, int) else len(channels)
    message = (
        f"there are {blocks} blocks and channels for {counted}. "
        "Allowed: at least one block, and one number of channels per block"
    )
    with pytest.raises(UsageError, match=message):
        HDA([conv() for _ in range(blocks)], channels)


# A network of other blocks

LEVELS, CHANNELS = (1, 1, 1, 2, 3, 1), (4, 8, 8, 16, 16, 32)


class Scaled(nn.Module):
    """A block with a shortcut of its own, as others write them, that begins in its own way."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, stride, stride)
        self.conv = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.05)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.conv(x).tanh()


def test_a_network_of_any_block_is_one_row() -> None:
    net = DLA(LEVELS, CHANNELS, block=lambda c_in, c_out, reduction, _: Scaled(c_in, c_out, reduction.stride))
    blocks = [module for module in net.modules() if isinstance(module, Scaled)]
    assert len(blocks) == sum(2**n for n in LEVELS[2:])
    assert all((block.conv.weight == 0.05).all() for block in blocks)
    assert not [name for name in net.state_dict() if "project" in name]
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    # the published beginning outside of the blocks
    assert abs(float(net.base_layer[0].weight.detach().std()) / (2 / (49 * 4)) ** 0.5 - 1) < 0.1
    assert abs(float(net.level5.root.conv.weight.detach().std()) / (2 / 32) ** 0.5 - 1) < 0.1


def test_the_blocks_of_timm_work_as_they_are() -> None:
    def convnext(c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> nn.Module:
        return timm.models.convnext.ConvNeXtBlock(c_in, c_out, stride=reduction.stride)

    def resnet(c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> nn.Module:
        shortcut = nn.Conv2d(c_in, c_out, 1, reduction.stride) if c_in != c_out or reduction.reduces else None
        return timm.models.resnet.BasicBlock(c_in, c_out, reduction.stride, downsample=shortcut)

    for block in (convnext, resnet):
        net = DLA(LEVELS, CHANNELS, block=block, num_classes=5)
        maps = net.forward_intermediates(torch.randn(2, 3, 64, 96), intermediates_only=True)
        assert [tuple(m.shape[1:]) for m in maps] == [(c, 64 >> i, 96 >> i) for i, c in enumerate(CHANNELS)]


def test_a_block_that_asks_for_a_shortcut_gets_the_projected_input() -> None:
    class Plain(nn.Module):
        def __init__(self, c_in: int, c_out: int, reduction: Reduction, options: BlockOptions) -> None:
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, 3, reduction.stride, padding=1)
            self.given: Tensor | None = None

        def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
            self.given = shortcut
            return self.conv(x) + (x if shortcut is None else shortcut)

    net, x_N3HW = DLA(LEVELS, CHANNELS, block=Plain).eval(), torch.randn(1, 3, 64, 64)
    [level2] = net.forward_intermediates(x_N3HW, [2], intermediates_only=True)
    leaf = net.level3.tree1
    assert torch.equal(leaf.tree1.given, leaf.project(leaf.downsample(level2)))
    assert leaf.tree2.given is None
