"""Same weights, same input: all twelve networks against timm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dla.models.build import build
from dla.models.dla import DLA
from dla.models.registry import TABLE
from support.oracle import assert_begun_as_published, differences, randomise, timm

pytestmark = pytest.mark.slow

RELEASED = [name for name, row in TABLE.items() if row.tag]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Pair = tuple[DLA, nn.Module]


@pytest.fixture(scope="module", params=RELEASED)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Both with the weights that ours began with, and norms that are not 0 and 1."""
    ours, theirs = build(request.param), timm.create_model(request.param, pretrained=False)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def test_twelve_networks_are_compared() -> None:
    assert len(RELEASED) == 12


def assert_close(pair: Pair, dtype: torch.dtype) -> None:
    found = differences(*pair, torch.randn(2, 3, 32, 64, dtype=dtype))
    assert set(found) == {"logits", "maps", "train outputs", "statistics", "gradients"}
    assert max(found.values()) <= TOLERANCE[dtype], found


def test_outputs_statistics_and_gradients_in_float32(pair: Pair) -> None:
    assert_close(pair, torch.float32)


def test_outputs_statistics_and_gradients_in_float64(pair: Pair) -> None:
    for net in pair:
        net.double()
    try:
        assert_close(pair, torch.float64)
    finally:
        for net in pair:
            net.float()  # the same bits as before


def test_convolutions_and_classifier_begin_as_published(pair: Pair) -> None:
    assert_begun_as_published(pair[0])


def test_weights_return_unchanged(pair: Pair) -> None:
    ours, theirs = pair
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(31, 64), (96, 63)], ids=str)
def test_same_bits_where_timm_runs(pair: Pair, size: tuple[int, int]) -> None:
    ours, theirs = pair
    x_N3HW = torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert torch.equal(ours(x_N3HW), theirs(x_N3HW))
