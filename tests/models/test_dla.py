"""The DLA class: its head, its options, its manners as a module."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dla.errors import UsageError
from dla.models.blocks import BLOCKS, Basic, DropPath
from dla.models.build import build
from dla.models.dla import DLA, GLOBAL_POOLS
from dla.models.registry import TABLE
from support.tiny import CHANNELS, LEVELS, tiny

X_N3HW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("num_classes", "global_pool", "logits", "features"),
    [
        (7, "avg", (2, 7), (2, 32)),
        (7, "catavgmax", (2, 7), (2, 64)),
        (0, "max", (2, 32), (2, 32)),
        (0, "catavgmax", (2, 64), (2, 64)),
        (7, "", (2, 7, 2, 2), (2, 32, 2, 2)),
        (0, "", (2, 32, 2, 2), (2, 32, 2, 2)),
    ],
)
def test_shapes(num_classes: int, global_pool: str, logits: tuple[int, ...], features: tuple[int, ...]) -> None:
    net = tiny(num_classes=num_classes, global_pool=global_pool).eval()
    map_NCHW = net.forward_features(X_N3HW)
    assert map_NCHW.shape == (2, 32, 2, 2)
    assert net(X_N3HW).shape == logits
    assert net.forward_head(map_NCHW, pre_logits=True).shape == features
    assert net.head_hidden_size == features[1]
    assert torch.equal(net.forward_head(map_NCHW), net(X_N3HW))
    assert net.get_classifier() is net.fc
    assert isinstance(net.fc, nn.Conv2d) == (num_classes > 0)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_channels_of_the_input(block: str, in_chans: int) -> None:
    net = tiny(block, in_chans=in_chans).eval()
    assert net.base_layer[0].in_channels == in_chans
    assert net(torch.randn(1, in_chans, 40, 40)).shape == (1, 5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path_rises_linearly_in_the_order_of_execution(rate: float) -> None:
    net = tiny(drop_path_rate=rate).train()
    blocks = [module for module in net.modules() if isinstance(module, Basic)]
    rates: list[float] = []
    for block in blocks:
        block.register_forward_hook(lambda block, *_: rates.append(getattr(block.drop_path, "rate", 0.0)))
    net(X_N3HW)
    count = sum(2**depth for depth in LEVELS[2:])
    assert rates == pytest.approx([rate * i / (count - 1) for i in range(count)])
    assert sum(isinstance(module, DropPath) for module in net.modules()) == (count - 1 if rate else 0)


def test_dropping_is_for_training_only() -> None:
    plain, dropping = tiny().eval(), tiny(drop_rate=0.5, drop_path_rate=0.5).eval()
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(plain(X_N3HW), dropping(X_N3HW))
    dropping.train()
    assert not torch.equal(dropping(X_N3HW), dropping(X_N3HW))
    assert dropping.head_drop.p == 0.5


def test_other_norms_and_activations_reach_every_place() -> None:
    net = tiny("bottle2neck", norm_layer=partial(nn.GroupNorm, 4), act_layer=nn.SiLU)
    kinds = [type(module) for module in net.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.ReLU not in kinds
    plain = [type(module) for module in tiny("bottle2neck").modules()]
    assert kinds.count(nn.GroupNorm) == plain.count(nn.BatchNorm2d)
    assert kinds.count(nn.SiLU) == plain.count(nn.ReLU)
    net.train()(X_N3HW[:1]).sum().backward()  # no batch norm: a batch of one trains
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_gets_a_gradient(block: str) -> None:
    net = tiny(block).train()
    net(X_N3HW).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def shapes() -> dict[str, dict[str, Any]]:
    with torch.device("meta"):
        return {name: {key: t.shape for key, t in build(name).state_dict().items()} for name in ("dla102x", "dla46x_c")}


def test_building_a_network_changes_no_other() -> None:
    before = shapes()
    with torch.device("meta"):
        for name in TABLE:
            build(name)
    assert shapes() == before
    channels = list(CHANNELS)
    net = DLA(list(LEVELS), channels, block="basic")
    net.channels[0] = 99
    assert channels == list(CHANNELS)


@pytest.mark.parametrize("block", BLOCKS)
def test_copies_give_the_same_numbers(block: str, tmp_path: Path) -> None:
    net = tiny(block, output_stride=16, drop_path_rate=0.1).eval()
    torch.save(net, tmp_path / "net.pt")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    again = tiny(block, output_stride=16)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(tmp_path / "net.pt", weights_only=False),
        again.eval(),
    ]
    for other in copies:
        assert torch.equal(other(X_N3HW), net(X_N3HW))


def test_device_and_dtype() -> None:
    net = tiny(device="meta", dtype=torch.float16)
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert {p.dtype for p in net.parameters()} == {torch.float16}
    with torch.device("meta"):
        assert tiny(drop_path_rate=0.1).fc.weight.is_meta


def test_reset_classifier_follows_the_network() -> None:
    net = tiny(dtype=torch.float64).eval()
    assert net.reset_classifier(3, "catavgmax") is net
    assert net.fc.weight.shape == (3, 64, 1, 1)
    assert net.fc.weight.dtype == torch.float64
    assert not any(module.training for module in net.modules())
    assert net(X_N3HW.double()).shape == (2, 3)
    with pytest.raises(UsageError, match="global_pool is 'mean'"):
        net.reset_classifier(4, "mean")
    assert (net.num_classes, net.fc.out_channels) == (3, 3)


@pytest.mark.parametrize("output_stride", [8, 32])
def test_intermediates_while_checkpointing(output_stride: int) -> None:
    plain = tiny(output_stride=output_stride).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    calls: list[nn.Module] = []
    saving.level3.tree1.tree1.tree1.conv1.register_forward_pre_hook(lambda module, _: calls.append(module))
    for net in (plain, saving):
        last, maps = net.forward_intermediates(X_N3HW, [1, 3], stop_early=True)
        assert last is maps[1]
        assert [64 // one.shape[2] for one in maps] == [net.feature_info[i]["reduction"] for i in (1, 3)]
        sum(one.square().mean() for one in maps).backward()
    assert len(calls) == 2
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


def test_a_pruned_network_trains_and_gets_another_classifier() -> None:
    net = tiny(global_pool="catavgmax").train()
    whole = sum(p.numel() for p in net.parameters())
    net.set_grad_checkpointing()
    assert net.prune_intermediate_layers([-3, 1]) == [3, 1]
    assert sum(p.numel() for p in net.parameters()) < whole
    assert (net.num_features, net.head_hidden_size, net.num_classes) == (16, 16, 0)
    assert net.reset_classifier(7, "catavgmax")(X_N3HW).shape == (2, 7)
    net(X_N3HW).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("indices", [0, 7, -1, [], [6], [-7], [0, 9]])
def test_levels_that_are_not_there(indices: Any) -> None:
    for method in ("forward_intermediates", "prune_intermediate_layers"):
        net = tiny()
        with pytest.raises(UsageError, match=r"^indices are .*Allowed: at least one level from 0 to 5 or -6 to -1, or"):
            getattr(net, method)(*[X_N3HW] * (method == "forward_intermediates"), indices=indices)
        assert net.num_classes == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 4}, "output_stride is 4. Allowed: 8, 16, 32"),
        ({"drop_rate": 1}, "drop_rate is 1. Allowed: from 0 to below 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1. Allowed: from 0 to below 1"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate is nan. Allowed: from 0 to below 1"),
        (
            {"global_pool": "mean"},
            f"global_pool is 'mean'. Allowed: {', '.join(map(repr, GLOBAL_POOLS))}",
        ),
        (
            {"block": "bottlneck"},
            "block is 'bottlneck'. Allowed: 'basic', 'bottleneck', 'bottleneck_x', 'bottle2neck', or a class",
        ),
        ({"levels": (1, 1, 2)}, "levels is (1, 1, 2). Allowed: six numbers from 1 up, one per level"),
        ({"levels": (1, 1, 0, 1, 1, 1)}, "levels is (1, 1, 0, 1, 1, 1). Allowed: six numbers from 1 up, one per level"),
        ({"channels": (8,) * 7}, f"channels is {(8,) * 7}. Allowed: six numbers from 1 up, one per level"),
    ],
)
def test_a_wrong_value_is_told_with_the_allowed_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        DLA(**{"levels": LEVELS, "channels": CHANNELS, "block": "basic"} | options)
    assert str(caught.value) == message


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="drop_paths_rate"):
        DLA(LEVELS, CHANNELS, drop_paths_rate=0.1)  # type: ignore[call-arg]
