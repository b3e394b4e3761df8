"""Parameter groups are timm's, and what an optimizer remembers comes back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import dla
from dla.models.build import build
from dla.training.model import freeze
from dla.training.optim import (
    build_optimizer,
    layer_ranks,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    set_rate,
)
from dla.training.recipe import OptimizerConfig, Recipe
from support.oracle import timm_part
from support.tiny import tiny


def by_name(network: nn.Module, groups: list[dict], scale: str) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: (g[scale], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", ["dla34", "dla102", "dla60_res2next"])
def test_layer_decay_is_timms(name: str) -> None:
    ours, theirs = build(name, num_classes=7), timm_part("models").create_model(name, num_classes=7)
    found = by_name(ours, parameter_groups(ours, 0.05, layer_decay=0.7), "scale")
    wanted = by_name(theirs, timm_part("optim").param_groups_layer_decay(theirs, 0.05, layer_decay=0.7), "lr_scale")
    assert found.keys() == wanted.keys()
    for key, (scale, decay) in wanted.items():
        assert found[key] == (pytest.approx(scale, rel=1e-12), decay)


def test_norms_and_biases_have_no_decay_unless_asked() -> None:
    network = tiny()
    found = by_name(network, parameter_groups(network, 0.1), "scale")
    for name, parameter in network.named_parameters():
        assert found[name] == (1.0, 0.1 if parameter.ndim > 1 else 0.0)
    assert {g["weight_decay"] for g in parameter_groups(network, 0.1, decay_norms=True)} == {0.1}


def test_the_classifier_has_the_whole_rate() -> None:
    network = tiny()
    ranks = layer_ranks(network)
    assert max(ranks.values()) == ranks["fc.weight"] == ranks["fc.bias"]
    assert ranks["base_layer.0.weight"] == 0
    optimizer = build_optimizer(network, Recipe(lr=0.5, optimizer=OptimizerConfig(layer_decay=0.5)))
    set_rate(optimizer, 0.2)
    rates = {g["lr"] for g in optimizer.param_groups}
    assert max(rates) == 0.2
    assert min(rates) == pytest.approx(0.2 * 0.5 ** ranks["fc.weight"])


def test_what_is_frozen_is_in_no_group() -> None:
    network = tiny()
    freeze(network, "level2")
    names = set(by_name(network, parameter_groups(network, 0.1), "scale"))
    assert names == {
        n for n, _ in network.named_parameters() if not n.startswith(("base", "level0", "level1", "level2"))
    }


ALL = {"weight_decay": 0.01, "decay_norms": True}


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        (OptimizerConfig(**ALL), partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
        (OptimizerConfig(**ALL, nesterov=False, momentum=0.5), partial(torch.optim.SGD, momentum=0.5)),
        (OptimizerConfig("adamw", **ALL, betas=(0.8, 0.9)), partial(torch.optim.AdamW, betas=(0.8, 0.9))),
    ],
)
def test_steps_are_pytorchs_and_go_on_from_a_saved_state(settings: OptimizerConfig, oracle: Any) -> None:
    recipe = Recipe(lr=0.01, optimizer=settings)
    ours, saved, theirs = (tiny() for _ in range(3))
    for other in (saved, theirs):
        other.load_state_dict(ours.state_dict())
    optimizers = {
        ours: build_optimizer(ours, recipe),
        saved: build_optimizer(saved, recipe),
        theirs: oracle(theirs.parameters(), lr=0.01, weight_decay=0.01),
    }
    for i in range(4):
        if i == 2:  # this one begins anew from what the first remembers
            saved.load_state_dict(ours.state_dict())
            state = {k: v.clone() for k, v in optimizer_state(optimizers[ours], ours).items()}
            load_optimizer_state(optimizers[saved], saved, state)
        gradients = [torch.randn_like(p) for p in ours.parameters()]
        for network, optimizer in optimizers.items():
            for p, g in zip(network.parameters(), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
    for a, b, c in zip(ours.parameters(), saved.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layer_decay": 0.0}, "above 0, up to 1"),
        ({"momentum": 0.0}, "nesterov needs optimizer.momentum"),
        ({"accumulate": 0}, "at least 1"),
        ({"clip_norm": -1}, "at least 0"),
    ],
)
def test_values_that_cannot_be(wrong: dict, said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        replace(OptimizerConfig(), **wrong)
