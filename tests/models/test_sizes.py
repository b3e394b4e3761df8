"""Any height and width from 1 up, and finer maps by dilation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dla.models.blocks import BLOCKS
from dla.models.build import build
from dla.models.dla import DLA
from support.oracle import randomise, relative
from support.tiny import CHANNELS, tiny

pytestmark = pytest.mark.slow


def maps(net: DLA, x_N3HW: Tensor) -> list[Tensor]:
    """The maps of the six levels."""
    found = []
    with torch.inference_mode():
        for stage in net.stages():
            x_N3HW = stage(x_N3HW)
            found.append(x_N3HW)
    return found[1:]


def expected_shapes(h: int, w: int, reductions: list[int]) -> list[tuple[int, ...]]:
    return [(2, c, math.ceil(h / r), math.ceil(w / r)) for c, r in zip(CHANNELS, reductions, strict=True)]


@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
def test_every_square_from_1_to_70(block: str) -> None:
    net = tiny(block).eval()
    for s in range(1, 71):
        found = maps(net, torch.randn(2, 3, s, s))
        assert [tuple(m.shape) for m in found] == expected_shapes(s, s, [1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize(("output_stride", "reductions"), [(8, [1, 2, 4, 8, 8, 8]), (16, [1, 2, 4, 8, 16, 16])])
@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
def test_any_rectangle_of_a_dilated_network(block: str, output_stride: int, reductions: list[int]) -> None:
    net = tiny(block, output_stride=output_stride).eval()
    assert [info["reduction"] for info in net.feature_info] == reductions

    @settings(max_examples=40)
    @given(h=st.integers(1, 70), w=st.integers(1, 70))
    def check(h: int, w: int) -> None:
        found = maps(net, torch.randn(2, 3, h, w))
        assert [tuple(m.shape) for m in found] == expected_shapes(h, w, reductions)

    check()


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["dla34_half", "dla46_c", "dla46x_c", "dla60_res2next"])
def test_dilation_computes_the_plain_maps_and_more_between(name: str, output_stride: int) -> None:
    plain = build(name, dtype=torch.float64, num_classes=0).eval()
    randomise(plain)
    dilated = build(name, dtype=torch.float64, num_classes=0, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    x_N3HW = torch.randn(1, 3, 43, 69, dtype=torch.float64)
    for level, (fine, coarse) in enumerate(zip(maps(dilated, x_N3HW), maps(plain, x_N3HW), strict=True)):
        step = max(1, 2**level // output_stride)
        assert relative(fine[:, :, ::step, ::step], coarse) < 1e-12


@pytest.mark.parametrize("block", BLOCKS)
def test_dilation_keeps_the_names(block: str) -> None:
    assert list(tiny(block).state_dict()) == list(tiny(block, output_stride=8).state_dict())


def test_a_dilated_network_trains() -> None:
    for output_stride in (8, 16):
        net = tiny("bottle2neck", output_stride=output_stride).train()
        net(torch.randn(2, 3, 33, 50)).square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in net.parameters())
