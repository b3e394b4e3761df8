"""`torch.jit.script` of the networks, and of what torch.fx made of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dla.models.dla import DLA
from dla.models.feature_net import FeatureNet
from dla.models.nodes import truncate
from dla.models.tree import sum_nodes
from support.oracle import randomise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore:`torch.jit.(script|save|load)` is deprecated:DeprecationWarning"),
]

X_N3HW = torch.randn(2, 3, 41, 52, generator=torch.Generator().manual_seed(5))
BLOCKS: list[tuple[str, dict[str, Any]]] = [
    ("basic", {"output_stride": 8, "global_pool": "catavgmax"}),
    ("bottleneck", {"shortcut_root": True, "num_classes": 0}),
    ("bottleneck_x", {"cardinality": 2, "base_width": 64, "global_pool": ""}),
    ("bottle2neck", {"output_stride": 16}),
]


@pytest.fixture(autouse=True)
def _without_optimizing() -> Iterator[None]:
    """TorchScript runs a graph as it is, at once."""
    with torch.jit.optimized_execution(False):
        yield


def small(block: str = "basic", **options: Any) -> DLA:
    """TorchScript takes its time for each layer: one tree of depth 2, the others of depth 1."""
    return DLA((1, 1, 1, 2, 1, 1), (4, 8, 8, 8, 16, 16), block=block, **{"num_classes": 5, **options})


def script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        if isinstance(module, torch.fx.GraphModule):  # of PyTorch's own class
            warnings.filterwarnings("ignore", "The TorchScript type system doesn't support", UserWarning)
        return torch.jit.script(module)


def step(net: nn.Module) -> dict[str, Tensor]:
    """What a training step computes and changes; it begins from the same statistics each time."""
    torch.manual_seed(4)
    net.train().zero_grad()
    y = net(X_N3HW)
    y.square().mean().backward()
    grads = {f"grad {name}": p.grad.clone() for name, p in net.named_parameters()}
    return {"y": y.detach(), **grads, **{name: b.clone() for name, b in net.named_buffers()}}


def assert_alike(scripted: nn.Module, net: nn.Module, begun: dict[str, Tensor]) -> None:
    """Both have the same tensors, in the mode of `net`, with the statistics of `begun`."""
    found = []
    for one in (scripted, net):
        net.load_state_dict(begun)
        found.append(step(one) if net.training else {"y": one(X_N3HW)})
    ours, expected = found
    assert ours.keys() == expected.keys()
    for name in expected:
        assert torch.equal(ours[name], expected[name]), name


@pytest.mark.parametrize(("block", "options"), BLOCKS)
def test_scripts_of_a_network_and_of_its_trace_are_the_network(block: str, options: dict[str, Any]) -> None:
    net = small(block, drop_path_rate=0.3, drop_rate=0.2, **options)
    randomise(net)
    begun = copy.deepcopy(net.state_dict())
    scripted = script(net)
    assert list(scripted.state_dict()) == list(begun)
    for mode in (True, False):
        traced = script(torch.fx.symbolic_trace(net.train(mode)))
        for other in (scripted, traced):
            assert_alike(other.train(mode), net, begun)


def test_a_saved_script_trains_with_sums_in_its_nodes() -> None:
    net = small()
    sum_nodes(net)
    file = BytesIO()
    torch.jit.save(script(net), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    ours, expected = step(loaded), step(net)
    assert ours.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx", "getter"])
def test_feature_networks(kind: str) -> None:
    net = FeatureNet(small(), (4, 1), feature_cls=kind).eval()
    expected = net(X_N3HW)
    for module in (net, torch.fx.symbolic_trace(net)):
        found = script(module)(X_N3HW)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert list(found) == list(expected) if kind == "dict" else len(found) == 2


def test_a_network_cut_at_a_node() -> None:
    net = truncate(small("bottle2neck").eval(), "level4.tree1")
    assert torch.equal(script(net)(X_N3HW), net(X_N3HW))


@pytest.mark.parametrize("kind", [None, "list", "fx"])
def test_the_script_of_a_checkpointed_network_shares_its_tensors(kind: str | None) -> None:
    levels = small()
    net: nn.Module = FeatureNet(levels, feature_cls=kind) if kind else levels
    net.set_grad_checkpointing()
    scripted = script(net)
    assert [t.data_ptr() for t in scripted.state_dict().values()] == [t.data_ptr() for t in net.state_dict().values()]
    torch.testing.assert_close(scripted.eval()(X_N3HW), net.eval()(X_N3HW), rtol=0, atol=0)
    calls: list[nn.Module] = []
    levels.level4.root.conv.register_forward_hook(lambda module, *_: calls.append(module))
    sum(y.sum() for y in net.train()(X_N3HW)).backward()
    assert len(calls) == 2  # it is still checkpointed itself
