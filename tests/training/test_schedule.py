"""The learning rate goes as timm's schedulers have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dla.training.optim import learning_rate
from dla.training.recipe import Recipe, ScheduleConfig
from support.oracle import timm_part

EPOCHS, STEPS = 12, 5
TIMES = [epoch + step / STEPS for epoch in range(EPOCHS) for step in range(STEPS)]


def theirs(name: str, **options: Any) -> list[float]:
    """timm's rates at each step; it counts steps where we count epochs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = getattr(timm_part("scheduler"), name)(optimizer, t_in_epochs=False, **options)
    rates = []
    for i in range(len(TIMES)):
        scheduler.step_update(i)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def ours(schedule: ScheduleConfig) -> list[float]:
    recipe = Recipe(epochs=EPOCHS, lr=0.4, schedule=schedule)
    return [learning_rate(recipe, t) for t in TIMES]


def test_cosine() -> None:
    warm = {"warmup_t": 2 * STEPS, "warmup_lr_init": 0.1, "warmup_prefix": True}
    wanted = theirs("CosineLRScheduler", t_initial=(EPOCHS - 2) * STEPS, lr_min=0.02, **warm)
    assert ours(ScheduleConfig(warmup_epochs=2, warmup_from=0.25, end=0.05)) == pytest.approx(wanted, rel=1e-9)


def test_steps() -> None:
    wanted = theirs("StepLRScheduler", decay_t=3 * STEPS, decay_rate=0.1)
    assert ours(ScheduleConfig("steps", warmup_epochs=0, every=3)) == pytest.approx(wanted, rel=1e-9)


def test_constant_after_half_an_epoch() -> None:
    found = ours(ScheduleConfig("constant", warmup_epochs=0.6))
    assert found[:3] == pytest.approx([0, 0.4 / 3, 0.8 / 3])
    assert set(found[3:]) == {0.4}


def test_a_cosine_ends_where_it_should() -> None:
    assert learning_rate(Recipe(epochs=7, lr=0.4), 7) == pytest.approx(0, abs=1e-12)
    assert learning_rate(Recipe(epochs=7, lr=0.4, schedule=ScheduleConfig(end=0.5)), 7) == pytest.approx(0.2)
