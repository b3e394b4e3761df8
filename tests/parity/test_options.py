"""Options that timm has too, those that its parts can be made to have, and how networks begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dla.models.build import build
from dla.models.dla import GLOBAL_POOLS
from support.oracle import assert_begun_as_published, differences, randomise, relative, timm
from support.tiny import CHANNELS, LEVELS, tiny

pytestmark = pytest.mark.slow

X_N3HW = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def pair(name: str = "dla46_c", **options: Any) -> tuple[nn.Module, nn.Module]:
    ours, theirs = build(name, **options), timm.create_model(name, pretrained=False, **options)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def replace(net: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    for name, module in list(net.named_modules()):
        if isinstance(module, kind):
            net.set_submodule(name, make(module))


@pytest.mark.parametrize("num_classes", [0, 4])
@pytest.mark.parametrize("global_pool", GLOBAL_POOLS)
def test_heads(global_pool: str, num_classes: int) -> None:
    ours, theirs = pair(num_classes=num_classes, global_pool=global_pool)
    map_NCHW = theirs.forward_features(X_N3HW)
    assert torch.equal(ours.forward_features(X_N3HW), map_NCHW)
    for found, expected in (
        (ours(X_N3HW), theirs(X_N3HW)),
        (ours.forward_head(map_NCHW, pre_logits=True), theirs.forward_head(map_NCHW, pre_logits=True)),
    ):
        assert relative(found.detach(), expected.detach()) < 1e-6
    assert ours.head_hidden_size == theirs.head_hidden_size
    assert ours.global_pool.feat_mult() == theirs.global_pool.feat_mult()
    assert type(ours.fc) is type(theirs.fc)
    assert type(ours.flatten) is type(theirs.flatten)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_channels_of_the_input(in_chans: int) -> None:
    ours, theirs = pair(in_chans=in_chans)
    x_NCHW = torch.randn(2, in_chans, 32, 64)
    assert torch.equal(ours(x_NCHW), theirs(x_NCHW))


def test_dropout_before_the_classifier() -> None:
    ours, theirs = (net.train() for net in pair(drop_rate=0.5))
    logits_NK = []
    for net in (ours, theirs):
        torch.manual_seed(1)
        logits_NK.append(net(X_N3HW))
    assert torch.equal(*logits_NK)
    assert ours.head_drop.p == theirs.head_drop.p == 0.5


@pytest.mark.parametrize("global_pool", [None, "max", "catavgmax", ""])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_reset_classifier(num_classes: int, global_pool: str | None) -> None:
    ours, theirs = (net.double() for net in pair(global_pool="avgmax"))
    for net in (ours, theirs):
        torch.manual_seed(1)
        net.reset_classifier(num_classes, global_pool)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert a.dtype == b.dtype
        assert a.shape == b.shape
    # timm draws the new weights in the network's number type, this library in the default one
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(X_N3HW.double()), theirs(X_N3HW.double()))
    for attribute in ("num_classes", "head_hidden_size", "num_features", "training"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.global_pool.pool_type == theirs.global_pool.pool_type
    assert ours.fc.training == theirs.fc.training


def test_a_fresh_classifier_begins_as_timms() -> None:
    bits = []
    for net in pair():
        torch.manual_seed(1)
        net.reset_classifier(7)
        bits.append((net.fc.weight, net.fc.bias))
    assert torch.equal(bits[0][0], bits[1][0])
    assert torch.equal(bits[0][1], bits[1][1])


def small_pair(block: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    blocks = {"basic": timm.models.dla.DlaBasic, "bottle2neck": timm.models.dla.DlaBottle2neck}
    return tiny(block, **options), timm.models.dla.DLA(LEVELS, CHANNELS, num_classes=5, block=blocks[block])


@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
def test_another_activation(block: str) -> None:
    ours, theirs = (net.double() for net in small_pair(block, act_layer=nn.SiLU))
    replace(theirs, nn.ReLU, lambda _: nn.SiLU())
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert max(differences(ours, theirs, X_N3HW.double()).values()) < 1e-9


def test_another_norm() -> None:
    norm_layer = partial(nn.GroupNorm, 4)
    ours, theirs = small_pair("bottle2neck", norm_layer=norm_layer)
    replace(theirs, nn.BatchNorm2d, lambda norm: norm_layer(norm.num_features))
    for parameter in ours.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(ours(X_N3HW), theirs(X_N3HW))


class PaddedPool(nn.Module):
    """timm's pooling after padding odd sizes with what loses against every number."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h, w = x_NCHW.shape[2:]
        return F.max_pool2d(F.pad(x_NCHW, (0, w % 2, 0, h % 2), value=float("-inf")), 2, 2)


def padded_pair(block: str) -> tuple[nn.Module, nn.Module]:
    """A small network of ours, and timm's with padding in front of its poolings."""
    ours, theirs = small_pair(block)
    replace(theirs, nn.MaxPool2d, lambda _: PaddedPool())
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
def test_every_map_at_any_size(block: str) -> None:
    """5 and 6 are among the squares: there timm alone adds a 1x1 map to a 2x2 one without a word."""
    nets = padded_pair(block)

    def check(h: int, w: int) -> None:
        with torch.inference_mode():
            maps = [torch.randn(1, 3, h, w)] * 2
            for stage in ("base_layer", "level0", "level1", "level2", "level3", "level4", "level5"):
                maps = [net.get_submodule(stage)(x_NCHW) for net, x_NCHW in zip(nets, maps, strict=True)]
                assert torch.equal(*maps), (h, w, stage)

    for s in range(1, 71):
        check(s, s)
    settings(max_examples=40)(given(h=st.integers(1, 70), w=st.integers(1, 70))(check))()


def test_training_at_an_odd_size() -> None:
    ours, theirs = (net.double() for net in padded_pair("bottle2neck"))
    assert max(differences(ours, theirs, torch.randn(2, 3, 37, 53, dtype=torch.float64)).values()) < 1e-9


def test_initialisation_of_norms() -> None:
    for module in build("dla46_c").modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
            assert module.running_mean.eq(0).all()
            assert module.running_var.eq(1).all()


def test_the_judgement_of_initialisation_fits_timm() -> None:
    net = timm.create_model("dla60x_c", pretrained=False)
    assert_begun_as_published(net)
    with torch.no_grad():
        net.level4.tree1.tree1.tree1.conv2.weight.mul_(1.1)
    with pytest.raises(AssertionError, match="conv2"):
        assert_begun_as_published(net)
