"""Trees: what each node aggregates, and the pooling on the way."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.blocks import Basic, BlockOptions, Reduction
from dla.models.tree import CeilMaxPool, Node, Tree, sum_nodes
from support.tiny import tiny


def tree(depth: int, c_in: int, c_out: int, keep_input: bool = False, shortcut: bool = False) -> Tree:
    def make_block(c_in: int, c_out: int, reduction: Reduction) -> nn.Module:
        return Basic(c_in, c_out, reduction, BlockOptions())

    return Tree(
        depth,
        make_block,
        c_in,
        c_out,
        Reduction(2),
        norm_layer=nn.BatchNorm2d,
        act_layer=nn.ReLU,
        keep_input=keep_input,
        shortcut=shortcut,
    )


def ran(net: nn.Module, kind: type[nn.Module], x_NCHW: Tensor) -> list[nn.Module]:
    """The modules of one kind in the order in which they run."""
    order: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda module, *_: order.append(module))
    net(x_NCHW)
    return order


@pytest.mark.parametrize("keep_input", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_node_j_takes_two_blocks_and_a_map_for_each_trailing_one_of_j(depth: int, keep_input: bool) -> None:
    c_in, c_out = 3, 7
    net = tree(depth, c_in, c_out, keep_input).eval()
    x_NCHW = torch.randn(1, c_in, 8, 8)
    trailing_ones = [len(bin(j)) - len(bin(j).rstrip("1")) for j in range(2 ** (depth - 1))]
    expected = [(2 + ones) * c_out for ones in trailing_ones]
    expected[-1] = (depth + 1) * c_out + (c_in if keep_input else 0)
    assert [node.conv.in_channels for node in ran(net, Node, x_NCHW)] == expected
    assert len(ran(net, Basic, x_NCHW)) == 2**depth


@pytest.mark.parametrize(
    ("depth", "keep_input", "poolings"), [(1, False, 1), (3, False, 1), (1, True, 1), (3, True, 2)]
)
def test_no_pooling_is_computed_in_vain(depth: int, keep_input: bool, poolings: int) -> None:
    assert len(ran(tree(depth, 4, 4, keep_input), CeilMaxPool, torch.randn(2, 4, 8, 8))) == poolings


def test_a_tree_is_the_formula_of_the_paper() -> None:
    """T_3 written out by hand: the nodes, and the order in which each joins its maps."""
    net = tree(3, 4, 6, keep_input=True, shortcut=True).eval()
    x_NCHW = torch.randn(2, 4, 10, 10)
    pooled = nn.functional.max_pool2d(x_NCHW, 2)

    def pair(leaf: nn.Module, x: Tensor, shortcut: Tensor, *kept: Tensor) -> Tensor:
        one = leaf.tree1(x, shortcut)
        two = leaf.tree2(one)
        y = leaf.root.bn(leaf.root.conv(torch.cat([two, one, *kept], 1)))
        return (y + two).relu()

    r2_a = pair(net.tree1.tree1, x_NCHW, net.tree1.tree1.project(pooled))
    r2 = pair(net.tree1.tree2, r2_a, r2_a, r2_a)
    r1 = pair(net.tree2.tree1, r2, r2)
    expected = pair(net.tree2.tree2, r1, r1, pooled, r2, r1)
    assert torch.equal(net(x_NCHW), expected)


def test_a_tree_does_not_change_the_list_it_is_given() -> None:
    net = tree(3, 4, 6, keep_input=True).tree2
    kept = [torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)]
    given = list(kept)
    assert net(torch.randn(2, 6, 5, 5), kept).shape == (2, 6, 5, 5)
    assert len(kept) == len(given)
    assert all(a is b for a, b in zip(kept, given, strict=True))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_node_takes_any_inputs_and_kernels(kernel_size: int, shortcut: bool) -> None:
    widths = (5, 2, 9, 1)
    maps = tuple(torch.randn(2, c, 6, 7) for c in widths)
    norm = partial(nn.GroupNorm, 1)
    node = Node(17, 5, kernel_size=kernel_size, shortcut=shortcut, norm_layer=norm, act_layer=nn.Tanh)
    y = nn.functional.conv2d(torch.cat(maps, 1), node.conv.weight, padding=kernel_size // 2)
    y = nn.functional.group_norm(y, 1)
    assert node.conv.weight.shape == (5, 17, kernel_size, kernel_size)
    torch.testing.assert_close(node(maps), (y + maps[0] if shortcut else y).tanh())


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(UsageError, match="kernel_size is 2. Allowed: odd numbers, such as 1 and 3"):
        Node(4, 4, kernel_size=2)


def kept(module: nn.Module, maps: tuple[Tensor, ...]) -> set[tuple[int, ...]]:
    """Shapes of what autograd keeps for the backward pass."""
    shapes: set[tuple[int, ...]] = set()

    def pack(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(maps)
    return shapes


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_sum_over_slices_is_the_same_node_and_keeps_no_concatenation(kernel_size: int) -> None:
    maps = tuple(torch.randn(2, c, 6, 7, dtype=torch.float64) for c in (5, 2, 9))
    node = Node(16, 5, kernel_size=kernel_size).double()
    joined, held = node(maps), kept(node, maps)
    sum_nodes(node)
    assert (node(maps) - joined).abs().max() < 1e-10
    assert held - kept(node, maps) == {(2, 16, 6, 7), (5, 16, kernel_size, kernel_size)}
    node.eval()
    evaluated = node(maps)
    sum_nodes(node, False)
    assert torch.equal(node(maps), evaluated)


@pytest.mark.parametrize("shortcut_root", [False, True])
def test_a_network_learns_the_same_by_sums(shortcut_root: bool) -> None:
    net, x_N3HW = tiny(shortcut_root=shortcut_root).double(), torch.randn(2, 3, 48, 40, dtype=torch.float64)
    found = []
    for enable in (False, True):
        sum_nodes(net, enable)
        net.zero_grad()
        logits_NK = net(x_N3HW)
        logits_NK.square().sum().backward()
        found.append([logits_NK.detach(), *(p.grad for p in net.parameters())])
    assert all((a - b).abs().max() <= 1e-10 * a.abs().max() for a, b in zip(*found, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(*found, strict=True))


sizes = st.integers(1, 9)


@given(h=sizes, w=sizes, seed=st.integers(0, 99))
def test_pooling_is_the_maximum_of_the_neighbours_that_are_there(h: int, w: int, seed: int) -> None:
    x_NCHW = torch.randn(1, 1, h, w, generator=torch.Generator().manual_seed(seed)) - 9  # a padding of 0 would win
    expected = [
        [x_NCHW[0, 0, row : row + 2, column : column + 2].flatten().tolist() for column in range(0, w, 2)]
        for row in range(0, h, 2)
    ]
    pooled = CeilMaxPool(Reduction(2))(x_NCHW)
    assert pooled.shape == (1, 1, math.ceil(h / 2), math.ceil(w / 2))
    assert pooled[0, 0].tolist() == [[max(there) for there in row] for row in expected]


@given(h=sizes, w=sizes, dilation=st.sampled_from([1, 2]))
def test_a_dilated_pooling_takes_the_same_neighbours(h: int, w: int, dilation: int) -> None:
    x_NCHW = torch.randn(1, 1, h, w) - 9
    pooled = CeilMaxPool(Reduction(1, dilation, 2 * dilation))(x_NCHW)
    assert pooled.shape == x_NCHW.shape
    for row in range(dilation):
        for column in range(dilation):
            grid = x_NCHW[:, :, row::dilation, column::dilation]
            if grid.numel():
                strided = CeilMaxPool(Reduction(2))(grid)
                assert torch.equal(pooled[:, :, row :: 2 * dilation, column :: 2 * dilation], strided)


def test_pooling_gives_its_gradient_to_the_maximum_once() -> None:
    x_NCHW = torch.randn(1, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(CeilMaxPool.forward, CeilMaxPool(Reduction(2))), x_NCHW)
    assert torch.autograd.gradcheck(partial(CeilMaxPool.forward, CeilMaxPool(Reduction(1, 2, 4))), x_NCHW)
