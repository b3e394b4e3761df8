"""Gradient checkpointing: less memory, the same bits."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dla
from dla.models.blocks import BLOCKS
from dla.models.dla import DLA
from dla.models.tree import Node
from support.oracle import differences, randomise, timm
from support.tiny import CHANNELS, LEVELS, tiny

pytestmark = pytest.mark.slow

X_N3HW = torch.randn(3, 3, 40, 64, generator=torch.Generator().manual_seed(3))


def step(net: DLA, mode: bool = True) -> dict[str, Tensor]:
    """Everything that one training step computes or changes."""
    torch.manual_seed(4)
    x_N3HW = X_N3HW.clone().requires_grad_()
    logits_NK = net.train(mode)(x_N3HW)
    logits_NK.square().sum().backward()
    grads = {f"grad {name}": p.grad for name, p in net.named_parameters()}
    return {"logits": logits_NK, "input": x_N3HW.grad, **grads, **dict(net.named_buffers())}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_outputs_gradients_and_statistics_are_the_same_bits(block: str, drop_path_rate: float) -> None:
    plain = tiny(block, drop_path_rate=drop_path_rate, drop_rate=0.2)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for _ in range(2):
        expected, found = step(plain), step(saving)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name], found[name]), name


def test_frozen_statistics_stay_frozen() -> None:
    plain = tiny()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    before = {name: b.clone() for name, b in saving.named_buffers()}
    for net in (plain, saving):
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        net(X_N3HW).square().sum().backward()
    assert all(torch.equal(b, before[name]) for name, b in saving.named_buffers())
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_a_kept_graph_goes_back_twice() -> None:
    plain = tiny()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for net in (plain, saving):
        loss = net.train()(X_N3HW).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b)


def test_cumulative_and_instance_statistics_count_once() -> None:
    for norm_layer in (partial(nn.BatchNorm2d, momentum=None), partial(nn.InstanceNorm2d, track_running_stats=True)):
        plain = tiny(norm_layer=norm_layer)
        saving = copy.deepcopy(plain)
        saving.set_grad_checkpointing()
        for _ in range(2):
            expected, found = step(plain), step(saving)
            assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("enable", [True, False])
def test_parts_are_computed_again_in_the_backward_pass(enable: bool) -> None:
    net = tiny()
    calls: list[nn.Module] = []

    def counted(part: nn.Module, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
        calls.append(part)
        return forward(*inputs)

    parts = [net.base_layer, net.level0, net.level1, net.level2.tree1.tree1, net.level3.downsample]
    parts += [net.level2.tree1.project, *(m for m in net.modules() if isinstance(m, Node))]
    for part in parts:
        part.forward = partial(counted, part, part.forward)
    net.set_grad_checkpointing()
    net.set_grad_checkpointing(enable)
    step(net)
    assert len(calls) == len(parts) * (2 if enable else 1)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def times_computed(net: DLA) -> int:
    """How often one training step runs a part of a node."""
    calls: list[nn.Module] = []
    hook = net.level4.tree2.root.conv.register_forward_hook(lambda module, *_: calls.append(module))
    step(net)
    hook.remove()
    return len(calls)


def test_copies_keep_it_and_it_comes_off_again() -> None:
    net, plain = tiny(), tiny()
    net.set_grad_checkpointing()
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    assert list(net.state_dict()) == list(plain.state_dict())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert times_computed(other) == 2
        other.set_grad_checkpointing(False)
        assert times_computed(other) == 1
        assert all(p.grad is not None for p in other.parameters())
    assert all(p.grad is None for p in net.parameters())
    assert times_computed(net) == 2


def test_hooks_on_a_part_run_once() -> None:
    net = tiny()
    net.set_grad_checkpointing()
    maps: list[Tensor] = []
    net.level4.tree2.root.register_forward_hook(lambda _module, _inputs, result: maps.append(result))
    step(net)
    assert len(maps) == 1


def test_evaluation_computes_once() -> None:
    net = tiny()
    net.set_grad_checkpointing()
    calls: list[nn.Module] = []
    for part in (net.base_layer, net.level4, net.level4.tree2.root):
        part.register_forward_pre_hook(lambda module, _: calls.append(module))
    step(net, mode=False)
    assert len(calls) == 3


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most that there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return result


@pytest.mark.parametrize("name", ["dla34", "dla60"])
def test_a_step_needs_half_of_timms_memory(name: str) -> None:
    with torch.device("meta"):
        ours, theirs, x_N3HW = dla.create_model(name), timm.create_model(name), torch.empty(32, 3, 224, 224)
    ours.set_grad_checkpointing()
    peaks = []
    for net in (ours, theirs):
        with Peak() as peak:
            net.train()(x_N3HW).sum().backward()
        peaks.append(peak.bytes)
    assert peaks[0] < 0.5 * peaks[1]


@pytest.mark.parametrize(
    ("block", "theirs"), [("basic", timm.models.dla.DlaBasic), ("bottleneck", timm.models.dla.DlaBottleneck)]
)
def test_gradients_and_statistics_are_timms(block: str, theirs: type[nn.Module]) -> None:
    ours = tiny(block).double()
    reference = timm.models.dla.DLA(LEVELS, CHANNELS, num_classes=5, block=theirs).double()
    randomise(ours)
    reference.load_state_dict(ours.state_dict())
    ours.set_grad_checkpointing()
    found = differences(ours, reference, torch.randn(3, 3, 64, 64, dtype=torch.float64))
    assert max(found.values()) < 1e-9, found


def test_a_compiled_network_saves_too() -> None:
    plain = DLA((1, 1, 1, 2, 1, 1), (4, 8, 8, 8, 16, 16), block="basic", num_classes=5)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    compiled = torch.compile(saving, backend="aot_eager")
    for net in (plain, compiled):
        net.train()(X_N3HW).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(b, a)
