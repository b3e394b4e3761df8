"""A network for its maps alone: what timm's factory does not let through, our own options, wrong ones."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from dla.errors import UsageError
from dla.models.dla import DLA
from dla.models.feature_net import FeatureInfo, FeatureNet, features_of
from dla.weights.create import create_model
from support.oracle import randomise, timm
from support.tiny import tiny

X_N3HW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def maps(given: Any) -> list[torch.Tensor]:
    return list(given.values()) if isinstance(given, dict) else given


KINDS = ["list", "dict", "hook", "fx", "getter"]


@pytest.fixture(scope="module")
def net() -> DLA:
    torch.manual_seed(0)
    net = tiny().eval()
    randomise(net)
    return net


def both(ours: FeatureNet, theirs: nn.Module) -> tuple[Any, Any]:
    """Outputs with the same weights, which must fit both ways."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval()(X_N3HW), theirs.eval()(X_N3HW)


@pytest.mark.parametrize(
    "options", [{"flatten_sequential": True}, {"out_map": ["a", "b", "c"]}, {"output_fmt": "NCHW"}]
)
def test_a_dict_by_options_of_timms_wrapper(options: dict[str, Any]) -> None:
    theirs = timm.models.FeatureDictNet(timm.create_model("dla46x_c"), out_indices=(2, 3, 5), **options)
    ours = create_model("dla46x_c", features_only=True, feature_cls="dict", out_indices=(2, 3, 5), **options)
    found, expected = both(ours, theirs)
    assert list(found) == list(expected) == (options.get("out_map") or ["2", "3", "5"])
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_list_of_flattened_sequences() -> None:
    theirs = timm.models.FeatureListNet(timm.create_model("dla46x_c"), out_indices=(3,), flatten_sequential=True)
    ours = create_model("dla46x_c", features_only=True, out_indices=(3,), flatten_sequential=True, feature_concat=True)
    found, expected = both(ours, theirs)
    assert len(found) == len(expected) == 1
    assert torch.equal(found[0], expected[0])
    assert "level0_0" in ours


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_the_networks(net: DLA, kind: str) -> None:
    found = features_of(net, kind, out_indices=(0, 3))(X_N3HW)
    expected = net.forward_intermediates(X_N3HW, [0, 3], intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(maps(found), expected, strict=True))


def test_finer_maps_have_their_reductions() -> None:
    features = features_of(tiny(output_stride=8))
    sizes = [tuple(one.shape[2:]) for one in features(X_N3HW)]
    assert features.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert sizes == [(64 // r, 64 // r) for r in features.feature_info.reduction()]


@pytest.mark.parametrize(
    "options", [{}, {"feature_cls": "getter"}, {"flatten_sequential": True, "out_indices": (2, 5)}]
)
def test_checkpointing_gives_the_same_bits(options: dict[str, Any]) -> None:
    plain = features_of(tiny(drop_path_rate=0.2), **options)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    calls: list[nn.Module] = []
    for module in saving.modules():
        if type(module).__name__ == "Node":
            module.conv.register_forward_pre_hook(lambda module, _: calls.append(module))
    for net in (plain, saving):
        torch.manual_seed(4)
        sum(one.square().mean() for one in net.train()(X_N3HW)).backward()
    assert len(calls) == 2 * len(set(calls)) > 0
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_usual_module(net: DLA, kind: str) -> None:
    features = features_of(net, kind, out_indices=(2, 3))
    expected = features(X_N3HW)
    for other in (copy.deepcopy(features), pickle.loads(pickle.dumps(features))):
        found = other(X_N3HW)
        assert type(found) is type(expected)
        assert all(torch.equal(a, b) for a, b in zip(maps(found), maps(expected), strict=True))
    exported = torch.export.export(features, (X_N3HW,)).module()(X_N3HW)
    torch.testing.assert_close(exported, expected)


def test_info_is_a_copy(net: DLA) -> None:
    info = features_of(net).feature_info
    info[2]["num_chs"] = 7
    assert net.feature_info[2]["num_chs"] == 16
    assert isinstance(info, FeatureInfo)
    assert "index" not in net.feature_info[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_cls": "tree"}, "feature_cls is 'tree'. Allowed: 'list', 'dict', 'hook', 'fx', 'getter', or a class"),
        ({"output_fmt": "NHWC"}, "output_fmt is 'NHWC'. Allowed: 'NCHW'"),
        (
            {"out_map": ["a"] * 5},
            "out_map is ['a', 'a', 'a', 'a', 'a']. Allowed: a name for each map of feature_cls='dict'",
        ),
        (
            {"feature_cls": "dict", "out_map": ["a"]},
            "out_map is ['a']. Allowed: a name for each map of feature_cls='dict'",
        ),
        (
            {"flatten_sequential": True},
            "flatten_sequential is for feature_cls='list' or 'dict' and for levels from 2 on",
        ),
        (
            {"flatten_sequential": True, "feature_cls": "fx", "out_indices": (2,)},
            "flatten_sequential is for feature_cls='list' or 'dict' and for levels from 2 on",
        ),
        (
            {"out_indices": (1, 6)},
            (
                "indices are [1, 6]. "
                "Allowed: at least one level from 0 to 5 or -6 to -1, or a number of levels from 1 to 6"
            ),
        ),
        (
            {"out_indices": 0},
            "indices are []. Allowed: at least one level from 0 to 5 or -6 to -1, or a number of levels from 1 to 6",
        ),
    ],
)
def test_a_wrong_option_is_told_with_the_allowed_ones(net: DLA, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        features_of(net, **options)
    assert str(caught.value) == message


def test_an_option_without_features_only_is_unknown() -> None:
    with pytest.raises(TypeError, match=r"^dla46x_c has no option 'out_indices'"):
        create_model("dla46x_c", out_indices=(1, 2))
