"""What a run would take: `dla train --dry-run`. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dla.data.store import Cache
from dla.engines.machine import peak_memory
from dla.recipes.schema import Recipe
from dla.verbs.train.memory import enough_memory
from dla.verbs.train.run import open_photos
from dla.verbs.train.setup import Means, Setup, set_up, with_photos

__all__ = ["Plan", "plan"]

STEPS, VAL_BATCHES = 3, 2
GENTLY = 1e-3  # of the learning rate: the steps are for their time, and should not run into numbers without end


@dataclass(frozen=True)
class Plan:
    """What a run would take, by a few real steps of each size of crop.

    `step_seconds` is by the side of the crops in pixels; `peak_bytes` is the process's, or on a GPU PyTorch's
    there, and None where the system does not say.
    """

    parameters: int
    learning: int
    train: int
    val: int
    classes: int
    steps_per_epoch: int
    epochs: int
    step_seconds: dict[int, float]
    val_seconds: float
    total_seconds: float
    peak_bytes: int | None


def plan(
    recipe: Recipe,
    *,
    workers: int = 2,
    device: str = "auto",
    cache: Cache = "none",
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Measure a few steps of the recipe on its photos. Arguments and errors are those of `train`."""
    recipe = with_photos(recipe, None)
    means = Means.named(workers, device, cache, say)
    splits = open_photos(recipe, means)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, means)
        sides = _sides(recipe, setup)
        seconds = {side: _step_seconds(setup, recipe, *first) for side, (first, _) in sides.items()}
        val_seconds = _val_seconds(setup)
    parameters = list(setup.fit.network.parameters())
    return Plan(
        parameters=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        train=len(splits.train),
        val=len(splits.val),
        classes=len(splits.train.class_ids),
        steps_per_epoch=setup.batches.steps,
        epochs=recipe.epochs,
        step_seconds=seconds,
        val_seconds=val_seconds,
        total_seconds=sum(seconds[side] * count for side, (_, count) in sides.items()) + recipe.epochs * val_seconds,
        peak_bytes=_peak(means.device),
    )


def _sides(recipe: Recipe, setup: Setup) -> dict[int, tuple[tuple[int, int], int]]:
    """For each side of the crops the first epoch and step that have it, and how many steps do."""
    own = min(setup.start.preprocessing.size)
    found: dict[int, tuple[tuple[int, int], int]] = {}
    for epoch in range(recipe.epochs):
        for step in range(setup.batches.steps):
            side = recipe.input.size_at(epoch, step, own)
            first, count = found.get(side, ((epoch, step), 0))
            found[side] = first, count + 1
    return found


def _step_seconds(setup: Setup, recipe: Recipe, epoch: int, step: int) -> float:
    """The median of some steps on this batch, after one that is not counted. Its making is not in it."""
    batch = next(setup.batches.epoch(epoch, step))
    times = []
    for _ in range(STEPS + 1):
        began = time.monotonic()
        setup.fit.step(batch, recipe.lr * GENTLY)
        times.append(time.monotonic() - began)
    return sorted(times[1:])[STEPS // 2]


def _val_seconds(setup: Setup) -> float:
    """An epoch's validation, from a part of it."""
    whole = setup.validation
    count = len(whole.targets_N)
    some = min(count, VAL_BATCHES * whole.batch_size)
    network = setup.fit.stored()
    began = time.monotonic()
    replace(whole, targets_N=whole.targets_N[:some]).logits(network, setup.fit, lambda: None)
    return (time.monotonic() - began) * count / some


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
