"""Aggregation on trained networks of other kinds: nothing changes at first, everything new learns."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache, partial
from itertools import chain, combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dla.errors import UnknownNameError, UsageError
from dla.models.aggregation import HDA, graft
from support.oracle import randomise, timm

STAGES = {
    "resnet18": [f"layer{i}" for i in range(1, 5)],
    "resnet26": [f"layer{i}" for i in range(1, 5)],
    "convnext_atto": [f"stages.{i}.blocks" for i in range(4)],
}
CHOICES = [
    (name, choice)
    for name, stages in STAGES.items()
    for choice in chain.from_iterable(combinations(stages, count) for count in range(1, 5))
]
X_N3HW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
GROUPED: Callable[..., nn.Module] = partial(nn.GroupNorm, 4)


def narrow(name: str, **options: Any) -> nn.Module:
    """A network of timm with all of its layers, and few channels in each."""
    widths = {"dims": (8, 16, 24, 32)} if name.startswith("convnext") else {"channels": (64, 24, 32, 48)}
    return timm.create_model(name, num_classes=5, **widths, **options)


@cache
def trained(name: str) -> nn.Module:
    """A network whose norms and scales are not those of a fresh one. To be copied."""
    torch.manual_seed(0)
    net = narrow(name)
    randomise(net)
    for module in net.modules():
        if hasattr(module, "gamma"):  # ConvNeXt's scale of a block, which begins at a millionth
            nn.init.uniform_(module.gamma, 0.1, 0.5)
    return net


def small() -> nn.Sequential:
    """Two stages of three and five blocks, of maps 8 and 12 wide."""

    def block(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())

    one = nn.Sequential(block(3, 8, 2), block(8, 8), block(8, 8))
    two = nn.Sequential(block(8, 12, 2), *(block(12, 12) for _ in range(4)))
    return nn.Sequential(one, two, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "choice"), CHOICES, ids=lambda value: value if isinstance(value, str) else len(value))
def test_outputs_stay_and_everything_new_learns(name: str, choice: tuple[str, ...]) -> None:
    before, net = copy.deepcopy(trained(name)), copy.deepcopy(trained(name))
    old = dict(net.named_parameters())
    assert graft(net, choice) is net
    assert [path for path, part in net.named_modules() if isinstance(part, HDA)] == sorted(choice)
    for training in (False, True):
        with torch.no_grad():
            assert (net.train(training)(X_N3HW) - before.train(training)(X_N3HW)).abs().max() <= 1e-5
    kept = net.state_dict()
    assert all(torch.equal(kept[key], tensor) for key, tensor in before.state_dict().items())

    new = {key: p for key, p in net.named_parameters() if key not in old}
    assert all(".nodes." in key for key in new)
    assert learning(net, new) == set(new)


def learning(net: nn.Module, new: dict[str, Tensor]) -> set[str]:
    """The parameters that have a gradient in one of two steps of SGD."""
    optimiser, found = torch.optim.SGD(net.parameters(), lr=0.01), set()
    for _ in range(2):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(X_N3HW), torch.tensor([1, 3])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in new.values())
        found |= {key for key, p in new.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimiser.step()
    return found


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, GROUPED, nn.Identity])
def test_nodes_of_any_kind(kernel_size: int, norm_layer: Callable[[int], nn.Module]) -> None:
    before = small()
    expected = before(X_N3HW)
    net = graft(copy.deepcopy(before), ["0", "1"], kernel_size=kernel_size, norm_layer=norm_layer)
    assert torch.equal(net(X_N3HW), expected)
    new = {key: p for key, p in net.named_parameters() if ".nodes." in key}
    assert learning(net, new) == set(new)
    assert [tuple(node.conv.weight.shape[1:]) for node in net[1].nodes] == [
        (c_in, kernel_size, kernel_size) for c_in in (24, 36, 24)
    ]
    assert not torch.allclose(net(X_N3HW), expected)


def test_only_the_new_ones_can_be_trained() -> None:
    net = graft(small().requires_grad_(False), "1")
    assert {key.split(".")[1] for key, p in net.named_parameters() if p.requires_grad} == {"nodes"}


def test_copies_and_files_of_a_grafted_network() -> None:
    net = graft(copy.deepcopy(trained("resnet18")), ["layer2", "layer4"]).eval()
    for node in (*net.layer2.nodes, *net.layer4.nodes):
        nn.init.uniform_(node.bn.weight)
    again = graft(narrow("resnet18"), ["layer2", "layer4"]).eval()
    again.load_state_dict(net.state_dict())
    for other in (again, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.fx.symbolic_trace(net)):
        assert torch.equal(other(X_N3HW), net(X_N3HW))
    assert not torch.equal(net(X_N3HW), trained("resnet18").eval()(X_N3HW))


def test_dtype_mode_and_other_images() -> None:
    net = narrow("resnet18", in_chans=1).double().eval()
    net.layer1.train()
    before = copy.deepcopy(net)
    images_N1HW = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    graft(net, ["layer1", "layer3"], images_NCHW=images_N1HW)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net.layer1.nodes.training
    assert not net.layer3.nodes.training
    assert torch.equal(net(images_N1HW), before(images_N1HW))
    assert all(
        torch.equal(net.state_dict()[key], tensor) or "layer1" in key for key, tensor in before.state_dict().items()
    )


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ("layr3", UnknownNameError, 'no stage of this network is called "layr3". Nearest: layer3, '),
        ("trunk", UnknownNameError, 'no stage of this network is called "trunk". All: layer1, layer2, '),
        (["layer1", "conv1"], UsageError, '"conv1" is a Conv2d. Allowed: an nn.Sequential of blocks, such as layer1, '),
        ("", UsageError, '"" is a ResNet. Allowed: an nn.Sequential of blocks'),
        ([], UsageError, "stages is empty. Allowed: an nn.Sequential of blocks, such as layer1, "),
    ],
)
def test_a_stage_that_is_not_there(stages: str | list[str], error: type[Exception], message: str) -> None:
    net = copy.deepcopy(trained("resnet18"))
    with pytest.raises(error) as caught:
        graft(net, stages)
    assert message in str(caught.value)
    assert not [part for part in net.modules() if isinstance(part, HDA)]


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


REFUSED = {
    "sizes": (nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)), "(1, 4, 64, 96), (1, 4, 32, 48)"),
    "channels last": (nn.Sequential(ChannelsLast()), "(1, 128, 192, 3)"),
    "tokens": (nn.Sequential(nn.Flatten(2)), "(1, 3, 24576)"),
    "several": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, return_indices=True)), "(1, 4, 128, 192), None"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_stage_whose_blocks_give_no_maps_of_one_size(kind: str) -> None:
    stage, made = REFUSED[kind]
    net = nn.Sequential(stage).train()
    with pytest.raises(UsageError) as caught:
        graft(net, "0")
    assert str(caught.value) == (
        f'for images (1, 3, 128, 192) the blocks of "0" returned {made}. Allowed: maps (N, C, H, W) of one size'
    )
    assert net[0] is stage


def test_images_that_the_network_does_not_take() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4).eval())
    with pytest.raises(
        UsageError, match=r"the network failed on images \(1, 3, 128, 192\): .* Try: images_NCHW="
    ) as caught:
        graft(net, "0")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert [part.training for part in net.modules()] == [True, True, True, False]
    assert not net[0][0]._forward_hooks


def test_a_part_that_never_runs() -> None:
    net = nn.Module()
    net.body, net.unused = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 4, 1))
    net.forward = net.body.forward
    with pytest.raises(UsageError, match='the blocks of "unused" returned None'):
        graft(net, "unused")
