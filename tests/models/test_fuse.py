"""Folding batch-norm changes no answer."""

import pytest
import torch
from torch import nn

from dla.models.build import build
from dla.models.fuse import fuse_conv_bn


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dla34_half", "dla46x_c", "dla60_res2next"])
def test_outputs_are_equal_and_no_batch_norm_is_left(name: str) -> None:
    model = build(name, num_classes=7).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, 45, 64, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fuse_conv_bn(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval()(x)
        assert (folded(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_other_norms_stay() -> None:
    model = build("dla34_half", num_classes=2, norm_layer=lambda c: nn.GroupNorm(4, c))
    folded = fuse_conv_bn(model)
    count = sum(isinstance(m, nn.GroupNorm) for m in model.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in folded.modules()) == count > 0
