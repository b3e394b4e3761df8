"""Names are a file format: the networks' tensors are called, shaped and ordered as timm's are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dla.models.build import build
from dla.models.dla import DLA
from dla.models.registry import TABLE
from support.oracle import timm
from support.recorded import recorded_shapes

RELEASED = [name for name, row in TABLE.items() if row.tag]

Pair = tuple[DLA, nn.Module]


@pytest.fixture(scope="module", params=RELEASED)
def pair(request: pytest.FixtureRequest) -> Pair:
    with torch.device("meta"):
        return build(request.param), timm.create_model(request.param, pretrained=False)


def shapes(named: object) -> list[tuple[str, list[int]]]:
    return [(name, list(tensor.shape)) for name, tensor in named]  # type: ignore[attr-defined]


def test_names_shapes_and_order_are_timms(pair: Pair) -> None:
    ours, theirs = pair
    assert shapes(ours.state_dict().items()) == shapes(theirs.state_dict().items())
    assert shapes(ours.named_parameters()) == shapes(theirs.named_parameters())


def test_names_shapes_and_order_are_the_recorded_ones(pair: Pair) -> None:
    ours, _ = pair
    recorded = recorded_shapes(f"timm-{ours.pretrained_cfg['architecture']}")
    assert shapes(ours.state_dict().items()) == [(name, list(shape)) for name, shape in recorded.items()]


def test_pretrained_cfg_is_timms(pair: Pair) -> None:
    ours, theirs = pair
    # timm's record leaves these three out
    assert set(ours.pretrained_cfg) - set(theirs.pretrained_cfg) == {"origin_url", "paper_name", "paper_ids"}
    for key in theirs.pretrained_cfg:
        assert ours.pretrained_cfg[key] == theirs.pretrained_cfg[key], key
    assert ours.default_cfg == ours.pretrained_cfg


def test_attributes_are_timms(pair: Pair) -> None:
    ours, theirs = pair
    for attribute in ("num_classes", "num_features", "head_hidden_size", "in_chans", "cardinality", "base_width"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert list(ours.channels) == list(theirs.channels)
    features = theirs.feature_info  # a list of dicts, or timm's wrapper around one
    assert ours.feature_info == (features if isinstance(features, list) else features.get_dicts())
