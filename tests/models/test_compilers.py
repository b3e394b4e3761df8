"""The networks under PyTorch's exporters, compilers and tracers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, export

from dla.models.blocks import BLOCKS
from dla.models.dla import DLA
from support.tiny import tiny

pytestmark = pytest.mark.slow


def smaller(block: str, **options: Any) -> DLA:
    """Exporters and compilers take their time for each layer: one tree of depth 2, the others of depth 1."""
    return DLA((1, 1, 1, 2, 1, 1), (4, 8, 8, 8, 16, 16), block=block, num_classes=5, **options)


def any_size(least: int) -> tuple[dict[int, Any]]:
    return ({0: Dim("n"), 2: Dim("h", min=least), 3: Dim("w", min=least)},)


def assert_equal_at_many_sizes(net: DLA, other: nn.Module, least: int) -> None:
    for n, h, w in ((1, least, least), (2, least + 1, 2 * least), (3, 64, 96), (1, 97, 51)):
        x_N3HW = torch.randn(n, 3, h, w)
        assert torch.equal(other(x_N3HW), net(x_N3HW)), (n, h, w)


@pytest.mark.parametrize(("block", "output_stride"), [("basic", 32), ("bottle2neck", 8)])
def test_export_takes_any_batch_and_size_above_the_stride(block: str, output_stride: int) -> None:
    net, least = smaller(block, output_stride=output_stride).eval(), output_stride + 1
    program = export(net, (torch.randn(2, 3, 60, 76),), dynamic_shapes=any_size(least))
    assert_equal_at_many_sizes(net, program.module(), least)


def test_below_that_size_the_exporter_specialises() -> None:
    with pytest.raises(UserError, match=r"(?s)Constraints violated .*// 32\)\) != 1"):
        export(smaller("basic").eval(), (torch.randn(2, 3, 60, 76),), dynamic_shapes=any_size(32))


def test_export_with_automatic_sizes_and_by_the_strict_exporter() -> None:
    net = smaller("basic").eval()
    example = (torch.randn(2, 3, 60, 76),)
    automatic = export(net, example, dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},))
    assert_equal_at_many_sizes(net, automatic.module(), 33)
    strict = export(net, example, dynamic_shapes=any_size(33), strict=True)
    assert_equal_at_many_sizes(net, strict.module(), 33)


def test_export_of_one_size_pools_without_padding() -> None:
    net, x_N3HW = smaller("basic").eval(), torch.randn(1, 3, 37, 50)
    program = export(net, (x_N3HW,))
    assert torch.equal(program.module()(x_N3HW), net(x_N3HW))
    assert not [node for node in program.graph.nodes if "pad" in str(node.target)]


def test_compile_makes_one_graph() -> None:
    net, x_N3HW = smaller("bottle2neck").eval(), torch.randn(2, 3, 33, 64)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x_N3HW), net(x_N3HW))


def test_compile_trains() -> None:
    net, x_N3HW = smaller("basic", drop_path_rate=0.2), torch.randn(2, 3, 33, 64)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    results: list[list[Tensor]] = []
    for module in (net, compiled):
        torch.manual_seed(1)
        logits_NK = module.train()(x_N3HW)
        logits_NK.square().sum().backward()
        results.append([logits_NK, *(p.grad for p in module.parameters()), *module.buffers()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 32])
@pytest.mark.parametrize("block", BLOCKS)
def test_symbolic_trace(block: str, output_stride: int) -> None:
    net = tiny(block, output_stride=output_stride, drop_path_rate=0.2, drop_rate=0.1, global_pool="catavgmax")
    traced = torch.fx.symbolic_trace(net.train())
    x_N3HW = torch.randn(2, 3, 41, 52)
    torch.manual_seed(1)
    expected = net(x_N3HW)
    torch.manual_seed(1)
    assert torch.equal(traced(x_N3HW), expected)
    assert_equal_at_many_sizes(net.eval(), torch.fx.symbolic_trace(net), 1)
