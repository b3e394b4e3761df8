"""The comparison itself: it sees a small difference, in the kind of tensor where it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from support.oracle import differences, randomise, relative
from support.tiny import tiny

ALL = {"logits", "maps", "train outputs", "statistics", "gradients"}
X_N3HW = torch.randn(2, 3, 32, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def net() -> nn.Module:
    torch.manual_seed(0)
    made = tiny(dtype=torch.float64).eval()
    randomise(made)
    return made


def seen(ours: nn.Module, theirs: nn.Module) -> set[str]:
    return {kind for kind, difference in differences(ours, theirs, X_N3HW).items() if difference > 1e-9}


def test_equal_networks_do_not_differ_and_stay_as_they_are() -> None:
    ours = net()
    before = copy.deepcopy(ours.state_dict())
    assert set(differences(ours, net(), X_N3HW).values()) == {0.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())
    assert not ours.training
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("base_layer.1.weight", ALL),
        ("level2.tree1.project.0.weight", ALL),
        ("level5.root.bn.running_mean", {"logits", "maps", "statistics"}),
        ("fc.bias", {"logits", "train outputs"}),
    ],
)
def test_a_changed_tensor_is_seen(name: str, kinds: set[str]) -> None:
    ours, theirs = net(), net()
    with torch.no_grad():
        tensor = theirs.state_dict()[name]
        tensor.add_(1e-5 * torch.randn_like(tensor))
    assert seen(ours, theirs) == kinds


def test_a_changed_gradient_is_seen() -> None:
    ours, theirs = net(), net()
    theirs.level3.tree1.tree1.tree1.conv1.weight.register_hook(lambda grad: grad * (1 + 1e-6))
    assert seen(ours, theirs) == {"gradients"}


def test_nothing_to_compare_is_a_failure() -> None:
    for one in (0, float("nan"), float("inf")):
        with pytest.raises(AssertionError):
            relative(torch.full((3,), one), torch.zeros(3))
        with pytest.raises(AssertionError):
            relative(torch.ones(3), torch.full((3,), one))
    with pytest.raises(AssertionError, match=r"\(3,\) and \(3, 1\)"):
        relative(torch.ones(3), torch.ones(3, 1))
