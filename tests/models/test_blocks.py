"""Blocks: their widths, and dropping them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dla.errors import UsageError
from dla.models.blocks import BlockOptions, Bottle2neck, Bottleneck, DropPath, Reduction


@pytest.mark.parametrize(
    ("c_out", "cardinality", "base_width", "width"),
    [(128, 1, 64, 64), (128, 32, 4, 128), (128, 64, 4, 256), (128, 1, 28, 28), (128, 8, 4, 32), (1000, 1, 28, 218)],
)
def test_width_of_the_published_blocks(c_out: int, cardinality: int, base_width: int, width: int) -> None:
    assert BlockOptions(cardinality, base_width).width(c_out) == width


@pytest.mark.parametrize("block", [Bottleneck, Bottle2neck])
def test_a_width_that_cannot_be_is_refused(block: type) -> None:
    with pytest.raises(UsageError) as caught:
        block(8, 8, Reduction(), BlockOptions(cardinality=32, base_width=4))
    assert str(caught.value) == (
        "8 channels with base_width 4 and cardinality 32 make blocks 0 channels wide inside. "
        "Allowed: a positive multiple of the cardinality"
    )
    with pytest.raises(UsageError, match="make blocks 10 channels wide inside"):
        block(8, 8, Reduction(), BlockOptions(cardinality=3, base_width=56))


@given(rate=st.floats(0.05, 0.95))
def test_drop_path_drops_whole_samples_and_keeps_the_mean(rate: float) -> None:
    n = 20_000
    x_NCHW = torch.ones(n, 2, 1, 2)
    kept = DropPath(rate).train()(x_NCHW).flatten(1)
    assert torch.equal(kept, kept[:, :1].expand_as(kept)), "a sample is kept or dropped as a whole"
    values = kept[:, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0, 1 / (1 - rate)], dtype=torch.float32))
    sigma = (rate / (1 - rate) / n) ** 0.5
    assert abs(float(kept[:, 0].double().mean()) - 1) < 6 * sigma


def test_drop_path_leaves_evaluation_alone() -> None:
    x_NCHW = torch.randn(3, 2, 4, 4)
    assert DropPath(0.9).eval()(x_NCHW) is x_NCHW


def test_drop_path_drops_the_branch_not_the_shortcut() -> None:
    options = BlockOptions(drop_path=iter([1 - 1e-9]))
    block = Bottleneck(8, 8, Reduction(), options).train()
    x_NCHW = torch.rand(4, 8, 5, 5)
    assert torch.equal(block(x_NCHW), x_NCHW)


def test_the_mean_of_a_dilated_block_is_the_strided_one_between() -> None:
    """Bottle2neck averages by pooling where it strides and by a convolution where it dilates."""
    x_NCHW = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    options = BlockOptions(base_width=16)
    plain, dilated = (Bottle2neck(48, 48, reduction, options) for reduction in (Reduction(2), Reduction(1, 2, 4)))
    spread = torch.zeros(2, 6, 18, 24, dtype=torch.float64)
    spread[:, :, ::2, ::2] = x_NCHW
    expected = torch.nn.functional.avg_pool2d(x_NCHW, 3, 2, padding=1)
    torch.testing.assert_close(plain._mean3x3(x_NCHW), expected)
    torch.testing.assert_close(dilated._mean3x3(spread)[:, :, ::4, ::4], expected)
