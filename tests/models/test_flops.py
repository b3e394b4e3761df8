"""Parameters and multiplications from names and shapes, against counting them while the network runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dla.models import flops
from dla.models.build import build
from dla.models.dla import DLA
from dla.models.registry import TABLE
from support.tiny import tiny

pytestmark = pytest.mark.slow

BLOCKS = ("basic", "bottleneck", "bottle2neck")


def on_meta(make: Callable[..., DLA], *given: Any, **options: Any) -> DLA:
    """In evaluation mode, where norms take half the time."""
    with torch.device("meta"):
        return make(*given, **options).eval()


@torch.inference_mode()
def macs_of_a_run(net: nn.Module, height: int, width: int) -> int:
    """Positions of each convolution's result times its weights."""
    macs: list[int] = []

    def add(module: nn.Module, _inputs: object, result: Tensor) -> None:
        macs.append(result.shape[2] * result.shape[3] * module.weight.numel())  # type: ignore[union-attr, operator]

    hooks = [module.register_forward_hook(add) for module in net.modules() if isinstance(module, nn.Conv2d)]
    net(torch.empty(1, net.in_chans, height, width, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(macs)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("name", TABLE)
def test_released_networks(name: str) -> None:
    net = on_meta(build, name, num_classes=7, in_chans=1)
    for size in ((224, 224), (80, 80), (37, 250)):
        assert flops.macs(shapes(net), size) == macs_of_a_run(net, *size)
    assert flops.parameters(shapes(net)) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_the_table_has_what_is_counted_on_the_network(name: str) -> None:
    net = on_meta(build, name)
    assert TABLE[name].macs == macs_of_a_run(net, 224, 224) == flops.macs(shapes(net), (224, 224))
    assert TABLE[name].params == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_dilated_networks_without_a_classifier(block: str, stride: int) -> None:
    net = on_meta(tiny, block, output_stride=stride, num_classes=0)
    assert flops.macs(shapes(net), (65, 96), stride) == macs_of_a_run(net, 65, 96)
