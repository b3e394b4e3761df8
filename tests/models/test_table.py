"""The table says of each network what is true of the network that is built from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dla.errors import UnknownNameError
from dla.models.build import build
from dla.models.registry import TABLE, row

FACTS = Path(__file__).parents[3] / "shared" / "reference" / "dla.md"


def convolution_macs(net: nn.Module, x_N3HW: Tensor) -> int:
    """Multiplications of all convolutions: positions of the result times weights."""
    macs: list[int] = []

    def count(module: nn.Module, _inputs: object, result: Tensor) -> None:
        macs.append(result.shape[2] * result.shape[3] * module.weight.numel())  # type: ignore[union-attr, operator]

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(x_N3HW)
    return sum(macs)


@pytest.mark.parametrize("name", TABLE)
def test_parameters_and_macs_are_counted_on_the_network(name: str) -> None:
    with torch.device("meta"):
        net = build(name)
        macs = convolution_macs(net, torch.empty(1, 3, 224, 224))
    assert row(name).params == sum(p.numel() for p in net.parameters())
    assert row(name).macs == macs


def test_there_are_twelve_released_networks_with_sources_and_figures() -> None:
    released = [r for r in TABLE.values() if r.tag]
    assert len(released) == 12
    for r in released:
        assert r.hub_id == f"timm/{r.name}.in1k"
        assert r.origin.startswith("https://")
        assert r.license == ("unknown" if "res2" in r.name else "bsd-3-clause")
        assert r.top1 is not None
        assert r.top5 is not None
        assert 60 < r.top1 < r.top5 < 100


def test_figures_are_the_published_ones() -> None:
    if not FACTS.exists():
        pytest.skip(f"no published figures at {FACTS}")
    lines = re.findall(r"^\| (dla\w+) \| ([\d.]+) \| ([\d.]+) \| [\d.]+ / [\d.]+ \|", FACTS.read_text(), re.MULTILINE)
    published = {name: (float(top1), float(top5)) for name, top1, top5 in lines}
    assert published == {r.name: (r.top1, r.top5) for r in TABLE.values() if r.tag}


def test_a_network_without_released_weights_has_no_hub_id() -> None:
    assert row("dla34_half").hub_id is None


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'^no network is called "dla43"\. Nearest: dla34') as caught:
        row("dla43")
    assert "dla34" in caught.value.nearest
