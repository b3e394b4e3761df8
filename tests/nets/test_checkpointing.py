"""Gradient checkpointing: less memory, the same bits."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dla.nets.backbone import DLA
from dla.nets.blocks import BLOCKS
from tiny import tiny

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
def test_levels_are_computed_again_in_the_backward_pass(enable: bool) -> None:
    net = tiny()
    net.set_grad_checkpointing(enable)
    calls: list[nn.Module] = []
    net.level4.register_forward_pre_hook(lambda module, _: calls.append(module))
    step(net)
    assert len(calls) == (2 if enable else 1)
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_evaluation_computes_once() -> None:
    net = tiny()
    net.set_grad_checkpointing()
    calls: list[nn.Module] = []
    net.level4.register_forward_pre_hook(lambda module, _: calls.append(module))
    step(net, mode=False)
    assert len(calls) == 1
